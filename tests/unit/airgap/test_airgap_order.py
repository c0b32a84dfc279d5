"""Any order, repetition and loss of files: nothing is lost, and nothing is stored twice."""

import asyncio
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.airgap.airgap_world import World

STEP = st.tuples(
    st.sampled_from(["add", "export", "import", "confirm", "online"]), st.integers(0, 1000)
)


async def _take(world: World, step: tuple[str, int], added: dict[str, bytes]) -> None:
    what, number = step
    match what:
        case "add":
            added.update({m.id: m.body for m in world.add_objects(1 + number % 3)})
        case "export":
            await world.export()
        case "import" if world.exports:
            await world.deliver(world.exports[number % len(world.exports)])
        case "confirm" if world.receipts:
            await world.confirm(world.receipts[number % len(world.receipts)])
        case "online":
            await world.send_first_online()


async def _run(directory: Path, steps: list[tuple[str, int]]) -> None:
    world, added = World(directory), dict[str, bytes]()
    world.spool().close()
    for step in steps:
        await _take(world, step, added)
        assert added.keys() <= {*world.waiting(), *world.bucket.objects}, step
        assert world.bucket.objects.items() <= added.items()
    await world.export()
    chance = random.Random(len(steps))
    for raw in chance.sample([*world.exports, *world.exports], 2 * len(world.exports)):
        await world.deliver(raw)
    for raw in chance.sample(world.receipts, len(world.receipts)):
        await world.confirm(raw)
    assert world.waiting() == []
    assert world.bucket.objects == added


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=14))
def test_each_message_is_stored_once_or_still_waits(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_run(Path(directory), steps))
