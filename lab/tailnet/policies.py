"""Rendered NetworkPolicies as nftables rules of the router, and what else the router does.

The router is the cluster's network: it enforces the policies of the pods, gives nginx's Service its
address, and replaces the pods' addresses by its public one on the way out. From outside no packet
reaches a private address unless a pod began.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lab.real.netlab.namespaces import run

CLUSTER = "10.42.0.0/16"
POD, PROXY, SERVERS = "10.42.1.10", "10.42.2.10", "10.42.3.10"
PROMETHEUS = "10.42.3.20"
CLUSTER_DNS, NODE_DNS = "10.42.3.53", "10.0.0.2"
PROXY_SERVICE = "10.100.200.10"
PUBLIC = "203.0.113.1"  # of the router
OUTSIDE = "{ vendor0, engineer0, stranger0 }"
TABLE = f"""
flush ruleset
table ip tailnet {{
  set tried {{ type ipv4_addr . inet_proto . inet_service; flags dynamic; size 65535; }}
  chain observe {{
    type filter hook prerouting priority mangle;
    iifname pod0 meta l4proto {{ tcp, udp }} ct state new jump new
  }}
  chain new {{
    add @tried {{ ip daddr . meta l4proto . th dport }}
  }}
  chain service {{
    type nat hook prerouting priority dstnat;
    ip daddr {PROXY_SERVICE} dnat to {PROXY}
  }}
  chain public {{
    type nat hook postrouting priority srcnat;
    ip saddr 10.0.0.0/8 oifname {OUTSIDE} snat to {PUBLIC}
  }}
  chain input {{
    type filter hook input priority filter;
    iifname {OUTSIDE} drop
  }}
  chain forward {{
    type filter hook forward priority filter;
    ct state established,related accept
    iifname {OUTSIDE} ip daddr 10.0.0.0/8 drop
    jump egress
    jump ingress
  }}
  chain egress {{
    EGRESS
  }}
  chain ingress {{
    INGRESS
  }}
}}
"""
OUT, IN = ("saddr", "daddr", "to"), ("daddr", "saddr", "from")  # the pod's own side, the other
NO_UDP = """
table ip no_udp {
  chain forward {
    type filter hook forward priority -10;
    iifname pod0 oifname engineer0 meta l4proto udp counter drop
    iifname engineer0 oifname pod0 meta l4proto udp counter drop
  }
}
"""


def load(router: str, documents: Sequence[Mapping[str, Any]], endpoint: str) -> None:
    """Load the policies of one endpoint's pod, nginx and ClickHouse into a namespace."""
    pods = {f"tailnet-{endpoint}": POD, "tailnet-nginx": PROXY}
    found = [one for one in documents if one["kind"] == "NetworkPolicy"]
    egress: list[str] = []
    ingress: list[str] = []
    for policy in found:
        labels = policy["spec"]["podSelector"]["matchLabels"]
        address = pods.get(labels.get("app.kubernetes.io/component", ""))
        if policy["metadata"]["name"] == "byoc-agents-clickhouse":
            address = SERVERS
        if address is None:
            continue
        if address != SERVERS:  # what ClickHouse itself asks is not of interest here
            egress += _rules(OUT, address, policy["spec"]["egress"], pods)
        ingress += _rules(IN, address, policy["spec"]["ingress"], pods)
    text = TABLE.replace("EGRESS", "\n    ".join(egress)).replace("INGRESS", "\n    ".join(ingress))
    run("ip", "netns", "exec", router, "nft", "-f", "-", text=text)


def block_udp(router: str, *, blocked: bool) -> None:
    """Drop UDP between the pod and the engineer, or let it through again."""
    nft = ("ip", "netns", "exec", router, "nft")
    if blocked:
        run(*nft, "-f", "-", text=NO_UDP)
    else:
        run(*nft, "delete", "table", "ip", "no_udp")


def tried(router: str) -> set[tuple[str, str, int]]:
    """Return (address, protocol, port) of all that the pod tried to reach, allowed or not."""
    listing = ("nft", "-j", "list", "set", "ip", "tailnet", "tried")
    found = json.loads(run("ip", "netns", "exec", router, *listing))
    (elements,) = [one["set"].get("elem", []) for one in found["nftables"] if "set" in one]
    return {tuple(one["concat"]) for one in elements}


def _rules(
    direction: tuple[str, str, str],
    address: str,
    rules: Sequence[Mapping[str, Any]],
    pods: Mapping[str, str],
) -> Iterator[str]:
    """Yield the accepted packets of one direction of a pod, then that all others are dropped."""
    own, other, side = direction
    for rule in rules:
        for peer in rule[side]:
            for port in rule["ports"]:
                protocol = port["protocol"].lower()
                ports = f"{protocol} dport {port['port']}" if "port" in port else ""
                words = ports or f"meta l4proto {protocol}"
                for block in _blocks(peer, pods, other):
                    yield f"ip {own} {address} {block} {words} return"
    yield f"ip {own} {address} counter drop"


def _blocks(peer: Mapping[str, Any], pods: Mapping[str, str], other: str) -> Iterator[str]:
    """Yield the matches of a peer. Raises ValueError for one that the lab does not have."""
    if block := peer.get("ipBlock"):
        excepted = f"ip {other} != {{ {', '.join(block['except'])} }}" if "except" in block else ""
        yield f"ip {other} {block['cidr']} {excepted}"
        return
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    component = labels.get("app.kubernetes.io/component", "")
    if component.startswith("tailnet-"):
        if component in pods:  # another endpoint's pod does not run
            yield f"ip {other} {pods[component]}"
    elif labels.get("k8s-app") == "kube-dns":
        yield f"ip {other} {CLUSTER_DNS}"
    elif labels.get("app.kubernetes.io/name") == "prometheus":
        yield f"ip {other} {PROMETHEUS}"
    elif "byoc-agents/sidecars" in labels:
        yield f"ip {other} {SERVERS}"
    elif peer == {"podSelector": {}}:
        yield f"ip {other} {CLUSTER}"
    else:
        raise ValueError(f"no such pods in this lab: {peer}")
