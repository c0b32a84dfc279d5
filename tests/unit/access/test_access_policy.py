"""The customer's policy: its file, and the verdicts about requests."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from byoc_agents.access.documents import Approval, sha256, utc_text
from byoc_agents.access.errors import PolicyError
from byoc_agents.access.policy import (
    MAX_POLICY_BYTES,
    Granted,
    Policy,
    PolicyFile,
    Role,
    find_wait,
    judge_approval,
    judge_approved,
    judge_request,
    load_policy,
    parse_duration,
)
from lab.fakes.core import START_MS
from tests.unit.access.access_documents import (
    APPROVER,
    HOUR_MS,
    STRANGER,
    VENDOR,
    base64_of,
    policy_of,
    policy_text,
    request_of,
)

KEY = {"id": "vendor-1", "ed25519": base64_of(VENDOR)}
ROLE = {"clickhouse_role": "byoc_access_reader"}
NETWORK = {"system-reader": {"endpoints": ["kubernetes"]}}


def mistake(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        load_policy(text.encode())
    return str(caught.value)


def test_the_default_is_that_a_person_at_the_customer_approves() -> None:
    policy = load_policy(
        f"version: 1\nvendor_keys: [{{id: v, ed25519: {base64_of(VENDOR)}}}]\n"
        "roles: {system-reader: {clickhouse_role: byoc_access_reader}}\n".encode()
    )
    assert policy.file.approval == "local"
    assert policy.approvals_needed(request_of()) == 1
    assert policy.file.break_glass is False


def test_the_policy_of_the_documentation_is_valid_and_states_the_defaults() -> None:
    page = (Path(__file__).parents[3] / "docs" / "access.md").read_text()
    example = page.partition("```yaml\n")[2].partition("```")[0]
    file = load_policy(example.encode()).file
    shortest = policy_of(ticket=None, approvers=None).file
    for field in ("threshold", "approvals_needed", "max_duration", "max_open", "replicas"):
        assert getattr(file, field) == getattr(shortest, field)
    ours = ["kubernetes-view", "metrics-view", "system-metrics", "system-reader", "query-text"]
    assert list(file.roles) == ours
    assert (file.approval, file.break_glass, file.tables) == ("local", False, "hashed")


def test_every_key_of_a_policy_is_on_the_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "access.md").read_text()
    example = page.partition("```yaml\n")[2].partition("```")[0]
    written = yaml.safe_load(example)
    assert set(written) == set(PolicyFile.__struct_encode_fields__)
    table = page.partition("| key of a role |")[2].partition("\n\n")[0]
    keys = re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)
    assert sorted(keys) == sorted(Role.__struct_encode_fields__)


def test_the_digest_is_that_of_the_file() -> None:
    content = policy_text().encode()
    assert load_policy(content).sha256 == sha256(content)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"version": 2}, "Invalid enum value '2' - at `$.version`"),
    ({"vendor_keys": None}, "missing required field `vendor_keys`"),
    ({"vendor_keys": ()}, "length >= 1"),
    ({"vendor_keys": [KEY, {**KEY}]}, "vendor_keys: 'vendor-1' is given twice"),
    ({"vendor_keys": [KEY, KEY | {"id": "b"}]}, f"vendor_keys: '{base64_of(VENDOR)}' is given"),
    ({"vendor_keys": [KEY | {"ed25519": "AAAA"}]}, "ed25519: expected 32 bytes in base64"),
    ({"vendor_keys": [KEY | {"not_after": "2027"}]}, "expected a time such as"),
    ({"threshold": 2}, "threshold: 2: expected at most one per vendor key"),
    ({"threshold": 0}, "$.threshold"),
    ({"approval": "none"}, "$.approval"),
    ({"approval": "signed", "approvers": ()}, "approvers: 0 keys: expected at least 2"),
    ({"approvers": (KEY,)}, "approvers: a key of the vendor"),
    ({"max_duration": "9h"}, "max_duration: '9h': expected at most 28800 s"),
    ({"max_duration": "90"}, "max_duration: '90': expected a duration such as 30m"),
    ({"max_duration": "0m"}, "expected a duration"),
    ({"pending_lapses_after": "5d"}, "pending_lapses_after: '5d': expected at most 345600 s"),
    ({"max_open": 0}, "$.max_open"),
    ({"max_opne": 1}, "unknown field `max_opne`"),
    ({"ticket": "("}, "ticket: '(': expected a regular expression of RE2"),
    ({"roles": {}}, "$.roles"),
    ({"roles": {"r": {"clickhouse_role": "a; DROP"}}}, "clickhouse_role"),
    (
        {"roles": {"r": {}}},
        "because the role has the endpoint `clickhouse` (the default), or `endpoints` without it",
    ),
    (
        {"roles": {"r": {"endpoints": ["metrics", "clickhouse"]}}},
        "roles.r.clickhouse_role: missing: expected a role in ClickHouse",
    ),
    (
        {"roles": {"r": ROLE | {"endpoints": ["kubernetes"]}}},
        "roles.r.clickhouse_role: 'byoc_access_reader': expected none, because the role's",
    ),
    (
        {"roles": {"r": {"endpoints": ["kubernets"]}}},
        "roles.r.endpoints: 'kubernets': expected clickhouse, kubernetes or metrics",
    ),
    (
        {"roles": {"r": {"endpoints": []}}},
        "roles.r.endpoints: empty: expected at least one of clickhouse, kubernetes or metrics",
    ),
    (
        {"roles": {"r": {"endpoints": ["metrics", "metrics"]}}},
        "roles.r.endpoints: 'metrics' is given twice",
    ),
    ({"roles": {"r": {"endpoints": "metrics"}}}, "$.roles[...].endpoints"),
    ({"roles": {"r": ROLE | {"clickhouse_role": ""}}}, "$.roles[...].clickhouse_role"),
    ({"roles": {"r": ROLE | {"max_duration": "x"}}}, "roles.r.max_duration: 'x'"),
    (
        {"roles": {"r": ROLE | {"pre_approved": True, "approvals_needed": 1}}},
        "roles.r: expected either pre_approved or approvals_needed",
    ),
    ({"hours": {"days": "mon-fri", "from": "9", "to": "10:00", "zone": "UTC"}}, "hours: '9'"),
    ({"hours": {"days": "m", "from": "09:00", "to": "10:00", "zone": "UTC"}}, "days: 'm'"),
    ({"hours": {"days": "fri-mon", "from": "09:00", "to": "10:00", "zone": "UTC"}}, "range within"),
    ({"hours": {"days": "mon", "from": "10:00", "to": "09:00", "zone": "UTC"}}, "before `to`"),
    (
        {"hours": {"days": "mon", "from": "09:00", "to": "10:00", "zone": "Mars/X"}},
        "zone: 'Mars/X'",
    ),
    ({"replicas": "most"}, "$.replicas"),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG, ids=lambda value: str(value)[:50])
def test_a_mistake_in_the_file_is_named(changes: dict[str, Any], expected: str) -> None:
    assert expected in mistake(policy_text(**changes))


def test_all_mistakes_are_reported_together() -> None:
    found = mistake(policy_text(max_duration="9h", threshold=2, ticket="("))
    assert found.count(";") == 2


def test_a_key_that_is_given_twice_is_a_mistake() -> None:
    expected = "approval: given twice, again in line"
    assert expected in mistake(policy_text(approval="signed") + "approval: transparency\n")


def test_an_alias_is_a_mistake_and_so_is_a_file_that_is_not_yaml() -> None:
    assert "aliases are not supported" in mistake("a: &x [1]\nb: *x\n")
    assert "not YAML" in mistake("a: [")
    assert "not YAML: UnicodeDecodeError" in _mistake_of_bytes(b"\xff")
    assert "too large" in _mistake_of_bytes(b"#" * (MAX_POLICY_BYTES + 1))
    assert "expected a policy" in mistake("")
    assert "not YAML" in mistake("[" * 20_000)


def _mistake_of_bytes(content: bytes) -> str:
    with pytest.raises(PolicyError) as caught:
        load_policy(content)
    return str(caught.value)


# Requests.


@pytest.mark.parametrize(
    ("policy", "request_", "rule"),
    [
        ({}, {}, ""),
        ({"enabled": False}, {}, "disabled"),
        ({}, {"role": "root"}, "role"),
        ({"max_duration": "59m"}, {}, "duration"),
        ({}, {"role": "system-metrics"}, "duration"),  # its own limit is 30 minutes
        ({}, {"endpoints": ["kubernetes"]}, "endpoints"),
        ({"roles": NETWORK}, {}, "endpoints"),
        ({"roles": NETWORK}, {"endpoints": ["kubernetes", "metrics"]}, "endpoints"),
        ({"roles": NETWORK}, {"endpoints": ["kubernetes"]}, ""),
        ({}, {"reason": {"kind": "incident", "ticket": "XCS-1"}}, "ticket"),
        ({}, {"reason": {"kind": "break_glass", "ticket": "CS-1"}}, "break_glass"),
    ],
)
def test_the_rule_that_refuses_a_request_is_named(
    policy: dict[str, Any], request_: dict[str, Any], rule: str
) -> None:
    assert judge_request(policy_of(**policy), request_of(**request_), START_MS) == rule


def test_a_request_is_expired_at_its_end() -> None:
    request, policy = request_of(), policy_of()
    assert judge_request(policy, request, request.expires_ms - 1) == ""
    assert judge_request(policy, request, request.expires_ms) == "expired"


def test_break_glass_is_at_most_thirty_minutes_and_needs_no_approval() -> None:
    policy = policy_of(break_glass=True)
    reason = {"kind": "break_glass", "ticket": "CS-1"}
    request = request_of(reason=reason, duration_seconds=1800)
    assert judge_request(policy, request, START_MS) == ""
    assert judge_request(policy, request_of(reason=reason), START_MS) == "duration"
    assert policy.approvals_needed(request) == 0


def test_a_pattern_that_python_would_take_years_for_ends_at_once() -> None:
    policy = policy_of(ticket="(a+)+b")
    request = request_of(reason={"kind": "incident", "ticket": "a" * 64})
    assert judge_request(policy, request, START_MS) == "ticket"


@pytest.mark.parametrize(
    ("changes", "needed"),
    [({}, 1), ({"approvals_needed": 2}, 2), ({"approval": "transparency"}, 0)],
)
def test_how_many_must_approve(changes: dict[str, Any], needed: int) -> None:
    assert policy_of(**changes).approvals_needed(request_of()) == needed


@pytest.mark.parametrize("changes", [{}, {"approval": "transparency"}, {"break_glass": True}])
def test_a_role_with_its_own_number_of_approvals_always_needs_them(changes: Any) -> None:
    kind = "break_glass" if "break_glass" in changes else "incident"
    request = request_of(role="query-text", reason={"kind": kind, "ticket": "CS-1"})
    assert policy_of(**changes).approvals_needed(request) == 2


def test_a_pre_approved_role_needs_no_approval() -> None:
    roles = {"system-reader": ROLE | {"pre_approved": True}}
    assert policy_of(roles=roles).approvals_needed(request_of()) == 0


# Approvals.


def approval(**changes: Any) -> Approval:
    fields: dict[str, Any] = {
        "id": request_of().id,
        "request_sha256": "a" * 64,
        "decision": "approve",
        "by": "sec-oncall",
        "at": utc_text(START_MS),
    }
    return Approval(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, ""),
        ({"duration_seconds": 3600, "role": "system-reader"}, ""),
        ({"duration_seconds": 600, "role": "system-metrics"}, ""),
        ({"duration_seconds": 3601}, "duration"),
        ({"role": "query-text"}, "role"),
        ({"role": "unknown"}, "role"),
        ({"decision": "deny", "comment": "no", "role": "unknown"}, ""),
    ],
)
def test_an_approver_may_give_less_and_never_more(changes: dict[str, Any], rule: str) -> None:
    assert judge_approval(policy_of(), request_of(), approval(**changes)) == rule


def verdict(policy: Policy, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "role": "system-reader",
        "duration_seconds": 3600,
        "vendor_keys": ("vendor-1",),
        "approvers": ("sec-1",),
    }
    now_ms = START_MS + 100 * HOUR_MS  # the end of the request does not count by then
    return judge_approved(policy, request_of(), Granted(**fields | changes), now_ms)


@pytest.mark.parametrize(
    ("policy", "grant", "rule"),
    [
        ({}, {}, ""),
        ({}, {"approvers": ()}, "approvals"),
        ({"approvals_needed": 2}, {}, "approvals"),
        ({"approvals_needed": 2}, {"approvers": ("sec-1", "sec-1")}, "approvals"),
        ({"approvals_needed": 2}, {"approvers": ("sec-1", "sec-2")}, ""),
        ({"approval": "signed"}, {}, ""),
        ({"approval": "signed"}, {"approvers": ("a person",)}, "approvals"),
        ({"approval": "transparency"}, {"approvers": ()}, ""),
        ({}, {"vendor_keys": ("vendor-0",)}, "vendor_keys"),
        ({"enabled": False}, {}, "disabled"),
        ({"max_duration": "30m"}, {}, "duration"),
        ({"max_duration": "30m"}, {"duration_seconds": 1800}, ""),
        ({"roles": {"other": ROLE}}, {}, "role"),
    ],
)
def test_a_changed_policy_is_applied_to_approved_grants(
    policy: dict[str, Any], grant: dict[str, Any], rule: str
) -> None:
    assert verdict(policy_of(**policy), **grant) == rule


# When an approved grant may open. START_MS is a Monday, 12:00 UTC.


@pytest.mark.parametrize(
    ("policy", "open_", "wall_ms", "wait"),
    [
        ({}, [], START_MS, ""),
        ({}, [], START_MS - 1, "not_before"),
        ({}, ["eng-1"], START_MS, ""),
        ({}, ["eng-8841"], START_MS, "max_open_per_engineer"),
        ({}, ["eng-1", "eng-2"], START_MS, "max_open"),
    ],
)
def test_why_an_approved_grant_waits(
    policy: dict[str, Any], open_: list[str], wall_ms: int, wait: str
) -> None:
    assert find_wait(policy_of(**policy), request_of(), open_, wall_ms) == wait


@pytest.mark.parametrize(
    ("days", "zone", "after_ms", "wait"),
    [
        ("mon-fri", "UTC", 0, ""),
        ("tue,wed", "UTC", 0, "hours"),
        ("tue,wed", "UTC", 24 * HOUR_MS, ""),
        ("mon-fri", "UTC", HOUR_MS - 1, ""),  # from 11:30 to 13:00
        ("mon-fri", "UTC", HOUR_MS, "hours"),
        ("mon-fri", "Europe/Berlin", 0, "hours"),  # it is 13:00 there in November
    ],
)
def test_access_begins_only_within_the_hours(
    days: str, zone: str, after_ms: int, wait: str
) -> None:
    hours = {"days": days, "from": "11:30", "to": "13:00", "zone": zone}
    assert find_wait(policy_of(hours=hours), request_of(), [], START_MS + after_ms) == wait


def test_durations_have_a_unit() -> None:
    assert [parse_duration(text) for text in ("90s", "30m", "4h", "2d")] == [
        90,
        1800,
        14400,
        172800,
    ]


def test_keys_are_read_with_their_end() -> None:
    keys = [KEY | {"not_after": utc_text(START_MS)}]
    policy = policy_of(vendor_keys=keys)
    assert policy.vendor_keys[0].not_after_ms == START_MS
    assert [key.id for key in policy.approver_keys] == ["sec-1", "sec-2"]
    assert base64_of(APPROVER) != base64_of(STRANGER)
