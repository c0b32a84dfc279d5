"""`byoc-agents access verify`: it accepts true evidence, and finds every change of it."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from byoc_agents.access.authority import create_authority
from byoc_agents.access.documents import sha256, utc_text
from byoc_agents.access.events import event_id
from byoc_agents.access.machine import State
from byoc_agents.access.orders import Approve, Deny, Revoke, Submit
from byoc_agents.access_commands import main
from byoc_agents.errors import Reason
from byoc_agents.ledger.format import sha256_hex
from byoc_agents.ledger.writer import FileLedger
from byoc_agents.message import Message, Receipt
from lab.fakes.core import START_MS, FakeClock
from tests.unit.access.access_documents import (
    APPROVER,
    GRANT_ID,
    SECOND_APPROVER,
    STRANGER,
    VENDOR,
    approval_envelope,
    base64_of,
    policy_text,
    request_envelope,
)
from tests.unit.access.scripted_broker import Harness
from tests.unit.ledger.ledger_fakes import QuickDisk

KEYS = ("--vendor-key", base64_of(VENDOR), "--approver-key", base64_of(APPROVER))


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path)
    (tmp_path / "access-broker").symlink_to(harness.state)
    harness.write_policy(approval="signed")
    async with harness.running():
        yield harness


async def use(harness: Harness) -> None:
    """Let a grant be opened by a signed approval, used, and revoked."""
    request = request_envelope()
    await harness.order(Submit(envelope=request))
    await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
    await harness.order(Revoke(id=GRANT_ID, by="anna"))
    await harness.passes(1, 2)


def write(harness: Harness, code: int = 0) -> Path:
    out = harness.directory / "evidence"
    environ = {
        "BYOC_STATE_DIR": str(harness.directory),
        "BYOC_ACCESS_CA_DIR": str(harness.directory / "ca"),
    }
    assert main(["evidence", GRANT_ID, "--out", str(out)], environ) == code
    return out


@pytest.fixture
async def pack(harness: Harness) -> Path:
    await use(harness)
    return write(harness)


def files_of(pack: Path) -> list[Path]:
    return sorted(pack.iterdir())


def sum_again(pack: Path) -> None:
    """Write SHA256SUMS as somebody would who hides a change."""
    names = sorted(path.name for path in pack.iterdir() if path.name != "SHA256SUMS")
    sums = "".join(f"{sha256((pack / name).read_bytes())}  {name}\n" for name in names)
    (pack / "SHA256SUMS").write_text(sums)


class Found:
    """What the command prints about a directory."""

    def __init__(self, capsys: pytest.CaptureFixture[str], pack: Path, *options: str) -> None:
        capsys.readouterr()
        self.code = main(["verify", str(pack), "--json", *options], {})
        found = json.loads(capsys.readouterr().out)
        self.problems, self.notes, self.signed_by = (
            *(found["problems"], found["notes"], found["signed_by"]),
        )
        self.queries = found["queries"]


async def test_true_evidence_is_accepted(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Found(capsys, pack, *KEYS)
    assert (found.code, found.problems) == (0, [])
    assert found.queries == 6
    assert found.signed_by == ["vendor key 1", "approver key 1"]
    assert not any("keys are those" in note for note in found.notes)


async def test_it_needs_no_broker_and_prints_one_line_per_finding(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(pack)], {"BYOC_STATE_DIR": "/no/such/directory"}) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{pack}: OK"
    assert f"grant {GRANT_ID}: 13 files" in out[1]
    assert out[1].endswith("6 queries; signed by vendor-1, sec-1")
    assert "the vendor's keys are those of the evidence's policy" in "\n".join(out)
    (pack / "r0-queries.jsonl").write_bytes(b"")
    assert main(["verify", str(pack)], {}) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{pack}: 3 problems found"
    assert sum(line.startswith("  problem: r0-queries.jsonl: ") for line in out) == 3


async def test_a_key_may_be_a_pem_file(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pem = VENDOR.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key = pack.parent / "vendor.pem"
    key.write_bytes(pem)
    assert Found(capsys, pack, "--vendor-key", str(key)).signed_by[0] == "vendor key 1"
    key.write_text("not a key")
    assert main(["verify", str(pack), "--vendor-key", str(key)], {}) == 2
    assert "expected an Ed25519 public key" in capsys.readouterr().err


@pytest.mark.parametrize("side", ["vendor", "approver"])
async def test_a_key_that_did_not_sign_is_a_problem(
    pack: Path, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Found(capsys, pack, f"--{side}-key", base64_of(STRANGER))
    name = "request" if side == "vendor" else "approval-1"
    assert any(one.startswith(f"{name}.dsse.json: too_few_signatures") for one in found.problems), (
        found.problems
    )


async def test_any_changed_byte_of_any_file_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in files_of(pack):
        before = path.read_bytes()
        if not before or path.name == "SHA256SUMS":
            continue
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        found = Found(capsys, pack, *KEYS)
        assert f"{path.name}: the file was changed: not the digest of SHA256SUMS" in found.problems
        path.write_bytes(before)
    assert Found(capsys, pack, *KEYS).problems == []


async def test_a_missing_and_an_added_file_are_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pack / "r1-sessions.jsonl").unlink()
    (pack / "added.txt").write_text("x")
    problems = Found(capsys, pack, *KEYS).problems
    assert "r1-sessions.jsonl: no such file, and SHA256SUMS lists it" in problems
    assert "added.txt: not listed in SHA256SUMS" in problems


async def test_everything_that_is_no_file_of_the_evidence_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in a directory, also if SHA256SUMS lists it; an empty directory; a link."""
    inner = pack / "more" / "deeper"
    inner.mkdir(parents=True)
    (inner / "added.txt").write_text("x")
    (pack / "empty").mkdir()
    (pack / "link.txt").symlink_to(pack / "README.txt")
    (pack / "link").symlink_to(pack.parent)
    problems = Found(capsys, pack, *KEYS).problems
    names = ("empty", "link", "link.txt", "more", "more/deeper", "more/deeper/added.txt")
    assert problems == [f"{name}: not listed in SHA256SUMS" for name in names]
    with (pack / "SHA256SUMS").open("a") as sums:
        sums.write(f"{sha256(b'x')}  more/deeper/added.txt\n")
    problems = Found(capsys, pack, *KEYS).problems
    assert "more/deeper/added.txt: not listed in SHA256SUMS" in problems
    assert any(one.endswith("is not a digest and a name") for one in problems)


async def test_a_link_in_place_of_a_file_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it points to may change after the check."""
    moved = (pack / "README.txt").rename(pack.parent / "README.txt")
    (pack / "README.txt").symlink_to(moved)
    problems = Found(capsys, pack, *KEYS).problems
    assert "README.txt: no such file, and SHA256SUMS lists it" in problems


# Changes by somebody who also writes SHA256SUMS again.


def edit_lines(pack: Path, change: Callable[[list[bytes]], list[bytes]], *, chain: bool) -> None:
    """Change the lines of the ledger; with `chain`, compute the hashes and numbers again."""
    path = pack / "ledger.jsonl"
    lines = change(path.read_bytes().splitlines())
    if chain:
        made: list[bytes] = []
        for number, raw in enumerate(lines):
            fields = json.loads(raw)
            if made:
                fields["previous"] = sha256_hex(made[-1])
                fields["sequence"] = json.loads(made[0])["sequence"] + number
            made.append(json.dumps(fields).encode())
        lines = made
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    sum_again(pack)


def without(fact: str) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [raw for raw in lines if json.loads(raw).get("fact") != fact]


async def test_a_removed_line_breaks_the_chain(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_lines(pack, without("certificate"), chain=False)
    problems = Found(capsys, pack, *KEYS).problems
    assert any("`previous` is not the line before it" in one for one in problems)
    assert "ledger.jsonl: the numbers of the lines have a gap" in problems


async def test_only_a_kept_anchor_shows_a_history_that_was_written_again(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = (pack / "ledger.jsonl").read_bytes().splitlines()
    last = json.loads(raw[-1])["sequence"]
    anchor = f"{last}:{sha256_hex(raw[-1])}"
    assert Found(capsys, pack, "--anchor", anchor).problems == []
    edit_lines(pack, lambda lines: [*lines[:1], *lines[1:]], chain=True)
    assert Found(capsys, pack).problems == []
    problems = Found(capsys, pack, "--anchor", anchor).problems
    assert problems == [f"anchor {last}: another history: the line has another hash"]
    problems = Found(capsys, pack, "--anchor", f"{last + 1}:{sha256_hex(b'')}").problems
    assert problems[0].startswith(f"anchor {last + 1}: the evidence has the lines ")
    assert main(["verify", str(pack), "--anchor", "x"], {}) == 2


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("approved", "opening does not follow"),
        ("opening", "open does not follow"),
        ("closing", "collecting does not follow"),
        ("closed", "the grant has not ended: its last step is collecting"),
    ],
)
async def test_a_step_that_is_missing_is_found(
    pack: Path, step: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_lines(pack, without(step), chain=True)
    assert any(expected in one for one in Found(capsys, pack, *KEYS).problems)


async def test_a_line_without_a_time_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def untimed(lines: list[bytes]) -> list[bytes]:
        return [json.dumps(json.loads(raw) | {"time": "yesterday"}).encode() for raw in lines]

    edit_lines(pack, untimed, chain=True)
    problems = Found(capsys, pack, *KEYS).problems
    for name in ("request", "approval-1"):
        assert any(
            one.startswith(f"{name}.dsse.json: line ") and "no time" in one for one in problems
        )


async def test_a_line_that_a_crash_left_without_effect_is_no_problem(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The broker died between the line and the store, and made the step again."""

    def twice(lines: list[bytes]) -> list[bytes]:
        at = next(n for n, raw in enumerate(lines) if json.loads(raw).get("fact") == "opening")
        return [*lines[: at + 1], *lines[at:]]

    edit_lines(pack, twice, chain=True)
    assert Found(capsys, pack, *KEYS).problems == []


async def test_rows_that_do_not_agree_with_the_ledger_are_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pack / "r0-queries.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    sum_again(pack)
    problems = Found(capsys, pack, *KEYS).problems
    assert problems == [
        "r0-queries.jsonl: not the rows that were collected",
        "r0-queries.jsonl: 2 rows QueryStart, and the ledger has queries 3",
    ]


async def test_a_server_without_rows_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def drop(lines: list[bytes]) -> list[bytes]:
        return [raw for raw in lines if b'"replica":"r1"' not in raw]

    edit_lines(pack, drop, chain=True)
    problems = Found(capsys, pack, *KEYS).problems
    assert "r1: no rows were collected, and the grant is closed" in problems


async def test_another_request_or_approval_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = request_envelope(duration_seconds=1800)
    (pack / "request.dsse.json").write_bytes(other)
    (pack / "approval-1.dsse.json").write_bytes(approval_envelope(other))
    sum_again(pack)
    problems = Found(capsys, pack, *KEYS).problems
    assert "request.dsse.json: not the request of the ledger" in problems
    assert "approvals of the ledger that are not in the evidence: 1" in problems
    assert "approval-1.dsse.json: not an approval of the ledger" in problems


async def test_an_approval_that_is_not_there_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pack / "approval-1.dsse.json").unlink()
    sum_again(pack)
    problems = Found(capsys, pack, *KEYS).problems
    assert "approvals of the ledger that are not in the evidence: 1" in problems
    assert any("opened with 0 approvals: the policy needs 1" in one for one in problems)


async def test_a_foreign_authority_is_found(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = pack.parent / "other"
    other.mkdir()
    create_authority(other, "svc-1", START_MS - 86_400_000)
    (pack / "access-ca.crt").write_bytes((other / "access-ca.crt").read_bytes())
    sum_again(pack)
    problems = Found(capsys, pack, *KEYS).problems
    assert problems == ["certificate.pem: expected a certificate that access-ca.crt has signed"]


@pytest.mark.parametrize(
    "name",
    [
        *("r9-queries.jsonl", "r9-sessions.jsonl", "note.txt", "policy-0.yaml"),
        *("approval.txt", "missing.txt"),
    ],
)
async def test_a_file_that_no_line_calls_for_is_found_although_it_is_listed(
    pack: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (pack / name).write_text("")
    sum_again(pack)
    assert Found(capsys, pack, *KEYS).problems == [f"{name}: not a file of this evidence"]


async def test_another_readme_is_a_note(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its text is that of the version that wrote it."""
    (pack / "README.txt").write_text("ok")
    sum_again(pack)
    assert "README.txt: not the text of this version" in Found(capsys, pack, *KEYS).notes


LATER = "2031-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("approvers", ["boss"]),
        ("comments", ["yes"]),
        ("vendor_keys", []),
        ("opened_at", LATER),
        ("opened_at", ""),
        ("closed_at", LATER),
        ("closed_at", "2020-01-01T00:00:00Z"),
        ("closed_at", "x"),
        ("since", LATER),
        ("ends_at", LATER),
        ("issued_at", LATER),
        ("reason", "x"),
        ("text", "other"),
        ("kind", "question"),
        ("engineer_name", "B. Example"),
        ("duration_seconds", 60),
        ("requested_seconds", 60),
        ("requested_role", "query-text"),
        ("policy_sha256", "0" * 64),
        ("replicas", ["r0"]),
        ("endpoints", ["kubernetes"]),
        ("added", "x"),
    ],
)
async def test_each_field_of_the_summary_is_compared(
    pack: Path, field: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pack / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    sum_again(pack)
    assert Found(capsys, pack, *KEYS).problems == [
        f"summary.json: `{field}` is not that of the request and the ledger"
    ]


async def test_a_summary_with_a_field_twice_or_without_one_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pack / "summary.json"
    before = path.read_text()
    path.write_text(before.replace("{", '{"role": "x",', 1))
    sum_again(pack)
    assert Found(capsys, pack).problems == ["summary.json: expected the summary of a grant"]
    fields = json.loads(before)
    fields.pop("reason")
    path.write_text(json.dumps(fields))
    sum_again(pack)
    (problem,) = Found(capsys, pack).problems
    assert problem == "summary.json: `reason` is not that of the request and the ledger"


async def test_a_summary_that_says_something_else_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pack / "summary.json"
    fields = json.loads(path.read_text()) | {"engineer": "eng-1", "counts": {"queries": 1}}
    path.write_text(json.dumps(fields))
    sum_again(pack)
    assert Found(capsys, pack, *KEYS).problems == [
        "summary.json: `engineer` is not that of the request and the ledger",
        "summary.json: `counts` is not that of the request and the ledger",
    ]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("request.dsse.json", "request.dsse.json: not a request: "),
        ("r0-queries.jsonl", "r0-queries.jsonl: expected one JSON object per line"),
        ("summary.json", "summary.json: expected the summary of a grant"),
    ],
)
async def test_a_file_nested_deeper_than_a_decoder_follows_is_found(
    name: str, problem: str, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pack / name).write_bytes(b'{"x":' * 50_000 + b"1" + b"}" * 50_000)
    sum_again(pack)
    found = Found(capsys, pack, *KEYS)
    assert found.code == 1
    assert any(one.startswith(problem) for one in found.problems), found.problems


# What opened, against the request, the approvals and the policy.


def changed(first: str, **detail: str) -> Callable[[list[bytes]], list[bytes]]:
    """Return a change of details of the line with this fact, and of all lines after it."""

    def change(lines: list[bytes]) -> list[bytes]:
        fields = [json.loads(raw) for raw in lines]
        at = next(n for n, one in enumerate(fields) if one.get("fact") == first)
        for one in fields[at:]:
            if one.get("subject") == GRANT_ID:
                one["detail"] |= detail
        return [json.dumps(one).encode() for one in fields]

    return change


@pytest.mark.parametrize(
    ("first", "detail", "expected"),
    [
        ("opening", {"role": "query-text"}, "opened with the role 'query-text': approved was"),
        ("pending", {"role": "query-text"}, "the role 'query-text': the request allows"),
        ("opening", {"duration_seconds": "3600"}, "opened for '3600' s: approved was '300'"),
        ("pending", {"duration_seconds": "3600"}, "for '3600' s: the request and"),
        ("pending", {"duration_seconds": "400"}, "allow at most 300 s"),
        ("pending", {"duration_seconds": "x"}, "for 'x' s: the request and"),
        ("opening", {"end_ms": str(START_MS + 9 * 3_600_000)}, "its end is not 300 s after"),
        ("opening", {"end_ms": "x"}, "its end is not 300 s after"),
        ("open", {"end_ms": str(START_MS)}, "`end_ms` is not that of line"),
        ("open", {"role": "system-metrics"}, "`role` is not that of line"),
        ("opening", {"endpoints": "clickhouse, kubernetes"}, "the endpoints"),
        ("opening", {"kind": "maintenance"}, "the kind"),
    ],
)
async def test_an_opening_that_nobody_allowed_is_found(
    harness: Harness,
    first: str,
    detail: dict[str, str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The request is for 600 s, and the signed approval for 300 s."""
    request = request_envelope(duration_seconds=600)
    approval = approval_envelope(request, duration_seconds=300)
    await harness.order(Submit(envelope=request))
    await harness.order(Approve(id=GRANT_ID, envelope=approval))
    await harness.order(Revoke(id=GRANT_ID, by="anna"))
    await harness.passes(1, 2)
    pack = write(harness)
    assert Found(capsys, pack, *KEYS).problems == []
    edit_lines(pack, changed(first, **detail), chain=True)
    problems = Found(capsys, pack, *KEYS).problems
    assert any(one.startswith("ledger.jsonl") and expected in one for one in problems), problems


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"max_duration": "10m"}, "the policy forbids it: duration"),
        ({"ticket": "X"}, "the policy forbids it: ticket"),
        ({"enabled": False}, "the policy forbids it: disabled"),
        (
            {"hours": {"days": "mon-sun", "from": "00:00", "to": "00:01", "zone": "UTC"}},
            "the policy forbids it: hours",
        ),
    ],
)
async def test_an_opening_that_its_policy_forbids_is_found(
    pack: Path, policy: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = policy_text(**{"approval": "signed"} | policy).encode()
    (pack / f"policy-{sha256(content)}.yaml").write_bytes(content)

    def under(lines: list[bytes]) -> list[bytes]:
        fields = [json.loads(raw) for raw in lines]
        opening = next(one for one in fields if one.get("fact") == "opening")
        opening["sha256"]["policy"] = sha256(content)
        return [json.dumps(one).encode() for one in fields]

    edit_lines(pack, under, chain=True)
    (problem,) = Found(capsys, pack, *KEYS).problems
    assert problem.endswith(expected)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(-86_400, "before `not_before`"), (86_400, "after `expires_at`")]
)
async def test_an_opening_outside_the_times_of_the_request_is_found(
    pack: Path, seconds: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def moved(lines: list[bytes]) -> list[bytes]:
        fields = [json.loads(raw) for raw in lines]
        time = utc_text(START_MS + seconds * 1000).replace("Z", "+00:00")
        return [json.dumps(one | {"time": time}).encode() for one in fields]

    edit_lines(pack, moved, chain=True)
    assert any(expected in one for one in Found(capsys, pack, *KEYS).problems)


async def test_a_grant_that_is_collected_and_never_was_open_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_lines(pack, without("open"), chain=True)
    problems = Found(capsys, pack, *KEYS).problems
    assert "ledger.jsonl: the grant was collected, and no line says that it was open" in problems


# Lines that were cut off at the beginning.


@pytest.mark.parametrize(
    "first", [("approved", ""), ("pending", "approval_refused"), ("pending", "approved_in_part")]
)
async def test_removed_first_lines_are_found_although_the_last_line_is_anchored(
    harness: Harness, first: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused approval, one of two, and the second."""
    harness.write_policy(approval="signed", approvals_needed=2)
    request = request_envelope()
    other = approval_envelope(request_envelope(duration_seconds=1800))
    await harness.order(Submit(envelope=request))
    await harness.order(Approve(id=GRANT_ID, envelope=other))
    await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
    second = approval_envelope(request, SECOND_APPROVER, "sec-2")
    await harness.order(Approve(id=GRANT_ID, envelope=second))
    await harness.order(Revoke(id=GRANT_ID, by="anna"))
    await harness.passes(1, 2)
    pack = write(harness)
    lines = (pack / "ledger.jsonl").read_bytes().splitlines()
    last = f"{json.loads(lines[-1])['sequence']}:{sha256_hex(lines[-1])}"
    keys = (*KEYS, "--approver-key", base64_of(SECOND_APPROVER), "--anchor", last)
    assert Found(capsys, pack, *keys).problems == []

    def is_first(raw: bytes) -> bool:
        fields = json.loads(raw)
        return fields.get("fact") == first[0] and str(fields["reason"]).startswith(first[1])

    def cut(lines: list[bytes]) -> list[bytes]:
        return lines[next(n for n, raw in enumerate(lines) if is_first(raw)) :]

    edit_lines(pack, cut, chain=False)
    (problem,) = Found(capsys, pack, *keys).problems
    assert problem.endswith("is not the first step of a grant: lines before it are missing")


async def test_an_approval_by_no_policy_is_found(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines before `approved` are removed, and its reason is that of a policy without them."""

    def forge(lines: list[bytes]) -> list[bytes]:
        fields = [json.loads(raw) for raw in lines]
        at = next(n for n, one in enumerate(fields) if one.get("fact") == "approved")
        fields[at] |= {"reason": "needs_no_approval", "sha256": fields[0]["sha256"]}
        fields[at]["detail"].pop("approvers")
        return [json.dumps(one).encode() for one in fields[at:]]

    edit_lines(pack, forge, chain=True)
    problems = Found(capsys, pack, *KEYS).problems
    assert any(one.endswith("approved without an approval: the policy needs 1") for one in problems)


# Other ends.


async def end_in_break_glass(harness: Harness) -> None:
    harness.write_policy(break_glass=True)
    reason = {"kind": "break_glass", "ticket": "CS-1234", "text": ""}
    request = request_envelope(reason=reason, duration_seconds=600)
    await harness.order(Submit(envelope=request))
    await harness.passes(601, 3)


async def end_by_a_local_approval_of_less(harness: Harness) -> None:
    harness.write_policy()
    await harness.order(Submit(envelope=request_envelope()))
    less = Approve(
        id=GRANT_ID, by="anna", comment="less", role="system-metrics", duration_seconds=120
    )
    await harness.order(less)
    await harness.passes(121, 3)


async def end_by_a_signed_approval_of_less(harness: Harness) -> None:
    request = request_envelope()
    less = approval_envelope(request, role="system-metrics", duration_seconds=120, comment="less")
    await harness.order(Submit(envelope=request))
    await harness.order(Approve(id=GRANT_ID, envelope=less))
    await harness.passes(121, 3)


async def end_before_opening(harness: Harness) -> None:
    for server in harness.servers.values():
        server.problems = ["version"]
    await use(harness)


async def end_in_a_lapse(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    await harness.passes(5 * 3600, 2)


async def end_by_the_policy_at_once(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope(role="unknown")))


async def end_by_a_changed_policy(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    harness.write_policy(approval="signed", ticket="X")
    await harness.passes(1, 2)


async def end_on_a_disk_that_refuses(harness: Harness) -> None:
    """Have the lines of the end written ten minutes after it."""
    request = request_envelope()
    await harness.order(Submit(envelope=request))
    await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
    harness.ledger_error = harness.store_error = "full"
    await harness.order(Revoke(id=GRANT_ID, by="anna", comment="x" * 400))
    await harness.passes(600, 2)
    harness.recover()
    await harness.passes(31, 4)


async def end_by_a_clock_that_steps_back(harness: Harness) -> None:
    request = request_envelope()
    await harness.order(Submit(envelope=request))
    await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
    harness.clock.step_wall(-1800)
    await harness.passes(1, 3)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (end_in_break_glass, "closed"),
        (end_by_a_local_approval_of_less, "closed"),
        (end_by_a_signed_approval_of_less, "closed"),
        (end_before_opening, "failed"),
        (end_in_a_lapse, "lapsed"),
        (end_by_the_policy_at_once, "rejected"),
        (end_by_a_changed_policy, "rejected"),
        (end_on_a_disk_that_refuses, "closed"),
        (end_by_a_clock_that_steps_back, "closed"),
    ],
)
async def test_true_evidence_of_each_end_is_accepted(
    harness: Harness,
    end: Callable[[Harness], Awaitable[None]],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await end(harness)
    pack = write(harness)
    assert json.loads((pack / "summary.json").read_text())["state"] == expected
    assert Found(capsys, pack).problems == []


async def test_a_gap_in_the_record_is_a_problem(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    harness.servers["r1"].gap = "the server has no query_log"
    await use(harness)
    (problem,) = Found(capsys, write(harness), *KEYS).problems
    assert problem.startswith("the record of the servers' logs has a gap: ")
    assert "r1: the server has no query_log" in problem


async def test_what_was_missing_when_it_was_written_is_a_problem(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    await use(harness)
    (harness.state / "logs" / GRANT_ID / "r0-queries.jsonl").unlink()
    problems = Found(capsys, write(harness, 1), *KEYS).problems
    assert problems[0].startswith("was not found when the evidence was written: r0-queries.jsonl")


async def test_an_open_grant_is_not_complete(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    request = request_envelope()
    await harness.order(Submit(envelope=request))
    await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
    problems = Found(capsys, write(harness), *KEYS).problems
    assert problems == ["ledger.jsonl: the grant has not ended: its last step is open"]


async def test_a_denied_request_needs_no_certificate(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    await harness.order(Deny(id=GRANT_ID, by="anna", comment="no"))
    assert Found(capsys, write(harness), *KEYS).problems == []


async def test_without_an_approver_key_an_unsigned_approval_is_a_note(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    harness.write_policy()
    await harness.open_grant()
    await harness.order(Revoke(id=GRANT_ID, by="anna"))
    await harness.passes(1, 2)
    found = Found(capsys, write(harness), *KEYS[:2])
    assert (found.code, found.problems) == (0, [])
    assert "approved by anna: a name as it was given, not signed" in found.notes


async def test_with_an_approver_key_an_unsigned_approval_is_a_problem(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    harness.write_policy()
    await harness.open_grant()
    await harness.order(Revoke(id=GRANT_ID, by="anna"))
    await harness.passes(1, 2)
    found = Found(capsys, write(harness), *KEYS)
    (problem,) = found.problems
    expected = "approved by anna: 0 of 1 approvals are signed by the given approver keys"
    assert problem.endswith(expected)
    assert found.code == 1
    assert not any("not signed" in note for note in found.notes)


async def test_an_unsigned_approval_of_a_request_that_never_opened_is_a_problem_too(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two approvals was given when the request was denied."""
    harness.write_policy(approvals_needed=2)
    await harness.order(Submit(envelope=request_envelope()))
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    await harness.order(Deny(id=GRANT_ID, by="bert", comment="no"))
    pack = write(harness)
    assert Found(capsys, pack).problems == []
    (problem,) = Found(capsys, pack, *KEYS).problems
    assert "approved by anna: 0 of 1 approvals are signed" in problem


async def test_a_grant_that_needed_no_approval_is_named_as_such(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    harness.write_policy(approval="transparency")
    await harness.order(Submit(envelope=request_envelope()))
    await harness.passes(1, 2)
    await harness.order(Revoke(id=GRANT_ID, by="anna"))
    await harness.passes(1, 2)
    found = Found(capsys, write(harness), *KEYS)
    assert found.problems == []
    assert "opened without an approval: the policy needs none" in found.notes


async def test_an_expired_vendor_key_counted_when_the_request_came(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a key that had expired before it does not count."""
    keys = [{"id": "vendor-1", "ed25519": base64_of(VENDOR), "not_after": "2027-01-01T00:00:00Z"}]
    harness.write_policy(approval="signed", vendor_keys=keys)
    await use(harness)
    assert Found(capsys, write(harness)).problems == []


def test_a_directory_without_evidence_is_a_problem_or_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path / "no")], {}) == 2
    assert "No such file" in capsys.readouterr().err
    found = Found(capsys, tmp_path)
    assert "SHA256SUMS: no such file" in found.problems
    (tmp_path / "request.dsse.json").write_bytes(
        json.dumps({"payload": base64.b64encode(b"{}").decode(), "payloadType": "x"}).encode()
    )
    assert any("not a request" in one for one in Found(capsys, tmp_path).problems)


# Receipts of the events to the vendor.


async def test_the_receipts_of_the_events_are_in_the_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line of the last receipt comes after the last step, and is in the evidence."""
    harness = Harness(tmp_path)
    (tmp_path / "access-broker").symlink_to(harness.state)
    harness.write_policy(approval="signed")
    async with harness.running():
        await use(harness)
    clock = FakeClock()
    ledger = FileLedger(
        harness.state / "ledger", clock=clock, max_bytes=1 << 22, disk=QuickDisk(), facts=True
    )
    async with ledger:
        for state in (State.OPEN, State.CLOSED):
            name = event_id("org-1", "svc-1", GRANT_ID, state)
            message = Message(id=name, type="t", body=b"{}", created_at_ms=START_MS)
            intent = await ledger.intent("https://vendor.test", [message])
            await ledger.receipt(intent, [message], [Receipt(Reason.OK, 204, "r")])
    found = Found(capsys, write(harness), *KEYS)
    assert found.problems == []
    assert "the vendor has received 2 of 7 events about the grant" in found.notes
    assert not any("no later line has their result" in note for note in found.notes)
    pack = harness.directory / "evidence"
    edit_lines(pack, lambda lines: lines[:-1], chain=False)
    found = Found(capsys, pack, *KEYS)
    assert "the vendor has received 1 of 7 events about the grant" in found.notes
    assert any("no later line has their result" in note for note in found.notes)


def url_safe(raw: bytes) -> bytes:
    """Return an envelope in the other alphabet of base64, which DSSE allows as well."""
    fields = json.loads(raw)
    assert set("+/") & set(fields["payload"])
    fields["payload"] = fields["payload"].replace("+", "-").replace("/", "_")
    return json.dumps(fields).encode()


async def test_an_envelope_in_url_safe_base64_is_accepted_as_the_broker_accepts_it(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    request = request_envelope(engineer={"id": "eng-8841", "name": "\u00ff" * 6})
    key = harness.directory / "approver.pem"
    key.write_bytes(APPROVER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    given = harness.directory / "request.dsse.json"
    given.write_bytes(url_safe(request))
    signed = harness.directory / "approval.dsse.json"
    who = ("--key", str(key), "--key-id", "sec-1", "--by", "anna")
    capsys.readouterr()
    assert main(["sign", str(given), *who], {}) == 0
    signed.write_text(capsys.readouterr().out)
    await harness.order(Submit(envelope=given.read_bytes()))
    await harness.order(Approve(id=GRANT_ID, envelope=signed.read_bytes()))
    await harness.order(Revoke(id=GRANT_ID, by="anna"))
    await harness.passes(1, 2)
    assert Found(capsys, write(harness), *KEYS).problems == []


@pytest.mark.parametrize("end", ["\v", "\f", "\x1c", "\x85", "\u2028", "\r"])
async def test_only_a_line_feed_ends_a_line_of_the_sums(
    end: str, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sha256sum -c` reads one line here, so the second file would be checked by nobody else."""
    sums = pack / "SHA256SUMS"
    sums.write_bytes(sums.read_text().replace("\n", end, 1).encode())
    assert "SHA256SUMS: line 1 is not a digest and a name" in Found(capsys, pack, *KEYS).problems
