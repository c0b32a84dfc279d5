"""Exports of the bodies that a ledger keeps: of messages that left the spool long ago."""

import asyncio
from pathlib import Path

import pytest

from byoc_agents.airgap.signed_file import open_file
from byoc_agents.app.cli import main
from lab.fakes.billing import objects
from tests.unit.airgap.airgap_harness import BILLING, CUSTOMER, Harness
from tests.unit.airgap.test_airgap_files import keys


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


async def test_messages_that_left_the_spool_are_exported_unchanged(harness: Harness) -> None:
    made = objects([harness.history.measured() for _ in range(3)], size=1)
    await harness.announce(*made, made[0])  # one of them was sent twice
    found = await harness.export_kept()
    (one,) = found.files
    assert (one.messages, found.unkept, found.damaged) == (3, 0, [])
    again = open_file(one.path.read_bytes(), "export", CUSTOMER.public_key()).messages()
    fields = ("id", "type", "body", "events", "content_type", "content_encoding", "stream")
    assert [[getattr(m, name) for name in fields] for m in again] == [
        [getattr(m, name) for name in fields] for m in made
    ]
    receipt = await harness.deliver(one.path.read_bytes())
    assert harness.bucket.objects == {m.id: m.body for m in made}
    assert await harness.confirm(receipt) == 0  # there is no spool


async def test_what_waits_is_left_to_the_export_of_the_spool(harness: Harness) -> None:
    first, second = harness.add_objects(2)
    await harness.announce(first, second)
    await harness.send_first_online()
    (one,) = (await harness.export_kept()).files
    assert one.messages == 1
    (sent,) = open_file(one.path.read_bytes(), "export", CUSTOMER.public_key()).messages()
    assert sent.id == first.id
    assert harness.waiting() == [second.id]


async def test_a_file_has_a_bound(harness: Harness) -> None:
    made = objects([harness.history.measured() for _ in range(5)], size=1)
    await harness.announce(*made)
    found = await harness.export_kept(max_bytes=2 * max(len(m.body) for m in made))
    assert [one.messages for one in found.files] == [2, 2, 1]


async def test_messages_without_a_body_are_counted_and_damaged_ones_are_named(
    harness: Harness,
) -> None:
    made = objects([harness.history.measured() for _ in range(4)], size=1)
    await harness.announce(made[0], made[1], keep_bodies=False)
    await harness.announce(*made[1:])  # one of them was kept later
    bodies = harness.state_dir / BILLING / "ledger" / "bodies"
    (damaged,) = [p for p in bodies.rglob("*") if p.is_file() and p.read_bytes() == made[3].body]
    damaged.write_bytes(b"other")
    found = await harness.export_kept()
    assert [one.messages for one in found.files] == [2]
    assert (found.unkept, found.damaged) == (2, [str(damaged)])


def test_the_command_exports_spools_and_kept_bodies(
    harness: Harness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, _ = keys(tmp_path)
    made = objects([harness.history.measured() for _ in range(2)], size=1)
    asyncio.run(harness.announce(*made))
    capsys.readouterr()
    arguments = ["export", "--state-dir", str(harness.state_dir), "--key", str(private)]
    arguments += ["--output", str(harness.output), "--kept"]
    assert main(arguments) == 0  # without any spool
    assert capsys.readouterr().out.startswith(f"{BILLING}: 2 messages with kept bodies in ")
    harness.add_objects(1)
    assert main(arguments) == 0
    waiting, kept = capsys.readouterr().out.splitlines()
    assert waiting.startswith(f"{BILLING}: 1 messages in ")
    assert kept.startswith(f"{BILLING}: 2 messages with kept bodies in ")
    for path in (harness.state_dir / BILLING / "ledger" / "bodies").rglob("*"):
        if path.is_file():
            path.write_bytes(b"other")
    assert main(arguments) == 1
    assert "damaged: expected the SHA-256 of its name" in capsys.readouterr().err
