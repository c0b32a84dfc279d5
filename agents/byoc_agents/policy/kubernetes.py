"""The NetworkPolicy: addresses and ports; it cannot contain host names."""

from typing import Any

from byoc_agents.egress.destinations import DestinationKind
from byoc_agents.errors import ConfigError
from byoc_agents.policy.flows import (
    ANYWHERE,
    DNS_PORT,
    OPENSHIFT_DNS_PORT,
    Flow,
    FlowTarget,
    flows,
)
from byoc_agents.policy.inputs import Facts, Listener, Options, Rendered

NAME = "byoc-agents"
KUBE_DNS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
}
OPENSHIFT_DNS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}},
    "podSelector": {"matchLabels": {"dns.operator.openshift.io/daemonset-dns": "default"}},
}
POD_NOTE = (
    "It selects pods, and the daemons share theirs with ClickHouse: ClickHouse's own traffic needs"
    " policies of its own. Policies add up, so the daemons' container may also reach what those"
    " allow; the gate inside the daemons still refuses it."
)
NAME_NOTE = (
    "It cannot contain names. {hosts} may have any address, so any {family} host on port"
    " {port} but link-local ones is let through; narrow it with --cidr NAME=CIDR, or use `policy"
    " cilium`."
)
FAMILIES = {"ipv4": "IPv4", "ipv6": "IPv6", "dual": "IPv4 or IPv6"}
S3_NOTE = (
    "S3 shares its addresses among all buckets. Its ranges here: aws ec2"
    " get-managed-prefix-list-entries of com.amazonaws.{region}.s3, to be given as --cidr s3=CIDR."
    " They change. Which bucket: `policy iam`, `endpoint-policy`, `bucket-policy`."
)
NO_V6 = "IPv6 is not let out, except to addresses written as such; --family ipv6 or dual opens it."
OTHER_NOTES = (
    "The kubelet's probes need no rule: Kubernetes always lets a pod's own node in.",
    (
        "It works only if the cluster's network plugin enforces NetworkPolicy (the VPC CNI does"
        " when enableNetworkPolicy is set)."
    ),
)


def network_policy(facts: Facts, options: Options) -> Rendered:
    """Return the manifest: both directions are denied, except the listed flows."""
    found = flows(facts, options)
    spec = {
        "podSelector": {"matchLabels": dict(options.pod)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [_in(listener, options) for listener in open_listeners(facts)],
        "egress": [*_dns(found, options), *_out(found, options)],
    }
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(options),
        "spec": spec,
    }
    return Rendered(document, (*describe_flows(found), *_notes(found, facts, options)))


def metadata(options: Options) -> dict[str, str]:
    """Return the manifest's name, and its namespace if one is given."""
    return {"name": NAME} | ({"namespace": options.namespace} if options.namespace else {})


def open_listeners(facts: Facts) -> list[Listener]:
    """Return the ports that are open to other pods. Raises ConfigError for port 0."""
    found = [listener for listener in facts.listeners if listener.open]
    if wrong := [one.setting for one in found if not one.port]:
        raise ConfigError([f"{name}: invalid port 0: expected a fixed port" for name in wrong])
    return found


def describe_flows(found: list[Flow]) -> list[str]:
    """Return one line per flow, with its purpose and its daemons."""
    return [f"{f.host}:{f.port} = {f.purpose} ({', '.join(f.daemons)})" for f in found]


def find_clients(listener: Listener, options: Options) -> tuple[str, dict[str, str]]:
    """Return (namespace, labels) of the pods that may connect to a listener."""
    text = options.prometheus if listener.purpose == "metrics" else options.alertmanager
    namespace, _, label = text.partition("/")
    name, _, value = label.partition("=")
    return namespace, {name: value} if label else {}


def _in(listener: Listener, options: Options) -> dict[str, Any]:
    namespace, labels = find_clients(listener, options)
    pods = {"podSelector": {"matchLabels": labels}} if labels else {}
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    return {"from": [peer | pods], "ports": [_port(listener.port)]}


def _dns(found: list[Flow], options: Options) -> list[dict[str, Any]]:
    if not any(flow.named for flow in found):
        return []
    cluster, port = (
        (OPENSHIFT_DNS, OPENSHIFT_DNS_PORT) if options.openshift else (KUBE_DNS, DNS_PORT)
    )
    others = [{"ipBlock": {"cidr": cidr}} for cidr in options.dns]
    by_port: dict[int, list[dict[str, Any]]] = {port: [cluster]}
    by_port.setdefault(DNS_PORT, []).extend(others)
    return [
        {"to": peers, "ports": [_port(port, "UDP"), _port(port)]}
        for port, peers in by_port.items()
        if peers
    ]


def _out(found: list[Flow], options: Options) -> list[dict[str, Any]]:
    rules = [{"to": _peers(flow, options), "ports": [_port(flow.port)]} for flow in found]
    return [rule for number, rule in enumerate(rules) if rule not in rules[:number]]


def _peers(flow: Flow, options: Options) -> list[dict[str, Any]]:
    if flow.cidrs:
        return [{"ipBlock": {"cidr": cidr}} for cidr in flow.cidrs]
    if flow.place is FlowTarget.CLUSTER:
        return [{"namespaceSelector": {}}]
    return [
        {"ipBlock": {"cidr": network, "except": list(never)}}
        for network, never in ANYWHERE[options.family]
    ]


def _port(number: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"protocol": protocol, "port": number}


def _notes(found: list[Flow], facts: Facts, options: Options) -> list[str]:
    wide = [f for f in found if not f.cidrs and f.place is FlowTarget.BEYOND]
    notes = [POD_NOTE]
    for port in dict.fromkeys(flow.port for flow in wide):
        hosts = ", ".join(flow.host for flow in wide if flow.port == port)
        notes.append(NAME_NOTE.format(hosts=hosts, port=port, family=FAMILIES[options.family]))
    if any(flow.kind is DestinationKind.S3 for flow in found):
        notes.append(S3_NOTE.format(region=facts.region))
    if facts.proxy:
        notes.append(facts.proxied)
    return [*notes, *([NO_V6] if options.family == "ipv4" else []), *OTHER_NOTES]
