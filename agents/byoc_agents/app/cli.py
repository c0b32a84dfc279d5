"""`byoc-agents COMMAND`: finds the command and runs it.

Exit codes: 0 success, 1 problems found, 2 bad usage or configuration.
"""

import sys

from byoc_agents.app import signals

if sys.argv[1:2] in (["run"], ["drain"]):  # before the imports that take time
    signals.install()

import argparse
import difflib
import os
from collections.abc import Sequence
from typing import NamedTuple

from byoc_agents import __version__
from byoc_agents.errors import ConfigError


class Command(NamedTuple):
    """A command's line in the list of commands, and an example of its use."""

    summary: str
    example: str


COMMANDS = {
    "run": Command(
        "run one or more daemons in this process",
        "byoc-agents run billing-scraper state-exporter --config /etc/byoc-agents/config.yaml",
    ),
    "drain": Command(
        "send all messages stored on disk, create no new ones, and exit",
        "byoc-agents drain billing-scraper",
    ),
    "check-config": Command(
        "print the effective settings, or all mistakes", "byoc-agents check-config billing-scraper"
    ),
    "verify": Command(
        "audit a bucket or a directory of billing objects",
        "byoc-agents verify s3://vendor-usage/v1/ --since 2026-11-23",
    ),
    "usage": Command(
        "print the CPU and memory of each service by day, used and allocated",
        "byoc-agents usage --since 2026-11-01 --html usage.html",
    ),
    "ledger": Command(
        "show, verify or report the data that left this machine",
        "byoc-agents ledger show --since 2026-11-23",
    ),
    "dead-letters": Command(
        "list or resend messages that a receiver rejected for good",
        "byoc-agents dead-letters list",
    ),
    "policy": Command(
        "print the allowed destinations, as a table or as a policy to enforce",
        "byoc-agents policy table billing-scraper",
    ),
    "alerts": Command(
        "preview which alerts of Prometheus rule files would leave, and what of them",
        "byoc-agents alerts preview rules/*.yaml",
    ),
    "access": Command(
        "approve, end and report access of the vendor's engineers",
        "byoc-agents access approve 0190a7c2 --for 30m --by anna",
    ),
    "completion": Command(
        "print a completion script for a shell",
        "byoc-agents completion bash > /etc/bash_completion.d/byoc-agents",
    ),
    "version": Command("print the version", "byoc-agents version"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except ConfigError as error:
        for mistake in error.mistakes:
            print(mistake, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _dispatch(arguments: list[str]) -> int:  # noqa: C901, PLR0911  one per command
    command, rest = (arguments or ["help"])[0], arguments[1:]
    match command:
        case "run" | "drain":
            from byoc_agents.app import run

            options = _parse_daemons(command, rest, at_least="+")
            return run.main(options.daemon, options.config, only_drain=command == "drain")
        case "check-config":
            return _check_config(rest)
        case "verify":
            from byoc_agents import audit

            return audit.main(rest)
        case "usage":
            from byoc_agents import usage

            return usage.main(rest)
        case "ledger":
            from byoc_agents import report

            return report.main(rest)
        case "dead-letters":
            from byoc_agents.app import dead_letters

            state_dir = os.environ.get("BYOC_STATE_DIR", dead_letters.STATE_DIR)
            return dead_letters.main(rest, state_dir)
        case "policy":
            from byoc_agents.policy import cli as policy

            return policy.main(rest)
        case "alerts":
            from byoc_agents.alerts import preview

            return preview.main(rest)
        case "access":
            from byoc_agents import access_commands

            return access_commands.main(rest)
        case "completion":
            from byoc_agents.app import completion

            return completion.main(rest)
        case "version" | "--version" | "-V":
            print(__version__)
            return 0
        case "help" | "-h" | "--help":
            return _dispatch([rest[0], "--help"]) if rest else _print_help()
    return _report_unknown(command)


def _print_help() -> int:
    print("usage: byoc-agents COMMAND [OPTIONS]\n\ncommands:")
    for name, command in COMMANDS.items():
        print(f"  {name:14}{command.summary}")
    print("\noptions:\n  --help        print this list\n  --version     print the version")
    print("\n`byoc-agents COMMAND --help` describes one command. For example:")
    print(f"  {COMMANDS['check-config'].example}")
    return 0


def _report_unknown(command: str) -> int:
    similar = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {similar[0]!r}?" if similar else "see `byoc-agents --help`"
    print(f"byoc-agents: unknown command {command!r}; {hint}", file=sys.stderr)
    return 2


def _parse_daemons(command: str, rest: list[str], at_least: str) -> argparse.Namespace:
    from byoc_agents.app.run import DAEMONS, OPTIONAL_DAEMONS

    parser = argparse.ArgumentParser(
        prog=f"byoc-agents {command}",
        description=f"{COMMANDS[command].summary.capitalize()}.",
        epilog=f"example: {COMMANDS[command].example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("daemon", nargs=at_least, help=", ".join([*DAEMONS, *OPTIONAL_DAEMONS]))
    parser.add_argument(
        "--config", metavar="FILE", help="YAML settings; environment variables take precedence"
    )
    return parser.parse_args(rest)


def _check_config(rest: list[str]) -> int:
    from byoc_agents.app import run

    options = _parse_daemons("check-config", rest, at_least="*")
    found = run.configure(options.daemon or list(run.DAEMONS), os.environ, options.config)
    print(found.text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
