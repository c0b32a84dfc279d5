"""The flows of a destinations table: one per host and port, without those inside the pod."""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_network

from byoc_agents.egress.destinations import Destination, DestinationKind, ip_literal
from byoc_agents.policy.inputs import Facts, Options

ANY_V4, ANY_V6 = "0.0.0.0/0", "::/0"
NEVER = ("127.0.0.0/8", "169.254.0.0/16")  # loopback; link-local, the metadata service included
# The same of IPv6: loopback, link-local, AWS's services of the node (metadata, DNS, Pod Identity),
# and the IPv4 networks above as NAT64 (RFC 6052) writes them.
NEVER_V6 = ("::1/128", "fe80::/10", "fd00:ec2::/32", "64:ff9b::7f00:0/104", "64:ff9b::a9fe:0/112")
ANYWHERE = {
    "ipv4": ((ANY_V4, NEVER),),
    "ipv6": ((ANY_V6, NEVER_V6),),
    "dual": ((ANY_V4, NEVER), (ANY_V6, NEVER_V6)),
}
"""Address family -> (network, exceptions) of a host that is known by its name only."""
DNS_PORT = 53
OPENSHIFT_DNS_PORT = 5353  # of the pods behind OpenShift's resolver; its Service has port 53
NODE_LOCAL = "169.254.20.10/32"  # NodeLocal DNSCache, as Kubernetes documents it


class FlowTarget(StrEnum):
    """The location of a destination, seen from the pod."""

    POD = "pod"  # loopback: no packet leaves
    NODE = "node"  # link-local: the node's agent
    CLUSTER = "cluster"  # a name of a Kubernetes service
    BEYOND = "beyond"


@dataclass(frozen=True, slots=True)
class Flow:
    """TCP connections from the pod to one host and port."""

    host: str
    port: int
    kind: DestinationKind | None
    place: FlowTarget
    cidrs: tuple[str, ...]  # empty: only a name is known
    daemons: tuple[str, ...]
    purpose: str

    @property
    def named(self) -> bool:
        """Return whether the host is looked up in the DNS."""
        return ip_literal(self.host) is None


def flows(facts: Facts, options: Options) -> list[Flow]:
    """Return one flow for each host and port, in the order of the table."""
    by_end: dict[tuple[str, int], list[Destination]] = {}
    for destination in facts.reachable:
        by_end.setdefault((destination.host, destination.port), []).append(destination)
    found = [_flow(ends, facts, options) for ends in by_end.values()]
    return [flow for flow in found if flow.place is not FlowTarget.POD]


def place(destination: Destination) -> FlowTarget:
    """Return the location of a destination."""
    literal = ip_literal(destination.host)
    if destination.local:
        return FlowTarget.POD if literal is None or literal.is_loopback else FlowTarget.NODE
    host = destination.host
    inside = "." not in host or host.endswith((".svc", ".cluster.local"))
    return FlowTarget.CLUSTER if literal is None and inside else FlowTarget.BEYOND


def single(host: str) -> str:
    """Return the CIDR of one address."""
    return str(ip_network(host))


def _flow(ends: list[Destination], facts: Facts, options: Options) -> Flow:
    first = ends[0]
    cidrs = options.cidrs.get(first.host) or options.cidrs.get(first.kind or "") or ()
    return Flow(
        host=first.host,
        port=first.port,
        kind=first.kind,
        place=place(first),
        cidrs=(single(first.host),) if ip_literal(first.host) else tuple(cidrs),
        daemons=tuple(dict.fromkeys(d.daemon for d in ends if d.daemon)) or facts.daemons,
        purpose=first.purpose,
    )
