"""`byoc-agents access`: the commands next to a broker that runs."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from byoc_agents.access.documents import utc_text
from byoc_agents.access.machine import State
from byoc_agents.access.orders import Submit
from byoc_agents.access_commands import main
from byoc_agents.access_commands.cli import COMMANDS
from lab.fakes.core import START_MS
from tests.unit.access.access_documents import (
    APPROVER,
    GRANT_ID,
    STRANGER,
    policy_text,
    request_envelope,
    withdrawal_envelope,
)
from tests.unit.access.scripted_broker import Harness

SHORT = GRANT_ID[:13]


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path)
    (tmp_path / "access-broker").symlink_to(harness.state)
    async with harness.running():
        yield harness
    assert harness.ledger_problems() == []


async def run(harness: Harness, *argv: str) -> int:
    """Run a command in a thread, while the broker makes its passes."""
    environ = {"BYOC_STATE_DIR": str(harness.directory)}
    command = asyncio.create_task(asyncio.to_thread(main, argv, environ))
    while not command.done():
        await harness.broker.run_pass()
        await asyncio.wait([command], timeout=0.01)
    return command.result()


def write(harness: Harness, name: str, content: bytes) -> str:
    path = harness.directory / name
    path.write_bytes(content)
    return str(path)


async def submit(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))


async def test_a_request_is_submitted_shown_approved_and_revoked(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(harness, "submit", write(harness, "r.json", request_envelope())) == 0
    assert await run(harness, "list") == 0
    assert "pending" in capsys.readouterr().out
    assert await run(harness, "show", SHORT) == 0
    shown = capsys.readouterr().out
    assert "eng-8841 (A. Example)" in shown
    assert "incident, CS-1234: merge backlog, replica 2" in shown
    assert "may read     byoc_access.asynchronous_metrics, " in shown
    assert "byoc_access.query_log," in shown
    assert "query_log_text" not in shown
    assert await run(harness, "approve", SHORT, "--for", "30m", "--by", "anna") == 0
    await harness.broker.run_pass()
    assert (harness.grant().state, harness.grant().duration_seconds) == (State.OPEN, 1800)
    assert await run(harness, "status") == 1
    assert "1 open" in capsys.readouterr().out
    assert await run(harness, "show", SHORT, "--certificate") == 0
    assert capsys.readouterr().out == harness.grant().certificate
    assert await run(harness, "revoke", SHORT, "--by", "anna", "--comment", "done") == 0
    await harness.passes(1)
    assert await run(harness, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"open": {}, "kill_switch": None}
    assert await run(harness, "list", "--all", "--json") == 0
    (ended,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (ended["state"], ended["approvers"], ended["counts"]["queries"]) == (
        *("closed", ["anna"]),
        6,
    )


async def test_a_denial_needs_a_reason(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    await submit(harness)
    assert await run(harness, "deny", SHORT) == 2
    assert "--comment: expected a reason" in capsys.readouterr().err
    assert await run(harness, "deny", SHORT, "--comment", "not now", "--by", "anna") == 0
    assert (await harness.stored()).reason == "denied: not now (by anna)"


async def test_what_the_broker_refuses_is_exit_code_1(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    await submit(harness)
    assert await run(harness, "approve", SHORT, "--role", "query-text", "--by", "anna") == 1
    assert "refused: role" in capsys.readouterr().out
    assert await run(harness, "submit", write(harness, "x", b"{}")) == 1
    assert await run(harness, "deny", SHORT, "--comment", "no", "--by", "anna") == 0
    assert await run(harness, "approve", SHORT) == 1
    assert await run(harness, "revoke", SHORT) == 1
    assert await run(harness, "show", "ffff") == 1


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("approve", "ffff"), "no request, or several"),
        (("approve", SHORT, "--by", "a b"), "by"),
        (("approve", SHORT, "--for", "10s"), "duration_seconds"),
        (("submit", "/no/such/file"), "expected a readable file"),
        (("approve", "x; DROP"), "expected the id of a request"),
        (("approve", SHORT, "--for", "soon"), "expected a duration such as 30m"),
        (("kill", "maybe"), "invalid value"),
    ],
)
async def test_bad_usage_is_exit_code_2(
    harness: Harness, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], text: str
) -> None:
    await submit(harness)
    assert await run(harness, *argv) == 2
    assert text in capsys.readouterr().err


async def test_a_vendor_can_end_access_by_a_file(harness: Harness) -> None:
    await harness.open_grant()
    assert await run(harness, "submit", write(harness, "w.json", withdrawal_envelope())) == 0
    await harness.passes(1, 2)
    assert (await harness.stored()).reason.startswith("withdrawn")


async def test_the_kill_switch_ends_everything_and_is_waited_for(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    await harness.open_grant()
    assert await run(harness, "kill", "on", "--wait", "30") == 0
    out = capsys.readouterr().out
    assert "kill switch: on (kill-switch)" in out
    assert "nobody has access" in out
    assert harness.users == {"r0": [], "r1": []}
    assert await run(harness, "kill", "status") == 0
    assert await run(harness, "kill", "off") == 0
    assert "kill switch: off" in capsys.readouterr().out
    assert not harness.kill_file.exists()


async def test_a_kill_switch_that_does_not_act_in_time_is_exit_code_1(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    await harness.open_grant()
    harness.servers["r1"].reachable = False
    assert await run(harness, "kill", "on", "--wait", "0.3") == 1
    assert "not all access has ended in 0.3 s" in capsys.readouterr().out


async def test_each_server_is_checked(harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    harness.servers["r1"].problems = ["version: has '1': expected 2"]
    assert await run(harness, "check") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("r")]
    assert lines == ["r0: ok", "r1: version: has '1': expected 2"]


async def test_an_approval_is_signed_off_the_cluster(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    harness.write_policy(approval="signed")
    await submit(harness)
    assert await run(harness, "show", SHORT, "--envelope") == 0
    request = write(harness, "request.json", capsys.readouterr().out.splitlines()[-1].encode())
    pem = APPROVER.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    key = write(harness, "anna.pem", pem)
    command = ("sign", request, "--key", key, "--key-id", "sec-1", "--by", "anna", "--for", "20m")
    assert main(command, {}) == 0
    approval = write(harness, "approval.json", capsys.readouterr().out.encode())
    assert await run(harness, "approve", SHORT, "--file", approval) == 0
    await harness.broker.run_pass()
    assert (harness.grant().state, harness.grant().duration_seconds) == (State.OPEN, 1200)
    assert [one.by for one in harness.grant().approvals] == ["sec-1"]


async def test_a_replica_that_is_lost_is_given_up(harness: Harness) -> None:
    await harness.open_grant()
    harness.servers["r1"].reachable = False
    await run(harness, "revoke", "all", "--by", "anna")
    assert await run(harness, "forget-replica", "r1") == 2
    assert await run(harness, "forget-replica", "r1", "--comment", "lost", "--by", "anna") == 0
    await harness.passes(31, 3)
    assert (await harness.stored()).state is State.CLOSED_INCOMPLETE


def test_without_a_running_broker_an_order_waits_and_that_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(stored_state(tmp_path))
    waited: list[float] = []
    assert main(["check", "--state-dir", str(tmp_path)], {}, waited.append) == 1
    assert sum(waited) == pytest.approx(10)
    assert "the order waits in" in capsys.readouterr().err


async def stored_state(directory: Path) -> None:
    harness = Harness(directory / "w")
    (directory / "access-broker").symlink_to(harness.state)
    async with harness.running():
        await harness.broker.run_pass()


@pytest.mark.parametrize("command", ["list", "status", "report", "check"])
def test_without_a_broker_there_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, "--state-dir", str(tmp_path)], {}) == 2
    assert f"no broker below {tmp_path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def refuse_to_wait(seconds: float) -> None:
    pytest.fail(f"waited for {seconds} s")


def test_a_broker_that_never_ran_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So an uninstall goes on; it may be repeated. Only an existing volume shows that none ran."""
    command = ["kill", "on", "--wait", "60", "--state-dir"]
    for _ in range(2):
        assert main([*command, str(tmp_path)], {}, sleep=refuse_to_wait) == 0
        said = f"nobody has access: no broker has ever run below {tmp_path}"
        assert capsys.readouterr().out.splitlines()[-1] == said
    assert [path.name for path in (tmp_path / "access-broker").iterdir()] == ["kill-switch"]
    assert main([*command, str(tmp_path / "no-volume")], {}, sleep=refuse_to_wait) == 2
    (tmp_path / "access-broker" / "ledger").mkdir()
    assert main([*command, str(tmp_path)], {}, sleep=refuse_to_wait) == 2, "its grants are lost"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"], {}) == 0
    assert f"example: byoc-agents access {command}" in capsys.readouterr().out


# Preparation.


def test_the_sql_is_whole_and_has_a_new_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sql"], {}) == 0
    first = capsys.readouterr().out
    main(["sql"], {})
    assert first != capsys.readouterr().out
    assert "FIRST_HALF" not in first
    assert first.count("CREATE ROLE IF NOT EXISTS") == 4
    main(["sql", "--names", "plain"], {})
    assert len(capsys.readouterr().out) < len(first)


def test_a_policy_is_checked_before_it_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_text())
    assert main(["policy", str(path)], {}) == 0
    expected = "system-metrics: at most 1800 s as byoc_access_metrics, for clickhouse\n"
    assert expected in capsys.readouterr().out
    path.write_text(policy_text(roles={"network": {"endpoints": ["kubernetes", "metrics"]}}))
    assert main(["policy", str(path)], {}) == 0
    expected = "network: at most 3600 s without a user, for kubernetes, metrics\n"
    assert expected in capsys.readouterr().out
    path.write_text(policy_text(max_duration="9h"))
    assert main(["policy", str(path)], {}) == 1
    assert "max_duration: '9h': expected at most 28800 s" in capsys.readouterr().err


def test_what_would_become_of_a_request_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A request that is not signed by a pinned key, that the policy refuses, and a good one."""
    path, request = tmp_path / "policy.yaml", tmp_path / "request.json"
    path.write_text(policy_text())
    now_ms = time.time_ns() // 1_000_000
    command = ["policy", str(path), "--request", str(request)]
    request.write_bytes(request_envelope(("vendor-1", STRANGER), start_ms=now_ms))
    assert main(command, {}) == 1
    assert "refused: too_few_signatures" in capsys.readouterr().out
    request.write_bytes(request_envelope(start_ms=now_ms, role="system-metrics"))
    assert main(command, {}) == 1
    assert capsys.readouterr().out.endswith("signed by vendor-1\nrejected: duration\n")
    request.write_bytes(request_envelope(start_ms=now_ms))
    assert main(command, {}) == 0
    expected = f"{GRANT_ID}: accepted; 1 must approve (approval: local)\n"
    assert capsys.readouterr().out.endswith(expected)
    later = utc_text(now_ms + 3_600_000)
    path.write_text(policy_text(approval="transparency"))
    request.write_bytes(request_envelope(start_ms=now_ms, not_before=later))
    assert main(command, {}) == 0
    out = capsys.readouterr().out
    assert "nobody needs to approve" in out
    assert out.endswith("would not open now: not_before\n")


async def test_the_report_begins_at_a_time(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    await submit(harness)
    capsys.readouterr()
    day = utc_text(START_MS)[:10]
    assert await run(harness, "report", "--json", "--since", day) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    later = utc_text(START_MS + 1000)
    assert await run(harness, "report", "--json", "--since", later) == 0
    assert capsys.readouterr().out == ""
    assert await run(harness, "report", "--since", "yesterday") == 2
    assert "expected a date or a time" in capsys.readouterr().err


async def test_the_kill_switch_and_the_policy_are_in_the_history(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    await harness.open_grant()
    harness.write_policy(max_open=7)
    await harness.passes(1)
    harness.kill_file.touch()
    await harness.passes(1, 2)
    harness.kill_file.unlink()
    await harness.passes(1)
    await harness.order(Submit(envelope=request_envelope(duration_seconds=600)))
    capsys.readouterr()
    assert await run(harness, "show", SHORT) == 0
    names = re.findall(r"line \d+: (\w+):", capsys.readouterr().out)
    assert names.pop() == "conflict", "also after the end"
    assert names.index("open") < names.index("policy_changed") < names.index("closing")
    assert names.count("kill_switch") == 1, "the line before the first one about the grant, no"
    assert names[-1] == "closed"
    assert await run(harness, "show", SHORT, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [fact["fact"] for fact in shown["meanwhile"]] == [
        *("policy_changed", "kill_switch", "conflict")
    ]
    assert {fact["subject"] for fact in shown["facts"]} == {GRANT_ID}
    assert await run(harness, "report") == 0
    assert re.findall(r"kill_switch: (o[nf]+)", capsys.readouterr().out) == ["off", "on", "off"]
    assert await run(harness, "report", "--html", "-") == 0
    page = capsys.readouterr().out.split('<section id="controls">')[1]
    assert ["on: kill-switch" in page, "before=kill-switch" in page] == [True, True]
    later = utc_text(START_MS + 86_400_000)
    assert await run(harness, "report", "--since", later) == 0
    assert capsys.readouterr().out == ""


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], {}) == 0
    words = capsys.readouterr().out.split()
    assert set(COMMANDS) <= set(words)


def test_a_new_authority_never_replaces_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init-ca", str(tmp_path), "--service", "svc-1"], {}) == 0
    before = (tmp_path / "access-ca.key").read_bytes()
    assert main(["init-ca", str(tmp_path), "--service", "svc-1"], {}) == 2
    assert (tmp_path / "access-ca.key").read_bytes() == before
    assert main(["init-ca", str(tmp_path), "--service", "a/b"], {}) == 2
    assert "expected letters, digits and hyphens only" in capsys.readouterr().err
