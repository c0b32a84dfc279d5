"""What counts as a difference between a manifest and the table, and what does not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from byoc_agents.policy.aws import bucket_policy, iam_policy
from byoc_agents.policy.cilium import cilium_policy
from byoc_agents.policy.drift import differences, matching
from byoc_agents.policy.inputs import Options
from byoc_agents.policy.kubernetes import network_policy
from tests.unit.policy.policies import FACTS, listening

OPEN = listening("0.0.0.0", "0.0.0.0")
POLICY = network_policy(OPEN, Options(cidrs={"s3": ("10.0.0.0/8", "11.0.0.0/8")})).document
IAM = iam_policy(FACTS, Options()).document
BUCKET = bucket_policy(FACTS, Options(role="r", vpce="v")).document
Change = Callable[[Any], None]


def changed(document: Any, change: Change) -> list[str]:
    other = copy.deepcopy(document)
    change(other)
    return differences(document, other)


def rules(document: Any) -> Any:
    return document["spec"]["egress"]


SAME: dict[str, tuple[Any, Change]] = {
    "order of rules": (POLICY, lambda d: rules(d).reverse()),
    "order of peers": (POLICY, lambda d: rules(d)[1]["to"].reverse()),
    "what a cluster adds": (POLICY, lambda d: d["metadata"].update(uid="1", resourceVersion="2")),
    "labels, annotations": (POLICY, lambda d: d["metadata"].update(labels={"a": "b"})),
    "a status": (POLICY, lambda d: d.update(status={})),
    "TCP left out": (POLICY, lambda d: rules(d)[1]["ports"][0].pop("protocol")),
    "another name of a statement": (IAM, lambda d: d["Statement"][0].update(Sid="Other")),
    "an Id": (IAM, lambda d: d.update(Id="x")),
    "a list of one action": (IAM, lambda d: d["Statement"][0].update(Action=["s3:PutObject"])),
    "order of statements": (IAM, lambda d: d["Statement"].reverse()),
    "a real boolean": (
        BUCKET,
        lambda d: d["Statement"][3].update(Condition={"Bool": {"aws:SecureTransport": False}}),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_what_means_the_same_is_no_difference(name: str) -> None:
    assert changed(*SAME[name]) == []


DRIFT: dict[str, tuple[Any, Change, str]] = {
    "a rule too much": (
        POLICY,
        lambda d: rules(d).append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
        "spec.egress: not in the table",
    ),
    "an empty rule, which allows all": (
        POLICY,
        lambda d: rules(d).append({}),
        "spec.egress: not in the table: {}",
    ),
    "a repeated rule allows nothing else, but is reported": (
        POLICY,
        lambda d: rules(d).append(rules(d)[0]),
        "spec.egress: not in the table",
    ),
    "a rule missing": (POLICY, lambda d: rules(d).pop(), "spec.egress: missing"),
    "a wider network": (
        POLICY,
        lambda d: rules(d)[1]["to"][0]["ipBlock"].update(cidr="0.0.0.0/0"),
        "spec.egress: missing",
    ),
    "an exception dropped": (
        POLICY,
        lambda d: rules(d)[-1]["to"][0]["ipBlock"].pop("except"),
        "spec.egress: missing",
    ),
    "all ports": (POLICY, lambda d: rules(d)[1].pop("ports"), "spec.egress: missing"),
    "a range of ports": (
        POLICY,
        lambda d: rules(d)[1]["ports"][0].update(endPort=65535),
        "spec.egress",
    ),
    "no denial of ingress": (
        POLICY,
        lambda d: d["spec"].update(policyTypes=["Egress"]),
        "spec.policyTypes: missing Ingress",
    ),
    "other pods": (
        POLICY,
        lambda d: d["spec"]["podSelector"]["matchLabels"].update(app="x"),
        "spec.podSelector.matchLabels.app: not in the table",
    ),
    "everybody may come in": (
        POLICY,
        lambda d: d["spec"].update(ingress=[{}]),
        "spec.ingress: missing",
    ),
    "a wider action": (
        IAM,
        lambda d: d["Statement"][0].update(Action="s3:*"),
        "Statement: missing",
    ),
    "one more action": (
        IAM,
        lambda d: d["Statement"][0].update(Action=["s3:PutObject", "s3:GetObject"]),
        "Statement: missing",
    ),
    "a wider resource": (
        IAM,
        lambda d: d["Statement"][0].update(Resource="*"),
        "Statement: missing",
    ),
    "a condition dropped": (
        BUCKET,
        lambda d: d["Statement"][0].pop("Condition"),
        "Statement: missing",
    ),
    "a denial dropped": (BUCKET, lambda d: d["Statement"].pop(), "Statement: missing"),
}


@pytest.mark.parametrize("name", DRIFT)
def test_what_means_something_else_is_told_with_its_place(name: str) -> None:
    document, change, said = DRIFT[name]
    found = changed(document, change)
    assert any(line.startswith(said) for line in found), found


def test_an_absent_protocol_of_cilium_is_not_tcp() -> None:
    document = cilium_policy(OPEN, Options()).document
    assert changed(document, lambda d: rules(d)[1]["toPorts"][0]["ports"][0].pop("protocol"))


def test_the_policy_is_found_among_other_manifests() -> None:
    other = {"kind": "NetworkPolicy", "metadata": {"name": "clickhouse"}, "spec": {}}
    renamed = copy.deepcopy(POLICY) | {"metadata": {"name": "renamed"}}
    service = {"kind": "Service", "metadata": {"name": "byoc-agents"}}
    assert matching(POLICY, [service, other, POLICY]) is POLICY
    assert matching(POLICY, [service, renamed]) is renamed
    assert matching(POLICY, [other, renamed]) is None
    assert matching(POLICY, [service]) is None
    assert matching(IAM, [IAM]) is IAM
    assert matching(IAM, [IAM, service]) is None
