"""`byoc-agents policy eks-endpoint` and `policy ingress`: judge files that others have made.

They need no settings, and print nothing but findings.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from byoc_agents.app.command_line import CommandParser
from byoc_agents.errors import ConfigError
from byoc_agents.manifest import DuplicateKeyError, documents
from byoc_agents.policy import eks, ingress
from byoc_agents.policy.drift import PolicyFinding
from byoc_agents.policy.render import findings_json
from byoc_agents.policy.widths import Network, find_width_problem

Judged = tuple[list[PolicyFinding], list[str]]
_OUTPUTS = "the outputs of aws eks describe-access-entry and list-associated-access-policies"
CODES = """\
exit codes: 0 = no finding; 1 = findings; 2 = a mistake in the options, or an unreadable file

example: """


@dataclass(frozen=True, slots=True)
class AccountCheck:
    """One command."""

    judge: Callable[[argparse.Namespace], Judged]
    meaning: str
    example: str


def main(argv: Sequence[str]) -> int:
    """Print the findings about a file; return 1 if there are any, else 0. Raises ConfigError."""
    name = argv[0]
    asked = make_parser(name).parse_args(argv[1:])
    found, notes = ACCOUNT_CHECKS[name].judge(asked)
    if asked.json:
        sys.stdout.write(findings_json(name, asked.check, found, notes=notes))
    else:
        sys.stdout.write("".join(f"{finding}\n" for finding in found))
        sys.stderr.write("".join(f"note: {note}\n" for note in notes))
    return 1 if found else 0


def _judge_eks(asked: argparse.Namespace) -> Judged:
    vendor = eks.Vendor(_account(asked.vendor_account), tuple(map(_network, asked.vendor_cidr)))
    if problem := find_width_problem(vendor.networks):
        raise ConfigError([f"--vendor-cidr: {problem}: expected the vendor's networks"])
    try:
        cluster = eks.parse_cluster(_read(asked.check, "--check"))
    except (ValueError, RecursionError) as error:  # msgspec's and json's errors too
        raise ConfigError(
            [f"--check {asked.check}: {error}: expected the output of aws eks describe-cluster"]
        ) from error
    if vendor.account == eks.account_of(cluster.arn):
        problem = f"--vendor-account: {vendor.account} is the cluster's own account"
        raise ConfigError([f"{problem}: expected the vendor's"])
    found, notes = eks.judge_endpoint(cluster, vendor)
    if not asked.access_entries:
        return found, [*notes, "no --access-entries: who may log in is not judged"]
    try:
        outputs = eks.parse_entries(_read(asked.access_entries, "--access-entries"))
    except (ValueError, RecursionError) as error:  # msgspec's and json's errors too
        raise ConfigError(
            [f"--access-entries {asked.access_entries}: {error}: expected {_OUTPUTS}"]
        ) from error
    if not any(eks.is_of(output, vendor) for output in outputs):
        notes.append("no entry of the vendor's account is in --access-entries")
    return found + eks.judge_entries(outputs, cluster, vendor), notes


def _judge_ingress(asked: argparse.Namespace) -> Judged:
    text = _read(asked.check, "--check")
    try:
        given = documents(text, f"--check {asked.check}")
    except DuplicateKeyError as error:
        return [PolicyFinding(asked.check, str(error), "each key once")], []
    if not any(isinstance(one, Mapping) and one.get("kind") for one in given):
        raise ConfigError([f"--check {asked.check}: no object with a kind: expected manifests"])
    accepted = frozenset(asked.accept)
    notes = [f"{name} is not judged, as --accept says" for name in sorted(accepted)]
    return ingress.judge(given, accepted), notes


ACCOUNT_CHECKS = {
    "eks-endpoint": AccountCheck(
        _judge_eks,
        "judge the API endpoint of an EKS cluster and the vendor's access entries",
        "byoc-agents policy eks-endpoint --check cluster.json --access-entries entries.json"
        " --vendor-account 111122223333 --vendor-cidr 198.51.100.0/24",
    ),
    "ingress": AccountCheck(
        _judge_ingress,
        "judge rendered manifests that open ClickHouse to clients",
        "byoc-agents policy ingress --check rendered.yaml",
    ),
}


def make_parser(name: str) -> CommandParser:
    """Return the parser of one command."""
    check = ACCOUNT_CHECKS[name]
    parser = CommandParser(
        prog=f"byoc-agents policy {name}",
        description=f"{check.meaning[0].upper()}{check.meaning[1:]}.",
        epilog=CODES + check.example,
    )
    parser.add_argument("--check", metavar="FILE", required=True, help="- reads standard input")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    if name == "ingress":
        parser.add_argument(
            "--accept",
            metavar="KIND/NAME",
            action="append",
            default=[],
            help="an object of an unknown kind that opens nothing; may be repeated",
        )
    if name == "eks-endpoint":
        parser.add_argument(
            "--access-entries",
            metavar="FILE",
            default="",
            help="outputs of describe-access-entry and list-associated-access-policies",
        )
        parser.add_argument(
            "--vendor-account", metavar="ID", required=True, help="12 digits, the vendor's account"
        )
        parser.add_argument(
            "--vendor-cidr",
            metavar="CIDR",
            action="append",
            default=[],
            help="a network from which the vendor may use the public endpoint; may be repeated",
        )
    return parser


def _read(path: str, flag: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, ValueError) as error:
        raise ConfigError([f"{flag} {path}: cannot be read ({type(error).__name__})"]) from error


def _account(text: str) -> str:
    if not re.fullmatch(r"\d{12}", text, re.ASCII):
        raise ConfigError([f"--vendor-account: invalid value {text!r}: expected 12 digits"])
    return text


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigError(
            [f"--vendor-cidr: invalid value {text!r}: expected a network, e.g. 198.51.100.0/24"]
        ) from error
