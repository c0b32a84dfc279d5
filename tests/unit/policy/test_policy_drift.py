"""Tests of the differences that are found between a manifest and the table."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from byoc_agents.policy.aws import iam_policy
from byoc_agents.policy.cilium import cilium_policy
from byoc_agents.policy.drift import canonical, differences, matching
from byoc_agents.policy.flows import NODE_LOCAL
from byoc_agents.policy.iam import unwrap_response
from byoc_agents.policy.inputs import Facts, Options
from byoc_agents.policy.kubernetes import network_policy
from tests.unit.policy.policies import FACTS, listening

OPEN = listening("0.0.0.0", "0.0.0.0")
POLICY = network_policy(OPEN, Options(cidrs={"s3": ("10.0.0.0/8", "11.0.0.0/8")})).document
OPEN_POLICY = network_policy(FACTS, Options()).document  # nothing comes in
IAM = iam_policy(FACTS, Options()).document
Change = Callable[[Any], None]


def changed(document: Any, change: Change) -> list[str]:
    other = copy.deepcopy(document)
    change(other)
    return [str(finding) for finding in differences(document, other)]


def rules(document: Any) -> Any:
    return document["spec"]["egress"]


def express_labels(selector: Any, **more: Any) -> None:
    labels = selector.pop("matchLabels")
    selector["matchExpressions"] = [
        {"key": key, "operator": "In", "values": [value]} for key, value in labels.items()
    ]
    selector.update(more)


SAME: dict[str, tuple[Any, Change]] = {
    "order of rules": (POLICY, lambda d: rules(d).reverse()),
    "order of peers": (POLICY, lambda d: rules(d)[1]["to"].reverse()),
    "what a cluster adds": (POLICY, lambda d: d["metadata"].update(uid="1", resourceVersion="2")),
    "labels, annotations": (POLICY, lambda d: d["metadata"].update(labels={"a": "b"})),
    "a status": (POLICY, lambda d: d.update(status={})),
    "TCP left out": (POLICY, lambda d: rules(d)[1]["ports"][0].pop("protocol")),
    "an expression with one value": (POLICY, lambda d: express_labels(d["spec"]["podSelector"])),
    "labels and expressions": (
        POLICY,
        lambda d: express_labels(rules(d)[0]["to"][0]["podSelector"], matchLabels=None),
    ),
    "a null is a key that is not there": (OPEN_POLICY, lambda d: d["spec"].update(ingress=None)),
}


@pytest.mark.parametrize("name", SAME)
def test_what_means_the_same_is_no_difference(name: str) -> None:
    assert changed(*SAME[name]) == []


DRIFT: dict[str, tuple[Any, Change, str]] = {
    "a rule too much": (
        POLICY,
        lambda d: rules(d).append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
        'spec.egress[4]: not in the table: {"to":[{"ipBlock":{"cidr":"0.0.0.0/0"}}]}: expected no',
    ),
    "an expression with two values": (
        POLICY,
        lambda d: d["spec"]["podSelector"].update(
            matchLabels={},
            matchExpressions=[{"key": "app", "operator": "In", "values": ["a", "b"]}],
        ),
        "spec.podSelector",
    ),
    "an empty rule, which allows all": (
        POLICY,
        lambda d: rules(d).append({}),
        "spec.egress[4]: not in the table: {}: expected no such entry",
    ),
    "a repeated rule allows nothing else, but is reported": (
        POLICY,
        lambda d: rules(d).append(rules(d)[0]),
        "spec.egress[4]: not in the table",
    ),
    "a rule missing": (POLICY, lambda d: rules(d).pop(), "spec.egress: missing"),
    "a wider network": (
        POLICY,
        lambda d: rules(d)[1]["to"][0]["ipBlock"].update(cidr="0.0.0.0/0"),
        'spec.egress[1].to[0]: not in the table: {"ipBlock":{"cidr":"0.0.0.0/0"}}',
    ),
    "an exception dropped": (
        POLICY,
        lambda d: rules(d)[-1]["to"][0]["ipBlock"].pop("except"),
        'spec.egress[3].to[0].ipBlock.except: missing: expected ["127.0.0.0/8"',
    ),
    "all ports": (POLICY, lambda d: rules(d)[1].pop("ports"), "spec.egress[1].ports: missing"),
    "a range of ports": (
        POLICY,
        lambda d: rules(d)[1]["ports"][0].update(endPort=65535),
        "spec.egress[1].ports[0].endPort: not in the table: 65535",
    ),
    "no denial of ingress": (
        POLICY,
        lambda d: d["spec"].update(policyTypes=["Egress"]),
        "spec.policyTypes: missing: expected Ingress",
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
}


@pytest.mark.parametrize("name", DRIFT)
def test_what_means_something_else_is_reported_with_its_place(name: str) -> None:
    document, change, said = DRIFT[name]
    found = changed(document, change)
    assert any(line.startswith(said) for line in found), found


def mutations(value: Any) -> Iterator[Any]:
    """Return copies of a document, each with one key, entry or text gone or other, or one more."""
    if isinstance(value, dict):
        yield from ({k: v for k, v in value.items() if k != key} for key in value)
        yield value | {"another": "x"}
        for key, inner in value.items():
            yield from (value | {key: other} for other in mutations(inner))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield value[:number] + value[number + 1 :]
            yield from ([*value[:number], o, *value[number + 1 :]] for o in mutations(inner))
        yield [*value, {}]
        yield []
    else:
        yield f"{value}0"
        yield "*"


@pytest.mark.parametrize("render", [network_policy, cilium_policy])
@pytest.mark.parametrize("facts", [FACTS, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize(
    "options", [Options(), Options(dns=(NODE_LOCAL,), openshift=True, family="dual")]
)
def test_every_single_change_of_the_rules_is_found(
    render: Any, facts: Facts, options: Options
) -> None:
    document = render(facts, options).document
    tried = [document | {"spec": other} for other in mutations(document["spec"])]
    assert len(tried) > 100
    missed = [other["spec"] for other in tried if not differences(document, other)]
    assert [one for one in missed if meaning(one) != meaning(document["spec"])] == []
    assert len(missed) < len(tried) / 10, "TCP is the default, and empty the same as absent"


def meaning(spec: Any) -> Any:
    """Return a spec in which an empty list is the same as none."""
    return canonical({key: value for key, value in spec.items() if value != []})


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
    elsewhere = {**dict(POLICY or {}), "metadata": {"name": "byoc-agents", "namespace": "x"}}
    assert matching(POLICY, [elsewhere, POLICY]) is POLICY


def test_the_output_of_get_policy_version_is_read() -> None:
    document = {"Version": "2012-10-17", "Statement": []}
    given = {"PolicyVersion": {"Document": document, "VersionId": "v1", "IsDefaultVersion": True}}
    assert unwrap_response(given) == document


def test_a_response_with_two_documents_is_not_judged_by_one_of_them() -> None:
    document = {"Version": "2012-10-17", "Statement": []}
    given = {"PolicyDocument": document, "Policy": {"Version": "2012-10-17", "Statement": [{}]}}
    found = differences(document, given)
    assert any(finding.where == "PolicyDocument" for finding in found)
