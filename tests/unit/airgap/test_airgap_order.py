"""Any order, repetition and loss of files: nothing is lost, and nothing is stored twice."""

import asyncio
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.airgap.airgap_harness import Harness

STEP = st.tuples(
    st.sampled_from(["add", "export", "import", "confirm", "online", "kept"]), st.integers(0, 1000)
)


async def _take(harness: Harness, step: tuple[str, int], added: dict[str, bytes]) -> None:
    what, number = step
    match what:
        case "add":
            added.update({m.id: m.body for m in harness.add_objects(1 + number % 3)})
        case "export":
            await harness.export()
        case "import" if harness.exports:
            await harness.deliver(harness.exports[number % len(harness.exports)])
        case "confirm" if harness.receipts:
            await harness.confirm(harness.receipts[number % len(harness.receipts)])
        case "online":
            await harness.send_first_online()
        case "kept":
            await harness.export_kept()


async def _run(directory: Path, steps: list[tuple[str, int]]) -> None:
    harness, added = Harness(directory), dict[str, bytes]()
    harness.spool().close()
    for step in steps:
        await _take(harness, step, added)
        assert added.keys() <= {*harness.waiting(), *harness.bucket.objects}, step
        assert harness.bucket.objects.items() <= added.items()
    await harness.export()
    await harness.export_kept()
    chance = random.Random(len(steps))
    for raw in chance.sample([*harness.exports, *harness.exports], 2 * len(harness.exports)):
        await harness.deliver(raw)
    for raw in chance.sample(harness.receipts, len(harness.receipts)):
        await harness.confirm(raw)
    assert harness.waiting() == []
    assert harness.bucket.objects == added


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=14))
def test_each_message_is_stored_once_or_still_waits(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_run(Path(directory), steps))
