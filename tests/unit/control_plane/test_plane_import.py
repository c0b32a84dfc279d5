"""`byoc-control-plane import`: one history of files and of online deliveries."""

import asyncio
import os
import random
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from byoc_agents.airgap.signed_file import SignedFileError, open_file, sign_file
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.message import Message
from byoc_control_plane.bucket import Bucket
from byoc_control_plane.cli import main
from byoc_control_plane.store import RowsRefusedError, StoreError
from lab.control_plane.messages import Replica, heartbeat_event, message_id, watch_alert
from lab.control_plane.processes import plane_environment
from lab.fakes.billing import eventful, objects
from lab.fakes.core import START_MS
from lab.fakes.s3 import FakeS3
from tests.unit.airgap.airgap_harness import BILLING, CUSTOMER, STRANGER, VENDOR, Harness
from tests.unit.control_plane.compactor_harness import history, opened
from tests.unit.control_plane.test_plane_compact_command import KEYS


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def state_messages(count: int, organization: str = "org-1") -> list[Message]:
    replica = Replica(organization=organization)
    bodies = [replica.message(START_MS + 1000 * n) for n in range(count)]
    return [
        Message(message_id(body), "byoc.service.state.v1", body, START_MS, group=replica.group)
        for body in bodies
    ]


async def test_imported_and_online_objects_are_one_history(harness: Harness) -> None:
    """The same keys, bytes, headers and report as if all had been delivered online."""
    made = objects(eventful(history(1)), size=3)
    async with opened(made) as online:
        expected, report = dict(online.s3.objects), await online.verify()
    assert report.ok
    chance = random.Random(3)
    async with opened() as mixed:
        harness.bucket = Bucket(mixed.client, "usage")
        harness.add(*made)
        files = await harness.export(max_bytes=600)
        assert len(files) > 3
        for message in chance.sample(made, len(made) // 2):  # the way out works for some time
            mixed.add([message])
        for raw in chance.sample([*files, *files], 2 * len(files)):
            await harness.confirm(await harness.deliver(raw))
        assert mixed.s3.objects == expected
        assert await mixed.verify() == report
        assert harness.waiting() == []


async def test_an_object_has_the_headers_of_a_scraper(harness: Harness) -> None:
    harness.add_objects(1)
    await harness.deliver((await harness.export())[0])
    (headers,) = harness.bucket.headers.values()
    (message,) = objects([history(0).measured()])
    assert headers == (message.content_type, message.content_encoding)


async def test_an_object_with_other_bytes_is_refused_and_not_confirmed(harness: Harness) -> None:
    made = harness.add_objects(2)
    harness.bucket.objects[made[0].id] = b"other"
    (raw,) = await harness.export()
    found = await harness.importer.store_file(open_file(raw, "export", CUSTOMER.public_key()))
    assert found.refused == {made[0].id: "an object with this key and other bytes is stored"}
    assert [one.id for one in found.delivered] == [made[1].id]
    assert await harness.confirm(await harness.deliver(raw)) == 1
    assert harness.waiting() == [made[0].id]


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("{own}", ""),
        ("v1/account=111122223333/{path}", ""),
        ("v1/x/{path}", "not the key of a billing object below v1/"),
        ("v2/{path}", "not the key of a billing object below v1/"),
        ("v1/archive/date=2026-11-23/hour=12/a.jsonl.zst", "not the key"),
        ("v1/org=org-2/x/{path}", "not the key"),
        ("{other}", "an object of another organization"),
        ("../{own}", "not the key"),
        ("{own}\n", "not the key"),
        ("{own}\n/../../../../../../evil", "not the key"),
        ("{own}\0", "not the key"),
    ],
)
async def test_a_file_stores_objects_of_its_organization_only(
    harness: Harness, key: str, why: str
) -> None:
    (message,) = objects([history(0).measured()])
    path = message.id.removeprefix("v1/")
    other = message.id.replace("org=org-1", "org=org-2")
    named = msgspec.structs.replace(message, id=key.format(own=message.id, path=path, other=other))
    harness.add(named)
    file = open_file((await harness.export())[0], "export", CUSTOMER.public_key())
    found = await harness.importer.store_file(file)
    assert why in found.refused.get(named.id, "")
    assert bool(found.refused) == bool(why)
    assert bool(harness.bucket.objects) == (not why)


async def test_states_and_alerts_become_the_rows_of_the_receivers(harness: Harness) -> None:
    states = state_messages(3)
    events = [watch_alert(START_MS, 1), heartbeat_event(START_MS, 1)]
    alerts = [Message(e.id, e.type, msgspec.json.encode(e), START_MS) for e in events]
    harness.add(*states, daemon="state-exporter")
    harness.add(*alerts, daemon="alert-forwarder")
    for daemon in ("state-exporter", "alert-forwarder"):
        (raw,) = await harness.export(daemon)
        await harness.confirm(await harness.deliver(raw))
        assert harness.waiting(daemon) == []
    assert harness.store.ids("byoc_state") == [message.id for message in states]
    assert sorted(harness.store.ids("byoc_alerts")) == sorted(message.id for message in alerts)


async def test_an_imported_message_counts_for_silence_when_it_states(harness: Harness) -> None:
    """At the import if it states a later time."""
    replica = Replica()
    times = [START_MS - 86_400_000, START_MS, START_MS + 86_400_000]
    for body in map(replica.message, times):
        sent = Message(message_id(body), "byoc.service.state.v1", body, START_MS, group="g")
        harness.add(sent, daemon="state-exporter")
    (raw,) = await harness.export("state-exporter")
    await harness.deliver(raw)
    found = harness.store.rows["byoc_state"]
    now = rfc3339(START_MS)
    assert [row["arrived_at"] for row in found] == [now, now, now]
    assert [row["seen_at"] for row in found] == [found[0]["time"], now, now]
    assert found[0]["time"] == rfc3339(times[0])


async def test_events_that_cannot_be_stored_stay_at_the_customer(harness: Harness) -> None:
    good = state_messages(3)
    foreign = state_messages(1, "org-2")[0]
    harness.add(*good, foreign, Message("bad", "t", b"no event", 0), daemon="state-exporter")

    def refuse(_table: str, row: dict[str, Any]) -> StoreError | None:
        return RowsRefusedError("never") if row["id"] == good[1].id else None

    harness.store.refuse = refuse
    (raw,) = await harness.export("state-exporter")
    file = open_file(raw, "export", CUSTOMER.public_key())
    found = await harness.importer.store_file(file)
    assert found.refused.keys() == {good[1].id, foreign.id, "bad"}
    assert found.refused[foreign.id] == "an event of another organization"
    assert found.refused[good[1].id] == "never"
    await harness.confirm(await harness.deliver(raw))
    assert set(harness.waiting("state-exporter")) == found.refused.keys()


async def test_a_store_that_does_not_respond_gives_no_receipt(harness: Harness) -> None:
    harness.add(*state_messages(1), daemon="state-exporter")
    (raw,) = await harness.export("state-exporter")
    harness.store.error = StoreError("away")
    with pytest.raises(StoreError):
        await harness.deliver(raw)
    assert harness.receipts == []


async def test_an_export_of_an_unknown_daemon_is_refused(harness: Harness) -> None:
    _, raw = sign_file("export", [], CUSTOMER, daemon="x", made_at="")
    with pytest.raises(SignedFileError, match="an export of 'x': expected billing-scraper"):
        await harness.deliver(raw)


# The command.


def key_file(path: Path, key: Ed25519PrivateKey, *, public: bool) -> str:
    if public:
        form = PublicFormat.SubjectPublicKeyInfo
        path.write_bytes(key.public_key().public_bytes(Encoding.PEM, form))
    else:
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(path)


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    (tmp_path / "receipts").mkdir()
    own = key_file(tmp_path / "own.pem", VENDOR, public=False)
    customer = key_file(tmp_path / "customer.pub", CUSTOMER, public=True)
    return ["--key", customer, "--sign", own, "--receipts", str(tmp_path / "receipts")]


def test_the_command_refuses_what_it_cannot_trust(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, foreign = sign_file("export", [], STRANGER, daemon=BILLING, made_at="")
    file = tmp_path / "export.byoc"
    file.write_bytes(foreign)
    assert main(["import", "org-1", *options, str(file)]) == 1
    assert capsys.readouterr().err == (
        f"{file}: refused: not signed with the given key: its first line was changed, or the key"
        " is another\n"
    )
    assert list((tmp_path / "receipts").iterdir()) == []


def test_the_command_names_what_is_missing(
    tmp_path: Path,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("BYOC_PLANE_BUCKET", "BYOC_PLANE_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "export.byoc"
    for daemon, setting in ((BILLING, "BUCKET"), ("state-exporter", "STORE_URL")):
        file.write_bytes(sign_file("export", [], CUSTOMER, daemon=daemon, made_at="")[1])
        assert main(["import", "org-1", *options, str(file)]) == 2
        assert f"BYOC_PLANE_{setting}: is required" in capsys.readouterr().err
    assert main(["import", "org-1", *options[:-1], str(tmp_path / "none"), str(file)]) == 2
    assert "--receipts: " in capsys.readouterr().err


async def test_the_command_stores_and_writes_a_receipt(
    harness: Harness, tmp_path: Path, options: list[str]
) -> None:
    """With the S3 fake, as a process: twice, with one receipt that removes everything."""
    made = harness.add_objects(3)
    file = tmp_path / "export.byoc"
    file.write_bytes((await harness.export())[0])
    argv = [sys.executable, "-m", "byoc_control_plane", "import", "org-1", *options, str(file)]
    async with FakeS3() as s3:
        environ = os.environ | plane_environment() | KEYS | {"AWS_ENDPOINT_URL_S3": s3.url}
        for _ in range(2):
            child = await asyncio.create_subprocess_exec(*argv, env=environ, stdout=PIPE)
            out, _ = await child.communicate()
            assert child.returncode == 0
            assert f"{file}: 3 messages stored: ".encode() in out
        assert s3.objects == {message.id: message.body for message in made}
    (receipt,) = (tmp_path / "receipts").iterdir()
    assert await harness.confirm(receipt.read_bytes()) == 3
    assert harness.waiting() == []
