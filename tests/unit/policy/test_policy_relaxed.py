"""Every relaxation of a printed AWS document is found, and what means the same is not."""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from byoc_agents.policy import iam
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
from lab.iam import Request, decides
from tests.unit.policy.policies import FACTS, QUEUE_ARN

KEY = "arn:aws:kms:eu-west-1:123456789012:key/k"
ROLE = "arn:aws:iam::210987654321:role/agents"
GIVEN = Options(
    role=ROLE,
    vpce="vpce-0abc",
    sqs_vpce="vpce-0def",
    kms_key=KEY,
    oidc_provider="oidc.eks.eu-west-1.amazonaws.com/id/ABC",
    cluster_arn="arn:aws:eks:eu-west-1:210987654321:cluster/one",
    service_account="db/ch",
)
OWNED = replace(FACTS, objects=Objects("vendor-usage", "v1/org=o/service=s/", "1" * 12, "v1/"))
DOCUMENTS: dict[str, Any] = {
    "iam": iam_policy(OWNED, GIVEN).document,
    "boundary": boundary(OWNED, GIVEN).document,
    "irsa": iam_policy(OWNED, replace(GIVEN, trust="irsa")).document,
    "pod identity": iam_policy(OWNED, replace(GIVEN, trust="pod-identity")).document,
    "bucket": bucket_policy(OWNED, GIVEN).document,
    "bucket of many": bucket_policy(OWNED, replace(GIVEN, tenants=True)).document,
    "bucket of some": bucket_policy(
        OWNED, replace(GIVEN, tenants=True, accounts=("2" * 12, "3" * 12))
    ).document,
    "queue": queue_policy(OWNED, GIVEN).document,
    "queue of many": queue_policy(OWNED, replace(GIVEN, tenants=True)).document,
    "queue without an endpoint": queue_policy(OWNED, replace(GIVEN, sqs_vpce="none")).document,
    "endpoint": endpoint_policy(OWNED, GIVEN).document,
    "endpoint of SQS": sqs_endpoint_policy(OWNED, GIVEN).document,
    "endpoint of STS": sts_endpoint_policy(OWNED, GIVEN).document,
}
Statement = dict[str, Any]


def found(name: str, document: Any) -> list[str]:
    return [str(one) for one in iam.differences(DOCUMENTS[name], document)]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def widened(pattern: str) -> Iterator[str]:
    """Return patterns that match more."""
    yield "*"
    for cut in {*range(0, len(pattern), 7), pattern.rfind(":"), pattern.rfind("/") + 1}:
        if (wide := pattern[:cut] + "*") != pattern:
            yield wide
    if pattern[-1] != "*":
        yield pattern + "*"
        yield pattern[:-1] + "?"
    if "${" in pattern:
        start, _, end = pattern.partition("${")
        yield f"{start}*{end.partition('}')[2]}"


def relaxed_conditions(conditions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the conditions of an Allow with one of them gone or wider."""
    for operator, tests in conditions.items():
        others = {name: inner for name, inner in conditions.items() if name != operator}
        yield others
        for prefix, suffix in (("", "IfExists"), ("ForAllValues:", ""), ("ForAnyValue:", "")):
            if operator.isalpha() and operator != "Null" and not operator.endswith("IfExists"):
                yield others | {f"{prefix}{operator}{suffix}": tests}
        if operator in {"StringEquals", "ArnEquals"}:
            yield others | {"StringNotEquals": tests}
            yield others | {"StringEqualsIgnoreCase": tests}
        for key, value in tests.items():
            rest = {name: inner for name, inner in tests.items() if name != key}
            yield others | {operator: rest}
            yield others | {operator: rest | {key + "x": value}}
            if operator == "Null":
                yield others | {operator: rest | {key: "true" if value == "false" else "false"}}
                continue
            yield others | {operator: rest | {key: [*listed(value), "other"]}}
            yield others | {operator: rest | {key: "other"}}
            like = others.get("StringLike", {}) | {key: "*"}
            yield others | {operator: rest, "StringLike": like}
            if operator == "ArnEquals":
                yield others | {operator: rest | {key: "arn:aws:iam::*:role/agents"}}


def relaxations(document: Any) -> Iterator[tuple[str, Any]]:
    """Return (change, document) for each single change that allows more."""
    for version in ("2008-10-17", None):
        yield f"Version {version}", document | {"Version": version}
    wide: Statement = {"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}
    yield "one more statement", document | {"Statement": [*document["Statement"], wide]}
    for number, statement in enumerate(document["Statement"]):
        change = allow_relaxed if statement["Effect"] == "Allow" else deny_relaxed
        for done, other in change(statement):
            statements = copy.deepcopy(document["Statement"])
            statements[number : number + 1] = [other] if other else []
            yield f"{statement.get('Sid')}: {done}", document | {"Statement": statements}


def allow_relaxed(statement: Statement) -> Iterator[tuple[str, Statement]]:
    for element in ("Action", "Resource"):
        if element not in statement:
            continue
        rest = {name: value for name, value in statement.items() if name != element}
        yield f"Not{element}", rest | {f"Not{element}": "x:y"}
        for value in listed(statement[element]):
            for wide in widened(value):
                yield f"{element} {wide}", rest | {element: wide}
        more = "s3:GetObject" if element == "Action" else "arn:aws:s3:::other/*"
        yield f"one more {element}", rest | {element: [*listed(statement[element]), more]}
    if (who := statement.get("Principal", "*")) != "*":
        rest = {name: value for name, value in statement.items() if name != "Principal"}
        for other in ("*", {"AWS": "*"}, {"AWS": "210987654321"}, {"Federated": "*"}):
            yield f"Principal {other}", rest | {"Principal": other}
        for kind, names in who.items():
            yield "one more Principal", rest | {"Principal": {kind: [*listed(names), "other"]}}
        yield "another kind of Principal", rest | {"Principal": who | {"CanonicalUser": "x"}}
        yield "NotPrincipal", rest | {"NotPrincipal": who}
    for conditions in relaxed_conditions(statement.get("Condition", {})):
        yield f"Condition {conditions}", statement | {"Condition": conditions}


def deny_relaxed(statement: Statement) -> Iterator[tuple[str, Statement]]:
    yield "gone", {}
    yield "Allow", statement | {"Effect": "Allow"}
    yield "of one role", statement | {"Principal": {"AWS": "arn:aws:iam::1:role/x"}}
    yield "of fewer actions", statement | {"Action": "s3:GetObject"}
    yield "NotAction", {k: v for k, v in statement.items() if k != "Action"} | {"NotAction": "s3:*"}
    yield "of fewer resources", statement | {"Resource": "arn:aws:s3:::vendor-usage/x"}
    for one in listed(statement["Resource"])[1:]:
        yield "of one resource", statement | {"Resource": one}
    conditions = statement.get("Condition", {})
    yield (
        "with another condition",
        statement | {"Condition": conditions | {"StringLike": {"aws:PrincipalArn": "*"}}},
    )
    for operator, tests in conditions.items():
        rest = {name: inner for name, inner in conditions.items() if name != operator}
        yield "any value", statement | {"Condition": rest | {f"ForAnyValue:{operator}": tests}}
        for key, value in tests.items():
            others = {name: inner for name, inner in tests.items() if name != key}
            if operator.startswith(("String", "Arn")):
                other: Any = [*listed(value), "vpce-mine"]
            else:
                other = {"true": "false", "false": "true", "1.2": "1.0"}.get(value, "x")
            changed_to = rest | {operator: others | {key: other}}
            yield f"{key} {other}", statement | {"Condition": changed_to}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_printed_document_has_no_findings(name: str) -> None:
    assert found(name, copy.deepcopy(DOCUMENTS[name])) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_single_relaxation_is_found(name: str) -> None:
    tried = list(relaxations(DOCUMENTS[name]))
    assert len(tried) > 20
    assert [done for done, document in tried if not found(name, document)] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_whatever_lets_a_request_through_is_found(name: str) -> None:
    """Documents of two random changes, judged by the evaluator: no findings, then no more."""
    rng = random.Random(name)
    tried = [document for _, document in relaxations(DOCUMENTS[name])]
    requests = [some_request(rng) for _ in range(100)]
    before = [decides(DOCUMENTS[name], request) for request in requests]
    opened = 0
    for _ in range(40):
        (document,) = rng.sample(tried, 1)
        (_, document) = rng.choice([*relaxations(document)])
        after = [decides(document, request) for request in requests]
        more = any(a == "Allow" != b for a, b in zip(after, before, strict=True))
        opened += more
        assert not more or found(name, document), document
    assert opened, "some of them do let a request through"


def some_request(rng: random.Random) -> Request:
    keys: dict[str, list[str | None]] = {
        "aws:SourceVpce": ["vpce-0abc", "vpce-0def", "other", None],
        "aws:SecureTransport": ["true", "true", "false"],
        "s3:TlsVersion": ["1.3", "1.3", "1.1", None],
        "s3:if-none-match": ["*", "*", None],
        "s3:signatureversion": ["AWS4-HMAC-SHA256", "AWS"],
        "s3:authType": ["REST-HEADER", "POST"],
        "kms:ViaService": ["s3.eu-west-1.amazonaws.com", "other", None],
        "aws:PrincipalTag/byoc-organization": ["o", "p", None],
        "aws:PrincipalTag/byoc-service": ["s", None],
        "aws:PrincipalTag/byoc-s3-vpce": ["vpce-0abc", "other", None],
        "aws:ResourceAccount": ["1" * 12, "other", None],
        "oidc.eks.eu-west-1.amazonaws.com/id/ABC:aud": ["byoc-agents", None],
    }
    context = {key: rng.choice(values) for key, values in keys.items()}
    folder = "arn:aws:s3:::vendor-usage/v1/org=o/service=s/x"
    return Request(
        rng.choice(["s3:PutObject", "s3:GetObject", "sqs:SendMessage", "kms:Decrypt"]),
        rng.choice([folder, "arn:aws:s3:::vendor-usage/v1/account=2/x", QUEUE_ARN, KEY, ROLE]),
        rng.choice([ROLE, "arn:aws:iam::222222222222:role/x", ""]),
        {key: value for key, value in context.items() if value is not None},
    )


def operators_renamed(document: Any, rename: Callable[[str], str]) -> Any:
    document = copy.deepcopy(document)
    for statement in document["Statement"]:
        conditions = statement.get("Condition", {})
        merged: dict[str, Any] = {}
        for operator, tests in conditions.items():
            merged.setdefault(rename(operator), {}).update(tests)
        if conditions:
            statement["Condition"] = merged
    return document


def lower_case_operators(document: Any) -> Any:
    return operators_renamed(document, str.lower)


def like_instead_of_equals(document: Any) -> Any:
    names = {"StringEquals": "StringLike"}
    return operators_renamed(document, lambda name: names.get(name, name))


SAME: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "order": ("bucket", lambda d: d | {"Statement": d["Statement"][::-1]}),
    "an Id": ("bucket", lambda d: d | {"Id": "x"}),
    "one statement that is not in a list": (
        "endpoint",
        lambda d: d | {"Statement": d["Statement"][0]},
    ),
    "case of an action": ("endpoint", lambda d: changed(d, 0, Action="S3:putobject")),
    "a list of one": ("endpoint", lambda d: changed(d, 0, Action=["s3:PutObject"])),
    "another name": ("endpoint", lambda d: changed(d, 0, Sid="Other")),
    "ArnLike": (
        "endpoint of SQS",
        lambda d: changed(d, 0, Condition={"ArnLike": {"AWS:principalarn": ROLE}}),
    ),
    "a principal that is everybody": ("endpoint", lambda d: changed(d, 0, Principal={"AWS": "*"})),
    "a boolean": (
        "queue",
        lambda d: changed(d, 2, Condition={"Bool": {"aws:SecureTransport": False}}),
    ),
    "a boolean as text": (
        "queue",
        lambda d: changed(d, 2, Condition={"Bool": {"aws:SecureTransport": "False"}}),
    ),
    "case of an operator": (
        "queue",
        lambda d: changed(d, 2, Condition={"bool": {"aws:SecureTransport": "false"}}),
    ),
    "case of a negated operator": ("bucket", lower_case_operators),
    "StringLike without a wildcard": ("bucket", like_instead_of_equals),
    "the response of get-role-policy": ("iam", lambda d: {"RoleName": "r", "PolicyDocument": d}),
    "a statement twice": ("iam", lambda d: d | {"Statement": [*d["Statement"], d["Statement"][0]]}),
}


def changed(document: Any, number: int, **elements: Any) -> Any:
    statements = copy.deepcopy(document["Statement"])
    statements[number].update(elements)
    return document | {"Statement": statements}


@pytest.mark.parametrize("name", SAME)
def test_what_means_the_same_has_no_findings(name: str) -> None:
    document, change = SAME[name]
    assert found(document, change(DOCUMENTS[document])) == []


def test_what_allows_less_is_found_too() -> None:
    """A daemon that is refused is a fault as well."""
    less = changed(DOCUMENTS["iam"], 0, Resource="arn:aws:s3:::vendor-usage/v1/org=o/service=s/x")
    (line,) = found("iam", less)
    assert line.startswith("Statement[0] BillingScraperPutsObjects.Resource: allows less")
    more = changed(DOCUMENTS["queue"], 1, Condition={})
    assert "Statement[1] NothingByAnotherWay: denies what the table does not deny: expected no" in (
        "\n".join(found("queue", more))
    )


EXPLAINED: dict[str, tuple[str, Any, str]] = {
    "IfExists": (
        "iam",
        {"StringEqualsIfExists": {"aws:SourceVpce": "vpce-0def"}},
        (
            "Statement[2] StateExporterSendsMessages.Condition.aws:SourceVpce: allows more than the"
            " table: StringEqualsIfExists aws:SourceVpce vpce-0def (IfExists is also true if the"
            " request does not have the key): expected StringEquals aws:SourceVpce vpce-0def"
        ),
    ),
    "ForAllValues": (
        "iam",
        {"ForAllValues:StringEquals": {"aws:SourceVpce": "vpce-0def"}},
        "(ForAllValues is also true if the request does not have the key)",
    ),
    "negated": (
        "iam",
        {"StringNotEquals": {"aws:SourceVpce": "vpce-0def"}},
        "(a negated operator is also true if the request does not have the key)",
    ),
    "none": ("iam", {}, "aws:SourceVpce: allows more than the table: no condition on it"),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_finding_names_the_statement_the_trouble_and_what_is_expected(name: str) -> None:
    document, condition, said = EXPLAINED[name]
    lines = found(document, changed(DOCUMENTS[document], 2, Condition=condition))
    assert any(said in line for line in lines), lines


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("text", "is not a policy"),
        ({"Version": "2012-10-17", "Statement": ["x"]}, "is not a statement"),
        ({"Version": "2012-10-17", "Statement": [{"Effect": "allow"}]}, "has the Effect allow"),
        (
            {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": None}]},
            "a value that is not a text",
        ),
        (
            {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": "a", "NotAction": "b"}],
            },
            "has Action and NotAction",
        ),
        (
            {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Actions": "a"}]},
            "Actions: is not an element",
        ),
        ({"Version": "2012-10-17", "Statement": [], "Rules": []}, "Rules: is not an element"),
    ],
)
def test_what_is_no_policy_is_found(document: Any, said: str) -> None:
    assert any(said in line for line in found("iam", document))


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        ("*", "a*b?", True),
        ("a*", "a", True),
        ("a?c", "abc", True),
        ("a?c", "a*c", False),
        ("a*c", "a?b*c", True),
        ("a*", "*", False),
        ("a${*}", "a*", False),
        ("a*", "a${*}", True),
        ("a?", "a${aws:x}", False),
        ("a*", "a${aws:x}", True),
        ("a${aws:X}", "a${aws:x}", True),
        ("a${aws:x}", "ab", False),
        ("abc", "abc", True),
        ("abc", "ABC", False),
    ],
)
def test_a_pattern_covers_another(wide: str, narrow: str, covered: bool) -> None:
    assert iam.covers(wide, narrow) is covered
