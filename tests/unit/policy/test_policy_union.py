"""The other policies of a manifest that select the pod: their rules add up with ours."""

import copy
from typing import Any

import pytest

from byoc_agents.policy.cilium import cilium_policy
from byoc_agents.policy.inputs import Options
from byoc_agents.policy.kubernetes import network_policy
from byoc_agents.policy.union import CILIUM, KUBERNETES, Pod, judge_metadata, judge_others
from tests.unit.policy.policies import FACTS

LABELS = {"app.kubernetes.io/name": "clickhouse"}
OPTIONS = Options(namespace="db", pod=LABELS)
OURS = network_policy(FACTS, OPTIONS).document
CILIUMS = cilium_policy(FACTS, OPTIONS).document
POD = Pod(LABELS, "db", {KUBERNETES: OURS, CILIUM: CILIUMS})
EVERYBODY: dict[str, Any] = {}


def policy(selector: Any, *, namespace: str = "db", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "other", "namespace": namespace},
        "spec": {"podSelector": selector, **spec},
    }


def ciliums(selector: Any, kind: str = "CiliumNetworkPolicy", **spec: Any) -> dict[str, Any]:
    own = {"name": "other"} | ({"namespace": "db"} if kind == "CiliumNetworkPolicy" else {})
    spec = {"endpointSelector": selector, **spec}
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": own, "spec": spec}


def foreign(kind: str, version: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "other"}, "spec": {}}


ANY: list[Any] = [{}]
ALL: list[Any] = [{"toEntities": ["all"]}]
EXPRESSION = {"key": "app.kubernetes.io/name", "operator": "In", "values": ["clickhouse", "x"]}
WIDER: dict[str, dict[str, Any]] = {
    "of Cilium, for all pods, with a selector of nodes that is null": ciliums(
        {}, "CiliumClusterwideNetworkPolicy", nodeSelector=None, egress=ALL
    ),
    "all of the namespace may go anywhere": policy(EVERYBODY, policyTypes=["Egress"], egress=ANY),
    "the pod by its label": policy({"matchLabels": LABELS}, policyTypes=["Egress"], egress=ANY),
    "a label that is not known here": policy({"matchLabels": {"tier": "x"}}, egress=ANY),
    "an expression": policy({"matchExpressions": [EXPRESSION]}, egress=ANY),
    "a label that exists": policy(
        {"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "Exists"}]}, egress=ANY
    ),
    "no policyTypes": policy(EVERYBODY, egress=ANY),
    "everybody may come in": policy(EVERYBODY, policyTypes=["Ingress"], ingress=ANY),
    "no namespace": policy(EVERYBODY, namespace="", egress=ANY),
    "no selector, which is malformed": policy(None, egress=ANY),
    "no spec": {"kind": "NetworkPolicy", "metadata": {"name": "other"}},
    "one wide rule among ours": policy(EVERYBODY, egress=[*OURS["spec"]["egress"], {"to": []}]),
    "Cilium's": ciliums({}, egress=ALL),
    "Cilium's by a label with its source": ciliums(
        {"matchLabels": {"k8s:app.kubernetes.io/name": "clickhouse"}}, egress=ALL
    ),
    "Cilium's, several in one": ciliums({}) | {"spec": None, "specs": [{"egress": ALL}]},
    "Cilium's of the whole cluster": ciliums({}, "CiliumClusterwideNetworkPolicy", egress=ALL),
    "Cilium's of the cluster for the namespace": ciliums(
        {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "db"}},
        "CiliumClusterwideNetworkPolicy",
        egress=ALL,
    ),
    "Calico's": foreign("NetworkPolicy", "projectcalico.org/v3"),
    "Calico's global one": foreign("GlobalNetworkPolicy", "crd.projectcalico.org/v1"),
    "the administrator's": foreign("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1"),
}


@pytest.mark.parametrize("name", WIDER)
def test_a_policy_that_adds_a_flow_to_the_pod_is_found(name: str) -> None:
    found = judge_others(OURS, [OURS, WIDER[name]], POD)
    assert found
    assert all(one.where.startswith(f"{WIDER[name]['kind']} other") for one in found)


def test_the_rule_is_named_by_its_place() -> None:
    (finding,) = judge_others(OURS, [OURS, WIDER["one wide rule among ours"]], POD)
    number = len(OURS["spec"]["egress"])
    assert finding.where == f"NetworkPolicy other: spec.egress[{number}]"
    assert "selects the same pod, and allows flows that are not in the table" in finding.problem


ELSEWHERE = {"key": "app.kubernetes.io/name", "operator": "NotIn", "values": ["clickhouse"]}
NOT_WIDER: dict[str, dict[str, Any]] = {
    "another namespace": policy(EVERYBODY, namespace="web", egress=ANY),
    "another pod": policy({"matchLabels": {"app.kubernetes.io/name": "web"}}, egress=ANY),
    "another pod by an expression": policy({"matchExpressions": [ELSEWHERE]}, egress=ANY),
    "pods without the label": policy(
        {"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "DoesNotExist"}]},
        egress=ANY,
    ),
    "a default denial": policy(EVERYBODY, policyTypes=["Ingress", "Egress"]),
    "rules of ours": policy(EVERYBODY, egress=copy.deepcopy(OURS["spec"]["egress"][:2])),
    "rules that are not in force": policy(EVERYBODY, policyTypes=["Ingress"], egress=ANY),
    "Cilium's denial, whose empty rule allows nothing": ciliums({}, egress=ANY),
    "Cilium's rules of ours": ciliums({}, egress=copy.deepcopy(CILIUMS["spec"]["egress"])),
    "Cilium's of nodes": {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "other"},
        "spec": {"nodeSelector": {}, "egress": ALL},
    },
    "another kind": {"kind": "Service", "metadata": {"name": "other"}},
}


@pytest.mark.parametrize("namespace", ["db", ""])
def test_a_second_policy_of_our_name_is_found(namespace: str) -> None:
    """It replaces ours when the file is applied, so it is found whatever it selects."""
    metadata = {key: value for key, value in OURS["metadata"].items() if key != "namespace"}
    metadata |= {"namespace": namespace} if namespace else {}
    second = {**OURS, "metadata": metadata, "spec": {"podSelector": {"matchLabels": {"a": "b"}}}}
    pod = Pod(LABELS, "db", POD.wanted, frozenset({OURS["metadata"]["name"]}))
    for manifest in ([OURS, second], [second, OURS]):
        (finding,) = judge_others(OURS, manifest, pod)
        assert "appears twice: the later document replaces the other" in finding.problem


def test_a_policy_of_our_name_elsewhere_is_another_object() -> None:
    elsewhere = {**OURS, "metadata": {**OURS["metadata"], "namespace": "web"}}
    service = {"kind": "Service", "metadata": OURS["metadata"]}
    assert judge_others(OURS, [OURS, elsewhere, service], POD) == []


@pytest.mark.parametrize("name", NOT_WIDER)
def test_a_policy_that_adds_nothing_is_not(name: str) -> None:
    assert judge_others(OURS, [NOT_WIDER[name], OURS], POD) == []


@pytest.mark.parametrize("name", WIDER)
def test_a_policy_of_another_owner_can_be_accepted_by_its_name(name: str) -> None:
    pod = Pod(LABELS, "db", POD.wanted, frozenset({"other"}))
    assert judge_others(OURS, [OURS, WIDER[name]], pod) == []


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"namespace": "web"}, "metadata.namespace: is web: expected db"),
        ({}, "metadata.namespace: is missing: expected db"),
        (
            {"namespace": "db", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            (
                "metadata.deletionTimestamp: is set: the policy is being deleted: expected no such"
                " entry"
            ),
        ),
    ],
)
def test_a_policy_that_protects_nothing_is_found(metadata: Any, said: str) -> None:
    found = judge_metadata({"metadata": metadata}, OPTIONS)
    assert [str(one) for one in found] == [said]
    assert judge_metadata(OURS, OPTIONS) == []


@pytest.mark.parametrize("namespace", ["", "db"])
def test_a_second_document_of_our_name_is_found_although_it_selects_another_pod(
    namespace: str,
) -> None:
    rival = policy({"matchLabels": {"app.kubernetes.io/name": "web"}}, namespace=namespace)
    rival["metadata"]["name"] = "byoc-agents"
    found = judge_others(OURS, [OURS, rival], POD)
    assert [finding.where for finding in found] == ["NetworkPolicy byoc-agents"]


def test_a_node_selector_without_a_value_does_not_make_a_policy_one_of_nodes() -> None:
    wide = ciliums({}, "CiliumClusterwideNetworkPolicy", egress=ALL, nodeSelector=None)
    assert judge_others(CILIUMS, [CILIUMS, wide], POD)
