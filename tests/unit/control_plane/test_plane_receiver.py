"""The receiver: whom it believes, that it answers 200 only after the insert, and its bounds."""

import asyncio
import base64
import gzip
import io
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from byoc_agents.app.cloudevents import encode
from byoc_agents.app.http_server import Listen, PortLimits, serve
from byoc_agents.errors import Reason
from byoc_agents.message import Message
from byoc_agents.sinks.control_plane import proves_rejection, proves_storage
from byoc_agents.sinks.https import HttpsSink, signatures, signing_keys
from byoc_control_plane.credentials import Keyring
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import Progress
from byoc_control_plane.receiver import BATCH, LIMITS, MAX_BODY_BYTES, PATH, SINGLE, Receiver
from byoc_control_plane.store import RowsRefusedError, StoreError
from lab.control_plane.memory_store import MemoryStore
from lab.control_plane.messages import heartbeat_event, watch_alert
from lab.fakes.core import START_MS, FakeClock

OLD = "whsec_" + base64.b64encode(b"o" * 32).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()
OWN = "whsec_" + base64.b64encode(b"2" * 32).decode()  # of org-2
OTHER = "whsec_" + base64.b64encode(b"x" * 32).decode()


class Harness:
    """A receiver over a store in memory."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.metrics = PlaneMetrics()
        self.inserter = Inserter(self.store, self.metrics)
        self.progress = Progress(self.store, self.clock, "alerts", "a", redelivery_seconds=60)
        self.receiver = Receiver(
            self.inserter,
            self.progress,
            self.metrics,
            self.clock,
            keyring=Keyring(
                lambda: "old\nnew\norg-1:first org-1:next\norg-2:second",
                lambda: f"{OLD}\n{NEW}\norg-2:{OWN}",
            ),
            body_seconds=0.2,
            max_bodies=2,
        )
        self.url = ""
        self.session: aiohttp.ClientSession

    async def post(
        self,
        body: bytes,
        *,
        secret: str = NEW,
        age: int = 0,
        delivery_id: str = "d-1",
        signed: bytes | None = None,
        **headers: str,
    ) -> int:
        """Send a delivery that is signed now; return the status.

        Asserts that a 200 and a rejection prove themselves.
        """
        timestamp = self.clock.wall_ns() // 10**9 - age
        content = body if signed is None else signed
        sent = {
            "Authorization": "Bearer new",
            "Content-Type": SINGLE,
            "webhook-id": delivery_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures(signing_keys(secret), delivery_id, timestamp, content),
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(self.url, data=io.BytesIO(body), headers=sent) as response:
            assert response.content_type == "application/json"
            status, said = response.status, await response.read()
            rejected = proves_rejection(status, said, sent["webhook-id"])
            assert rejected == (status in {413, 415, 422})
            if status == 200:
                events = len(json.loads(body)) if sent["Content-Type"] == BATCH else 1
                assert proves_storage(response.headers, said, sent["webhook-id"], events)
            return status


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    made = Harness()
    task = asyncio.ensure_future(made.inserter.run())
    async with (
        serve(made.receiver.handle, Listen("127.0.0.1", 0), LIMITS) as (host, port),
        aiohttp.ClientSession() as made.session,
    ):
        made.url = f"http://{host}:{port}{PATH}"
        yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def alert(number: int = 1) -> bytes:
    return encode(watch_alert(START_MS, number))


def batch(*bodies: bytes) -> bytes:
    return b"[" + b",".join(bodies) + b"]"


@pytest.mark.parametrize("secret", [OLD, NEW, f"{OTHER} {NEW}"])
@pytest.mark.parametrize("token", ["old", "new"])
async def test_both_tokens_and_keys_of_a_rotation_are_accepted(
    harness: Harness, secret: str, token: str
) -> None:
    assert await harness.post(alert(), secret=secret, Authorization=f"Bearer {token}") == 200
    assert len(harness.store.ids("byoc_alerts")) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"Authorization": "Bearer no"},
        {"Authorization": ""},
        {"Authorization": "Basic new"},
        {"secret": OTHER},
        {"age": 301},
        {"age": -301},
        {"signed": b"other bytes"},
        {"webhook_id": "d-2"},
        {"webhook_id": ""},
        {"webhook_id": "i" * 65},
        {"webhook_timestamp": "now"},
        {"webhook_timestamp": "1" * 13},
        {"webhook_signature": ""},
        {"webhook_signature": "v1,"},
    ],
    ids=str,
)
async def test_nobody_else_is_believed(harness: Harness, changes: dict[str, Any]) -> None:
    assert await harness.post(alert(), **changes) == 401
    assert harness.store.rows == {}


@pytest.mark.parametrize("age", [300, -300])
async def test_the_window_against_replays_is_five_minutes(harness: Harness, age: int) -> None:
    assert await harness.post(alert(), age=age) == 200


@pytest.mark.parametrize(
    ("token", "status"), [("first", 200), ("next", 200), ("second", 403), ("org-1:first", 401)]
)
async def test_a_token_of_one_organization_sends_for_no_other(
    harness: Harness, token: str, status: int
) -> None:
    for body, kind in ((alert(), SINGLE), (batch(alert(1), alert(2)), BATCH)):
        given = await harness.post(body, Authorization=f"Bearer {token}", Content_Type=kind)
        assert given == status
    assert bool(harness.store.rows) == (status == 200)


@pytest.mark.parametrize(("token", "status"), [("second", 403), ("first", 401), ("new", 401)])
async def test_a_signing_secret_of_one_organization_signs_for_no_other(
    harness: Harness, token: str, status: int
) -> None:
    """The token of org-2 passes with its own secret, and is then refused another's event."""
    assert await harness.post(alert(), secret=OWN, Authorization=f"Bearer {token}") == status


@pytest.mark.parametrize(
    ("token", "secret", "old"),
    [
        ("new", NEW, None),
        ("new", f"{OLD} {NEW}", None),
        ("old", NEW, 1),
        ("new", OLD, 1),
        ("old", OTHER, None),
    ],
)
async def test_a_credential_that_a_rotation_replaces_is_counted(
    harness: Harness, token: str, secret: str, old: float | None
) -> None:
    await harness.post(alert(), secret=secret, Authorization=f"Bearer {token}")
    counted = harness.metrics.registry.get_sample_value
    assert counted("byoc_plane_old_credentials_total", {"organization_id": ""}) == old


async def test_a_known_delivery_of_another_sender_is_not_known(harness: Harness) -> None:
    assert await harness.post(alert(), Authorization="Bearer first") == 200
    assert await harness.post(alert(), Authorization="Bearer second") == 403


async def test_a_repeat_is_stored_once_whatever_it_is_packed_in(harness: Harness) -> None:
    assert await harness.post(alert(1)) == 200
    inserts = harness.store.inserts
    assert await harness.post(alert(1)) == 200
    assert harness.store.inserts == inserts  # the same webhook-id and bytes: known
    both = batch(alert(1), alert(2))
    assert await harness.post(both, delivery_id="d-2", Content_Type=BATCH) == 200
    assert len(set(harness.store.ids("byoc_alerts"))) == 2


async def test_other_bytes_under_a_known_webhook_id_are_stored(harness: Harness) -> None:
    await harness.post(alert(1))
    await harness.post(alert(2))
    assert len(harness.store.ids("byoc_alerts")) == 2


async def test_a_batch_is_taken_whole_or_not_at_all(harness: Harness) -> None:
    assert await harness.post(batch(alert(1), b'{"id": "x"}'), Content_Type=BATCH) == 422
    assert harness.store.rows == {}


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", SINGLE, 422),
        (b"[]", BATCH, 422),
        (b"{}", BATCH, 422),
        (batch(*[b"{}"] * 501), BATCH, 422),
        (b"\xff", BATCH, 422),
        (b"[" * 100_000, SINGLE, 422),
        (b"[" * 100_000, BATCH, 422),
        (b'{"data":' * 100_000, SINGLE, 422),
        (batch(b'{"x":' * 50_000 + b"1" + b"}" * 50_000), BATCH, 422),
        (b"{}", "application/json", 415),
        (b" " * (MAX_BODY_BYTES + 1), SINGLE, 413),
    ],
    ids=range(11),
)
async def test_what_can_never_be_stored_is_refused_for_good(
    harness: Harness, body: bytes, kind: str, status: int
) -> None:
    assert await harness.post(body, Content_Type=kind) == status
    assert harness.store.rows == {}


async def test_a_delivery_whose_id_is_not_a_text_is_refused_for_good(harness: Harness) -> None:
    """The response to a 415 has the id of the delivery, which may be any bytes here."""
    head = (
        b"POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer new\r\nwebhook-id: \xff\r\n"
    )
    head += b"Content-Type: text/plain\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    url = urlsplit(harness.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(head)
    status = await reader.readline()
    writer.close()
    assert status.split()[1] == b"415"


async def test_a_compressed_body_is_refused_before_it_is_unpacked(harness: Harness) -> None:
    body = gzip.compress(b" " * 10_000_000)
    assert await harness.post(body, Content_Encoding="gzip") == 415


async def test_an_unknown_path_and_method_are_refused(harness: Harness) -> None:
    async with harness.session.post(harness.url.replace(PATH, "/")) as response:
        assert response.status == 404
    async with harness.session.get(harness.url) as response:
        assert response.status == 405
        assert "aiohttp" not in response.headers["Server"]


async def test_a_store_that_is_away_is_503_and_the_delivery_comes_again(harness: Harness) -> None:
    for seconds in (-10, -5, 0):
        harness.progress.observe(START_MS + seconds * 1000, caught_up=True)
    harness.store.error = StoreError("away")
    assert await harness.post(alert()) == 503
    harness.store.error = None
    assert await harness.post(alert()) == 200
    assert len(harness.store.ids("byoc_alerts")) == 1
    await harness.progress.write()  # a sender that was sent away must not look silent
    (row,) = harness.store.rows["byoc_progress"]
    assert row["steady_since"] == "2026-11-23T12:00:00.000Z"


async def test_rows_that_clickhouse_refuses_are_422(harness: Harness) -> None:
    harness.store.refuse = lambda _table, _row: RowsRefusedError("no")
    assert await harness.post(alert()) == 422


async def test_a_body_that_comes_too_slowly_is_503_and_frees_its_place(harness: Harness) -> None:
    headers = {"Authorization": "Bearer new", "Content-Type": SINGLE}
    slow = [
        asyncio.ensure_future(harness.session.post(harness.url, data=drip(), headers=headers))
        for _ in range(2)
    ]
    statuses = [(await one).status for one in slow]
    assert statuses == [503, 503]
    assert await harness.post(alert()) == 200


async def drip(body: bytes = b"{") -> AsyncIterator[bytes]:
    yield body
    await asyncio.sleep(30)


async def test_a_slow_body_of_one_customer_does_not_end_the_judging_of_the_others(
    harness: Harness,
) -> None:
    for seconds in (-10, -5, 0):
        harness.progress.observe(START_MS + seconds * 1000)
    headers = {"Authorization": "Bearer first", "Content-Type": SINGLE}
    async with harness.session.post(harness.url, data=drip(), headers=headers) as response:
        assert (response.status, await response.json()) == (503, {"status": "too slow"})
    await harness.progress.write()
    (row,) = harness.store.rows["byoc_progress"]
    assert row["steady_since"] == "2026-11-23T11:59:50.000Z"
    assert row["organization_id"] == ""


async def test_a_customer_that_sends_too_much_at_a_time_leaves_room_and_is_judged_later_alone(
    harness: Harness,
) -> None:
    """One of the two places is for one organization at most."""
    for seconds in (-10, -5, 0):
        harness.progress.observe(START_MS + seconds * 1000)
    harness.store.released.clear()
    first = asyncio.ensure_future(harness.post(alert(1), Authorization="Bearer first"))
    await harness.store.entered.wait()
    headers = {"Authorization": "Bearer next", "Content-Type": SINGLE}
    async with harness.session.post(harness.url, data=alert(2), headers=headers) as response:
        assert (response.status, await response.json()) == (503, {"status": "too many at a time"})
    other = asyncio.ensure_future(harness.post(alert(3), delivery_id="d-3"))
    harness.store.released.set()
    assert [await first, await other] == [200, 200]
    assert await harness.post(alert(2), delivery_id="d-2", Authorization="Bearer next") == 200
    await harness.progress.write()
    of_all, of_one = harness.store.rows["byoc_progress"]
    assert of_all["steady_since"] == "2026-11-23T11:59:50.000Z"
    assert (of_one["organization_id"], of_one["steady_since"][11:19]) == ("org-1", "12:00:00")


async def test_more_bodies_than_there_is_room_for_are_sent_away(harness: Harness) -> None:
    """Two deliveries wait for the store; the third is answered at once."""
    harness.store.released.clear()
    two = [asyncio.ensure_future(harness.post(alert(n), delivery_id=f"d-{n}")) for n in (1, 2)]
    await harness.store.entered.wait()
    while await harness.post(alert(3), delivery_id="d-3") != 503:
        pass
    harness.store.released.set()
    assert await asyncio.gather(*two) == [200, 200]


async def test_only_a_sender_with_a_token_takes_a_place_of_the_authenticated(
    harness: Harness,
) -> None:
    """The bounds of the port are those of `http_server`; here there is no place."""
    limits = PortLimits(max_unauthenticated=2, max_authenticated=0)
    async with serve(harness.receiver.handle, Listen("127.0.0.1", 0), limits) as (host, port):
        harness.url = f"http://{host}:{port}{PATH}"
        assert await harness.post(alert(), Authorization="Bearer no") == 401
        assert await harness.post(alert()) == 503
    assert harness.store.rows == {}


async def test_the_forwarders_own_sink_is_understood(harness: Harness) -> None:
    sink = HttpsSink(
        harness.url,
        harness.session,
        token=lambda: "new",
        signing_secret=lambda: NEW,
        clock=harness.clock,
    )
    events = [watch_alert(START_MS, 1), heartbeat_event(START_MS, 0)]
    messages = [Message(one.id, one.type, encode(one), START_MS) for one in events]
    for sent in (messages[:1], messages, messages):  # the last one is a repeat
        outcomes = await sink.send(sent)
        assert [outcome.reason for outcome in outcomes] == [Reason.OK] * len(sent)
    assert set(harness.store.ids("byoc_alerts")) == {one.id for one in events}


async def test_the_forwarders_own_sink_gives_up_the_invalid_event_alone(harness: Harness) -> None:
    sink = HttpsSink(
        harness.url,
        harness.session,
        token=lambda: "new",
        signing_secret=lambda: NEW,
        clock=harness.clock,
    )
    valid = watch_alert(START_MS, 1)
    bodies = {valid.id: encode(valid), "invalid": b"{}"}
    messages = [Message(id_, "alert", body, START_MS) for id_, body in bodies.items()]
    outcomes = await sink.send(messages)
    assert [outcome.reason for outcome in outcomes] == [Reason.OK, Reason.REJECTED]
    assert harness.store.ids("byoc_alerts") == [valid.id]
