"""Rules for a security group (rows) and for nftables (text)."""

from byoc_agents.egress.destinations import DestinationKind
from byoc_agents.policy.flows import ANYWHERE, DNS_PORT, Flow, FlowTarget, flows
from byoc_agents.policy.inputs import Facts, Options, Rendered
from byoc_agents.policy.kubernetes import describe_flows

RESOLVER = "<RESOLVER_CIDR>"
NOTES = (
    (
        "Security groups know no names: a peer that is 0.0.0.0/0 or ::/0 means the host in the row;"
        " --cidr NAME=CIDR narrows it. They are stateful and need no rule for responses."
    ),
    "They do not filter the VPC's own resolver, nor link-local addresses.",
    "S3's prefix list is the one that the gateway endpoint's route uses.",
)


def egress_rules(facts: Facts, options: Options) -> Rendered:
    """Return the allowed flows, as rows of a security group and as a chain of nftables."""
    found = flows(facts, options)
    rows = [
        *_dns_rows(found, options),
        *(row for flow in found for row in _rows(flow, facts, options)),
    ]
    return Rendered(rows, (*describe_flows(found), *NOTES), _nft(found, options))


def _rows(flow: Flow, facts: Facts, options: Options) -> list[dict[str, object]]:
    aws_s3 = flow.kind is DestinationKind.S3 and flow.host.endswith("amazonaws.com")
    prefix_list = f"com.amazonaws.{facts.region}.s3"  # of IPv4
    unknown = (
        prefix_list if aws_s3 and ":" not in network else network
        for network, _ in ANYWHERE[options.family]
    )
    return [_row("tcp", flow.port, peer, flow) for peer in flow.cidrs or unknown]


def _row(protocol: str, port: int, peer: str, flow: Flow) -> dict[str, object]:
    return {
        "protocol": protocol,
        "port": port,
        "peer": peer,
        "host": flow.host,
        "daemon": ", ".join(flow.daemons),
        "purpose": flow.purpose,
    }


def _dns_rows(found: list[Flow], options: Options) -> list[dict[str, object]]:
    named = [flow for flow in found if flow.named]
    if not named:
        return []
    daemons = tuple(dict.fromkeys(daemon for flow in named for daemon in flow.daemons))
    dns = Flow("the resolver", DNS_PORT, None, FlowTarget.BEYOND, options.dns, daemons, "names")
    peers = options.dns or (RESOLVER,)
    return [_row(p, DNS_PORT, peer, dns) for peer in peers for p in ("udp", "tcp")]


def _nft(found: list[Flow], options: Options) -> str:
    """Return a table with one chain, for a jump from an existing hook."""
    lines = ["table inet byoc_agents {", "  chain egress {"]
    lines += [
        f"    {rule}" for rule in ("ct state established,related accept", 'oifname "lo" accept')
    ]
    if any(flow.named for flow in found):
        end = f'meta l4proto {{ tcp, udp }} th dport {DNS_PORT} counter accept comment "dns"'
        lines += [f"    {to} {end}" for to in _destinations(options.dns or (RESOLVER,))]
    lines += [f"    {rule}" for flow in found for rule in _nft_rules(flow, options)]
    return "\n".join([*lines, '    counter drop comment "everything else"', "  }", "}", ""])


def _nft_rules(flow: Flow, options: Options) -> list[str]:
    """Return one rule, or one per address family if there are networks of both."""
    comment = ": ".join(filter(None, (flow.kind, flow.host)))[:100]  # nft takes at most 128 bytes
    end = f'tcp dport {flow.port} counter accept comment "{comment}"'
    if not flow.cidrs:
        return [
            f"{'ip6' if ':' in network else 'ip'} daddr != {_set(never)} {end}"
            for network, never in ANYWHERE[options.family]
        ]
    return [f"{to} {end}" for to in _destinations(flow.cidrs)]


def _destinations(cidrs: tuple[str, ...]) -> list[str]:
    """Return a match of the destination for each address family among the networks."""
    v6 = tuple(cidr for cidr in cidrs if ":" in cidr)
    v4 = tuple(cidr for cidr in cidrs if ":" not in cidr)
    return [f"{ip} daddr {_set(some)}" for ip, some in (("ip", v4), ("ip6", v6)) if some]


def _set(cidrs: tuple[str, ...]) -> str:
    return f"{{ {', '.join(cidrs)} }}"
