"""The CiliumNetworkPolicy: allowed host names, and the names that may be resolved."""

from ipaddress import ip_network
from typing import Any

from byoc_agents.egress.destinations import DestinationKind
from byoc_agents.policy.flows import (
    DNS_PORT,
    OPENSHIFT_DNS_PORT,
    Flow,
    FlowTarget,
    flows,
)
from byoc_agents.policy.inputs import Facts, Listener, Options, Rendered
from byoc_agents.policy.kubernetes import describe_flows, find_clients, metadata, open_listeners

NAMESPACE_LABEL = "k8s:io.kubernetes.pod.namespace"
KUBE_DNS = {NAMESPACE_LABEL: "kube-system", "k8s:k8s-app": "kube-dns"}
NODE_LOCAL_DNS = {NAMESPACE_LABEL: "kube-system", "k8s:k8s-app": "node-local-dns"}
OPENSHIFT_DNS = {
    NAMESPACE_LABEL: "openshift-dns",
    "k8s:dns.operator.openshift.io/daemonset-dns": "default",
}
NOTES = (
    (
        "It selects pods, and the daemons share theirs with ClickHouse, whose own traffic and"
        " names need policies of their own, which add up with this one."
    ),
    (
        "Names with fewer than 5 dots are first tried with the cluster's search domains, and those"
        " questions are refused: dnsConfig option ndots: 1 saves them."
    ),
    (
        "A name here means the addresses that the DNS returned, not the name in the TLS handshake:"
        " hosts that share an address with an allowed one are let through."
    ),
)
NODE_NOTE = (
    "The node's agent has a link-local address that Cilium may take for the node itself, so port"
    " {port} of the node is open too."
)


def cilium_policy(facts: Facts, options: Options) -> Rendered:
    """Return the manifest: both directions are denied, except the listed flows."""
    found = flows(facts, options)
    ingress = [_in(listener, options) for listener in open_listeners(facts)]
    spec = {
        "endpointSelector": {"matchLabels": dict(options.pod)},
        "ingress": ingress or [{}],  # an empty rule allows nothing and enables denial
        "egress": [*_dns(found, options), *_out(found)] or [{}],
    }
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": metadata(options),
        "spec": spec,
    }
    node = [NODE_NOTE.format(port=f.port) for f in found if f.place is FlowTarget.NODE]
    return Rendered(document, (*describe_flows(found), *NOTES, *node))


def _in(listener: Listener, options: Options) -> dict[str, Any]:
    namespace, labels = find_clients(listener, options)
    peer = {"matchLabels": {NAMESPACE_LABEL: namespace} | labels}
    return {"fromEndpoints": [peer], "toPorts": _ports(listener.port)}


def _dns(found: list[Flow], options: Options) -> list[dict[str, Any]]:
    names = [{"matchName": name} for name in dict.fromkeys(f.host for f in found if f.named)]
    if not names:
        return []
    labels, port = (
        (OPENSHIFT_DNS, OPENSHIFT_DNS_PORT) if options.openshift else (KUBE_DNS, DNS_PORT)
    )
    rules: list[dict[str, Any]] = [
        {"toEndpoints": [{"matchLabels": labels}], "toPorts": _dns_ports(port, names)}
    ]
    for cidr in options.dns:
        ports = _dns_ports(DNS_PORT, names)
        rules.append({"toCIDR": [cidr], "toPorts": ports})
        if ip_network(cidr).is_link_local:  # NodeLocal DNSCache: a program or a pod of the node
            rules.append({"toEntities": ["host"], "toPorts": ports})
            rules.append({"toEndpoints": [{"matchLabels": NODE_LOCAL_DNS}], "toPorts": ports})
    return rules


def _dns_ports(port: int, names: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{"ports": [{"port": str(port), "protocol": "ANY"}], "rules": {"dns": names}}]


def _out(found: list[Flow]) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = []
    for port in dict.fromkeys(flow.port for flow in found):
        names = [{"matchName": f.host} for f in found if f.port == port and _by_name(f)]
        if names:
            rules.append({"toFQDNs": names, "toPorts": _ports(port)})
    for flow in found:
        rules += _by_address(flow)
    return rules


def _by_name(flow: Flow) -> bool:
    return flow.named and flow.place is FlowTarget.BEYOND


def _by_address(flow: Flow) -> list[dict[str, Any]]:
    if _by_name(flow):
        return []
    ports = _ports(flow.port)
    if flow.place is FlowTarget.CLUSTER:
        api = flow.kind is DestinationKind.KUBERNETES  # it may run outside of the cluster
        return [{"toEntities": ["kube-apiserver" if api else "cluster"], "toPorts": ports}]
    node = [{"toEntities": ["host"], "toPorts": ports}] if flow.place is FlowTarget.NODE else []
    return [{"toCIDR": list(flow.cidrs), "toPorts": ports}, *node]


def _ports(number: int) -> list[dict[str, Any]]:
    return [{"ports": [{"port": str(number), "protocol": "TCP"}]}]
