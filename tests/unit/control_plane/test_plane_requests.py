"""The list of the requests for access: who gets which, in which form, and the record of it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from byoc_agents.access.orders import Approve, Revoke
from byoc_agents.access.requests import MAX_ENVELOPES, RequestPoller
from byoc_agents.app.clock import Clock, SystemClock
from byoc_agents.app.http_server import Listen, serve
from byoc_control_plane.credentials import Keyring
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import Progress
from byoc_control_plane.receiver import LIMITS, PATH, Receiver
from byoc_control_plane.requests import REQUESTS_PATH, RequestFolder
from byoc_control_plane.store import RowsRefusedError, StoreError
from lab.control_plane.memory_store import MemoryStore
from lab.fakes.core import START_MS, FakeClock
from tests.unit.access.access_documents import (
    GRANT_ID,
    grant_id,
    request_envelope,
    withdrawal_envelope,
)
from tests.unit.access.program_harness import SECRET, Program, until


class Harness:
    """A receiver with a directory of requests."""

    def __init__(self, directory: Path, clock: Clock | None = None) -> None:
        self.directory = directory / "requests"
        self.directory.mkdir()
        self.clock = clock or FakeClock()
        self.store = MemoryStore()
        self.metrics = PlaneMetrics()
        self.inserter = Inserter(self.store, self.metrics)
        progress = Progress(self.store, self.clock, "alerts", "a", redelivery_seconds=60)
        self.receiver = Receiver(
            self.inserter,
            progress,
            self.metrics,
            self.clock,
            keyring=Keyring(lambda: "any org-1:first org-2:second", lambda: SECRET),
            requests=RequestFolder(self.directory),
        )
        self.url = ""
        self.session: aiohttp.ClientSession

    def write(self, content: bytes, name: str = GRANT_ID) -> Path:
        path = self.directory / f"{name}.dsse.json"
        path.write_bytes(content)
        return path

    async def get(
        self, token: str = "first", query: str = "", method: str = "GET", **headers: str
    ) -> tuple[int, list[Any], str]:
        named = {"Authorization": f"Bearer {token}"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, self.url + query, headers=named) as response:
            body = await response.read()
            found = json.loads(body)["envelopes"] if response.status == 200 else []
            return response.status, found, response.headers.get("ETag", "")

    def states(self) -> list[str]:
        return [row["state"] for row in self.store.rows.get("byoc_grants", [])]

    def sent(self) -> list[str]:
        return [row["grant_id"] for row in self.store.rows.get("byoc_grants", [])]


@asynccontextmanager
async def serving(directory: Path, clock: Clock | None = None) -> AsyncIterator[Harness]:
    made = Harness(directory, clock)
    task = asyncio.ensure_future(made.inserter.run())
    async with (
        serve(made.receiver.handle, Listen("127.0.0.1", 0), LIMITS) as (host, port),
        aiohttp.ClientSession() as made.session,
    ):
        made.url = f"http://{host}:{port}{REQUESTS_PATH}"
        yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with serving(tmp_path) as made:
        yield made


async def test_the_brokers_own_poller_takes_the_response(harness: Harness) -> None:
    """The exact bytes of the envelope arrive, and an unchanged list is not sent again."""
    envelope = request_envelope()
    harness.write(envelope + b"\n")
    poller = RequestPoller(
        harness.url,
        harness.session,
        token=lambda: "first",
        clock=harness.clock,
        poll_seconds=30,
        timeout_seconds=10,
    )
    await poller.poll()
    response = poller.take()
    assert response is not None
    assert response.envelopes == (envelope,)
    poller.settle(response)
    await poller.poll()
    assert poller.take() is None
    harness.write(withdrawal_envelope(), "withdrawal")
    await poller.poll()
    changed = poller.take()
    assert changed is not None
    assert changed.envelopes == (envelope, withdrawal_envelope())


async def test_a_broker_gets_the_requests_of_its_organization_and_service(
    harness: Harness,
) -> None:
    other = {"organization": "org-2", "service": "svc-1"}
    second = {"organization": "org-1", "service": "svc-2"}
    harness.write(request_envelope())
    harness.write(request_envelope(id=grant_id(2), audience=other), "2")
    harness.write(request_envelope(id=grant_id(3), audience=second), "3")
    assert [len((await harness.get(token))[1]) for token in ("first", "second", "any")] == [2, 1, 3]
    assert len((await harness.get(query="?service=svc-2"))[1]) == 1
    assert (await harness.get(query="?service=svc-9"))[1] == []


async def test_an_expired_request_is_not_listed(harness: Harness) -> None:
    path = harness.write(request_envelope(start_ms=START_MS - 5 * 3_600_000))
    assert (await harness.get())[:2] == (200, [])
    harness.write(request_envelope())
    assert len((await harness.get())[1]) == 1
    path.unlink()
    assert (await harness.get())[1] == []


async def test_files_that_are_no_requests_are_left_out(harness: Harness) -> None:
    for name, content in {
        "a": b"",
        "b": b"{}",
        "c": b"x" * 70_000,
        "d": request_envelope(payload_type="application/json"),
        "e": request_envelope(duration_seconds=1),
        "g": b"[" * 50_000,
    }.items():
        harness.write(content, name)
    os.mkfifo(harness.directory / "f.dsse.json")
    harness.write(request_envelope())
    (harness.directory / "being-written").write_bytes(request_envelope())
    with capture_logs() as lines:
        assert len((await harness.get())[1]) == 1
        assert len((await harness.get())[1]) == 1
    named = [line["file"] for line in lines if line["event"] == "requests.not_a_request"]
    assert len(named) == len(set(named)) == 7, "each is logged once"


def with_payload(change: Callable[[str], str]) -> bytes:
    """Return a signed request whose payload is written in another way."""
    reason = {"kind": "incident", "ticket": "CS-1234", "text": "why??? >>> ~~~"}
    envelope = json.loads(request_envelope(reason=reason))
    return json.dumps(envelope | {"payload": change(envelope["payload"])}).encode()


async def test_a_payload_in_the_base64_of_urls_is_listed(harness: Harness) -> None:
    """DSSE allows both alphabets, and the broker reads both."""
    ordinary = with_payload(lambda text: text)
    url_safe = with_payload(lambda text: text.translate(str.maketrans("+/", "-_")))
    assert url_safe != ordinary
    harness.write(url_safe)
    assert len((await harness.get())[1]) == 1


@pytest.mark.parametrize("characters", ["!", " ", "\n"])
async def test_a_payload_with_characters_outside_base64_is_left_out(
    characters: str, harness: Harness
) -> None:
    harness.write(with_payload(lambda text: text[:8] + characters + text[8:]))
    with capture_logs() as lines:
        assert (await harness.get())[1] == []
    assert [line["event"] for line in lines] == ["requests.not_a_request"]


async def test_an_envelope_with_a_field_that_is_given_twice_is_left_out(harness: Harness) -> None:
    envelope = request_envelope()
    harness.write(b'{"payload":"e30=",' + envelope[1:])
    assert (await harness.get())[1] == []


async def test_more_requests_than_a_broker_takes_are_left_for_later(harness: Harness) -> None:
    for number in range(MAX_ENVELOPES + 3):
        harness.write(request_envelope(id=grant_id(number)), f"{number:03}")
    assert len((await harness.get())[1]) == MAX_ENVELOPES


@pytest.mark.parametrize(
    ("token", "method", "status"), [("no", "GET", 401), ("", "GET", 401), ("first", "POST", 405)]
)
async def test_others_get_nothing(harness: Harness, token: str, method: str, status: int) -> None:
    harness.write(request_envelope())
    assert (await harness.get(token, method=method))[0] == status
    assert harness.sent() == []


# The record.


async def test_a_request_is_recorded_once_and_before_it_is_sent(harness: Harness) -> None:
    harness.write(request_envelope())
    harness.store.error = StoreError("away")
    assert (await harness.get())[0] == 503
    harness.store.error = None
    _, found, etag = await harness.get()
    assert (len(found), harness.sent()) == (1, [GRANT_ID])
    assert (await harness.get(If_None_Match=etag))[0] == 304
    await harness.get()
    assert harness.sent() == [GRANT_ID]


async def test_a_row_that_the_store_refuses_keeps_no_request_back(harness: Harness) -> None:
    harness.write(request_envelope())
    harness.store.refuse = lambda _table, _row: RowsRefusedError("no")
    assert len((await harness.get())[1]) == 1


async def test_a_directory_that_is_gone_is_an_error_that_the_broker_survives(
    harness: Harness,
) -> None:
    harness.directory.rmdir()
    assert (await harness.get())[0] == 503
    harness.directory.mkdir()
    assert (await harness.get())[0] == 200


# With the broker.


async def test_the_states_of_a_request_from_the_program_of_the_broker(tmp_path: Path) -> None:
    """The broker takes the request from this list, and its events become rows, none is refused."""
    program = Program(tmp_path)
    async with program.fakes(), serving(tmp_path, SystemClock()) as plane:
        urls = {
            "BYOC_ACCESS_REQUESTS_URL": f"{plane.url}?service=svc-1",
            "BYOC_ACCESS_EVENTS_URL": plane.url.replace(REQUESTS_PATH, PATH),
            "BYOC_ACCESS_TOKEN": "first",
        }
        async with program.running(**urls):
            plane.write(program.request())
            await until(lambda: "pending" in plane.states(), program.process)
            await program.order(Approve(id=GRANT_ID, by="anna"), "1")
            await until(lambda: "open" in plane.states(), program.process)
            await program.order(Revoke(id=GRANT_ID, by="anna"), "2")
            await until(lambda: "closed" in plane.states(), program.process)
    assert plane.states() == [
        *("sent", "pending", "approved", "opening", "open", "closing", "collecting", "closed"),
    ]
    assert {row["grant_id"] for row in plane.store.rows["byoc_grants"]} == {GRANT_ID}
    assert plane.store.rows["byoc_grants"][-1]["reason"] == "revoked"
    assert plane.store.rows["byoc_grants"][-1]["counts"]["queries"] == 0
    assert [*plane.store.rows] == ["byoc_grants"]
    assert program.errors() == []
