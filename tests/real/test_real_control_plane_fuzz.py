"""Random and changed messages through receiver and consumer into the engine of ClickHouse.

Each message ends in exactly one of two ways: one row with the message's own values, or a refusal
(the receiver's 422, the consumer's byoc_rejected). Valid messages of the same batch are stored.
`PLANE_FUZZ=2000` sends more messages.
"""

import asyncio
import base64
import io
import json
import os
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import chdb.session
import pytest
from aiobotocore.session import get_session

from byoc_agents.access.events import message_of
from byoc_agents.access.machine import State
from byoc_agents.app.cloudevents import Agent, encode, parse_rfc3339
from byoc_agents.app.http_server import Listen, serve
from byoc_agents.sinks.https import signatures, signing_keys
from byoc_control_plane.consumer import Consumer
from byoc_control_plane.credentials import Keyring
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import Progress
from byoc_control_plane.receiver import LIMITS, PATH, SINGLE, Receiver
from byoc_control_plane.rows import MAX_NUMBERS, MAX_TIME_MS, TIME_COLUMNS
from byoc_control_plane.store import EmbeddedStore, create_tables, fetch_rows
from lab.control_plane.messages import Replica, heartbeat_event, watch_alert
from lab.fakes.billing import NOON_MS
from lab.fakes.core import FakeClock
from lab.fakes.fifo import FakeFifo
from tests.unit.access.access_documents import grant_of

pytestmark = pytest.mark.real

COUNT = int(os.environ.get("PLANE_FUZZ", "300"))
SECRET = "whsec_" + base64.b64encode(b"f" * 32).decode()
AGENT = Agent(
    version="0.2.0", configuration_sha256="c" * 64, ledger_size=7, ledger_root="r" * 43 + "="
)
TABLES = ("byoc_state", "byoc_alerts", "byoc_grants")
NUMBERS = [0, -1, 1.5, 1.0, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 2**64 + 1, 10**30, 1e300]
TIMES = [
    *("0001-01-01T00:00:00Z", "1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00Z"),
    *("2099-12-31T23:59:59.999Z", "2106-02-07T06:28:16Z", "9999-12-31T23:59:59.999999Z"),
    *("2026-W48-1T12:00:00+00:00", "20261123T120000Z", "2026-11-23T12:00:00,5+14:00"),
    *("2026-11-23T12:00:00", "2026-11-23", "now", "1795435200", "0001-01-01T00:00:00+14:00"),
]
OTHERS: list[Any] = [
    None,
    True,
    "",
    [],
    {},
    [[]],
    {"a": {"b": []}},
    "\0",
    "a\0b",
    "é\u2028",
    "\ud800",
]
LARGE = "x" * 1_000_000


def valid_events(number: int) -> list[dict[str, Any]]:
    """Return one event of each type, with ids that no other number has."""
    now_ms = NOON_MS + number * 1000
    grant = message_of(grant_of(State.OPEN), "org-1", "service-1", {"queries": 3})
    state = Replica(agent=AGENT).message(now_ms, "degraded", "DISK_LOW")
    alert = watch_alert(now_ms, number)
    watchdog = json.loads(encode(alert)) | {"type": "byoc.alert.watchdog.v1"}
    beat = encode(heartbeat_event(now_ms, number, agent=AGENT))
    events = [json.loads(body) for body in (state, encode(alert), beat, grant.body)]
    for at, event in enumerate([*events, watchdog]):
        event["id"] = f"f-{number}-{at}"
    return [*events, watchdog]


def changed(chance: random.Random, event: dict[str, Any], number: int) -> str:
    """Return the text of an event with one to three changes, different for each number."""
    for _ in range(chance.randint(1, 3)):
        data = event.get("data")
        place: Any = data if isinstance(data, dict) and chance.random() < 0.8 else event
        while True:
            name = chance.choice(list(place) or ["new"])
            inner = place.get(name)
            if not (isinstance(inner, dict) and inner and chance.random() < 0.9):
                break
            place = inner
        if chance.random() < 0.15:
            place.pop(name, None)
        elif name in {"id", "source"}:
            place[name] = chance.choice([*OTHERS, 7])
        else:
            is_time = name == "time" or name in TIME_COLUMNS
            likely = NUMBERS if isinstance(inner, (int, float)) else TIMES if is_time else OTHERS
            kinds = [likely, NUMBERS, TIMES, OTHERS, [LARGE]]
            place[name] = chance.choice(chance.choices(kinds, [40, 4, 4, 4, 1])[0])
    text = json.dumps(event | {"fuzz": number}, allow_nan=False)
    how = chance.random()
    if how < 0.1:  # a name twice
        name = chance.choice(["id", "type", "time", "data", "sequence"])
        text = chance.choice([text[:-1] + f', "{name}": 1}}', text.replace("{", '{"a":1,"a":1,')])
    elif how < 0.15:
        text = text[: chance.randrange(len(text))] + f" {number}"
    elif how < 0.2:
        depth = chance.choice([10, 500, 5_000])
        text = text[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
    return text


@asynccontextmanager
async def opened(place: Path) -> AsyncIterator[tuple[EmbeddedStore, Inserter, PlaneMetrics]]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        loop = asyncio.get_running_loop()
        session = await loop.run_in_executor(thread, chdb.session.Session, str(place))
        store, metrics = EmbeddedStore(session, thread), PlaneMetrics()
        await create_tables(store)
        await store.run("SYSTEM STOP TTL MERGES")
        inserter = Inserter(store, metrics)
        task = asyncio.ensure_future(inserter.run())
        try:
            yield store, inserter, metrics
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await loop.run_in_executor(thread, session.close)


async def stored_texts(store: EmbeddedStore) -> dict[str, dict[str, Any]]:
    """Return the rows by the text of their event. Asserts that each has the event's own values."""
    found: dict[str, dict[str, Any]] = {}
    for table in TABLES:
        for row in await fetch_rows(store, f"SELECT * FROM {table} FINAL"):
            assert row["event"] not in found
            found[row["event"]] = row
            event = json.loads(row["event"])
            assert (row["source"], row["id"]) == (event["source"], event["id"])
            assert milliseconds(row["time"]) == parse_rfc3339(event["time"])
            if row["type"].startswith("byoc.") and isinstance(event["data"], dict):
                data = event["data"] | (event["data"].get("agent") or {})
                compare(row, data)
    return found


def milliseconds(text: str) -> int:
    return parse_rfc3339(f"{text.replace(' ', 'T')}Z")


def compare(row: dict[str, Any], data: dict[str, Any]) -> None:
    for name in MAX_NUMBERS.keys() & row.keys() & data.keys():
        assert row[name] == data[name], name
    for name in TIME_COLUMNS & row.keys() & data.keys():
        stated = data[name] and parse_rfc3339(data[name])
        if stated is None or not 0 <= stated < MAX_TIME_MS:
            assert row[name] is None, name
        else:
            assert milliseconds(row[name]) == stated, name


def texts_of(seed: int) -> tuple[list[str], set[str]]:
    """Return texts in the order to send, and which of them are valid."""
    chance = random.Random(seed)
    texts, valid = [], set()
    for number in range(COUNT):
        events = valid_events(number)
        texts.append(changed(chance, chance.choice(events), number))
        if number % 4 == 0:
            one = chance.choice(valid_events(COUNT + number))
            valid.add(json.dumps(one))
            texts.append(json.dumps(one))
    return texts, valid


async def test_each_message_of_the_queue_is_one_row_or_set_aside(tmp_path: Path) -> None:
    texts, valid = texts_of(1)
    clock = FakeClock()
    seconds = iter(range(10**9))
    queue = FakeFifo(wall_ms=lambda: NOON_MS, monotonic=lambda: float(next(seconds)))
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    async with opened(tmp_path / "db") as (store, inserter, metrics), queue:
        place: dict[str, Any] = {"endpoint_url": queue.http.url, "region_name": "us-east-1"}
        async with get_session().create_client("sqs", **place, **keys) as client:
            progress = Progress(store, clock, "state", "a", redelivery_seconds=30)
            consumer = Consumer(
                client, queue.queue_url, inserter, progress, metrics, clock, loops=1
            )
            for at, text in enumerate(texts):
                queue.add(f"group-{at % 50}", f"d-{at}", text)
            for _ in range(len(texts)):  # an endless retry ends here, with messages left
                if not queue.waiting:
                    break
                await consumer.poll()
        assert queue.waiting == 0
        rows = await stored_texts(store)
        rejected = [
            row["body"] for row in await fetch_rows(store, "SELECT * FROM byoc_rejected FINAL")
        ]
    assert len(set(rejected)) == len(rejected)
    assert rows.keys().isdisjoint(rejected)
    assert sorted([*rows, *rejected]) == sorted(texts)
    assert valid <= rows.keys()
    assert len(rows) > len(valid)  # some changes leave a valid message
    assert len(rejected) > COUNT / 4


async def test_each_delivery_is_one_row_or_422(tmp_path: Path) -> None:
    texts, valid = texts_of(2)
    clock = FakeClock()
    async with opened(tmp_path / "db") as (store, inserter, metrics):
        progress = Progress(store, clock, "alerts", "a", redelivery_seconds=60)
        keyring = Keyring(lambda: "token", lambda: SECRET)
        receiver = Receiver(inserter, progress, metrics, clock, keyring=keyring)
        statuses: dict[str, int] = {}
        async with (
            serve(receiver.handle, Listen("127.0.0.1", 0), LIMITS) as (host, port),
            aiohttp.ClientSession() as session,
        ):
            for at, text in enumerate(texts):
                at_seconds = clock.wall_ns() // 10**9
                body = text.encode()
                sent = {
                    "Authorization": "Bearer token",
                    "Content-Type": SINGLE,
                    "webhook-id": f"d-{at}",
                    "webhook-timestamp": str(at_seconds),
                    "webhook-signature": signatures(
                        signing_keys(SECRET), f"d-{at}", at_seconds, body
                    ),
                }
                url = f"http://{host}:{port}{PATH}"
                async with session.post(url, data=io.BytesIO(body), headers=sent) as response:
                    statuses[text] = response.status
        rows = await stored_texts(store)
    assert set(statuses.values()) <= {200, 413, 422}
    assert {text for text, status in statuses.items() if status == 200} == rows.keys()
    assert valid <= rows.keys()
    assert len(rows) > len(valid)
    assert {len(text) > 1024**2 for text, status in statuses.items() if status == 413} <= {True}
