"""The reference receiver: authentication, validation, and deduplication of events."""

import base64
import datetime as dt
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from standardwebhooks.webhooks import Webhook

from byoc_agents.alerts.dedup import summarize
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.errors import Reason
from byoc_agents.message import Message
from byoc_agents.sinks.https import HttpsSink
from lab.receiver import PATH, Mismatch, Receiver, listening

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
SINGLE, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"


def event(number: int) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"id-{number}",
        "source": "/s",
        "type": "t",
        "time": "2026-11-23T12:00:00Z",
        "data": {"n": number},
    }


def message(number: int) -> Message:
    return Message(f"id-{number}", "t", json.dumps(event(number)).encode(), 0)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver("tok", SECRET, clock=SystemClock())


@pytest.fixture
async def url(receiver: Receiver) -> AsyncIterator[str]:
    async with listening(receiver) as url:
        yield url


async def post(url: str, body: bytes, **changes: str) -> tuple[int, str]:
    """Send a body that the reference library signed now, with some headers changed."""
    now = dt.datetime.now(tz=dt.UTC)
    headers = {
        "Authorization": "Bearer tok",
        "Content-Type": SINGLE,
        "webhook-id": "d-1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("d-1", now, body.decode()),
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=headers) as response,
    ):
        return response.status, await response.text()


async def test_it_accepts_a_signature_of_the_reference_library(
    receiver: Receiver, url: str
) -> None:
    assert await post(url, message(1).body) == (200, '{"stored": 1, "duplicates": 0}')
    assert list(receiver.events.values()) == [event(1)]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Authorization": "Bearer other"}, 401),
        ({"Authorization": ""}, 401),
        ({"webhook_id": "d-2"}, 401),
        ({"webhook_id": ""}, 401),
        ({"webhook_timestamp": "1"}, 401),
        ({"webhook_timestamp": "soon"}, 401),
        ({"webhook_signature": "v1,AAAA"}, 401),
        ({"webhook_signature": ""}, 401),
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": BATCH}, 422),
    ],
    ids=str,
)
async def test_it_refuses(
    receiver: Receiver, url: str, changes: dict[str, str], status: int
) -> None:
    assert (await post(url, message(1).body, **changes))[0] == status
    assert not receiver.events


async def test_it_refuses_a_body_that_was_not_signed(url: str) -> None:
    now = dt.datetime.now(tz=dt.UTC)
    signature = Webhook(SECRET).sign("d-1", now, message(1).body.decode())
    assert (await post(url, message(2).body, webhook_signature=signature))[0] == 401


async def test_a_signature_of_yesterday_is_a_replay(url: str) -> None:
    old = dt.datetime.now(tz=dt.UTC) - dt.timedelta(minutes=6)
    signature = Webhook(SECRET).sign("d-1", old, message(1).body.decode())
    stamp = str(int(old.timestamp()))
    status, _ = await post(
        url, message(1).body, webhook_signature=signature, webhook_timestamp=stamp
    )
    assert status == 401


async def test_a_batch_is_stored_completely_or_not_at_all(receiver: Receiver, url: str) -> None:
    bad = b"[" + message(1).body + b',{"specversion":"1.0"}]'
    assert (await post(url, bad, Content_Type=BATCH))[0] == 422
    assert not receiver.events


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"specversion":"0.3"}', b"{"])
async def test_a_body_that_is_not_an_event_is_422(url: str, body: bytes) -> None:
    assert (await post(url, body))[0] == 422


@pytest.mark.parametrize("number", [0, 501])
async def test_a_batch_has_one_to_500_events(url: str, number: int) -> None:
    bodies = b",".join(message(n).body for n in range(number))
    assert (await post(url, b"[" + bodies + b"]", Content_Type=BATCH))[0] == 422


@pytest.mark.parametrize("change", [{"sequence": "3"}, {"sequence": None}])
async def test_an_event_of_a_known_type_must_match_the_schema(
    receiver: Receiver, url: str, change: dict[str, Any]
) -> None:
    heartbeat = {
        "organization_id": "org",
        "service_id": "svc",
        "region": "r",
        "replica": "r-0",
        "started_at": "2026-11-23T12:00:00.000Z",
        "sequence": 3,
        "interval_seconds": 60.0,
        "stopping": False,
        "last_notification_at": None,
        "last_watchdog_at": None,
        "backlog_records": 0,
        "dead_letters": 0,
    }
    good = event(1) | {
        "type": "byoc.alert.heartbeat.v1",
        "subject": "",
        "datacontenttype": "application/json",
        "data": heartbeat,
    }
    incomplete = {name: value for name, value in good.items() if name != "subject"}
    for wrong in (good | {"data": heartbeat | change}, incomplete):
        assert (await post(url, json.dumps(wrong).encode()))[0] == 422
    assert not receiver.events
    assert (await post(url, json.dumps(good).encode()))[0] == 200


def alert_event(number: int, status: str = "firing", **changes: Any) -> dict[str, Any]:
    data = {
        "organization_id": "org",
        "service_id": "svc",
        "region": "r",
        "status": status,
        "notification": "transition",
        "reconstructed": False,
        "end_inferred": False,
        "fingerprint": f"{number:016x}",
        "starts_at": "2026-11-23T11:00:00.000Z",
        "ends_at": None,
        "received_at": "2026-11-23T11:00:00.000Z",
        "labels": {},
        "annotations": {},
        "cut": [],
        "withheld": [],
        "group_truncated_alerts": 0,
    }
    envelope = {
        "type": "byoc.alert.v1",
        "id": f"{number}-{status}",
        "subject": "",
        "datacontenttype": "application/json",
    }
    kept = {name: value for name, value in (data | changes).items() if value != "absent"}
    return event(number) | envelope | {"data": kept}


def heartbeat_event(
    number: int, *open_alerts: int, time: str = "2026-11-23T12:00:00Z", **changes: Any
) -> dict[str, Any]:
    episodes = [(f"{alert:016x}", "2026-11-23T11:00:00.000Z") for alert in open_alerts]
    count, digest = summarize(episodes)
    data = {
        "organization_id": "org",
        "service_id": "svc",
        "region": "r",
        "replica": "r-0",
        "started_at": "2026-11-23T11:00:00.000Z",
        "sequence": number,
        "interval_seconds": 60.0,
        "stopping": False,
        "last_notification_at": None,
        "last_watchdog_at": None,
        "backlog_records": 0,
        "dead_letters": 0,
        "open_episodes": count,
        "open_digest": digest,
    }
    envelope = {
        "type": "byoc.alert.heartbeat.v1",
        "id": f"beat-{number}",
        "time": time,
        "subject": "",
        "datacontenttype": "application/json",
    }
    kept = {name: value for name, value in (data | changes).items() if value != "absent"}
    return event(number) | envelope | {"data": kept}


async def deliver(url: str, *events: dict[str, Any]) -> None:
    for one in events:
        assert (await post(url, json.dumps(one).encode()))[0] == 200


async def test_it_compares_the_open_episodes_of_a_heartbeat_with_its_own() -> None:
    seen: list[Mismatch] = []
    receiver = Receiver("tok", SECRET, clock=SystemClock(), on_mismatch=seen.append)
    async with listening(receiver) as url:
        await deliver(url, alert_event(1), alert_event(2), heartbeat_event(0, 1, 2))
        await deliver(url, alert_event(1, "resolved"), heartbeat_event(1, 2))
        assert (seen, receiver.mismatches) == ([], {})
        await deliver(url, heartbeat_event(2, 2, 3))
        (mismatch,) = receiver.mismatches.values()
        assert seen == [mismatch]
        assert (mismatch.replica, mismatch.theirs[0], mismatch.ours[0]) == ("r-0", 2, 1)
        await deliver(url, heartbeat_event(3, 3))
        assert [one.theirs[0] for one in seen] == [2, 1], "the same number, but a different episode"
        await deliver(url, alert_event(2, "resolved"), alert_event(3), heartbeat_event(4, 3))
        assert receiver.mismatches == {}


async def test_it_accepts_the_events_of_0_1_0_which_describe_no_episodes(
    receiver: Receiver, url: str
) -> None:
    old = {"open_episodes": "absent", "open_digest": "absent"}
    alert = alert_event(1, end_inferred="absent", withheld="absent")
    await deliver(url, alert, heartbeat_event(0, **old))
    assert len(receiver.events) == 2
    assert receiver.mismatches == {}


async def test_an_episode_without_an_event_for_seven_days_is_not_compared(
    receiver: Receiver, url: str
) -> None:
    await deliver(url, alert_event(1), heartbeat_event(0, 1, time="2026-11-30T11:00:00Z"))
    assert receiver.mismatches == {}
    await deliver(url, heartbeat_event(1, time="2026-11-30T11:00:00.001Z"))
    assert receiver.mismatches == {}


async def test_a_firing_without_another_event_is_unknown_after_two_hours(
    receiver: Receiver, url: str
) -> None:
    await deliver(url, alert_event(1))
    (episodes,) = receiver.episodes.values()
    received_ms = parse_rfc3339("2026-11-23T11:00:00.000Z")
    for after_ms, state in ((7_200_000, "firing"), (7_200_001, "unknown")):
        assert list(episodes.states(received_ms + after_ms).values()) == [state]


async def test_times_that_cannot_be_read_are_stored_and_not_compared(
    receiver: Receiver, url: str
) -> None:
    await deliver(url, alert_event(1, received_at="soon"), heartbeat_event(0, time="9999"))
    assert len(receiver.events) == 2


async def test_events_of_the_sink_are_counted_once_in_any_batches(
    receiver: Receiver, url: str
) -> None:
    async with aiohttp.ClientSession() as session:
        sink = HttpsSink(
            url,
            session,
            token=lambda: "tok",
            signing_secret=lambda: f"{OTHER} {SECRET}",
            clock=SystemClock(),
        )
        for numbers in ([1], [1, 2], [2, 3, 4], [3], [4, 1]):
            outcomes = await sink.send([message(number) for number in numbers])
            assert {outcome.reason for outcome in outcomes} == {Reason.OK}
    assert [key[1] for key in receiver.events] == ["id-1", "id-2", "id-3", "id-4"]
    assert receiver.duplicates == 5


def test_it_runs_as_a_program_and_prints_its_address(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("tok\n")
    (tmp_path / "secret").write_text(SECRET)
    command = [sys.executable, "-m", "lab.receiver"]
    command += ["--token-file", str(tmp_path / "token")]
    command += ["--signing-secret-file", str(tmp_path / "secret")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        process.terminate()
    assert line["listening"].startswith("http://127.0.0.1:")
    assert process.returncode == 0


async def test_the_list_of_events_has_each_event_once_and_in_order(url: str) -> None:
    for number in (1, 2, 1):
        assert (await post(url, json.dumps(event(number)).encode()))[0] == 200
    async with aiohttp.ClientSession() as session, session.get(url.replace(PATH, "/")) as response:
        assert await response.json() == [event(1), event(2)]
