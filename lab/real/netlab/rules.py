"""Make the router's nftables rules from rendered NetworkPolicies.

Two additions cannot be expressed by a NetworkPolicy: the S3 prefix leaves by the gateway endpoint
only (a rule of the VPC, `endpoint_only`), and counters of the forwarded packets.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.real.netlab.namespaces import DNS_ADDRESS, S3_PREFIX, Namespace, run
from lab.real.parts.process import PartError

TABLE = """
flush ruleset
table inet lab {{
  {counters}
  chain endpoint_only {{
    {endpoint_only}
  }}
  chain from_pod {{
    {allowed}
    counter name refused_out drop
  }}
  chain to_pod {{
    ct direction reply ct state established,related accept
    ct state new counter name refused_in drop
    drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    jump endpoint_only
    iifname pod0 jump from_pod
    oifname pod0 jump to_pod
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname pod0 jump from_pod
  }}
  chain left {{
    type filter hook postrouting priority srcnat; policy accept;
    oifname gateway0 ip daddr {s3} tcp dport 443 counter name s3_by_gateway return
    oifname internet0 ip daddr {s3} counter name s3_by_internet return
    oifname internet0 tcp dport 443 counter name https_by_internet return
    oifname {{ gateway0, internet0 }} counter name other
  }}
}}
"""
COUNTERS = (
    *("refused_out", "refused_in", "off_the_endpoint"),
    *("s3_by_gateway", "s3_by_internet", "https_by_internet", "other"),
)
STANDING = ('counter name "refused_out" drop', 'counter name "refused_in" drop')  # as nft lists it
ENDPOINT_ONLY = f"oifname internet0 ip daddr {S3_PREFIX} counter name off_the_endpoint drop"


@dataclass(frozen=True, slots=True)
class Allow:
    """One allowed destination of a NetworkPolicy: a block, and its ports. Empty = any."""

    block: str
    excepted: tuple[str, ...] = ()
    protocol: str = "tcp"
    ports: str = ""

    def rule(self) -> str:
        """Return the rule in nftables' syntax."""
        words = [f"ip daddr {self.block}"]
        words += [f"ip daddr != {{ {', '.join(self.excepted)} }}"] if self.excepted else []
        words += [
            f"{self.protocol} dport {self.ports}" if self.ports else f"meta l4proto {self.protocol}"
        ]
        return " ".join([*words, "accept"])


def allowed(policies: Iterable[Mapping[str, Any]]) -> list[Allow]:
    """Return the allowed destinations. Raises ValueError for unsupported forms."""
    found: list[Allow] = []
    for policy in policies:
        _only(policy, "apiVersion", "kind", "metadata", "spec")
        spec = policy["spec"]
        _only(spec, "podSelector", "policyTypes", "egress", "ingress")
        if policy["kind"] != "NetworkPolicy" or set(spec["policyTypes"]) != {"Egress", "Ingress"}:
            raise ValueError(f"no NetworkPolicy for both directions: {policy}")
        for rule in spec["egress"]:
            _only(rule, "to", "ports")
            found += _combined(rule["to"], rule["ports"])
    return found


def load(router: Namespace, outgoing: Sequence[Allow], *, endpoint_only: bool = True) -> None:
    """Load the rules, with all counters at 0. Raises PartError if nftables refuses them."""
    text = TABLE.format(
        counters="\n  ".join(f"counter {name} {{}}" for name in COUNTERS),
        endpoint_only=ENDPOINT_ONLY if endpoint_only else "",
        allowed="\n    ".join(dict.fromkeys(allow.rule() for allow in outgoing)),
        s3=S3_PREFIX,
    )
    router.run(lambda: run("nft", "-f", "-", text=text))
    standing = router.run(run, "nft", "list", "ruleset")
    missing = [text for text in STANDING if text not in standing]
    if missing or standing.count("policy drop") != len(("forward", "input")):
        raise PartError(f"the rules do not stand, {missing}:\n{standing}")


def counts(router: Namespace) -> dict[str, int]:
    """Return packets by counter."""
    listed = json.loads(router.run(run, "nft", "-j", "list", "counters"))["nftables"]
    found = [entry["counter"] for entry in listed if "counter" in entry]
    return {counter["name"]: counter["packets"] for counter in found}


def _combined(
    peers: Sequence[Mapping[str, Any]], ports: Sequence[Mapping[str, Any]]
) -> Iterator[Allow]:
    for peer in peers:
        block, excepted = _block(peer)
        if ":" in block:  # this lab has IPv4 only, as a gateway endpoint has
            continue
        for port in ports:
            _only(port, "protocol", "port", "endPort")
            last = f"-{port['endPort']}" if "endPort" in port else ""
            yield Allow(block, excepted, port["protocol"].lower(), f"{port['port']}{last}")


def _block(peer: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    if "ipBlock" in peer:
        _only(peer, "ipBlock")
        _only(peer["ipBlock"], "cidr", "except")
        return peer["ipBlock"]["cidr"], tuple(peer["ipBlock"].get("except", ()))
    _only(peer, "namespaceSelector", "podSelector")
    if "kube-dns" in peer.get("podSelector", {}).get("matchLabels", {}).values():
        return f"{DNS_ADDRESS}/32", ()
    raise ValueError(f"no such pods in this lab: {peer}")


def _only(part: Mapping[str, Any], *known: str) -> None:
    if strange := set(part) - set(known):
        raise ValueError(f"not understood: {', '.join(sorted(strange))}")
