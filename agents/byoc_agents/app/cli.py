"""`byoc-agents <command>`: dispatch only.

Exit codes: 0 well, 1 found something wrong, 2 bad usage or configuration.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import msgspec

from byoc_agents import __version__
from byoc_agents.errors import ConfigError

COMMANDS = {
    "run": "run one or more daemons in this process",
    "drain": "send what waits on disk, make nothing new, and end",
    "check-config": "print the effective settings, or every mistake",
    "verify": "audit a bucket or a directory of billing objects",
    "ledger": "show, verify or report what left this machine",
    "dead-letters": "list or send again what a receiver refused for good",
    "policy": "what may be reached, as a table and as policies others enforce",
    "version": "print the version",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch one command; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except ConfigError as error:
        for mistake in error.mistakes:
            print(mistake, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _dispatch(arguments: list[str]) -> int:  # noqa: PLR0911  one a command
    command, rest = (arguments or ["help"])[0], arguments[1:]
    match command:
        case "run" | "drain":
            from byoc_agents.app import run

            options = _daemons(command, rest, at_least="+")
            return run.main(options.daemon, options.config, only_drain=command == "drain")
        case "check-config":
            return _check_config(rest)
        case "verify":
            from byoc_agents import audit as verify

            return verify.main(rest)
        case "ledger":
            from byoc_agents import report as ledger_cli

            return ledger_cli.main(rest)
        case "dead-letters":
            from byoc_agents.app import dead_letters

            state_dir = os.environ.get("BYOC_STATE_DIR", dead_letters.STATE_DIR)
            return dead_letters.main(rest, state_dir)
        case "policy":
            from byoc_agents.policy import cli as policy_cli

            return policy_cli.main(rest)
        case "version":
            print(__version__)
            return 0
    return _help(command)


def _help(command: str) -> int:
    asked = command in {"help", "-h", "--help"}
    out = sys.stdout if asked else sys.stderr
    print("usage: byoc-agents <command> [--help]\n", file=out)
    for name, meaning in COMMANDS.items():
        print(f"  {name:14}{meaning}", file=out)
    return 0 if asked else 2


def _daemons(command: str, rest: list[str], at_least: str) -> argparse.Namespace:
    from byoc_agents.app.run import DAEMONS

    parser = argparse.ArgumentParser(prog=f"byoc-agents {command}")
    parser.add_argument("daemon", nargs=at_least, help=", ".join(DAEMONS))
    parser.add_argument("--config", metavar="FILE", help="YAML settings; the environment wins")
    return parser.parse_args(rest)


def _check_config(rest: list[str]) -> int:
    from byoc_agents.app import run

    options = _daemons("check-config", rest, at_least="*")
    found = run.configure(options.daemon or list(run.DAEMONS), os.environ, options.config)
    print(msgspec.json.format(msgspec.json.encode(found.described())).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
