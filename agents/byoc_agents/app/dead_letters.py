"""`byoc-agents dead-letters list | resend`: messages that a receiver rejected for good.

Works while the daemon runs: SQLite isolates the two processes, and a requeued message is sent
after the daemon's next one. This command never deletes a message.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.app.command_line import CommandParser
from byoc_agents.durable.model import DeadLetter
from byoc_agents.durable.store import SpoolStore
from byoc_agents.errors import SpoolError

STATE_DIR = "/var/lib/byoc-agents"  # BYOC_STATE_DIR's default
SUCCESS, NOT_FOUND, UNUSABLE = 0, 1, 2  # exit codes
ALL = "all"
UNBOUNDED = 1 << 62  # no limit: a requeued letter takes the same number of bytes


def main(argv: Sequence[str]) -> int:
    """Run the command. Return 0; 1 if a letter does not exist; 2 if the spool is unusable."""
    options = make_parser().parse_args(argv)
    try:
        if options.action == "list":
            return _list(options.state_dir, bodies=options.bodies)
        return _resend(options.state_dir, options.id)
    except SpoolError as error:
        sys.stderr.write(f"the spool cannot be used: {error}\n")
        return UNUSABLE


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    state_dir = os.environ.get("BYOC_STATE_DIR", STATE_DIR)
    parser = CommandParser(
        prog="byoc-agents dead-letters",
        description=__doc__,
        epilog="example: byoc-agents dead-letters resend all",
    )
    parser.add_argument("--state-dir", type=Path, default=Path(state_dir))
    actions = parser.add_subparsers(dest="action", required=True)
    listed = actions.add_parser("list", help="one JSON line each: daemon, id, type, reason, when")
    listed.add_argument("--bodies", action="store_true", help="include the body of each message")
    resent = actions.add_parser("resend", help="append to the queue again")
    resent.add_argument("id", nargs="+", help="ids from `list`, or `all`")
    return parser


def _spools(state_dir: Path) -> list[Path]:
    """Return the spool file of every daemon that has one, sorted by name."""
    return sorted(state_dir.glob("*/spool.db"))


def _list(state_dir: Path, *, bodies: bool) -> int:
    for path in _spools(state_dir):
        with closing(SpoolStore(path, max_bytes=UNBOUNDED)) as store:
            for letter in store.dead_letters():
                line = msgspec.json.encode(_describe(path.parent.name, letter, bodies=bodies))
                sys.stdout.write(line.decode() + "\n")
    return SUCCESS


def _describe(daemon: str, letter: DeadLetter, *, bodies: bool) -> dict[str, Any]:
    shown = {
        "daemon": daemon,
        "id": letter.message.id,
        "type": letter.message.type,
        "reason": letter.reason,
        "detail": letter.detail,
        "died_at": rfc3339(letter.died_at_ms),
        "bytes": len(letter.message.body),
    }
    text = letter.message.body.decode("utf-8", "backslashreplace")
    return shown | ({"body": text} if bodies else {})


def _resend(state_dir: Path, ids: Sequence[str]) -> int:
    missing = set(ids) - {ALL}
    for path in _spools(state_dir):
        with closing(SpoolStore(path, max_bytes=UNBOUNDED)) as store:
            there = [letter.message.id for letter in store.dead_letters()]
            wanted = [one for one in there if ALL in ids or one in missing]
            with store.transaction():
                for message_id in wanted:
                    store.requeue(message_id)
        missing -= set(wanted)
        sys.stdout.writelines(f"{path.parent.name} {one}\n" for one in wanted)
    sys.stderr.writelines(f"no dead letter {one}\n" for one in sorted(missing))
    return NOT_FOUND if missing else SUCCESS
