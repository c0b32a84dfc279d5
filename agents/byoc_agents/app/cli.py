"""`byoc-agents COMMAND`: finds the command and runs it.

Exit codes: 0 success, 1 problems found, 2 bad usage or configuration.
"""

import sys

from byoc_agents.app import signals

if sys.argv[1:2] in (["run"], ["drain"]):  # before the imports that take time and memory
    signals.install()
    from byoc_agents.app import deferred_imports

    deferred_imports.install()

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from byoc_agents import __version__
from byoc_agents.app.program import Command, CommandModule, CommandProgram
from byoc_agents.errors import ConfigError

if TYPE_CHECKING:
    from byoc_agents.app.command_line import CommandParser


class _Daemons:
    """`run`, `drain` and `check-config`: commands with names of daemons."""

    def __init__(self, name: str) -> None:
        self._name = name

    def make_parser(self) -> "CommandParser":
        from byoc_agents.app.run import DAEMONS, OPTIONAL_DAEMONS

        names = (*DAEMONS, *OPTIONAL_DAEMONS)
        parser = COMMANDS[self._name].parser()
        parser.add_argument(
            "daemon",
            nargs="*" if self._name == "check-config" else "+",
            choices=names,
            metavar="daemon",
            help=", ".join(names),
        )
        parser.add_argument(
            "--config", metavar="FILE", help="YAML settings; environment variables take precedence"
        )
        return parser

    def main(self, argv: Sequence[str]) -> int:
        from byoc_agents.app import run

        names, config = self._parse(argv)
        if self._name == "check-config":
            found = run.configure(names or list(run.DAEMONS), os.environ, config)
            run.check_files(found)
            sys.stdout.write(found.text())
            return 0
        return run.main(names, config, only_drain=self._name == "drain")

    def _parse(self, argv: Sequence[str]) -> tuple[list[str], str | None]:
        """Return the daemons and the file of settings.

        `NAME... [--config FILE]` needs no argparse, which a daemon would keep in memory: 0.4 MiB.
        """
        from byoc_agents.app.run import DAEMONS, OPTIONAL_DAEMONS

        names, config = list(argv), None
        if names[-2:-1] == ["--config"] and not names[-1].startswith("-"):
            config = names[-1]
            del names[-2:]
        if names and all(name in DAEMONS or name in OPTIONAL_DAEMONS for name in names):
            return names, config
        options = self.make_parser().parse_args(argv)
        return options.daemon, options.config


def _verify() -> CommandModule:
    from byoc_agents.audit import cli

    return cli


def _usage() -> CommandModule:
    from byoc_agents.usage import cli

    return cli


def _ledger() -> CommandModule:
    from byoc_agents.report import cli

    return cli


def _dead_letters() -> CommandModule:
    from byoc_agents.app import dead_letters

    return dead_letters


def _export() -> CommandModule:
    from byoc_agents.airgap.cli import EXPORT

    return EXPORT


def _import_receipts() -> CommandModule:
    from byoc_agents.airgap.cli import IMPORT

    return IMPORT


def _policy() -> CommandModule:
    from byoc_agents.policy import cli

    return cli


def _alerts() -> CommandModule:
    from byoc_agents.alerts import preview

    return preview


def _access() -> CommandModule:
    try:
        from byoc_agents.access_commands import cli
    except ModuleNotFoundError as error:
        mistake = f"byoc-agents access: {error.name} is missing: expected the image access-broker"
        raise ConfigError([mistake]) from error
    return cli


OWN = {
    "run": Command(
        "run one or more daemons in this process",
        "byoc-agents run billing-scraper state-exporter --config /etc/byoc-agents/config.yaml",
        lambda: _Daemons("run"),
    ),
    "drain": Command(
        "send all messages stored on disk, create no new ones, and exit",
        "byoc-agents drain billing-scraper",
        lambda: _Daemons("drain"),
    ),
    "check-config": Command(
        "print the effective settings, or all mistakes",
        "byoc-agents check-config billing-scraper",
        lambda: _Daemons("check-config"),
    ),
    "verify": Command(
        "audit a bucket or a directory of billing objects",
        "byoc-agents verify s3://vendor-usage/v1/ --since 2026-11-23",
        _verify,
    ),
    "usage": Command(
        "print the CPU and memory of each service by day, used and allocated",
        "byoc-agents usage --since 2026-11-01 --html usage.html",
        _usage,
    ),
    "ledger": Command(
        "show, verify or report the data that left this machine",
        "byoc-agents ledger show --since 2026-11-23",
        _ledger,
    ),
    "dead-letters": Command(
        "list or resend messages that a receiver rejected for good",
        "byoc-agents dead-letters list",
        _dead_letters,
    ),
    "export": Command(
        "write the messages in the spools into signed files, for a network without a way out",
        "byoc-agents export --key export-key.pem --output /media/usb",
        _export,
    ),
    "import-receipts": Command(
        "remove from the spools what the receiver's receipts confirm",
        "byoc-agents import-receipts --key vendor.pub receipt-*.byoc",
        _import_receipts,
    ),
    "policy": Command(
        "print the allowed destinations, as a table or as a policy to enforce",
        "byoc-agents policy table billing-scraper",
        _policy,
    ),
    "alerts": Command(
        "preview which alerts of Prometheus rule files would leave, and what of them",
        "byoc-agents alerts preview rules/*.yaml",
        _alerts,
    ),
    "access": Command(
        "approve, end and report access of the vendor's engineers",
        "byoc-agents access approve 0190a7c2 --for 30m --by anna",
        _access,
    ),
}
PROGRAM = CommandProgram("byoc-agents", __version__, OWN, example=OWN["check-config"].example)
COMMANDS = PROGRAM.commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    return PROGRAM.main(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
