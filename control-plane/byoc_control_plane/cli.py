"""`byoc-control-plane COMMAND`: finds the command and runs it.

Exit codes: 0 success, 1 problems found, 2 bad usage or configuration.
"""

import sys
from collections.abc import Sequence

from byoc_agents.app import signals
from byoc_agents.app.program import Command, CommandModule, CommandProgram
from byoc_control_plane import __version__


def _run() -> CommandModule:
    from byoc_control_plane import run

    return run


def _compact() -> CommandModule:
    from byoc_control_plane import compact

    return compact


def _import() -> CommandModule:
    from byoc_control_plane import importer

    return importer


def _tenant() -> CommandModule:
    from byoc_control_plane import tenant

    return tenant


def _stack() -> CommandModule:
    from byoc_control_plane import stack

    return stack


def _schema() -> CommandModule:
    from byoc_control_plane import schema

    return schema


PROGRAM = CommandProgram(
    "byoc-control-plane",
    __version__,
    {
        "run": Command(
            "receive messages until SIGTERM; the settings are BYOC_PLANE_*",
            "byoc-control-plane run receiver consumer",
            _run,
        ),
        "compact": Command(
            "archive the billing objects of closed hours",
            "byoc-control-plane compact --shard 0/16",
            _compact,
        ),
        "import": Command(
            "store the exports of a customer without a way out, and write receipts",
            "byoc-control-plane import org-1 --key customer.pub --sign vendor-key.pem"
            " --receipts receipts export-*.byoc",
            _import,
        ),
        "tenant": Command(
            "add, rotate or remove a customer",
            "byoc-control-plane tenant rotate org-1 --registry registry --secrets org-1-new",
            _tenant,
        ),
        "stack": Command(
            "print bucket, queues and roles as a template, or compare an account with it",
            "byoc-control-plane stack --region eu-central-1 --bucket usage --queue state.fifo"
            " --owner 444455556666 --account 111122223333",
            _stack,
        ),
        "schema": Command(
            "print the SQL of the tables and views",
            "byoc-control-plane schema --engine replicated",
            _schema,
        ),
    },
    example="byoc-control-plane run receiver consumer",
)
COMMANDS = PROGRAM.commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    signals.install()
    return PROGRAM.main(sys.argv[1:] if argv is None else argv)
