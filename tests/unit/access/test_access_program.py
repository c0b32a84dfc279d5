"""The program `byoc-agents run access-broker`: settings in, statements and events out."""

import asyncio
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from byoc_agents.access.clickhouse_admin import user_of
from byoc_agents.access.orders import Approve, CheckServers, Revoke, Submit
from byoc_agents.ledger.verify import verify
from tests.unit.access.access_documents import GRANT_ID
from tests.unit.access.program_harness import Program, until

PAGE = Path(__file__).resolve().parents[3] / "docs" / "access.md"
USER = user_of(GRANT_ID)
BOTH = {"r0": [USER], "r1": [USER]}
NOBODY: dict[str, list[str]] = {"r0": [], "r1": []}


@pytest.fixture
async def program(tmp_path: Path) -> AsyncIterator[Program]:
    made = Program(tmp_path)
    async with made.fakes():
        yield made


async def open_grant(program: Program) -> None:
    """Let the vendor ask and the customer approve; access is open at the end."""
    program.plane.envelopes.append(program.request())
    await until(lambda: "pending" in program.plane.states(), program.process)
    answer = await program.order(Approve(id=GRANT_ID, by="anna"), "approve")
    assert answer == f"{GRANT_ID}: approved"
    await until(lambda: "open" in program.plane.states(), program.process)


async def test_a_polled_request_from_approval_to_closing(program: Program) -> None:
    async with program.running():
        await open_grant(program)
        assert program.users == BOTH
        (opened,) = [event for event in program.plane.events if event["state"] == "open"]
        assert opened["certificate"].startswith("-----BEGIN CERTIFICATE-----")
        daemon = 'daemon="access-broker"'
        assert await program.metric(f'byoc_access_grants{{{daemon},state="open"}}') == 1
        assert await program.metric(f"byoc_access_kill_switch{{{daemon}}}") == 0
        assert await program.metric(f'byoc_access_server_ready{{{daemon},replica="r0"}}') == 1
        assert (
            await program.metric(f"byoc_access_last_poll_timestamp_seconds{{{daemon}}}") or 0
        ) > 1
        assert await program.page("/readyz") == "ok\n"
        answer = await program.order(Revoke(id=GRANT_ID, by="anna", comment="done"), "revoke")
        assert answer == f"{GRANT_ID}: closing"
        await until(lambda: "closed" in program.plane.states(), program.process)
        assert program.users == NOBODY
        closed = program.plane.events[-1]
        assert (closed["record"], closed["reason"]) == ("complete", "revoked")
        assert closed["counts"]["queries"] == 0
        status = json.loads(await program.page("/status"))["daemons"]["access-broker"]
        assert (status["grants"], status["servers"]) == ({}, {"r0": None, "r1": None})
    assert program.process.returncode == 0
    assert not verify(program.state / "ledger").problems
    assert [fact.fact for fact in program.facts()][:6] == [
        *("kill_switch", "policy_changed", "pending", "approved", "opening", "certificate")
    ]


async def test_a_grant_whose_event_is_not_delivered_is_open_and_has_its_certificate(
    program: Program,
) -> None:
    program.plane.stores_events = False
    async with program.running():
        program.plane.envelopes.append(program.request())
        await until(program.stored, program.process)
        await program.order(Approve(id=GRANT_ID, by="anna"), "approve")
        await until(lambda: program.stored()[GRANT_ID]["state"] == "open", program.process)
        assert program.users == BOTH
        await until(program.errors, program.process)
        assert program.plane.events == []
        waiting = {event["state"]: event["certificate"] for event in program.queued()}
        code, printed = await program.command("show", GRANT_ID, "--certificate")
        assert code == 0
        assert printed.startswith("-----BEGIN CERTIFICATE-----")
        assert waiting == {"pending": "", "approved": "", "opening": "", "open": printed}
        assert program.users == BOTH
        program.plane.stores_events = True
        await until(lambda: "open" in program.plane.states(), program.process)
        assert [e["certificate"] for e in program.plane.events if e["certificate"]] == [printed]


async def test_the_poll_carries_the_token_and_asks_for_changes_only(program: Program) -> None:
    async with program.running():
        await until(lambda: len(program.plane.polls) >= 2, program.process)
    first, second = program.plane.polls[:2]
    assert first.headers["authorization"] == "Bearer token-of-the-vendor"
    assert "if-none-match" not in first.headers
    assert second.headers["if-none-match"] == '"0"'


async def test_the_kill_switch_ends_access_within_seconds(program: Program) -> None:
    async with program.running():
        await open_grant(program)
        program.servers["r0"].running[USER] = ["q-1"]
        program.kill_switch.touch()
        await until(lambda: program.users == NOBODY, program.process)
        await until(lambda: not program.servers["r0"].running, program.process)
        await until(lambda: "closed" in program.plane.states(), program.process)
        assert program.plane.events[-1]["reason"] == "kill_switch"
        metric = await program.metric('byoc_access_kill_switch{daemon="access-broker"}')
        assert metric == 1


def drill() -> list[list[str]]:
    """Return the commands of the drill, as docs/access.md prints them."""
    block = PAGE.read_text().split("## The drill\n")[1].split("```\n")[1]
    return [shlex.split(line) for line in block.splitlines()]


async def test_the_drill_of_the_page_ends_all_access_within_a_minute(program: Program) -> None:
    seen = []
    async with program.running():
        await open_grant(program)
        program.servers["r0"].running[USER] = ["q-1"]
        began = time.monotonic()
        for name, *arguments in drill():
            assert name == "byoc-agents"
            done = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "byoc_agents.app.cli", *arguments),
                env={
                    "PATH": os.environ["PATH"],
                    "BYOC_STATE_DIR": str(program.directory / "state"),
                },
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await done.communicate()
            seen.append((done.returncode, out.decode().splitlines()[-1]))
            if "--wait" in arguments:
                assert time.monotonic() - began < 60
                assert program.users == NOBODY
                assert not program.servers["r0"].running
    assert [code for code, _ in seen] == [1, 0, 0, 0]
    assert seen[1][1] == "nobody has access"


async def test_a_mounted_kill_switch_that_is_missing_counts_as_on(program: Program) -> None:
    missing = str(program.directory / "no-such-file")
    async with program.running(BYOC_ACCESS_KILL_SWITCH_FILE=missing):
        program.plane.envelopes.append(program.request())
        await until(lambda: "pending" in program.plane.states(), program.process)
        await program.order(Approve(id=GRANT_ID, by="anna"), "approve")
        await program.order(CheckServers(), "later")
        assert program.users == NOBODY


async def test_a_response_that_proves_nothing_names_the_brokers_setting(program: Program) -> None:
    program.plane.proves = False
    async with program.running():
        program.plane.envelopes.append(program.request())
        await until(lambda: program.plane.events, program.process)
        await until(program.errors, program.process)
    expected = "status 204 without the control plane's webhook-id, or stored and duplicates"
    assert program.errors()[0] == f"{expected} (BYOC_ACCESS_EVENTS_URL)"


async def test_a_policy_that_becomes_readable_accepts_the_polled_request(
    program: Program,
) -> None:
    text = program.policy.read_text()
    program.policy.write_text("version: 2")
    async with program.running():
        program.plane.envelopes.append(program.request())
        await until(lambda: program.plane.polls, program.process)
        assert program.plane.events == []
        program.policy.write_text(text)
        await until(lambda: "pending" in program.plane.states(), program.process)


@pytest.mark.parametrize("content", [None, "version: 2"])
async def test_check_config_finds_a_mistake_in_the_policy_and_the_broker_stays_up(
    program: Program, content: str | None
) -> None:
    """It has access to end, so a broken policy is its kill switch, and no reason not to start."""
    check = (sys.executable, "-m", "byoc_agents.app.cli", "check-config", "access-broker")
    pipe = asyncio.subprocess.PIPE

    async def run_check() -> tuple[int | None, str]:
        made = await asyncio.create_subprocess_exec(*check, env=program.environ(), stderr=pipe)
        _, err = await made.communicate()
        return made.returncode, err.decode()

    assert await run_check() == (0, "")
    program.policy.unlink() if content is None else program.policy.write_text(content)
    code, err = await run_check()
    assert code == 2
    assert "BYOC_ACCESS_POLICY_FILE: " in err
    async with program.running():
        await program.order(Revoke(id="all", by="anna"), "1")
        status = json.loads(await program.page("/status"))["daemons"]["access-broker"]
    assert status["kill_switch"] == "the policy cannot be read"
    assert program.process.returncode == 0


async def test_sigterm_leaves_access_open_and_the_next_start_goes_on(program: Program) -> None:
    async with program.running():
        await open_grant(program)
    assert program.users == BOTH
    async with program.running():
        await program.order(Revoke(id="all", by="anna"), "revoke")
        await until(lambda: program.users == NOBODY, program.process)


async def test_sigterm_ends_access_if_the_settings_say_so(program: Program) -> None:
    async with program.running(BYOC_ACCESS_CLOSE_ON_STOP="true"):
        await open_grant(program)
    assert (program.process.returncode, program.users) == (0, NOBODY)


async def test_the_order_to_check_answers_with_each_server(program: Program) -> None:
    program.servers["r1"].version = "25.7.1.1"
    async with program.running():
        answer = await program.order(CheckServers(), "check")
        metric = 'byoc_access_server_ready{daemon="access-broker",replica="r1"}'
        assert await program.metric(metric) == 0
    assert answer.splitlines()[0] == "r0: ok"
    assert answer.splitlines()[1].startswith("r1: version: has '25.7.1.1': expected")


async def test_a_server_that_fails_its_checks_opens_nothing(program: Program) -> None:
    for server in program.servers.values():
        del server.refused["SELECT is_done FROM system.mutations"]
    async with program.running():
        program.plane.envelopes.append(program.request())
        await until(lambda: "pending" in program.plane.states(), program.process)
        await program.order(Approve(id=GRANT_ID, by="anna"), "approve")
        await until(lambda: "failed" in program.plane.states(), program.process)
    assert program.plane.events[-1]["reason"] == "system_open"
    assert not any("CREATE USER" in text for text in program.servers["r0"].statements)


# SIGKILL at each statement that changes a server, or reads it back.

MARKS = ("CREATE USER", "DROP USER", "KILL QUERY", "SELECT name, arrayMap", "SYSTEM FLUSH LOGS")


@pytest.mark.parametrize("replica", ["r0", "r1"])
@pytest.mark.parametrize("mark", MARKS)
async def test_after_a_kill_at_a_statement_the_next_start_ends_what_was_begun(
    program: Program, mark: str, replica: str
) -> None:
    """The statement has run; the program dies before the response."""
    server = program.servers[replica]
    steps = [False]

    def kill(statement: str) -> None:
        if mark in statement and not steps[0]:
            steps[0] = True
            program.process.send_signal(signal.SIGKILL)

    server.on_statement = kill
    async with program.running():
        folder = program.orders()
        folder.place("1", Submit(envelope=program.request()))
        await until(lambda: "pending" in program.plane.states(), program.process)
        folder.place("2", Approve(id=GRANT_ID, by="anna"))
        await until(lambda: steps[0] or "open" in program.plane.states())
        folder.place("3", Revoke(id=GRANT_ID, by="anna"))
        await until(lambda: steps[0])
        await program.process.wait()
    assert program.process.returncode == -signal.SIGKILL
    async with program.running():
        answer = await program.order(Revoke(id=GRANT_ID, by="anna"), "4")
        assert answer.startswith(GRANT_ID)
        await until(lambda: program.users == NOBODY, program.process)
        await until(lambda: set(program.plane.states()) & {"closed", "failed"}, program.process)
    assert not verify(program.state / "ledger").problems
    names = [fact.fact for fact in program.facts()]
    assert names.index("opening") < names.index("certificate") < names.index("closing")
    (stored,) = program.stored().values()
    assert stored["state"] in {"closed", "failed"}
