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
from byoc_agents.app.command_line import CommandParser, join, nearest
from byoc_agents.app.run import DAEMONS, OPTIONAL_DAEMONS, Configuration, configure
from byoc_agents.billing.daemon import Settings as BillingSettings
from byoc_agents.egress.destinations import DestinationKind, ip_literal, proxy_destination
from byoc_agents.egress.regions import partition, sqs_region
from byoc_agents.errors import ConfigError
from byoc_agents.manifest import DuplicateKeyError, documents
from byoc_agents.policy import (
    account_checks,
    cilium,
    iam,
    kubernetes,
    pod_rules,
    stack,
    union,
)
from byoc_agents.policy import aws as amazon
from byoc_agents.policy import nftables as rules
from byoc_agents.policy.drift import PolicyFinding, differences, matching
from byoc_agents.policy.flows import ANYWHERE, NODE_LOCAL
from byoc_agents.policy.inputs import Facts, Listener, Objects, Options, Rendered
from byoc_agents.policy.render import (
    STACK_FORMS,
    destinations_table,
    findings_json,
    print_rendered,
)
from byoc_agents.state.daemon import Settings as StateSettings


@dataclass(frozen=True, slots=True)
class PolicyCommand:
    """One kind of policy."""

    render: Callable[[Facts, Options], Rendered]
    form: str  # the usual one
    meaning: str

    @property
    def aws(self) -> bool:
        """Return whether it is a document of IAM's policy language."""
        return self.form == "json"


COMMANDS = {
    "table": PolicyCommand(destinations_table, "text", "every destination"),
    "networkpolicy": PolicyCommand(kubernetes.network_policy, "yaml", "Kubernetes NetworkPolicy"),
    "cilium": PolicyCommand(cilium.cilium_policy, "yaml", "CiliumNetworkPolicy: names too"),
    "iam": PolicyCommand(
        amazon.iam_policy, "json", "the role's permissions; --trust: who may take it"
    ),
    "boundary": PolicyCommand(amazon.boundary, "json", "the role's permissions boundary"),
    "bucket-policy": PolicyCommand(amazon.bucket_policy, "json", "the vendor's bucket"),
    "queue-policy": PolicyCommand(amazon.queue_policy, "json", "the vendor's queue"),
    "sqs-endpoint-policy": PolicyCommand(
        amazon.sqs_endpoint_policy, "json", "the interface endpoint of SQS"
    ),
    "sts-endpoint-policy": PolicyCommand(
        amazon.sts_endpoint_policy, "json", "the interface endpoint of STS"
    ),
    "endpoint-policy": PolicyCommand(amazon.endpoint_policy, "json", "the gateway endpoint of S3"),
    "stack": PolicyCommand(
        stack.stack, "yaml", "role and endpoints of the customer: CloudFormation or Terraform"
    ),
    "egress-rules": PolicyCommand(
        rules.egress_rules, "text", "nftables, --uid: of a pod; json: security group"
    ),
}
EPILOG = (
    "without settings: "
    + "; ".join(f"{name}: {check.meaning}" for name, check in account_checks.ACCOUNT_CHECKS.items())
    + """

exit codes: 0 = printed, or the manifest allows exactly what the table allows; 1 = --check has
findings; 2 = a mistake in the settings or options, or a manifest that cannot be read

example: byoc-agents policy networkpolicy billing-scraper --namespace db --check policy.yaml"""
)
NARROWED = ("s3", "sqs", "sts", "control-plane", "proxy", "kubernetes")  # beyond the pod network
NO_NAMESPACE = PolicyFinding("metadata.namespace", "is not judged", "--namespace NAME")
# Policies contain no secrets, so none are needed to render them.
STAND_INS = {
    "BYOC_ALERTS_TOKEN": "none",
    "BYOC_ALERTS_SIGNING_SECRET": "whsec_" + "A" * 32,
    "BYOC_ALERTS_WEBHOOK_TOKEN": "none",
    "BYOC_ALERTS_FINGERPRINT_SECRET": "0" * 32,
    "BYOC_CLICKHOUSE_PASSWORD": "none",
    "BYOC_METRICS_TOKEN": "none",
    "BYOC_ACCESS_PASSWORD": "none",
    "BYOC_ACCESS_TOKEN": "none",
    "BYOC_ACCESS_SIGNING_SECRET": "whsec_" + "A" * 32,
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
        # AWS's files of the person who asks are not the pod's.
        *("HOME", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
        *("AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
    }
)


def main(argv: Sequence[str]) -> int:
    """Print a policy, or with --check the findings; return 1 if there are any, else 0.

    Raises ConfigError, which the command line turns into exit code 2.
    """
    if argv and argv[0] in account_checks.ACCOUNT_CHECKS:
        return account_checks.main(argv)
    asked = make_parser().parse_args(argv)
    form = _form(asked)
    facts = facts_of(_configure(asked))
    options = _options(asked, facts)
    render = pod_rules.pod_rules if options.uids else COMMANDS[asked.command].render
    rendered = render(facts, options)
    if asked.check:
        found, notes = _check(asked, rendered, facts, options)
        sys.stdout.write(_report(asked, found))
    else:
        found = []
        text, more = print_rendered(rendered, form)
        sys.stdout.write(text)
        notes = [*more]
    for note in [*_find_unused(asked, facts), *notes]:
        sys.stderr.write(f"note: {note}\n")
    return 1 if found else 0


def _form(asked: argparse.Namespace) -> str:
    """Return the form to print. A stack's forms have the names of its languages."""
    given: str = asked.format
    if asked.command == "stack":
        if given and given not in STACK_FORMS:
            raise ConfigError([f"--format: invalid value {given!r}: expected {join(STACK_FORMS)}"])
        return STACK_FORMS[given or "cloudformation"]
    return given or COMMANDS[asked.command].form


def facts_of(configuration: Configuration) -> Facts:
    """Return the facts of a configuration that policies need. Raises ConfigError."""
    core = configuration.core
    proxy = core.https_proxy and proxy_destination(core.https_proxy)
    kinds = {destination.kind for destination in configuration.destinations}
    daemons = tuple(configuration.daemons)
    listeners = [Listener("+".join(daemons), "metrics", *core.listen, "BYOC_LISTEN")]
    objects, queue = None, ""
    for settings in configuration.daemons.values():
        if isinstance(settings, BillingSettings) and DestinationKind.S3 in kinds:
            objects = _objects(configuration, settings)
        elif isinstance(settings, StateSettings) and DestinationKind.SQS in kinds:
            queue = queue_arn(settings.queue_url, core.region)
        elif isinstance(settings, AlertsSettings):
            webhook = ("alert-forwarder", "webhook", *settings.listen, "BYOC_ALERTS_LISTEN")
            listeners.append(Listener(*webhook))
    return Facts(
        daemons=daemons,
        region=core.region,
        destinations=configuration.destinations,
        proxy=proxy or None,
        listeners=tuple(listeners),
        objects=objects,
        queue_arn=queue,
        organization=core.organization_id,
        service=core.service_id,
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
    return Objects(own.bucket, folder, own.bucket_owner, start)


def _configure(asked: argparse.Namespace) -> Configuration:
    no_alerts = {"BYOC_ALERTS_NAMESPACE": "none"}  # which alerts are sent is in no policy
    environ = no_alerts | _as_in_the_pod(os.environ, asked.identity, asked.family) | STAND_INS
    return configure(asked.daemon or list(DAEMONS), environ, asked.config or None)


def _as_in_the_pod(environ: Mapping[str, str], identity: str, family: str) -> dict[str, str]:
    """Return the variables with the AWS identity of the pod instead of this process's."""
    if identity == "environment":
        return dict(environ)
    others = {name: text for name, text in environ.items() if name not in OWN_IDENTITY}
    own = IDENTITIES[identity]
    if family == "ipv6":  # the agent's other address, in a cluster of IPv6
        own = {name: text.replace("169.254.170.23", "[fd00:ec2::23]") for name, text in own.items()}
    return others | own


def _check(
    asked: argparse.Namespace, rendered: Rendered, facts: Facts, options: Options
) -> tuple[list[PolicyFinding], list[str]]:
    """Return the findings about a manifest, and notes. Raises ConfigError if it is unreadable."""
    if asked.command == "stack":
        return stack.check_stack(asked.check, facts, options), []
    if options.uids:
        return pod_rules.check_pod_rules(rendered, _read(asked.check)), []
    return _check_document(asked, rendered, facts, options)


def _check_document(
    asked: argparse.Namespace, rendered: Rendered, facts: Facts, options: Options
) -> tuple[list[PolicyFinding], list[str]]:
    path = asked.check
    if open_points := sorted(set(re.findall(r"<[A-Z_]+>", str(rendered.document)))):
        raise ConfigError([f"--check: expected options for {', '.join(open_points)}"])
    try:
        given = documents(_read(path), f"--check {path}")
    except DuplicateKeyError as error:
        return [PolicyFinding(path, str(error), "each key once")], []
    except ValueError as error:
        raise _unreadable(path, error) from error
    document = matching(rendered.document, given)
    if document is None:
        unnamed = COMMANDS[asked.command].aws and len(given) > 1
        many = f"holds {len(given)} documents, and policies of AWS have no name to choose one by"
        why = many if unnamed else "holds no such policy, or several of another name"
        return [PolicyFinding(path, why, "one")], []
    if COMMANDS[asked.command].aws:
        try:
            return iam.differences(rendered.document, document), []
        except ValueError as error:  # the document is in another one, as text
            return [PolicyFinding(path, str(error), "a policy document")], []
    found = differences(rendered.document, document)
    if not isinstance(document, Mapping):
        return found, []
    pod = union.Pod(
        labels=options.pod,
        namespace=options.namespace or union.namespace_of(document),
        wanted={
            union.KUBERNETES: kubernetes.network_policy(facts, options).document,
            union.CILIUM: cilium.cilium_policy(facts, options).document,
        },
        accepted=frozenset(asked.accept),
    )
    if COMMANDS[asked.command].form == "yaml" and not options.namespace:
        found.append(NO_NAMESPACE)
    found += union.judge_metadata(document, options) + union.judge_others(document, given, pod)
    return found, []


def _read(path: str) -> str:
    """Return a manifest's text. Raises ConfigError."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> ConfigError:
    return ConfigError([f"--check {path}: cannot be read ({type(error).__name__})"])


def _report(asked: argparse.Namespace, found: list[PolicyFinding]) -> str:
    """Return the findings as lines, or as JSON."""
    if asked.format != "json":
        return "".join(f"{finding}\n" for finding in found)
    return findings_json(asked.command, asked.check, found)


FORMS = {  # option -> (pattern, example)
    "role": (r"arn:[\w-]+:iam::\d{12}:role/\S+", "arn:aws:iam::111122223333:role/NAME"),
    "cluster_arn": (
        r"arn:[\w-]+:eks:[\w-]+:\d{12}:cluster/\S+",
        "arn:aws:eks:REGION:111122223333:cluster/NAME",
    ),
    "vpce": (r"vpce-\w+", "vpce-ID"),
    "sqs_vpce": (rf"vpce-\w+|{amazon.NO_ENDPOINT}", "vpce-ID or none"),
    "issuer": (r"https://[\w.-]+(/[\w.~/-]*)?", "https://HOST/PATH, as the tokens state it"),
    "service_account": (r"[^/,\s]+/[^/,\s]+(,[^/,\s]+)*", "NAMESPACE/NAME[,NAME]"),
    "account": (r"\d{12}", "12 digits"),
}


def _check_forms(asked: argparse.Namespace) -> None:
    """Raise ConfigError for each option that no policy can hold."""
    wrong = []
    for name, (pattern, example) in FORMS.items():
        given = getattr(asked, name)
        for value in given if isinstance(given, list) else [given] if given else []:
            if not re.fullmatch(pattern, value, re.ASCII):
                flag = f"--{name.replace('_', '-')}"
                wrong.append(f"{flag}: invalid value {value!r}: expected {example}")
    if bool(asked.issuer) != (asked.trust == "web-identity"):
        wrong.append("--issuer: expected together with --trust web-identity")
    if asked.account and not asked.tenants:
        wrong.append("--account: invalid without --tenants: expected both")
    if asked.uid and asked.command != "egress-rules":
        wrong.append(f"--uid: invalid with {asked.command}: expected egress-rules")
    if asked.also and not asked.uid:
        wrong.append("--also: invalid without --uid: expected both")
    if asked.tailnet and asked.command != "table":
        wrong.append(f"--tailnet: invalid with {asked.command}: expected table")
    if wrong:
        raise ConfigError(wrong)


def _options(asked: argparse.Namespace, facts: Facts) -> Options:
    _check_forms(asked)
    cidrs: dict[str, tuple[str, ...]] = {}
    for name, cidr in asked.cidr:
        _check_name(name, facts)
        cidrs[name] = (*cidrs.get(name, ()), _cidr(cidr))
    usual = Options()
    return Options(
        namespace=asked.namespace,
        pod=dict(asked.pod) or usual.pod,
        cidrs=cidrs,
        dns=tuple(
            NODE_LOCAL if name == "nodelocal" else _cidr(name, "--dns")
            for name in asked.dns
            if name != "openshift"
        ),
        openshift="openshift" in asked.dns,
        family=asked.family,
        prometheus=asked.prometheus or usual.prometheus,
        alertmanager=asked.alertmanager or usual.alertmanager,
        role=asked.role,
        vpce=asked.vpce,
        sqs_vpce=asked.sqs_vpce,
        tenants=asked.tenants,
        accounts=tuple(asked.account),
        kms_key=asked.kms_key,
        trust=asked.trust,
        oidc_provider=(asked.issuer or asked.oidc_provider).removeprefix("https://"),
        audience=asked.audience or usual.audience,
        cluster_arn=asked.cluster_arn,
        service_account=asked.service_account,
        uids=_uids(asked.uid),
        also=tuple(_cidr(name, "--also") if "/" in name else name for name in asked.also),
        tailnet=asked.tailnet,
    )


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="byoc-agents policy",
        description="Print a policy made from the settings, or compare one with a manifest.",
        epilog=EPILOG,
    )
    meanings = "; ".join(f"{name}: {command.meaning}" for name, command in COMMANDS.items())
    parser.add_argument("command", choices=COMMANDS, help=meanings)
    parser.add_argument(
        "daemon",
        nargs="*",
        choices=(*DAEMONS, *OPTIONAL_DAEMONS),
        metavar="daemon",
        help=f"{', '.join([*DAEMONS, *OPTIONAL_DAEMONS])}; none = the first three",
    )
    for flag, metavar, meaning in (
        ("--config", "FILE", "YAML settings; the environment wins"),
        (
            "--check",
            "MANIFEST",
            "print how it differs; - = standard input; of a stack: a directory",
        ),
        ("--namespace", "NAME", "of the manifest; --check of a network policy needs it"),
        ("--prometheus", "NAMESPACE[/LABEL=VALUE]", "pods that may scrape, if that port is open"),
        ("--alertmanager", "NAMESPACE[/LABEL=VALUE]", "pods that may notify, if that port is open"),
        ("--role", "ARN", "the customer's role"),
        ("--vpce", "ID", "the gateway endpoint of S3"),
        ("--sqs-vpce", "ID", "the interface endpoint of SQS; none = there is none"),
        ("--kms-key", "ARN", "the customer-managed key of bucket and queue, if there is one"),
        ("--oidc-provider", "HOST/PATH", "the cluster's, for --trust irsa"),
        ("--issuer", "URL", "of the cluster's tokens, for --trust web-identity: GKE, AKS, others"),
        ("--audience", "NAME", "of the pod's token; byoc-agents if not given"),
        ("--cluster-arn", "ARN", "the EKS cluster, for --trust pod-identity"),
        ("--service-account", "NAMESPACE/NAME[,NAME]", "of the pods, for --trust"),
        ("--uid", "UID[,UID]", "of the daemons, in egress-rules for a pod with other containers"),
    ):
        parser.add_argument(flag, metavar=metavar, default="", help=meaning)
    _add_choices(parser)
    checks = account_checks.ACCOUNT_CHECKS
    parser.others = {name: account_checks.make_parser(name) for name in checks}
    return parser


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=("text", "json", "markdown", "yaml", "cloudformation", "terraform"),
        default="",
        help=f"of a stack: {join(STACK_FORMS)}",
    )
    parser.add_argument(
        "--json", action="store_const", const="json", dest="format", help="same as --format json"
    )
    parser.add_argument("--trust", choices=("irsa", "web-identity", "pod-identity"), default="")
    parser.add_argument(
        "--tailnet",
        choices=("relay", "direct"),
        default="",
        help="the table has the destinations of the chart's tailnet too, by its mode",
    )
    parser.add_argument(
        "--identity",
        choices=("environment", *IDENTITIES),
        default="environment",
        help="where the pod's AWS credentials come from; environment = as set here",
    )
    for flag, metavar, meaning in (
        ("--pod", "LABEL=VALUE", "the pods' labels; may be repeated"),
        ("--cidr", "NAME=CIDR", f"addresses of a host, or of {join(NARROWED)}"),
    ):
        parser.add_argument(
            flag, metavar=metavar, action="append", default=[], type=_pair, help=meaning
        )
    for flag, metavar, meaning in (
        ("--dns", "CIDR", "more resolvers; nodelocal = NodeLocal DNSCache, openshift = its own"),
        ("--also", "NAME", "with --uid: a kind, host or CIDR that the other containers reach too"),
        ("--account", "ID", "a customer's account, for --tenants; may be repeated"),
        ("--accept", "NAME", "a policy of another owner that --check accepts; may be repeated"),
    ):
        parser.add_argument(flag, metavar=metavar, action="append", default=[], help=meaning)
    parser.add_argument(
        "--tenants", action="store_true", help="a bucket or queue of any number of customers"
    )
    parser.add_argument(
        "--family",
        choices=tuple(ANYWHERE),
        default="ipv4",
        help="addresses of hosts that are known by name only",
    )


def _check_name(name: str, facts: Facts) -> None:
    """Raise ConfigError for a name of --cidr that is neither a kind nor a host."""
    if name in {*NARROWED, *_hosts(facts)} or "." in name or ip_literal(name):
        return
    similar = nearest(name, NARROWED)
    hint = f"; did you mean {similar!r}?" if similar else ""
    expected = f"{', '.join(NARROWED)} or a host name"
    raise ConfigError([f"--cidr: invalid value {name!r}: expected {expected}{hint}"])


def _find_unused(asked: argparse.Namespace, facts: Facts) -> list[str]:
    """Return a note for each host of --cidr without a destination.

    One list of networks may serve several daemons, so this is not a mistake.
    """
    known = {*NARROWED, *_hosts(facts)}
    names = dict.fromkeys(name for name, _ in asked.cidr)
    return [f"--cidr {name}: no destination has this host" for name in names if name not in known]


def _hosts(facts: Facts) -> set[str]:
    return {one.host for one in (*facts.destinations, *([facts.proxy] if facts.proxy else ()))}


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"invalid value {text!r}: expected NAME=VALUE")
    return name, value


def _uids(text: str) -> tuple[int, ...]:
    """Return the uids of --uid. 0 is not one: root may change the rules."""
    found = text.split(",") if text else []
    if wrong := [one for one in found if not re.fullmatch(r"[1-9]\d{0,8}", one, re.ASCII)]:
        raise ConfigError([f"--uid: invalid value {wrong[0]!r}: expected numbers from 1 on"])
    return tuple(dict.fromkeys(map(int, found)))


def _cidr(text: str, flag: str = "--cidr") -> str:
    try:
        return str(ip_network(text))
    except ValueError as error:
        raise ConfigError(
            [f"{flag}: invalid value {text!r}: expected a network, e.g. 10.0.0.0/8"]
        ) from error
