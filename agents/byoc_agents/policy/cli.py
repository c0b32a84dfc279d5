"""`byoc-agents policy`: reads the settings, renders a policy, or compares one with a manifest."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from byoc_agents.alerts.daemon import Settings as AlertsSettings
from byoc_agents.app.run import DAEMONS, Configuration, configure
from byoc_agents.billing.daemon import Settings as BillingSettings
from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.regions import partition, sqs_region
from byoc_agents.errors import ConfigError
from byoc_agents.policy import aws as amazon
from byoc_agents.policy import cilium, kubernetes, table
from byoc_agents.policy import nftables as rules
from byoc_agents.policy.drift import differences, matching, others_of_kind
from byoc_agents.policy.inputs import Facts, Listener, Objects, Options, Rendered
from byoc_agents.policy.render import documents, printed
from byoc_agents.state.daemon import Settings as StateSettings


@dataclass(frozen=True, slots=True)
class PolicyCommand:
    """One kind of policy."""

    render: Callable[[Facts, Options], Rendered]
    form: str  # the usual one
    meaning: str


COMMANDS = {
    "table": PolicyCommand(table.destinations_table, "text", "every destination"),
    "networkpolicy": PolicyCommand(kubernetes.network_policy, "yaml", "Kubernetes NetworkPolicy"),
    "cilium": PolicyCommand(cilium.cilium_policy, "yaml", "CiliumNetworkPolicy: names too"),
    "iam": PolicyCommand(
        amazon.iam_policy, "json", "the role's permissions; --trust: who may take it"
    ),
    "bucket-policy": PolicyCommand(amazon.bucket_policy, "json", "the vendor's bucket"),
    "endpoint-policy": PolicyCommand(amazon.endpoint_policy, "json", "the gateway endpoint of S3"),
    "egress-rules": PolicyCommand(rules.egress_rules, "text", "nftables; json: security group"),
}
# Policies contain no secrets, so none are needed to render them.
STAND_INS = {
    "BYOC_ALERTS_TOKEN": "none",
    "BYOC_ALERTS_SIGNING_SECRET": "whsec_" + "A" * 32,
    "BYOC_ALERTS_WEBHOOK_TOKEN": "none",
    "BYOC_ALERTS_FINGERPRINT_SECRET": "0" * 32,
    "BYOC_CLICKHOUSE_PASSWORD": "none",
}
IDENTITIES = {  # the variables that EKS sets in a pod
    "irsa": {
        "AWS_ROLE_ARN": "role",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "token",
    },
    "pod-identity": {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials",
    },
    "keys": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"},
}
OWN_IDENTITY = frozenset(
    {
        *(name for variables in IDENTITIES.values() for name in variables),
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    }
)


def main(argv: Sequence[str]) -> int:
    """Print a policy, or with --check the differences; return 1 if there are any, else 0.

    Raises ConfigError.
    """
    asked = _parser().parse_args(argv)
    facts = facts_of(_configure(asked))
    rendered = COMMANDS[asked.command].render(facts, _options(asked))
    if asked.check:
        return _check(rendered, asked.check)
    text, notes = printed(rendered, asked.format or COMMANDS[asked.command].form)
    sys.stdout.write(text)
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
    return 0


def facts_of(configuration: Configuration) -> Facts:
    """Return the facts of a configuration that policies need. Raises ConfigError."""
    core = configuration.core
    proxy = core.https_proxy and https_destination(
        re.sub(r"//[^/@]*@", "//", core.https_proxy),  # without its password
        purpose="the only proxy",
        setting="BYOC_HTTPS_PROXY",
    )
    agents = tuple(configuration.daemons)
    listeners = [Listener("+".join(agents), "metrics", *core.listen, "BYOC_LISTEN")]
    objects, queue = None, ""
    for settings in configuration.daemons.values():
        if isinstance(settings, BillingSettings) and not settings.bucket.startswith("file:"):
            objects = _objects(configuration, settings)
        elif isinstance(settings, StateSettings) and not settings.queue_url.startswith("file:"):
            queue = queue_arn(settings.queue_url, core.region)
        elif isinstance(settings, AlertsSettings):
            webhook = ("alert-forwarder", "webhook", *settings.listen, "BYOC_ALERTS_LISTEN")
            listeners.append(Listener(*webhook))
    return Facts(
        agents=agents,
        region=core.region,
        destinations=configuration.destinations,
        proxy=proxy or None,
        listeners=tuple(listeners),
        objects=objects,
        queue_arn=queue,
    )


def queue_arn(queue_url: str, region: str) -> str:
    """Return a queue's ARN: the host names the region, else it is `region`."""
    parts = urlsplit(queue_url)
    region = sqs_region(parts.hostname or "") or region
    account, _, name = parts.path.strip("/").rpartition("/")
    if not re.fullmatch(r"[0-9]{12}", account):  # a queue that is not AWS's
        account = "<ACCOUNT>"
    return f"arn:{partition(region)}:sqs:{region}:{account}:{name}"


def _objects(configuration: Configuration, own: BillingSettings) -> Objects:
    core = configuration.core
    start = f"{own.prefix.rstrip('/')}/" if own.prefix else ""  # as billing/objects.py
    folder = f"{start}org={core.organization_id}/service={core.service_id}/"
    return Objects(own.bucket, folder, own.bucket_owner)


def _configure(asked: argparse.Namespace) -> Configuration:
    environ = _as_in_the_pod(os.environ, asked.identity) | STAND_INS
    return configure(asked.daemon or list(DAEMONS), environ, asked.config or None)


def _as_in_the_pod(environ: Mapping[str, str], identity: str) -> dict[str, str]:
    """Return the variables with the AWS identity of the pod instead of this process's."""
    if identity == "environment":
        return dict(environ)
    others = {name: text for name, text in environ.items() if name not in OWN_IDENTITY}
    return others | IDENTITIES[identity]


def _check(rendered: Rendered, path: str) -> int:
    try:
        given = documents(Path(path).read_text(), path)
    except (OSError, ValueError) as error:
        raise ConfigError([f"--check {path}: cannot be read ({type(error).__name__})"]) from error
    if open_points := sorted(set(re.findall(r"<[A-Z_]+>", str(rendered.document)))):
        raise ConfigError([f"--check: expected options for {', '.join(open_points)}"])
    document = matching(rendered.document, given)
    if document is None:
        sys.stdout.write(f"{path}: holds no such policy, or several of another name\n")
        return 1
    for other in others_of_kind(document, given):
        sys.stderr.write(f"note: {other} is there too, and policies add up\n")
    found = differences(rendered.document, document)
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


def _options(asked: argparse.Namespace) -> Options:
    cidrs: dict[str, tuple[str, ...]] = {}
    for name, cidr in asked.cidr:
        cidrs[name] = (*cidrs.get(name, ()), _cidr(cidr))
    usual = Options()
    return Options(
        namespace=asked.namespace,
        pod=dict(asked.pod) or usual.pod,
        cidrs=cidrs,
        dns=tuple(map(_cidr, asked.dns)),
        prometheus=asked.prometheus or usual.prometheus,
        alertmanager=asked.alertmanager or usual.alertmanager,
        role=asked.role,
        vpce=asked.vpce,
        kms_key=asked.kms_key,
        trust=asked.trust,
        oidc_provider=asked.oidc_provider.removeprefix("https://"),
        service_account=asked.service_account,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="byoc-agents policy",
        description="Print a policy made from the settings, or compare one with a manifest.",
        epilog="example: byoc-agents policy networkpolicy billing-scraper --check policy.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    meanings = "; ".join(f"{name}: {command.meaning}" for name, command in COMMANDS.items())
    parser.add_argument("command", choices=COMMANDS, help=meanings)
    parser.add_argument("daemon", nargs="*", help=f"{', '.join(DAEMONS)}; none = all")
    for flag, metavar, meaning in (
        ("--config", "FILE", "YAML settings; the environment wins"),
        ("--check", "MANIFEST", "print how a manifest differs; exit code 1 if it does"),
        ("--namespace", "NAME", "of the manifest"),
        ("--prometheus", "NAMESPACE[/LABEL=VALUE]", "pods that may scrape, if that port is open"),
        ("--alertmanager", "NAMESPACE[/LABEL=VALUE]", "pods that may notify, if that port is open"),
        ("--role", "ARN", "the customer's role"),
        ("--vpce", "ID", "the gateway endpoint of S3"),
        ("--kms-key", "ARN", "the customer-managed key of bucket and queue, if there is one"),
        ("--oidc-provider", "HOST/PATH", "the cluster's, for --trust irsa"),
        ("--service-account", "NAMESPACE/NAME", "the pod's, for --trust"),
    ):
        parser.add_argument(flag, metavar=metavar, default="", help=meaning)
    _add_choices(parser)
    return parser


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("text", "json", "markdown", "yaml"), default="")
    parser.add_argument(
        "--json", action="store_const", const="json", dest="format", help="same as --format json"
    )
    parser.add_argument("--trust", choices=("irsa", "pod-identity"), default="")
    parser.add_argument(
        "--identity",
        choices=("environment", *IDENTITIES),
        default="environment",
        help="where the pod's AWS credentials come from; environment = as set here",
    )
    for flag, metavar, meaning in (
        ("--pod", "LABEL=VALUE", "the pods' labels; may be repeated"),
        ("--cidr", "NAME=CIDR", "addresses of a host, or of s3, sqs, sts, control-plane, proxy"),
    ):
        parser.add_argument(
            flag, metavar=metavar, action="append", default=[], type=_pair, help=meaning
        )
    parser.add_argument("--dns", metavar="CIDR", action="append", default=[], help="more resolvers")


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"invalid value {text!r}: expected NAME=VALUE")
    return name, value


def _cidr(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError as error:
        raise ConfigError(
            [f"--cidr: invalid value {text!r}: expected a network, e.g. 10.0.0.0/8"]
        ) from error
