"""`byoc-control-plane tenant add|rotate|remove`: the customers of this control plane.

`add` makes the credentials of a new organization and prints the values of the daemons' chart for
one of its services. `rotate` makes new credentials, and both are accepted until `rotate --finish`.
`remove` accepts nothing more of an organization and ends the supervision of its daemons.
"""

import argparse
import asyncio
import base64
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from byoc_agents.app.command_line import CommandParser
from byoc_agents.app.settings import load, name
from byoc_agents.billing.objects import DEFAULT_PREFIX
from byoc_agents.durable.files import sync_directory
from byoc_agents.errors import ConfigError
from byoc_agents.manifest import DuplicateKeyError, documents
from byoc_agents.policy.render import dump_yaml
from byoc_control_plane.cli import COMMANDS
from byoc_control_plane.registry import Registry, RegistryError, write_secret
from byoc_control_plane.settings import PlaneSettings, checked_argument
from byoc_control_plane.store import Store, StoreError, fetch_rows, open_store

TOKEN, SIGNING_SECRET = "token", "signing-secret"  # the files for the customer
SECRET_BYTES = 32  # of a token and of a signing secret, which may have 24 to 64
SECRET_NAME = "byoc-alerts"  # noqa: S105  of the Secret in Kubernetes, if the values name none
ROLE = r"arn:[\w-]+:iam::(\d{12}):role/\S+"
RETIRE = """\
INSERT INTO byoc_agents (organization_id, service_id, replica, daemon, retired_at)
SELECT organization_id, service_id, replica, daemon,
    greatest(now64(3), max(byoc_agents.last_seen))
FROM byoc_agents
WHERE organization_id = '{organization}'
GROUP BY organization_id, service_id, replica, daemon"""
SUPERVISED = """\
SELECT count() AS daemons FROM
(
    SELECT max(byoc_agents.last_seen) AS seen, max(byoc_agents.retired_at) AS retired
    FROM byoc_agents
    WHERE organization_id = '{organization}'
    GROUP BY organization_id, service_id, replica, daemon
)
WHERE seen > retired"""
TO_DELETE = """\
{organization}: {result}.
{daemons} of its daemons are not supervised any more.
{warning}Without BYOC_PLANE_SENDERS the consumer accepts its messages until its role may not send.
A message that arrives later supervises its daemon again: then run this command again.

Delete by hand, after the last bill:
- at the customer: the release of the chart, the role, and the Secret with the token
- the statements of its role in the policies of bucket and queue, or its --account
- its objects below {prefix}org={organization}/, with --tenants below
  {prefix}account=ACCOUNT/org={organization}/; archives have the records of all organizations
{user}- its rows:
{statements}
"""
SHARED_TOKEN = """\
The registry has a token without an organization, which may send for every customer: if this
customer has it, replace it.
"""  # noqa: S105  a message
DROP_USER = "- its user in ClickHouse: DROP USER IF EXISTS `{organization}`\n"
ADMINISTRATOR = "default"  # the first user of ClickHouse, which no customer is
TABLES = (
    *("byoc_usage", "byoc_state", "byoc_alerts", "byoc_agents", "byoc_replicas", "byoc_grants"),
    *("byoc_progress", "byoc_usage_rejected"),
)


STEPS = {  # step -> (summary, example)
    "add": (
        "accept an organization; print the values of a service",
        "byoc-control-plane tenant add org-1 --service svc-1 --registry registry --secrets org-1",
    ),
    "rotate": (
        "make new credentials, and accept both",
        "byoc-control-plane tenant rotate org-1 --registry registry --finish",
    ),
    "remove": (
        "accept nothing more, and end the supervision",
        "byoc-control-plane tenant remove org-1 --registry registry",
    ),
}


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    tenant = COMMANDS["tenant"].parser()
    steps = tenant.add_subparsers(dest="step", required=True)
    add, rotate, remove = (
        steps.add_parser(
            step,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example: {example}",
        )
        for step, (summary, example) in STEPS.items()
    )
    for parser in (add, rotate, remove):
        parser.add_argument("organization", type=checked_argument(name))
        parser.add_argument(
            "--registry", type=Path, required=True, metavar="DIRECTORY",
            help="with the files tokens, signing-secrets and senders",
        )  # fmt: skip
    for parser in (add, rotate):
        parser.add_argument(
            "--secrets", type=Path, metavar="DIRECTORY",
            help="gets the files token and signing-secret, for the customer",
        )  # fmt: skip
    add.add_argument(
        "--service", required=True, type=checked_argument(name), help="the id of a service"
    )
    add.add_argument("--values", type=Path, metavar="FILE", help="values that are the same for all")
    add.add_argument("--role", type=checked_argument(_role), metavar="ARN", help="of the pods")
    add.add_argument(
        "--sender", type=checked_argument(name), metavar="ID",
        help="the unique id of the role, AROA...: it may send to the queue",
    )  # fmt: skip
    add.add_argument(
        "--tenants", action="store_true", help="the bucket has the policy of `policy --tenants`"
    )
    ends = rotate.add_mutually_exclusive_group()
    ends.add_argument("--finish", action="store_true", help="accept only the new credentials")
    ends.add_argument("--cancel", action="store_true", help="accept only the old credentials")
    return tenant


def main(argv: Sequence[str]) -> int:
    """Run one step; return the exit code. Raises ConfigError."""
    asked = make_parser().parse_args(argv)
    registry = Registry(asked.registry)
    try:
        match asked.step:
            case "add":
                return _add(registry, asked)
            case "rotate":
                return _rotate(registry, asked)
        (plane,) = load([PlaneSettings], os.environ, {})
        return asyncio.run(_remove(registry, asked.organization, plane))
    except RegistryError as error:
        raise ConfigError([str(error)]) from error
    except FileExistsError as error:
        why = f"{error.filename} exists: expected a directory without token and signing-secret"
        why += " (those of a run that was interrupted are accepted nowhere: delete them)"
        raise ConfigError([f"--secrets: {why}"]) from error
    except OSError as error:
        why = f"{error.filename or asked.registry}: {error.strerror}"
        raise ConfigError([f"{why}: expected writable directories and a readable file"]) from error


def _add(registry: Registry, asked: argparse.Namespace) -> int:
    values = _values(asked)  # before anything is changed
    with registry.locked(create=True):
        known = registry.has(asked.organization)
        if known and asked.secrets and not _are_accepted(registry, asked):
            raise RegistryError(
                f"{asked.organization}: has credentials: expected no --secrets to print the"
                f" values of a service, or `tenant rotate {asked.organization}`"
            )
        if asked.sender:
            registry.check_sender(asked.organization, asked.sender)
        made = None if known else _write_credentials(asked)
        # Before the credentials: while there are none, the same command completes the step.
        if asked.sender:
            registry.add_sender(asked.organization, asked.sender)
        if made:
            registry.add_credentials(asked.organization, *made)
    sys.stdout.write(values)
    return 0


def _rotate(registry: Registry, asked: argparse.Namespace) -> int:
    with registry.locked():
        if not registry.has(asked.organization):
            raise RegistryError(f"{asked.organization}: is unknown: expected `tenant add` first")
        if asked.secrets and (asked.finish or asked.cancel):
            raise RegistryError("--secrets: expected neither --finish nor --cancel with it")
        if asked.finish:
            registry.finish_rotation(asked.organization)
        elif asked.cancel:
            registry.cancel_rotation(asked.organization)
        elif not registry.has_rotation(asked.organization):
            registry.add_credentials(asked.organization, *_write_credentials(asked))
        elif not _are_accepted(registry, asked):
            registry.add_credentials(asked.organization, "", "")  # raises
    return 0


def _are_accepted(registry: Registry, asked: argparse.Namespace) -> bool:
    """Return whether --secrets has the newest credentials, so the step is done; state it if so."""
    if asked.secrets is None:
        return False
    try:
        found = [(asked.secrets / name).read_text() for name in (TOKEN, SIGNING_SECRET)]
    except (OSError, UnicodeDecodeError):
        return False
    if not registry.is_newest(asked.organization, *found):
        return False
    sys.stderr.write(f"{asked.organization}: the credentials in {asked.secrets} are accepted\n")
    return True


def _write_credentials(asked: argparse.Namespace) -> tuple[str, str]:
    """Write a new token and signing secret for the customer: none is accepted that is lost."""
    if asked.secrets is None:
        raise RegistryError("--secrets: is required: a directory for the new credentials")
    token = secrets.token_urlsafe(SECRET_BYTES)
    signing_secret = f"whsec_{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}"
    asked.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Without a line end: the customer puts the files into a Secret as they are.
    write_secret(asked.secrets / TOKEN, token)
    write_secret(asked.secrets / SIGNING_SECRET, signing_secret)
    sync_directory(asked.secrets)
    return token, signing_secret


def _values(asked: argparse.Namespace) -> str:
    """Return the values file. Raises ConfigError."""
    values: dict[str, Any] = _read_values(asked.values) if asked.values else {}
    values |= {"organizationId": asked.organization, "serviceId": asked.service}
    if asked.role:
        _section(values, "aws")["roleArn"] = asked.role
    _section(values, "alertForwarder").setdefault("secretName", SECRET_NAME)
    if asked.tenants:
        if not asked.role:
            raise ConfigError(["--tenants: expected --role: its account is part of the prefix"])
        settings = _section(_section(values, "billingScraper"), "settings")
        prefix = settings.get("BYOC_BILLING_PREFIX", DEFAULT_PREFIX).rstrip("/")
        account = _role(asked.role)
        settings["BYOC_BILLING_PREFIX"] = f"{prefix}/account={account}/".lstrip("/")
    head = f"# Values of the chart byoc-agents for {asked.organization}, service {asked.service}.\n"
    return head + dump_yaml(values, width=96)


def _read_values(path: Path) -> dict[str, Any]:
    wanted = "the values of a chart"
    try:
        found = documents(path.read_text(), f"--values {path}", wanted)
    except OSError as error:
        raise ConfigError([f"--values {path}: {error.strerror}: expected {wanted}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"--values {path}: is not UTF-8: expected {wanted}"]) from error
    except DuplicateKeyError as error:
        raise ConfigError([f"--values {path}: {error}: expected {wanted}"]) from error
    if len(found) != 1 or not isinstance(found[0], dict):
        raise ConfigError([f"--values {path}: expected one mapping of values"])
    return found[0]


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.setdefault(key, {})
    if not isinstance(found, dict):
        raise ConfigError([f"--values: {key}: invalid value {found!r}: expected a mapping"])
    return found


async def _remove(registry: Registry, organization: str, plane: PlaneSettings) -> int:
    # The store is opened before anything is changed: chdb may not be installed.
    async with open_store(plane.store_url, plane.store_password) as store:
        with registry.locked():
            removed = registry.remove(organization)
            shared = registry.has("")  # a line without an organization
        result = (
            f"its lines in the registry are removed ({removed}), so its own credentials are refused"
            if removed
            else "had no credentials in this registry, so nothing was removed there"
        )
        try:
            daemons = await retire(store, organization)
        except StoreError as error:
            sys.stderr.write(
                f"{organization}: {result}, but its daemons are still supervised: {error}:"
                " expected ClickHouse at BYOC_PLANE_STORE_URL; run the command again\n"
            )
            return 1
    user = "" if organization == ADMINISTRATOR else DROP_USER.format(organization=organization)
    statements = "\n".join(
        f"  ALTER TABLE {table} DELETE WHERE organization_id = '{organization}';"
        for table in TABLES
    )
    sys.stdout.write(
        TO_DELETE.format(
            organization=organization,
            result=result,
            daemons=daemons,
            warning=SHARED_TOKEN if shared else "",
            prefix=DEFAULT_PREFIX,
            user=user,
            statements=statements,
        )
    )
    return 0


async def retire(store: Store, organization: str) -> int:
    """End the supervision of an organization's daemons; return their number. Raises StoreError.

    `organization` is a name that the settings accept, which has no quotes.
    """
    (found,) = await fetch_rows(store, SUPERVISED.format(organization=name(organization)))
    await store.run(RETIRE.format(organization=name(organization)))
    return int(found["daemons"])


def _role(text: str) -> str:
    """Return the account of a role. Raises ValueError."""
    match = re.fullmatch(ROLE, text, re.ASCII)
    if not match:
        raise ValueError("not arn:aws:iam::111122223333:role/NAME")
    return match[1]
