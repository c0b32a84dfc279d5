"""AWS's documents: permissions, principals and conditions, and that they grant nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from byoc_agents.errors import ConfigError
from byoc_agents.policy.aws import (
    boundary,
    bucket_policy,
    endpoint_policy,
    iam_policy,
    literal,
    queue_policy,
    sqs_endpoint_policy,
    sts_endpoint_policy,
)
from byoc_agents.policy.inputs import Facts, Objects, Options
from tests.unit.policy.policies import FACTS, QUEUE_ARN

FOLDER = "arn:aws:s3:::vendor-usage/v1/org=o/service=s/*"
ROLE = "arn:aws:iam::210987654321:role/agents"
KEY = "arn:aws:kms:eu-west-1:123456789012:key/k"
CLUSTER = "arn:aws:eks:eu-west-1:210987654321:cluster/one"
GIVEN = Options(role=ROLE, vpce="vpce-0abc", sqs_vpce="vpce-0def")


def statements(render: Any, facts: Facts = FACTS, options: Options = GIVEN) -> list[Any]:
    document = render(facts, options).document
    assert document["Version"] == "2012-10-17"
    found: list[Any] = document["Statement"]
    return found


SCRAPER = replace(FACTS, daemons=("billing-scraper",), queue_arn="")
EXPORTER = replace(FACTS, daemons=("state-exporter",), objects=None)
FORWARDER = replace(FACTS, daemons=("alert-forwarder",), objects=None, queue_arn="")


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


def test_who_needs_no_aws_gets_a_message() -> None:
    assert "no AWS service" in iam_policy(FORWARDER, GIVEN).notes[0]


def test_the_buckets_account_is_held_where_it_is_known() -> None:
    facts = replace(SCRAPER, objects=Objects("b", "v1/", "123456789012"))
    (put,) = statements(iam_policy, facts)
    assert put["Condition"]["StringEquals"]["aws:ResourceAccount"] == "123456789012"


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
        ({"StringNotEquals": {"s3:signatureversion": "AWS4-HMAC-SHA256"}}, "*", "s3:PutObject"),
        ({"StringNotEquals": {"s3:authType": "REST-HEADER"}}, "*", "s3:PutObject"),
        (
            {"Null": {"s3:x-amz-server-side-encryption-customer-algorithm": "false"}},
            "*",
            "s3:PutObject",
        ),
        ({"Bool": {"aws:SecureTransport": "false"}}, "*", "s3:*"),
        ({"NumericLessThan": {"s3:TlsVersion": "1.2"}}, "*", "s3:*"),
    ],
    ids=[
        "another way",
        "overwriting",
        "another signature",
        "a signed link",
        "a key of the caller",
        "no TLS",
        "old TLS",
    ],
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
    options = Options(trust="pod-identity", service_account="db/ch", cluster_arn=CLUSTER)
    (trust,) = statements(iam_policy, options=options)
    assert trust["Principal"] == {"Service": "pods.eks.amazonaws.com"}
    assert trust["Action"] == ["sts:AssumeRole", "sts:TagSession"]
    assert trust["Condition"]["StringEquals"] == {
        "aws:SourceAccount": "210987654321",
        "aws:RequestTag/eks-cluster-arn": CLUSTER,
        "aws:RequestTag/kubernetes-namespace": "db",
        "aws:RequestTag/kubernetes-service-account": "ch",
    }


@pytest.mark.parametrize("trust", ["irsa", "pod-identity"])
def test_several_accounts_of_one_namespace_can_take_the_role(trust: str) -> None:
    """Each Deployment of the chart has an account of its own."""
    options = Options(trust=trust, role=ROLE, service_account="db/scraper,exporter")
    equal = statements(iam_policy, options=options)[0]["Condition"]["StringEquals"]
    names = ["scraper", "exporter"]
    assert equal.get("aws:RequestTag/kubernetes-service-account") in (names, None)
    subjects = [f"system:serviceaccount:db:{name}" for name in names]
    assert equal.get("<OIDC_PROVIDER>:sub") in (subjects, None)
    assert names in equal.values() or subjects in equal.values()


def test_the_roles_own_statements_name_the_endpoints() -> None:
    """A stolen key is of no use elsewhere, whatever the vendor's own policies say."""
    put, send = statements(iam_policy)
    assert put["Condition"] == {
        "StringEquals": {"aws:SourceVpce": "vpce-0abc"},
        "Null": {"s3:if-none-match": "false"},
    }
    assert send["Condition"] == {"StringEquals": {"aws:SourceVpce": "vpce-0def"}}
    said = " ".join(iam_policy(FACTS, Options()).notes)
    assert "Without --vpce" in said
    assert "Without --sqs-vpce" in said


def test_the_boundary_is_the_same_permissions_and_fits_a_managed_policy() -> None:
    assert statements(boundary) == statements(iam_policy)
    with pytest.raises(ConfigError, match="expected at most 6144"):
        boundary(replace(FACTS, objects=Objects("b", "x" * 7000)), GIVEN)


def test_the_other_endpoints_let_one_role_do_one_thing() -> None:
    (send,) = statements(sqs_endpoint_policy)
    assert (send["Action"], send["Resource"]) == ("sqs:SendMessage", QUEUE_ARN)
    assert send["Condition"] == {"ArnEquals": {"aws:PrincipalArn": ROLE}}
    (take,) = statements(sts_endpoint_policy)
    assert (take["Action"], take["Resource"]) == ("sts:AssumeRoleWithWebIdentity", ROLE)


def test_a_queue_without_an_interface_endpoint_says_what_it_lacks() -> None:
    options = replace(GIVEN, sqs_vpce="none")
    assert "SourceVpce" not in str(queue_policy(FACTS, options).document)
    assert "cannot tell the customer's network" in " ".join(queue_policy(FACTS, options).notes)
    assert "SourceVpce" not in str(statements(iam_policy, options=options)[1])


def test_an_access_points_alias_is_no_bucket() -> None:
    facts = replace(FACTS, objects=Objects("usage-abc-s3alias", "v1/"))
    for render in (iam_policy, bucket_policy, endpoint_policy):
        with pytest.raises(ConfigError, match="expected the name of a bucket"):
            render(facts, GIVEN)


def test_china_has_both_spellings_of_the_service() -> None:
    facts = replace(SCRAPER, region="cn-north-1")
    key = statements(iam_policy, facts, Options(kms_key=KEY))[1]
    assert key["Condition"]["StringEquals"]["kms:ViaService"] == [
        "s3.cn-north-1.amazonaws.com",
        "s3.cn-north-1.amazonaws.com.cn",
    ]


def test_the_token_may_have_an_audience_of_its_own() -> None:
    options = Options(trust="irsa", audience="byoc-agents", oidc_provider="p/id", role=ROLE)
    (trust,) = statements(iam_policy, options=options)
    assert trust["Condition"]["StringEquals"]["p/id:aud"] == "byoc-agents"
