"""AWS's documents: permissions, principals and conditions, and that they grant nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from byoc_agents.errors import ConfigError
from byoc_agents.policy.aws import bucket_policy, endpoint_policy, iam_policy, literal
from byoc_agents.policy.inputs import Facts, Objects, Options
from tests.unit.policy.policies import FACTS, QUEUE_ARN

FOLDER = "arn:aws:s3:::vendor-usage/v1/org=o/service=s/*"
ROLE = "arn:aws:iam::210987654321:role/agents"
KEY = "arn:aws:kms:eu-west-1:123456789012:key/k"
GIVEN = Options(role=ROLE, vpce="vpce-0abc")


def statements(render: Any, facts: Facts = FACTS, options: Options = GIVEN) -> list[Any]:
    document = render(facts, options).document
    assert document["Version"] == "2012-10-17"
    found: list[Any] = document["Statement"]
    return found


SCRAPER = replace(FACTS, agents=("billing-scraper",), queue_arn="")
EXPORTER = replace(FACTS, agents=("state-exporter",), objects=None)
FORWARDER = replace(FACTS, agents=("alert-forwarder",), objects=None, queue_arn="")


@pytest.mark.parametrize(
    ("facts", "granted"),
    [
        (FACTS, {("s3:PutObject", FOLDER), ("sqs:SendMessage", QUEUE_ARN)}),
        (SCRAPER, {("s3:PutObject", FOLDER)}),
        (EXPORTER, {("sqs:SendMessage", QUEUE_ARN)}),
        (FORWARDER, set()),
    ],
    ids=["all", "scraper", "exporter", "forwarder"],
)
def test_a_daemon_may_do_one_thing_and_nothing_else(
    facts: Facts, granted: set[tuple[str, str]]
) -> None:
    found = statements(iam_policy, facts)
    assert {(s["Action"], s["Resource"]) for s in found} == granted
    assert all(s["Effect"] == "Allow" for s in found)


def test_who_needs_no_aws_is_told_so() -> None:
    assert "no AWS service" in iam_policy(FORWARDER, GIVEN).notes[0]


def test_the_buckets_account_is_held_where_it_is_known() -> None:
    facts = replace(SCRAPER, objects=Objects("b", "v1/", "123456789012"))
    (put,) = statements(iam_policy, facts)
    assert put["Condition"] == {"StringEquals": {"aws:ResourceAccount": "123456789012"}}


def test_a_key_is_used_by_way_of_its_service_only() -> None:
    found = statements(iam_policy, options=Options(kms_key=KEY))
    uses = {
        s["Condition"]["StringEquals"]["kms:ViaService"]: s["Action"]
        for s in found
        if s["Resource"] == KEY
    }
    assert uses == {
        "s3.eu-west-1.amazonaws.com": ["kms:GenerateDataKey"],
        "sqs.eu-west-1.amazonaws.com": ["kms:GenerateDataKey", "kms:Decrypt"],
    }


def test_a_wildcard_in_a_prefix_means_itself() -> None:
    assert literal("a*b?c$d") == "a${*}b${?}c${$}d"
    facts = replace(SCRAPER, objects=Objects("b", "*/"))
    assert statements(iam_policy, facts)[0]["Resource"] == "arn:aws:s3:::b/${*}/*"


def test_another_partition_has_its_own_arns() -> None:
    facts = replace(SCRAPER, region="cn-north-1")
    assert statements(iam_policy, facts)[0]["Resource"].startswith("arn:aws-cn:s3:::")


def test_the_bucket_takes_new_objects_of_one_role_by_one_endpoint() -> None:
    (allow,) = [s for s in statements(bucket_policy) if s["Effect"] == "Allow"]
    assert allow["Principal"] == {"AWS": ROLE}
    assert (allow["Action"], allow["Resource"]) == ("s3:PutObject", FOLDER)
    assert allow["Condition"] == {
        "StringEquals": {"aws:SourceVpce": "vpce-0abc"},
        "Null": {"s3:if-none-match": "false"},
    }


@pytest.mark.parametrize(
    ("condition", "principal", "action"),
    [
        ({"StringNotEquals": {"aws:SourceVpce": "vpce-0abc"}}, {"AWS": ROLE}, "s3:*"),
        ({"Null": {"s3:if-none-match": "true"}}, "*", "s3:PutObject"),
        ({"Bool": {"aws:SecureTransport": "false"}}, "*", "s3:*"),
        ({"NumericLessThan": {"s3:TlsVersion": "1.2"}}, "*", "s3:*"),
    ],
    ids=["another way", "overwriting", "no TLS", "old TLS"],
)
def test_the_bucket_denies(condition: Any, principal: Any, action: str) -> None:
    (deny,) = [s for s in statements(bucket_policy) if s["Condition"] == condition]
    assert (deny["Effect"], deny["Principal"], deny["Action"]) == ("Deny", principal, action)


def test_the_endpoint_lets_one_role_put_into_one_folder() -> None:
    (allow,) = statements(endpoint_policy)
    assert (allow["Effect"], allow["Action"], allow["Resource"]) == (
        "Allow",
        "s3:PutObject",
        FOLDER,
    )
    assert allow["Principal"] == "*"
    assert allow["Condition"] == {"ArnEquals": {"aws:PrincipalArn": ROLE}}


@pytest.mark.parametrize("render", [bucket_policy, endpoint_policy])
def test_without_a_bucket_of_s3_there_is_no_such_policy(render: Any) -> None:
    with pytest.raises(ConfigError, match="BYOC_BILLING_BUCKET"):
        render(EXPORTER, GIVEN)


def test_what_is_not_given_is_a_placeholder() -> None:
    text = str(bucket_policy(FACTS, Options()).document)
    assert "<CUSTOMER_ROLE_ARN>" in text
    assert "<VPC_ENDPOINT_ID>" in text


def test_irsa_trusts_one_service_account_of_one_cluster() -> None:
    provider = "oidc.eks.eu-west-1.amazonaws.com/id/ABC"
    options = Options(trust="irsa", role=ROLE, oidc_provider=provider, service_account="db/ch")
    (trust,) = statements(iam_policy, options=options)
    assert trust["Action"] == "sts:AssumeRoleWithWebIdentity"
    arn = f"arn:aws:iam::210987654321:oidc-provider/{provider}"
    assert trust["Principal"] == {"Federated": arn}
    assert trust["Condition"]["StringEquals"] == {
        f"{provider}:aud": "byoc-agents",
        f"{provider}:sub": "system:serviceaccount:db:ch",
    }


def test_pod_identity_trusts_one_service_account() -> None:
    options = Options(trust="pod-identity", service_account="db/ch")
    (trust,) = statements(iam_policy, options=options)
    assert trust["Principal"] == {"Service": "pods.eks.amazonaws.com"}
    assert trust["Action"] == ["sts:AssumeRole", "sts:TagSession"]
    assert trust["Condition"]["StringEquals"] == {
        "aws:RequestTag/kubernetes-namespace": "db",
        "aws:RequestTag/kubernetes-service-account": "ch",
    }
