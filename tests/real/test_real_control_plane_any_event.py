"""Any event at all, through the receiver and the consumer, into the engine of ClickHouse.

Each one ends as exactly one row, as a refusal (receiver), or set aside (consumer): at the first
attempt, and without the loss of another message of its batch.
"""

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from typing import Any

import aiohttp
import chdb.session
import pytest

from byoc_agents.access.events import message_of
from byoc_agents.access.machine import State
from byoc_agents.alerts.events import Watchdog, WatchdogEvent
from byoc_agents.app.cloudevents import Agent, encode, rfc3339
from byoc_agents.app.http_server import Listen, serve
from byoc_agents.sinks.https import signatures, signing_keys
from byoc_control_plane.consumer import Consumer
from byoc_control_plane.credentials import Keyring
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import Progress
from byoc_control_plane.receiver import LIMITS, PATH, SINGLE, Receiver
from byoc_control_plane.rows import KNOWN
from byoc_control_plane.schema import VIEWS
from byoc_control_plane.store import EmbeddedStore
from lab.control_plane.messages import ORIGIN, Replica, heartbeat_event, watch_alert
from lab.fakes.core import START_MS, FakeClock
from tests.real.control_plane_tables import empty, rows
from tests.unit.access.access_documents import grant_of

pytestmark = pytest.mark.real

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
TABLES = ("byoc_state", "byoc_alerts", "byoc_grants")
SEEDS = range(3)
PER_SEED = 50
AGENT = Agent(
    version="0.2.0", configuration_sha256="c" * 64, ledger_size=7, ledger_root="r" * 43 + "="
)
TIMES: tuple[str, ...] = (
    "0001-01-01T00:00:00Z",
    "1969-12-31T23:59:59.999Z",
    "1970-01-01T00:00:00Z",
)
TIMES += ("2099-12-31T23:59:59.999Z", "2099-12-31T23:59:59.9999Z", "2100-01-01T00:00:00Z")
TIMES += ("2106-02-08T00:00:00Z", "9999-12-31T23:59:59Z", "2026-W48-1T12:00:00Z")
TIMES += ("2026-11-23", "2026-11-23T12:00:00", "20261123T120000Z", "1795435200", "12:00", "now")
TIMES += ("2026-11-23T12:00:60Z", "2026-11-23T12:00:00+23:59", "2026-02-30T12:00:00Z")
NUMBERS: tuple[int, ...] = (
    -1,
    0,
    2**31,
    2**32,
    2**32 + 1,
    2**63,
    2**64 - 1,
    2**64,
    2**64 + 1,
    -(2**63),
    10**400,
)
FLOATS = (0.0, -0.0, 1.5, -1e308, 1e308, 5e-324)
TEXTS: tuple[str, ...] = (
    "",
    "\0",
    "a\0b",
    "\u2028",
    "\U0010ffff",
    "\\",
    "'; DROP TABLE byoc_state",
    "\ufeff",
    "\t\n",
)
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    {"": ""},
    {"a": {"a": []}},
    ["a", 1, None],
)
LONG = "x" * 900_000
DEEP = json.loads("[" * 400 + "]" * 400)
# Put into the text of a message, which Python's encoder would not write.
RAW = ("\\ud800", "\\udc00x", "1e999", "NaN", "Infinity", "-Infinity", "0x1", "01", "1.", "1e5")


def watchdog_event() -> bytes:
    at = rfc3339(START_MS)
    data = Watchdog(
        organization_id="org-1",
        service_id="service-1",
        region="eu-west-1",
        status="firing",
        fingerprint="f" * 16,
        starts_at=at,
        received_at=at,
        labels={"alertname": "Watchdog"},
    )
    return encode(
        WatchdogEvent(id="w-1", source=ORIGIN.alerts_uri, subject="f" * 16, time=at, data=data)
    )


def valid_events() -> list[bytes]:
    """Return one valid event of each kind, and one of a later version."""
    replica = Replica(agent=AGENT)
    later = json.loads(replica.message(START_MS)) | {"type": "byoc.service.later.v2"}
    return [
        replica.message(START_MS, "degraded", "DISK_LOW"),
        replica.stop(START_MS),
        encode(watch_alert(START_MS, 1)),
        encode(heartbeat_event(START_MS, 1, agent=AGENT)),
        watchdog_event(),
        message_of(grant_of(State.CLOSED), "org-1", "service-1", {"queries": 3}).body,
        json.dumps(later).encode(),
    ]


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value below."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in items:
        yield (*path, key)
        if isinstance(below, dict | list):
            yield from paths(below, (*path, key))


def change(chance: random.Random, event: Any) -> None:
    """Change, remove or add one value somewhere."""
    *above, last = chance.choice(list(paths(event)))
    parent = event
    for key in above:
        parent = parent[key]
    kind = chance.randrange(12)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        parent[chance.choice(TEXTS)] = deepcopy(chance.choice(OTHERS))
    elif kind == 2:
        parent[last] = deepcopy(chance.choice((DEEP, LONG)))
    else:
        like: dict[type, tuple[Any, ...]] = {
            int: NUMBERS,
            float: NUMBERS + FLOATS,
            str: TEXTS + TIMES,
        }
        alike: tuple[Any, ...] = like.get(type(parent[last]), OTHERS)
        chosen = alike if kind < 10 else NUMBERS + TEXTS + OTHERS
        parent[last] = deepcopy(chance.choice(chosen))


def mutate(chance: random.Random, body: bytes, number: int) -> bytes:
    """Return the event with another id and a few changes, of its values or of its text."""
    event = json.loads(body)
    event["id"] = f"changed-{number}"
    for _ in range(chance.choice((1, 1, 2, 3))):
        change(chance, event)
    text = json.dumps(event, ensure_ascii=chance.random() < 0.5)
    kind = chance.randrange(10)
    at = chance.randrange(len(text))
    if kind == 0:  # the same key twice
        text = text.replace('"data": {', '"data": {"organization_id": "org-2", ', 1)
    elif kind == 1:
        text = text[:at] + chance.choice(RAW) + text[at:]
    elif kind == 2:
        text = text.replace(": 1", ": " + chance.choice(RAW), 1)
    elif kind == 3:
        text = text[:at] + text[at + 1 :]
    return text.encode(errors="surrogatepass")


class Queue:
    """An SQS client whose queue is a list: a received message that is not deleted comes again."""

    def __init__(self) -> None:
        self.waiting: dict[str, dict[str, Any]] = {}

    def add(self, message_id: str, body: str) -> None:
        attributes = {"SentTimestamp": str(START_MS), "ApproximateReceiveCount": "1"}
        self.waiting[message_id] = {
            "MessageId": message_id,
            "ReceiptHandle": message_id,
            "Body": body,
            "Attributes": attributes,
        }

    async def receive_message(self, **asked: Any) -> dict[str, Any]:
        return {"Messages": list(self.waiting.values())[: asked["MaxNumberOfMessages"]]}

    async def delete_message_batch(self, **asked: Any) -> dict[str, Any]:
        for entry in asked["Entries"]:
            del self.waiting[entry["ReceiptHandle"]]
        return {}


class Harness:
    """A receiver and a consumer over the engine."""

    def __init__(self, session: chdb.session.Session, thread: ThreadPoolExecutor) -> None:
        self.session = session
        self.clock = FakeClock()
        self.metrics = PlaneMetrics()
        store = EmbeddedStore(session, thread)
        self.inserter = Inserter(store, self.metrics)
        self.queue = Queue()
        progress = Progress(store, self.clock, "state", "a", redelivery_seconds=30)
        self.consumer = Consumer(
            self.queue, "queue", self.inserter, progress, self.metrics, self.clock
        )
        self.receiver = Receiver(
            self.inserter,
            Progress(store, self.clock, "alerts", "a", redelivery_seconds=60),
            self.metrics,
            self.clock,
            keyring=Keyring(lambda: "token", lambda: SECRET),
        )
        self.url = ""
        self.http: aiohttp.ClientSession

    async def post(self, body: bytes, delivery_id: str, content_type: str = SINGLE) -> int:
        second = self.clock.wall_ns() // 10**9
        headers = {
            "Authorization": "Bearer token",
            "Content-Type": content_type,
            "webhook-id": delivery_id,
            "webhook-timestamp": str(second),
            "webhook-signature": signatures(signing_keys(SECRET), delivery_id, second, body),
        }
        async with self.http.post(self.url, data=body, headers=headers) as response:
            return response.status

    def stored(self) -> int:
        """Return the number of different events of all tables."""
        tables = " UNION ALL ".join(f"SELECT source, id FROM {table}" for table in TABLES)
        (row,) = rows(self.session, f"SELECT uniqExact(source, id) AS n FROM ({tables})")
        return int(row["n"])

    def count_rejected(self) -> int:
        (row,) = rows(self.session, "SELECT uniqExact(stream, id) AS n FROM byoc_rejected")
        return int(row["n"])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


@pytest.fixture
async def harness(engine: chdb.session.Session) -> AsyncIterator[Harness]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        made = Harness(empty(engine), thread)
        task = asyncio.ensure_future(made.inserter.run())
        async with (
            serve(made.receiver.handle, Listen("127.0.0.1", 0), LIMITS) as (host, port),
            aiohttp.ClientSession() as made.http,
        ):
            made.url = f"http://{host}:{port}{PATH}"
            yield made
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def check_values(session: chdb.session.Session) -> None:
    """Compare the columns of every row with the text of its event, and read every view."""
    for table, names in (
        ("byoc_state", ("epoch", "sequence", "transition", "lost_transitions")),
        ("byoc_alerts", ("sequence", "backlog_records", "dead_letters")),
        ("byoc_grants", ("duration_seconds",)),
    ):
        found = rows(session, f"SELECT event, type, {', '.join(names)} FROM {table}")
        for row in found:
            if row["type"] not in KNOWN:  # only its names are columns
                continue
            data = json.loads(row["event"])["data"]
            assert {name: int(row[name]) for name in names} == {
                name: data.get(name) or 0 for name in names
            }
        (years,) = rows(session, f"SELECT count() AS n FROM {table} WHERE toYear(time) >= 2100")
        assert int(years["n"]) == 0
    for view in VIEWS:
        session.query(f"SELECT * FROM {view}" + ("(since = '2020-01-01')" * view.endswith("since")))


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_receiver_stores_or_refuses_any_event(harness: Harness, seed: int) -> None:
    chance, valid = random.Random(seed), valid_events()
    statuses: dict[int, int] = {}
    for number in range(PER_SEED):
        body = mutate(chance, chance.choice(valid), number)
        before = harness.stored()
        status = await harness.post(body, f"d-{number}")
        statuses[status] = statuses.get(status, 0) + 1
        assert status in {200, 422}, body[:2000]
        assert harness.stored() - before == (status == 200), body[:2000]
    assert min(statuses[200], statuses[422]) > PER_SEED / 10
    check_values(harness.session)


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_consumer_stores_any_event_or_sets_it_aside(harness: Harness, seed: int) -> None:
    """Every batch has valid messages too, and is done after one attempt."""
    chance, valid = random.Random(1000 + seed), valid_events()
    replica, number = Replica(replica="valid"), 0
    own: list[str] = []
    while number < PER_SEED:
        texts = [replica.message(START_MS).decode()]
        own.append(json.loads(texts[0])["id"])
        for _ in range(9):
            body = mutate(chance, chance.choice(valid), number)
            texts.append(body.decode(errors="surrogatepass"))
            number += 1
        chance.shuffle(texts)
        for place, text in enumerate(texts):
            harness.queue.add(f"m-{number}-{place}", text)
        before = harness.stored() + harness.count_rejected()
        assert await harness.consumer.poll() == 10
        assert harness.queue.waiting == {}
        assert harness.stored() + harness.count_rejected() == before + 10
    found = rows(harness.session, "SELECT id FROM byoc_state FINAL WHERE replica = 'valid'")
    assert {row["id"] for row in found} >= set(own)
    assert harness.count_rejected() > PER_SEED / 10
    check_values(harness.session)
