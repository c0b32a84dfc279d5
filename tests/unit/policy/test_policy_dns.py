"""Resolvers and address families: NodeLocal DNSCache, OpenShift, IPv6."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from byoc_agents.egress.destinations import https_destination
from byoc_agents.policy.cilium import cilium_policy
from byoc_agents.policy.flows import ANYWHERE, NEVER_V6, NODE_LOCAL
from byoc_agents.policy.inputs import Options
from byoc_agents.policy.kubernetes import network_policy
from byoc_agents.policy.nftables import egress_rules
from tests.unit.policy.policies import FACTS, REGION, S3, SQS

OPENSHIFT = Options(openshift=True)


def egress(render: Any, options: Options) -> list[Any]:
    found: list[Any] = render(FACTS, options).document["spec"]["egress"]
    return found


def test_openshifts_resolver_is_reached_on_the_port_of_its_pods() -> None:
    dns, *others = egress(network_policy, OPENSHIFT)
    assert dns["ports"] == [{"protocol": "UDP", "port": 5353}, {"protocol": "TCP", "port": 5353}]
    (peer,) = dns["to"]
    labels = {"dns.operator.openshift.io/daemonset-dns": "default"}
    assert peer["podSelector"] == {"matchLabels": labels}
    assert "openshift-dns" in str(peer["namespaceSelector"])
    assert "kube-dns" not in str(others)
    assert "'port': 53}" not in str(others)


def test_openshift_with_a_resolver_of_its_own_has_a_rule_for_each_port() -> None:
    options = replace(OPENSHIFT, dns=("10.0.0.2/32",))
    first, second, *_ = egress(network_policy, options)
    assert [rule["ports"][0]["port"] for rule in (first, second)] == [5353, 53]
    assert second["to"] == [{"ipBlock": {"cidr": "10.0.0.2/32"}}]


def test_cilium_lets_names_be_asked_for_at_openshifts_resolver() -> None:
    dns, *others = egress(cilium_policy, OPENSHIFT)
    (ports,) = dns["toPorts"]
    assert ports["ports"] == [{"port": "5353", "protocol": "ANY"}]
    assert ports["rules"]["dns"][0] == {"matchName": S3}
    assert not any("rules" in str(rule) for rule in others)


def test_cilium_lets_names_be_asked_for_at_node_local_dns() -> None:
    """As an address, as the node, and as the pod that a local redirect leads to."""
    kube, by_address, node, by_pod, *_ = egress(cilium_policy, Options(dns=(NODE_LOCAL,)))
    assert kube["toEndpoints"][0]["matchLabels"]["k8s:k8s-app"] == "kube-dns"
    assert by_address["toCIDR"] == ["169.254.20.10/32"]
    assert node["toEntities"] == ["host"]
    assert by_pod["toEndpoints"][0]["matchLabels"]["k8s:k8s-app"] == "node-local-dns"
    names = [rule["toPorts"][0]["rules"]["dns"] for rule in (kube, by_address, node, by_pod)]
    assert all(one == names[0] for one in names), "no name that is not configured"


def test_another_resolver_is_no_pod_of_the_node() -> None:
    _, by_address, names, *_ = egress(cilium_policy, Options(dns=("10.0.0.2/32",)))
    assert by_address["toCIDR"] == ["10.0.0.2/32"]
    assert "toFQDNs" in names


@pytest.mark.parametrize("family", ANYWHERE)
def test_a_name_may_have_addresses_of_the_families_that_are_given(family: str) -> None:
    options = Options(family=family)
    (rule,) = [rule for rule in egress(network_policy, options) if "except" in str(rule)]
    networks = [peer["ipBlock"]["cidr"] for peer in rule["to"]]
    v4, v6 = family in {"ipv4", "dual"}, family in {"ipv6", "dual"}
    assert networks == ["0.0.0.0/0"] * v4 + ["::/0"] * v6
    for peer in rule["to"]:
        outer = ip_network(peer["ipBlock"]["cidr"])
        assert all(ip_network(one).version == outer.version for one in peer["ipBlock"]["except"])
    text = egress_rules(FACTS, options).text
    assert ("ip daddr != { 127" in text) is v4
    assert ("ip6 daddr != { ::1" in text) is v6
    said = " ".join(network_policy(FACTS, options).notes)
    assert ("IPv6 is not let out" in said) is (family == "ipv4")


@pytest.mark.parametrize(
    "address",
    [
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "64:ff9b::169.254.169.254",
        "64:ff9b::127.0.0.1",
    ],
)
def test_no_name_leads_to_the_node_by_ipv6(address: str) -> None:
    assert any(ip_address(address) in ip_network(one) for one in NEVER_V6)


def test_security_groups_have_rows_of_both_families() -> None:
    rows = egress_rules(FACTS, Options(family="dual", dns=("10.0.0.2/32", "fd00::2/128"))).document
    peers = {(row["host"], row["peer"]) for row in rows}
    assert {(S3, f"com.amazonaws.{REGION}.s3"), (S3, "::/0")} <= peers
    assert {(SQS, "0.0.0.0/0"), (SQS, "::/0")} <= peers
    text = egress_rules(FACTS, Options(dns=("10.0.0.2/32", "fd00::2/128"))).text
    assert "ip daddr { 10.0.0.2/32 } meta l4proto { tcp, udp } th dport 53" in text
    assert "ip6 daddr { fd00::2/128 } meta l4proto { tcp, udp } th dport 53" in text


def test_nftables_does_not_let_the_dns_go_anywhere() -> None:
    """Without --dns it holds a placeholder, which nft refuses."""
    (line,) = [one for one in egress_rules(FACTS, Options()).text.splitlines() if "dport 53" in one]
    assert line.strip().startswith("ip daddr { <RESOLVER_CIDR> } ")


def test_an_agent_of_ipv6_is_one_address_in_every_family() -> None:
    agent = https_destination("http://[fd00:ec2::23]/v1/credentials", setting="AWS_CONTAINER_X")
    facts = replace(FACTS, destinations=(agent,))
    (rule,) = network_policy(facts, Options(family="ipv6")).document["spec"]["egress"]
    assert rule["to"] == [{"ipBlock": {"cidr": "fd00:ec2::23/128"}}]
