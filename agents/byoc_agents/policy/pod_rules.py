"""Rules of nftables for the network namespace of a pod, whose containers differ by their uid.

A NetworkPolicy selects a pod, so what it allows for a daemon it allows for ClickHouse in the same
pod. The kernel knows the uid that opened a socket. These rules restrict the daemons' uids to their
destinations, and refuse TCP connections of every other uid to the hosts and ports that only the
daemons need.

Nothing here tracks connections: the rules look at the packet that opens one (SYN). Connections
that are open when the rules are loaded go on, and ClickHouse's need no entry in a table.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from byoc_agents.errors import ConfigError
from byoc_agents.policy.drift import PolicyFinding
from byoc_agents.policy.flows import DNS_PORT, Flow, flows
from byoc_agents.policy.inputs import Facts, Options, Rendered
from byoc_agents.policy.kubernetes import describe_flows

TABLE = "inet byoc_agents_pod"
PREAMBLE = (f"table {TABLE}", f"delete table {TABLE}")  # the first line makes the second possible
DAEMONS, OTHERS = "daemons", "others"
COMMENT_BYTES = 100  # nft takes at most 128
NEW_CONNECTION = "tcp flags & (fin | syn | rst | ack) == syn"
NOT_NEW = "tcp flags & (fin | syn | rst | ack) != syn"
REJECT = "reject with tcp reset"  # the connection attempt fails at once, not after a timeout
EVERYTHING_ELSE = (
    f'meta l4proto tcp counter {REJECT} comment "everything else"',
    'counter reject comment "everything else"',
)
NOTES = (
    (
        "The rules are for the network namespace of one pod, not of a node. Load them before the"
        " other containers start, with `nft -f FILE` as root with NET_ADMIN. Loading them again"
        " replaces them, and open connections continue."
    ),
    (
        "They do not restrict root, a process with CAP_SETUID, CAP_NET_RAW or CAP_NET_ADMIN, or"
        " UDP of the other uids, DNS included."
    ),
    "Give a Service by its ClusterIP: its address is translated only after these rules.",
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """One address and port in one chain. Port 0 is any port."""

    chain: str
    action: str  # accept or reject
    protocol: str
    port: int
    peer: str  # CIDR
    comment: str
    flow: Flow | None = None

    def text(self) -> str:
        to = f"{'ip6' if ':' in self.peer else 'ip'} daddr {self.peer}"
        port = f" {self.protocol} dport {self.port}" if self.port else ""
        return f'{to}{port} counter {self.action} comment "{self.comment[:COMMENT_BYTES]}"'

    def row(self) -> dict[str, object]:
        return {
            "chain": self.chain,
            "action": self.action.split()[0],
            "protocol": self.protocol,
            "port": self.port or "any",
            "peer": self.peer,
            "host": self.flow.host if self.flow else "",
            "daemon": ", ".join(self.flow.daemons) if self.flow else "",
            "purpose": self.flow.purpose if self.flow else self.comment,
        }


def pod_rules(facts: Facts, options: Options) -> Rendered:
    """Return the table. Raises ConfigError if an address is missing, or a name is unknown."""
    found = flows(facts, options)
    _check(found, options)
    rules = [*_of_daemons(found, options), *_of_others(found, options)]
    # Not `!= uid`: a packet whose socket has no owner matches neither form, so it is one of others.
    uids = [f"meta skuid {uid} goto {DAEMONS}" for uid in options.uids]
    chains = {
        "output": (
            "type filter hook output priority filter; policy accept;",
            *('oifname "lo" accept', *uids, f"{NEW_CONNECTION} goto {OTHERS}"),
        ),
        DAEMONS: (
            f"{NOT_NEW} accept",
            *(rule.text() for rule in rules if rule.chain == DAEMONS),
            *EVERYTHING_ELSE,
        ),
        OTHERS: tuple(rule.text() for rule in rules if rule.chain == OTHERS),
    }
    notes = (*describe_flows(found), *NOTES)
    return Rendered([rule.row() for rule in rules], notes, _table(chains))


def _check(found: Sequence[Flow], options: Options) -> None:
    wrong = []
    for flow in found:
        if not flow.cidrs:
            why = f"expected {flow.kind or flow.host}=CIDR: a rule cannot contain a name"
            wrong.append(f"--cidr: no address of {flow.host}: {why}")
    if not options.dns and any(flow.named for flow in found):
        wrong.append("--dns: expected the resolvers' addresses, as in the pod's /etc/resolv.conf")
    known = {name for flow in found for name in (flow.kind, flow.host)}
    for name in options.also:
        if "/" not in name and name not in known:
            expected = ", ".join(sorted(str(one) for one in known if one))
            wrong.append(f"--also: invalid value {name!r}: expected a CIDR, or one of {expected}")
    if wrong:
        raise ConfigError(wrong)


def _of_daemons(found: Sequence[Flow], options: Options) -> Iterator[_Rule]:
    if any(flow.named for flow in found):
        for peer in options.dns:
            for protocol in ("udp", "tcp"):
                yield _Rule(DAEMONS, "accept", protocol, DNS_PORT, peer, "dns")
    for flow in found:
        yield from _rules(flow, DAEMONS, "accept")


def _of_others(found: Sequence[Flow], options: Options) -> Iterator[_Rule]:
    """Yield the shared addresses before the refused ones: an address may be both."""
    shared = [flow for flow in found if {flow.kind, flow.host} & {*options.also}]
    for peer in options.also:
        if "/" in peer:
            yield _Rule(OTHERS, "accept", "tcp", 0, peer, "also")
    for flow in shared:
        yield from _rules(flow, OTHERS, "accept")
    for flow in found:
        if flow not in shared:
            yield from _rules(flow, OTHERS, REJECT)


def _rules(flow: Flow, chain: str, action: str) -> Iterator[_Rule]:
    comment = ": ".join(filter(None, (flow.kind, flow.host)))
    for peer in flow.cidrs:
        yield _Rule(chain, action, "tcp", flow.port, peer, comment, flow)


def _table(chains: Mapping[str, Sequence[str]]) -> str:
    """Return a script that makes the table, or replaces it, in one step."""
    lines = [*PREAMBLE, f"table {TABLE} {{"]
    for name, body in chains.items():
        lines += [f"  chain {name} {{", *(f"    {line}" for line in body), "  }"]
    return "\n".join([*lines, "}", ""])


def check_pod_rules(rendered: Rendered, given: str) -> list[PolicyFinding]:
    """Compare a script, or the output of `nft list ruleset` in a pod, with the table.

    Other tables are findings too: they may redirect a connection to another address.
    """
    wanted, have = _chains(rendered.text), _chains(given)
    found = []
    for place in dict.fromkeys([*wanted, *have]):
        rules, others = wanted.get(place), have.get(place)
        if rules is None:
            problems = [f"not in the table: {rule}" for rule in others or ()] or [
                "not in the table"
            ]
            found += [PolicyFinding(place, problem, "no such entry") for problem in problems]
        elif others is None:
            found.append(PolicyFinding(place, "missing", f"{len(rules)} rules"))
        elif rules != others:
            found += _compare(place, rules, others)
    return found


def _compare(place: str, wanted: list[str], given: list[str]) -> Iterator[PolicyFinding]:
    missing = [rule for rule in wanted if wanted.count(rule) > given.count(rule)]
    extra = [rule for rule in given if given.count(rule) > wanted.count(rule)]
    for rule in dict.fromkeys(missing):
        yield PolicyFinding(place, "missing", rule)
    for rule in dict.fromkeys(extra):
        yield PolicyFinding(place, f"not in the table: {rule}", "no such entry")
    if not missing and not extra:
        yield PolicyFinding(place, "another order", "the order of the table: the first rule counts")


SPELLINGS = (  # of nft's versions and options, as a regular expression -> our own
    (r"counter packets \d+ bytes \d+", "counter"),
    (r"tcp flags syn / fin,syn,rst,ack", NEW_CONNECTION),
    (r"tcp flags != syn / fin,syn,rst,ack", NOT_NEW),
    (r"priority 0;", "priority filter;"),
    (r"(ip daddr [\d.]+)/32\b", r"\1"),
    (r"(ip6 daddr [\da-f:]+)/128\b", r"\1"),
)


def _chains(text: str) -> dict[str, list[str]]:
    """Return the rules of each block, by the words that lead to it, in one spelling."""
    found: dict[str, list[str]] = {}
    path: list[str] = []
    for line in text.split("\n"):  # the only end of a comment in nft
        rule = " ".join(line.split())
        for pattern, own in SPELLINGS:
            rule = re.sub(pattern, own, rule)
        if not rule or rule.startswith("#"):
            continue
        if not found and rule in PREAMBLE:  # after a block they would remove it
            continue
        if rule.endswith("{"):
            path.append(rule.removesuffix("{").strip())
            found.setdefault(" ".join(path), [])
        elif rule == "}" and path:
            path.pop()
        else:
            found.setdefault(" ".join(path) or "(no table)", []).append(rule)
    return found
