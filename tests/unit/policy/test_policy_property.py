"""Every printed policy passes its own check, and no manifest ends the check with an error."""

import copy
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
import yaml
from hypothesis import given
from hypothesis import strategies as some

from byoc_agents.manifest import documents
from byoc_agents.policy import iam, union
from byoc_agents.policy.aws import (
    boundary,
    bucket_policy,
    endpoint_policy,
    iam_policy,
    queue_policy,
    sqs_endpoint_policy,
    sts_endpoint_policy,
)
from byoc_agents.policy.cilium import cilium_policy
from byoc_agents.policy.drift import differences, matching
from byoc_agents.policy.flows import ANYWHERE
from byoc_agents.policy.inputs import Facts, Objects, Options
from byoc_agents.policy.kubernetes import network_policy
from byoc_agents.policy.nftables import egress_rules
from tests.unit.policy.policies import FACTS, listening

ACCOUNT = some.from_regex(r"[0-9]{12}", fullmatch=True)
PREFIX = some.text(some.sampled_from("ab/=*?${}' ,:"), max_size=12)
FOUND = some.sampled_from(["", "vpce-0abc"])
OPTIONS = some.builds(
    Options,
    namespace=some.sampled_from(["", "db"]),
    dns=some.sampled_from([(), ("169.254.20.10/32",), ("10.0.0.2/32", "fd00::2/128")]),
    openshift=some.booleans(),
    family=some.sampled_from(sorted(ANYWHERE)),
    role=ACCOUNT.map(lambda account: f"arn:aws:iam::{account}:role/agents"),
    vpce=FOUND,
    sqs_vpce=some.sampled_from(["", "none", "vpce-0def"]),
    kms_key=some.sampled_from(["", "arn:aws:kms:eu-west-1:1:key/k"]),
    tenants=some.booleans(),
    accounts=some.lists(ACCOUNT, max_size=3).map(tuple),
    trust=some.sampled_from(["", "irsa", "pod-identity"]),
)
FACTS_OF = some.builds(
    lambda prefix, owner, region, host: replace(
        listening(host, host), objects=Objects("b", f"{prefix}org=o/", owner, prefix), region=region
    ),
    PREFIX,
    some.one_of(some.just(""), ACCOUNT),
    some.sampled_from(["eu-west-1", "cn-north-1", "us-gov-west-1"]),
    some.sampled_from(["127.0.0.1", "0.0.0.0"]),
)
RENDERS: list[Any] = [iam_policy, boundary, bucket_policy, queue_policy, endpoint_policy]
RENDERS += [sqs_endpoint_policy, sts_endpoint_policy]


@given(FACTS_OF, OPTIONS)
def test_what_is_printed_passes_its_own_check(facts: Facts, options: Options) -> None:
    for render in RENDERS:
        document = render(facts, options).document
        assert iam.differences(document, msgspec.json.decode(msgspec.json.encode(document))) == []
    for render in (network_policy, cilium_policy, egress_rules):
        document = render(facts, options).document
        text = yaml.safe_dump(msgspec.json.decode(msgspec.json.encode(document)))
        (read,) = documents(text, "x")
        assert differences(document, read) == []
        if isinstance(read, dict):
            assert union.judge_metadata(read, options) == []


WORDS = [
    *("Statement", "Effect", "Action", "Resource", "Condition"),
    *("Principal", "Policy", "kind", "metadata", "spec"),
    *("specs", "egress", "podSelector", "matchLabels", "matchExpressions"),
    *("values", "operator", "policyTypes", "name", "Sid"),
]
ANYTHING = some.recursive(
    some.one_of(some.none(), some.booleans(), some.integers(), some.text(max_size=3)),
    lambda inner: some.one_of(
        some.lists(inner, max_size=3),
        some.dictionaries(
            some.sampled_from(WORDS),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
POD = union.Pod({"a": "b"}, "db", {union.KUBERNETES: network_policy(FACTS, Options()).document})


@given(ANYTHING)
def test_no_manifest_ends_the_check(document: Any) -> None:
    wanted = iam_policy(FACTS, Options()).document
    with suppress(ValueError):  # a policy inside, as text that is not JSON
        assert iam.differences(wanted, document)
    mine = network_policy(FACTS, Options()).document
    differences(mine, document)
    matching(mine, [document, mine])
    if isinstance(document, dict):
        other = {"kind": "NetworkPolicy", **copy.deepcopy(document)}
        union.judge_metadata(other, Options(namespace="db"))
        union.judge_others(mine, [mine, other | {"kind": "CiliumNetworkPolicy"}], POD)
        union.judge_others(mine, [mine, other | {"kind": "NetworkPolicy"}], POD)
