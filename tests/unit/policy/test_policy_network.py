"""Tests of NetworkPolicy, Cilium's policies and nftables rules as a cluster would read them."""

from dataclasses import replace
from typing import Any

import pytest

from byoc_agents.egress.destinations import https_destination
from byoc_agents.errors import ConfigError
from byoc_agents.policy.cilium import cilium_policy
from byoc_agents.policy.inputs import Facts, Listener, Options
from byoc_agents.policy.kubernetes import network_policy
from byoc_agents.policy.nftables import egress_rules
from tests.unit.policy.policies import FACTS, PLANE, POD_IDENTITY, PROXY, REGION, S3, SQS, listening

USUAL = Options()
DNS_PORTS = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]


def spec(facts: Facts, options: Options = USUAL) -> Any:
    return network_policy(facts, options).document["spec"]


def blocks(facts: Facts, options: Options = USUAL) -> dict[int, list[str]]:
    """Return port -> CIDRs of a NetworkPolicy, without the DNS."""
    found: dict[int, list[str]] = {}
    for rule in spec(facts, options)["egress"]:
        if rule["ports"] != DNS_PORTS:
            cidrs = [peer["ipBlock"]["cidr"] for peer in rule["to"]]
            found.setdefault(rule["ports"][0]["port"], []).extend(cidrs)
    return found


def test_both_directions_are_denied_but_for_what_is_listed() -> None:
    found = spec(FACTS)
    assert found["policyTypes"] == ["Ingress", "Egress"]
    assert found["ingress"] == []
    assert all(rule["to"] and rule["ports"] for rule in found["egress"])


def test_a_name_is_any_address_but_the_nodes_own_and_that_is_said() -> None:
    rendered = network_policy(FACTS, USUAL)
    assert blocks(FACTS) == {443: ["0.0.0.0/0"], 80: [f"{POD_IDENTITY}/32"]}
    (wide,) = [r for r in spec(FACTS)["egress"] if "except" in str(r)]
    assert "169.254.0.0/16" in wide["to"][0]["ipBlock"]["except"]
    said = " ".join(rendered.notes)
    assert all(host in said for host in (S3, SQS, PLANE))
    assert f"com.amazonaws.{REGION}.s3" in said
    assert "cannot contain names" in said
    assert "ClickHouse" in said


@pytest.mark.parametrize("name", ["s3", S3], ids=["kind", "host"])
def test_a_given_network_takes_the_place_of_any_address(name: str) -> None:
    options = Options(
        cidrs={
            name: ("52.218.0.0/17", "3.5.64.0/21"),
            "sqs": ("10.0.1.5/32",),
            "control-plane": ("203.0.113.0/24",),
        }
    )
    wanted = ["52.218.0.0/17", "3.5.64.0/21", "10.0.1.5/32", "203.0.113.0/24"]
    assert blocks(FACTS, options) == {443: wanted, 80: [f"{POD_IDENTITY}/32"]}
    assert "cannot contain names" not in " ".join(network_policy(FACTS, options).notes)


def test_dns_is_let_out_to_the_clusters_resolver_and_named_ones_only() -> None:
    first = spec(FACTS, Options(dns=("169.254.20.10/32",)))["egress"][0]
    assert first["ports"] == DNS_PORTS
    kube_dns, node_local = first["to"]
    assert kube_dns["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert "kube-system" in str(kube_dns["namespaceSelector"])
    assert node_local == {"ipBlock": {"cidr": "169.254.20.10/32"}}


def test_what_stays_in_the_pod_needs_no_rule_and_without_names_there_is_no_dns() -> None:
    inside = replace(FACTS, destinations=FACTS.destinations[:1])
    assert spec(inside)["egress"] == []
    assert cilium_policy(inside, USUAL).document["spec"]["egress"] == [{}]


@pytest.mark.parametrize(
    ("metrics", "webhook", "wanted"),
    [
        ("127.0.0.1", "::1", []),
        ("localhost", "127.0.0.1", []),
        ("0.0.0.0", "127.0.0.1", [("prometheus", 9464)]),
        ("127.0.0.1", "10.0.0.7", [("alertmanager", 9095)]),
        ("::", "0.0.0.0", [("prometheus", 9464), ("alertmanager", 9095)]),
    ],
)
def test_only_who_scrapes_or_notifies_may_come_in_and_only_where_that_is_open(
    metrics: str, webhook: str, wanted: list[tuple[str, int]]
) -> None:
    facts = listening(metrics, webhook)
    found = [
        (
            rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"],
            rule["ports"][0]["port"],
        )
        for rule in spec(facts)["ingress"]
    ]
    assert found == wanted
    ciliums = cilium_policy(facts, USUAL).document["spec"]["ingress"]
    assert ciliums, "no rule at all would switch denial off"
    ports = [int(rule["toPorts"][0]["ports"][0]["port"]) for rule in ciliums if rule]
    assert ports == [port for _, port in wanted]


def test_a_namespace_alone_may_come_in_whole() -> None:
    found = spec(listening("0.0.0.0", "127.0.0.1"), Options(prometheus="observability"))
    (peer,) = found["ingress"][0]["from"]
    assert peer == {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}
    }


def test_a_port_that_is_not_fixed_cannot_be_let_in() -> None:
    facts = replace(FACTS, listeners=(Listener("all", "metrics", "0.0.0.0", 0, "BYOC_LISTEN"),))
    for render in (network_policy, cilium_policy):
        with pytest.raises(ConfigError, match="BYOC_LISTEN: invalid port 0"):
            render(facts, USUAL)


def test_with_a_proxy_only_the_proxy_and_the_node_are_reached() -> None:
    facts = replace(FACTS, proxy=PROXY)
    assert blocks(facts) == {3128: ["0.0.0.0/0"], 80: [f"{POD_IDENTITY}/32"]}
    assert PROXY.host in str(cilium_policy(facts, USUAL).document)
    assert S3 not in str(cilium_policy(facts, USUAL).document)
    assert S3 not in egress_rules(facts, USUAL).text
    assert "gateway endpoint only if the proxy" in " ".join(network_policy(facts, USUAL).notes)


def ciliums(facts: Facts = FACTS) -> list[Any]:
    found: list[Any] = cilium_policy(facts, USUAL).document["spec"]["egress"]
    return found


def test_cilium_may_ask_for_and_reach_the_configured_names_only() -> None:
    dns, names, *_ = ciliums()
    hosts = [{"matchName": host} for host in (S3, SQS, PLANE)]
    assert dns["toPorts"][0]["rules"]["dns"] == hosts
    assert dns["toPorts"][0]["ports"] == [{"port": "53", "protocol": "ANY"}]
    assert names == {
        "toFQDNs": hosts,
        "toPorts": [{"ports": [{"port": "443", "protocol": "TCP"}]}],
    }
    assert "matchPattern" not in str(ciliums())


def test_cilium_takes_the_nodes_agent_by_address_and_as_the_node() -> None:
    *_, by_address, node = ciliums()
    assert by_address["toCIDR"] == [f"{POD_IDENTITY}/32"]
    assert node["toEntities"] == ["host"]
    assert by_address["toPorts"] == node["toPorts"]
    assert "port 80 of the node is open too" in cilium_policy(FACTS, USUAL).notes[-1]


def test_the_nodes_agent_of_ipv6_is_one_address() -> None:
    agent = https_destination("http://[fd00:ec2::23]/v1/credentials", setting="AWS_CONTAINER_X")
    facts = replace(FACTS, destinations=(agent,))
    assert blocks(facts) == {80: ["fd00:ec2::23/128"]}
    assert "ip6 daddr { fd00:ec2::23/128 } tcp dport 80" in egress_rules(facts, USUAL).text


def test_networks_of_both_families_are_a_rule_of_each() -> None:
    options = Options(cidrs={"control-plane": ("203.0.113.0/24", "2001:db8::/32")})
    text = egress_rules(FACTS, options).text
    assert "ip daddr { 203.0.113.0/24 } tcp dport 443" in text
    assert "ip6 daddr { 2001:db8::/32 } tcp dport 443" in text


def test_a_service_of_the_cluster_is_reached_as_one() -> None:
    table = [https_destination("http://clickhouse-1.db.svc:8123", setting="BYOC_CLICKHOUSE_URL")]
    facts = replace(FACTS, destinations=tuple(table))
    (rule,) = [r for r in spec(facts)["egress"] if r["ports"] != DNS_PORTS]
    assert rule["to"] == [{"namespaceSelector": {}}]
    assert ciliums(facts)[-1]["toEntities"] == ["cluster"]


def test_the_manifest_selects_the_pods_that_it_is_given() -> None:
    options = Options(namespace="db", pod={"app": "ch"})
    for render, selector in ((network_policy, "podSelector"), (cilium_policy, "endpointSelector")):
        document = render(FACTS, options).document
        assert document["metadata"] == {"name": "byoc-agents", "namespace": "db"}
        assert document["spec"][selector] == {"matchLabels": {"app": "ch"}}


def test_security_group_rules_name_the_prefix_list_of_s3() -> None:
    rows = egress_rules(FACTS, USUAL).document
    peers = {(row["host"], row["protocol"], row["port"]): row["peer"] for row in rows}
    assert peers[S3, "tcp", 443] == f"com.amazonaws.{REGION}.s3"
    assert peers[SQS, "tcp", 443] == "0.0.0.0/0"
    assert peers[POD_IDENTITY, "tcp", 80] == f"{POD_IDENTITY}/32"
    assert {protocol for _, protocol, port in peers if port == 53} == {"udp", "tcp"}
    assert {port for _, _, port in peers} == {53, 80, 443}


def test_the_chain_of_nftables_ends_with_a_drop_and_counts_each_host() -> None:
    options = Options(cidrs={"s3": ("52.218.0.0/17",)}, dns=("10.0.0.2/32",))
    lines = [line.strip() for line in egress_rules(FACTS, options).text.splitlines()]
    rules = [line for line in lines if "counter" in line]
    assert rules[-1].startswith("counter drop")
    assert [r for r in rules if "52.218.0.0/17" in r] == [
        f'ip daddr {{ 52.218.0.0/17 }} tcp dport 443 counter accept comment "s3: {S3}"'
    ]
    assert rules[0].startswith("ip daddr { 10.0.0.2/32 } meta l4proto { tcp, udp } th dport 53")
    assert sum(host in line for line in rules for host in (S3, SQS, PLANE, POD_IDENTITY)) == 4
