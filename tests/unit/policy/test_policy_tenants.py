"""Access by the printed AWS documents, decided by an evaluator of IAM's semantics."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from byoc_agents.errors import ConfigError
from byoc_agents.policy.aws import (
    boundary,
    bucket_policy,
    endpoint_policy,
    iam_policy,
    queue_policy,
    sqs_endpoint_policy,
    sts_endpoint_policy,
)
from byoc_agents.policy.inputs import Objects, Options
from lab.iam import Request, decides, permits
from tests.unit.policy.policies import FACTS, QUEUE_ARN

KEY = "arn:aws:kms:eu-west-1:999999999999:key/k"
VENDOR, A, B = "999999999999", "111111111111", "222222222222"
BUCKET = "arn:aws:s3:::vendor-usage"
SSE = "s3:x-amz-server-side-encryption"


def role(account: str) -> str:
    return f"arn:aws:iam::{account}:role/byoc-agents"


def folder(account: str, organization: str = "o", service: str = "s") -> str:
    return f"v1/account={account}/org={organization}/service={service}/"


def facts_of(account: str) -> Any:
    return replace(FACTS, objects=Objects("vendor-usage", folder(account), VENDOR, "v1/"))


def put(account: str = A, **changes: Any) -> Request:
    """Return a customer's upload with some keys changed; None leaves one out."""
    context = {
        "aws:SourceVpce": f"vpce-{account}",
        "aws:SecureTransport": "true",
        "s3:TlsVersion": "1.3",
        "s3:if-none-match": "*",
        "s3:signatureversion": "AWS4-HMAC-SHA256",
        "s3:authType": "REST-HEADER",
        "aws:PrincipalIsAWSService": "false",
        "aws:ResourceAccount": VENDOR,
        "aws:PrincipalTag/byoc-organization": "o",
        "aws:PrincipalTag/byoc-service": "s",
        "aws:PrincipalTag/byoc-s3-vpce": f"vpce-{account}",
        "aws:PrincipalTag/byoc-sqs-vpce": f"vpce-{account}",
    } | changes.pop("context", {})
    wanted = Request(
        "s3:PutObject",
        f"{BUCKET}/{folder(account)}hour=1/x.json",
        role(account),
        {key: value for key, value in context.items() if value is not None},
    )
    return replace(wanted, **changes)


REFUSED: dict[str, dict[str, Any]] = {
    "another customer's folder": {"resource": f"{BUCKET}/{folder(B)}x"},
    "another service's folder": {"resource": f"{BUCKET}/{folder(A, service='t')}x"},
    "another organization's folder": {"resource": f"{BUCKET}/{folder(A, organization='p')}x"},
    "a folder that begins like its own": {
        "resource": f"{BUCKET}/v1/account={A}1/org=o/service=s/x"
    },
    "the root": {"resource": f"{BUCKET}/x"},
    "another endpoint": {"context": {"aws:SourceVpce": f"vpce-{B}"}},
    "the internet": {"context": {"aws:SourceVpce": None}},
    "overwriting": {"context": {"s3:if-none-match": None}},
    "no TLS": {"context": {"aws:SecureTransport": "false"}},
    "old TLS": {"context": {"s3:TlsVersion": "1.1"}},
    "another algorithm of signatures": {"context": {"s3:signatureversion": "AWS"}},
    "no signature": {"context": {"s3:signatureversion": None}, "principal": ""},
    "a signed link": {"context": {"s3:authType": "REST-QUERY-STRING"}},
    "a key of the caller": {"context": {f"{SSE}-customer-algorithm": "AES256"}},
    "another algorithm of encryption": {"context": {SSE: "AES256"}},
    "another key": {"context": {SSE: "aws:kms", f"{SSE}-aws-kms-key-id": f"{KEY}2"}},
    "reading": {"action": "s3:GetObject"},
    "deleting": {"action": "s3:DeleteObject"},
    "listing": {"action": "s3:ListBucket", "resource": BUCKET},
    "another role of the account": {"principal": f"arn:aws:iam::{A}:role/other"},
}
ONLY_ONE = {"another role of the account"}  # tags are what counts among roles of one customer
ONE = Options(role=role(A), vpce=f"vpce-{A}", sqs_vpce=f"vpce-{A}", kms_key=KEY)
MANY = Options(tenants=True, kms_key=KEY)


@pytest.mark.parametrize("options", [ONE, MANY], ids=["one customer", "any number"])
def test_the_upload_as_the_scraper_makes_it_is_allowed(options: Options) -> None:
    assert permits(put(), bucket_policy(facts_of(A), options).document)
    wanted = {SSE: "aws:kms", f"{SSE}-aws-kms-key-id": KEY}
    assert permits(put(context=wanted), bucket_policy(facts_of(A), options).document)


@pytest.mark.parametrize("name", REFUSED)
def test_the_bucket_of_one_customer_refuses(name: str) -> None:
    assert not permits(put(**REFUSED[name]), bucket_policy(facts_of(A), ONE).document)


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - ONLY_ONE))
@pytest.mark.parametrize("accounts", [(), (A, B)], ids=["open", "listed"])
def test_the_bucket_of_any_number_of_customers_refuses(name: str, accounts: tuple[str]) -> None:
    document = bucket_policy(facts_of(B), replace(MANY, accounts=accounts)).document
    assert permits(put(), document)
    assert permits(put(B), document)
    assert not permits(put(**REFUSED[name]), document)


@pytest.mark.parametrize(
    "tag", ["byoc-organization", "byoc-service", "byoc-s3-vpce"], ids=lambda tag: f"no {tag}"
)
def test_a_role_without_a_tag_is_refused(tag: str) -> None:
    document = bucket_policy(facts_of(A), MANY).document
    assert not permits(put(context={f"aws:PrincipalTag/{tag}": None}), document)


def test_tags_of_another_customer_lead_into_no_other_account() -> None:
    """A customer sets his tags himself: his account's number is AWS's."""
    document = bucket_policy(facts_of(A), MANY).document
    taken = {"aws:PrincipalTag/byoc-organization": "p", "aws:PrincipalTag/byoc-service": "t"}
    theirs = f"{BUCKET}/{folder(B, 'p', 't')}x"
    assert not permits(put(resource=theirs, context=taken), document)
    up = {"aws:PrincipalTag/byoc-organization": f"/../account={B}/org=o"}
    assert not permits(put(resource=f"{BUCKET}/{folder(B)}x", context=up), document)


def test_only_listed_accounts_may_write_where_they_are_listed() -> None:
    document = bucket_policy(facts_of(A), replace(MANY, accounts=(A,))).document
    assert permits(put(), document)
    assert not permits(put(B), document)


def test_the_denial_of_other_ways_holds_with_a_wide_statement_and_spares_the_vendor() -> None:
    document = bucket_policy(facts_of(A), MANY).document
    wide = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"{BUCKET}/*"}
    opened = document | {"Statement": [*document["Statement"], wide]}
    reading = put(action="s3:GetObject")
    assert decides(opened, reading) == "Allow"
    assert decides(opened, replace(reading, context={})) == "Deny"
    for tag in (None, f"vpce-{B}"):
        given = {"aws:PrincipalTag/byoc-s3-vpce": tag}
        assert decides(opened, put(action="s3:GetObject", context=given)) == "Deny"
    own = replace(put(), action="s3:GetObject", principal=role(VENDOR))
    assert decides(opened, replace(own, context={"s3:TlsVersion": "1.3"})) == "Allow"


@pytest.mark.parametrize(("render", "limit"), [(bucket_policy, 20_480), (queue_policy, 8_192)])
def test_the_policies_do_not_grow_with_the_customers(render: Any, limit: int) -> None:
    """Ten thousand customers are each let into their own folder by the same document."""
    document = render(facts_of(A), MANY).document
    assert len(msgspec.json.format(msgspec.json.encode(document))) < limit / 2
    for number in range(10_000):
        account = f"{number:012}"
        request = put(account)
        if render is queue_policy:
            request = replace(request, action="sqs:SendMessage", resource=QUEUE_ARN)
        assert permits(request, document)
        if render is bucket_policy:
            other = f"{BUCKET}/{folder(f'{number + 1:012}')}x"
            assert not permits(replace(request, resource=other), document)


@pytest.mark.parametrize("render", [bucket_policy, queue_policy])
def test_a_list_of_accounts_that_aws_would_refuse_is_refused(render: Any) -> None:
    accounts = tuple(f"{number:012}" for number in range(1000))
    with pytest.raises(ConfigError, match="expected at most"):
        render(facts_of(A), replace(MANY, accounts=accounts))
    render(facts_of(A), replace(MANY, accounts=accounts[:100]))


QUEUE_REFUSED: dict[str, dict[str, Any]] = {
    "another endpoint": {"context": {"aws:SourceVpce": f"vpce-{B}"}},
    "the internet": {"context": {"aws:SourceVpce": None}},
    "no TLS": {"context": {"aws:SecureTransport": "false"}},
    "reading": {"action": "sqs:ReceiveMessage"},
    "another queue": {"resource": f"{QUEUE_ARN}2"},
    "no signature": {"principal": "", "context": {"aws:PrincipalTag/byoc-sqs-vpce": None}},
}


@pytest.mark.parametrize("options", [ONE, MANY], ids=["one customer", "any number"])
@pytest.mark.parametrize("name", QUEUE_REFUSED)
def test_the_queue_refuses(name: str, options: Options) -> None:
    document = queue_policy(facts_of(A), options).document
    request = replace(put(), action="sqs:SendMessage", resource=QUEUE_ARN)
    assert permits(request, document)
    changed = put(**{"action": request.action, "resource": QUEUE_ARN} | QUEUE_REFUSED[name])
    assert not permits(changed, document)


def test_the_customers_own_documents_stop_what_a_wide_bucket_would_take() -> None:
    """Role, boundary and endpoint, each alone; the bucket's policy is not asked."""
    facts, request = facts_of(A), put()
    documents = [render(facts, ONE).document for render in (iam_policy, boundary, endpoint_policy)]
    assert permits(request, *documents)
    for name in ("another endpoint", "the internet", "overwriting", "reading", "the root"):
        for document in documents[:2]:
            assert not permits(put(**REFUSED[name]), document)
    assert not permits(put(**REFUSED["another role of the account"]), documents[2])
    assert not permits(put(context={"aws:ResourceAccount": B}), documents[2])
    send = replace(request, action="sqs:SendMessage", resource=QUEUE_ARN)
    for render in (iam_policy, boundary, sqs_endpoint_policy):
        assert permits(send, render(facts, ONE).document)
    assert not permits(replace(send, principal=role(B)), sqs_endpoint_policy(facts, ONE).document)


def test_the_endpoint_of_sts_lets_one_role_be_taken() -> None:
    document = sts_endpoint_policy(FACTS, ONE).document
    take = Request("sts:AssumeRoleWithWebIdentity", role(A))
    assert permits(take, document)
    assert not permits(replace(take, resource=role(B)), document)
    assert not permits(replace(take, action="sts:AssumeRole"), document)
