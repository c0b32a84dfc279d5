"""A broker killed with SIGKILL after each of its steps, with the real store and ledger."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from byoc_agents.access.machine import ENDS, State
from byoc_agents.access.orders import Approve, Revoke, Submit
from byoc_agents.access.replicas import GrantAccount, user_of
from tests.unit.access.access_world import GRANT_ID, request_envelope
from tests.unit.access.broker_world import World

USER = user_of(GRANT_ID)
SERVERS = "servers.json"


async def tell_story(world: World) -> None:
    """Submit, approve and revoke by orders that survive, as the command line writes them."""
    for name, order in (
        ("1", Submit(envelope=request_envelope())),
        ("2", Approve(id=GRANT_ID, by="anna")),
        ("3", Revoke(id=GRANT_ID, by="anna")),
    ):
        world.orders.create()
        world.orders.place(name, order)
        await world.broker.run_pass()
    await world.broker.run_pass()


def killed_after(world: World, step: int, story: Callable[[World], Awaitable[None]]) -> None:
    """Run a story in a process that ends with SIGKILL after so many steps, and load the servers."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(_run_until(world, step, story))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    found = json.loads((world.directory / SERVERS).read_text())
    for name, users in found.items():
        world.servers[name].users = msgspec.convert(users, dict[str, GrantAccount])


async def _run_until(world: World, step: int, story: Callable[[World], Awaitable[None]]) -> None:
    def on_step(_step: str) -> None:
        users = {name: server.users for name, server in world.servers.items()}
        (world.directory / SERVERS).write_bytes(msgspec.json.encode(users))
        if len(world.steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    world.on_step = on_step
    async with world.running():
        await story(world)


def steps_of_the_story(tmp_path: Path) -> list[str]:
    world = World(tmp_path / "whole")

    async def run() -> None:
        async with world.running():
            await tell_story(world)

    asyncio.run(run())
    return world.steps


async def resume(world: World) -> None:
    """Run a new broker until the order to revoke, which is still there or has been carried out."""
    world.on_step = lambda _: None
    async with world.running() as broker:
        await broker.run_pass()
        check_resumed(world)
        world.orders.place("4", Revoke(id=GRANT_ID, by="anna"))
        await world.passes(1, 5)
        assert broker.grants == []
        assert world.users == {"r0": [], "r1": []}
        names = world.named()
        if "pending" in names:
            stored = await world.stored()
            assert stored.state in ENDS
            assert {State(name) for name in names if name in set(State)} & ENDS == {stored.state}
    assert world.ledger_problems() == []


def check_resumed(world: World) -> None:
    """Nothing may be on a server that the ledger does not name."""
    names = world.named()
    if any(world.users.values()):
        assert names.index("opening") < names.index("certificate")
    if "closing" in names:
        assert world.users == {"r0": [], "r1": []}


def test_after_any_kill_the_next_broker_ends_what_was_begun(tmp_path: Path) -> None:
    steps = steps_of_the_story(tmp_path)
    assert len(steps) > 40
    for step in range(1, len(steps) + 1):
        world = World(tmp_path / str(step))
        killed_after(world, step, tell_story)
        users, names = any(world.users.values()), world.named()
        assert not users or "certificate" in names, f"step {step}: {steps[step - 1]}"
        asyncio.run(resume(world))


async def open_only(world: World) -> None:
    await world.open_grant()
    await world.broker.run_pass()


@pytest.mark.parametrize("step", range(8, 20))
def test_after_a_kill_while_opening_the_grant_opens_with_the_same_end(
    tmp_path: Path, step: int
) -> None:
    world = World(tmp_path)
    killed_after(world, step, open_only)

    async def go_on() -> None:
        async with world.running() as broker:
            await broker.run_pass()
            world.orders.place("5", Approve(id=GRANT_ID, by="anna"))
            await broker.run_pass()
            grant = world.grant()
            assert grant.state is State.OPEN
            ends = {server.users[USER].end_ms for server in world.servers.values()}
            assert ends == {grant.end_ms}

    asyncio.run(go_on())


def test_a_kill_after_the_end_has_passed_opens_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    steps = [0]

    async def count(one: World) -> None:
        await one.open_grant()

    for step in range(10, 18):
        world = World(tmp_path / str(step))
        killed_after(world, step, count)

        async def late(world: World = world) -> None:
            await world.clock.advance(2 * 3600)
            async with world.running():
                await world.passes(1, 3)
                assert world.users == {"r0": [], "r1": []}
                steps[0] += 1

        asyncio.run(late())
    assert steps == [8]
