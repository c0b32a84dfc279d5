"""A broker killed with SIGKILL after each of its steps, with the real store and ledger."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from byoc_agents.access.clickhouse_admin import GrantAccount, user_of
from byoc_agents.access.machine import ENDS, State
from byoc_agents.access.orders import Approve, Revoke, Submit
from tests.unit.access.access_documents import GRANT_ID, request_envelope
from tests.unit.access.scripted_broker import Harness

USER = user_of(GRANT_ID)
SERVERS = "servers.json"
OPENING = 11  # the step of the line `opening` of a first grant


async def run_scenario(harness: Harness) -> None:
    """Submit, approve and revoke by orders that survive, as the command line writes them."""
    for name, order in (
        ("1", Submit(envelope=request_envelope())),
        ("2", Approve(id=GRANT_ID, by="anna")),
        ("3", Revoke(id=GRANT_ID, by="anna")),
    ):
        harness.orders.create()
        harness.orders.place(name, order)
        await harness.broker.run_pass()
    await harness.broker.run_pass()


def killed_after(
    harness: Harness, step: int, scenario: Callable[[Harness], Awaitable[None]]
) -> None:
    """Run a scenario in a process that SIGKILL ends after so many steps, and load the servers."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(_run_until(harness, step, scenario))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    found = json.loads((harness.directory / SERVERS).read_text())
    for name, users in found.items():
        harness.servers[name].users = msgspec.convert(users, dict[str, GrantAccount])


async def _run_until(
    harness: Harness, step: int, scenario: Callable[[Harness], Awaitable[None]]
) -> None:
    def on_step(_step: str) -> None:
        users = {name: server.users for name, server in harness.servers.items()}
        (harness.directory / SERVERS).write_bytes(msgspec.json.encode(users))
        if len(harness.steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    harness.on_step = on_step
    async with harness.running():
        await scenario(harness)


def steps_of_the_scenario(tmp_path: Path) -> list[str]:
    harness = Harness(tmp_path / "whole")

    async def run() -> None:
        async with harness.running():
            await run_scenario(harness)

    asyncio.run(run())
    return harness.steps


async def resume(harness: Harness) -> None:
    """Run a new broker until the order to revoke, which is still there or has been carried out."""
    harness.on_step = lambda _: None
    async with harness.running() as broker:
        await broker.run_pass()
        check_resumed(harness)
        harness.orders.place("4", Revoke(id=GRANT_ID, by="anna"))
        await harness.passes(1, 5)
        assert broker.grants == []
        assert harness.users == {"r0": [], "r1": []}
        names = harness.named()
        if "pending" in names:
            stored = await harness.stored()
            assert stored.state in ENDS
            assert {State(name) for name in names if name in set(State)} & ENDS == {stored.state}
    assert harness.ledger_problems() == []


def check_resumed(harness: Harness) -> None:
    """Nothing may be on a server that the ledger does not name."""
    names = harness.named()
    if any(harness.users.values()):
        assert names.index("opening") < names.index("certificate")
    if "closing" in names:
        assert harness.users == {"r0": [], "r1": []}


def test_after_any_kill_the_next_broker_ends_what_was_begun(tmp_path: Path) -> None:
    steps = steps_of_the_scenario(tmp_path)
    assert len(steps) > 40
    for step in range(1, len(steps) + 1):
        harness = Harness(tmp_path / str(step))
        killed_after(harness, step, run_scenario)
        users, names = any(harness.users.values()), harness.named()
        assert not users or "certificate" in names, f"step {step}: {steps[step - 1]}"
        asyncio.run(resume(harness))


async def open_only(harness: Harness) -> None:
    await harness.open_grant()
    await harness.broker.run_pass()


@pytest.mark.parametrize("step", range(OPENING, OPENING + 12))
def test_after_a_kill_while_opening_the_grant_opens_with_the_same_end(
    tmp_path: Path, step: int
) -> None:
    harness = Harness(tmp_path)
    killed_after(harness, step, open_only)
    assert "opening" in harness.named()

    async def go_on() -> None:
        async with harness.running() as broker:
            await broker.run_pass()
            harness.orders.place("5", Approve(id=GRANT_ID, by="anna"))
            await broker.run_pass()
            grant = harness.grant()
            assert grant.state is State.OPEN
            ends = {server.users[USER].end_ms for server in harness.servers.values()}
            assert ends == {grant.end_ms}

    asyncio.run(go_on())


def test_a_kill_after_the_end_has_passed_opens_nothing(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    steps = [0]

    async def count(one: Harness) -> None:
        await one.open_grant()

    for step in range(OPENING + 2, OPENING + 10):
        harness = Harness(tmp_path / str(step))
        killed_after(harness, step, count)
        assert "opening" in harness.named()

        async def late(harness: Harness = harness) -> None:
            await harness.clock.advance(2 * 3600)
            async with harness.running():
                await harness.passes(1, 3)
                assert harness.users == {"r0": [], "r1": []}
                steps[0] += 1

        asyncio.run(late())
    assert steps == [8]
