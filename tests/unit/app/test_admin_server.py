"""The four pages, asked over a real socket on loopback."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import make_mocked_request

from byoc_agents.app.admin_server import LIMITS, Pages, serve
from byoc_agents.app.daemon import Daemon
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import ConfigError
from byoc_agents.message import Message
from lab.fakes.core import FakeClock, NullLedger, ScriptedSink


class Idle:
    async def run(self) -> None: ...

    async def finish(self) -> None: ...

    def status(self) -> dict[str, Any]:
        return {"target": "cgroup:/x"}


@dataclass
class Harness:
    spool: Spool
    url: str
    client: ClientSession

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.client.get(self.url + path, headers=headers) as response:
            return response.status, await response.text()


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with serving(tmp_path) as made:
        yield made


@asynccontextmanager
async def serving(tmp_path: Path, token: ReloadableSecret | None = None) -> AsyncIterator[Harness]:
    clock, metrics = FakeClock(), Metrics()
    async with Spool(tmp_path / "daemon", max_bytes=1 << 20, clock=clock) as spool:
        parts: dict[str, Any] = {"clock": clock, "metrics": metrics, "spool": spool}
        shipper = Shipper("daemon", sink=ScriptedSink(), ledger=NullLedger(), **parts)
        daemon = Daemon("daemon", source=Idle(), shipper=shipper, **parts)
        metrics.create_series("daemon")
        async with (
            serve([daemon], metrics, ("127.0.0.1", 0), token) as (host, port),
            ClientSession() as client,
        ):
            yield Harness(spool, f"http://{host}:{port}", client)


async def test_a_sound_process_is_alive_and_ready(harness: Harness) -> None:
    assert await harness.get("/healthz") == (200, "ok\n")
    assert await harness.get("/readyz") == (200, "ok\n")


async def test_not_ready_while_the_spool_cannot_be_written_and_ready_again(
    harness: Harness,
) -> None:
    directory = harness.spool.directory
    shutil.rmtree(directory)
    directory.write_text("in the place of the directory")
    with pytest.raises(Exception, match="no new file could be made"):
        await harness.spool.put(Message("a", "t", b"x", 1))
    status, text = await harness.get("/readyz")
    assert status == 503
    assert text.startswith("daemon: spool: ")
    assert (await harness.get("/healthz"))[0] == 200
    directory.unlink()
    await harness.get("/readyz")  # the first one reports that the file was lost
    assert await harness.get("/readyz") == (200, "ok\n")


async def test_not_alive_when_a_writer_thread_has_ended(harness: Harness) -> None:
    await harness.spool.__aexit__()
    assert await harness.get("/healthz") == (503, "dead\n")
    assert (await harness.get("/readyz"))[0] == 503


async def test_metrics_are_prometheus_text_with_the_gauges_of_now(harness: Harness) -> None:
    await harness.spool.put(Message("a", "t", b"1234", 1, events=7))
    async with harness.client.get(harness.url + "/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        text = await response.text()
    assert 'byoc_spool_events{daemon="daemon"} 7.0' in text
    assert 'byoc_messages_sent_total{daemon="daemon"} 0.0' in text


async def test_status_is_json_for_people(harness: Harness) -> None:
    async with harness.client.get(harness.url + "/status") as response:
        page = await response.json()
    assert page["daemons"]["daemon"]["target"] == "cgroup:/x"
    assert page["daemons"]["daemon"]["destination"] == "test://sink"
    assert page["daemons"]["daemon"]["last_error"] is None
    assert page["version"]


async def test_every_other_page_is_404(harness: Harness) -> None:
    assert (await harness.get("/"))[0] == 404


async def test_a_taken_address_is_an_error_of_the_start(harness: Harness) -> None:
    port = int(harness.url.rpartition(":")[2])
    expected = "^BYOC_LISTEN: .*address already in use: expected a free host:port$"
    with pytest.raises(ConfigError, match=expected):
        async with serve([], Metrics(), ("127.0.0.1", port)):
            pass


async def test_an_error_of_the_disk_while_it_serves_is_not_one_of_the_address() -> None:
    with pytest.raises(OSError, match="the disk"):
        async with serve([], Metrics(), ("127.0.0.1", 0)):
            raise OSError("the disk")


async def test_no_response_names_a_version(harness: Harness) -> None:
    for path in ("/healthz", "/", "/status"):
        async with harness.client.get(harness.url + path) as response:
            assert response.headers["Server"] == "byoc-agents"


async def test_only_reading_is_allowed(harness: Harness) -> None:
    async with harness.client.post(harness.url + "/healthz", data=b"x") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET")
    async with harness.client.head(harness.url + "/healthz") as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("peer", "status"),
    [("127.0.0.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("10.0.0.7", 403)],
)
async def test_status_is_shown_on_this_machine_only(peer: str, status: int) -> None:
    request = make_mocked_request("GET", "/status").clone(remote=peer)
    assert (await Pages([], Metrics()).handle(request)).status == status


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer right", 200),
        ("bearer new", 200),
        ("Bearer righ", 401),
        ("Bearer rightnew", 401),
        ("Bearer ", 401),
        ("Basic right", 401),
        ("", 401),
    ],
)
async def test_metrics_require_the_token_if_one_is_set(
    header: str, status: int, tmp_path: Path
) -> None:
    async with serving(tmp_path, ReloadableSecret("right\nnew\n")) as harness:
        given = {"Authorization": header}
        async with harness.client.get(harness.url + "/metrics", headers=given) as response:
            text = await response.text()
            assert response.status == status
            assert ("byoc_spool_events" in text) == (status == 200)
            assert ("Connection" in response.headers) == (status == 401)  # it is closed
            assert response.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
        assert "right" not in text


async def test_the_kubelets_pages_and_status_need_no_token(tmp_path: Path) -> None:
    async with serving(tmp_path, ReloadableSecret("right")) as harness:
        for path in ("/healthz", "/readyz", "/status"):
            assert (await harness.get(path))[0] == 200


async def test_without_a_token_metrics_are_open(tmp_path: Path) -> None:
    for number, token in enumerate((None, ReloadableSecret(""))):
        async with serving(tmp_path / str(number), token) as harness:
            assert (await harness.get("/metrics"))[0] == 200


async def test_a_rotated_token_of_the_metrics_is_used_at_once(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    async with serving(tmp_path, ReloadableSecret("first", str(file))) as harness:
        assert (await harness.get("/metrics", Authorization="Bearer first"))[0] == 200
        file.write_text("second, longer\n")
        assert (await harness.get("/metrics", Authorization="Bearer first"))[0] == 401
        assert (await harness.get("/metrics", Authorization="Bearer longer"))[0] == 200


async def test_the_oldest_of_too_many_connections_is_closed(harness: Harness) -> None:
    port = int(harness.url.rpartition(":")[2])
    pairs = [
        await asyncio.open_connection("127.0.0.1", port)
        for _ in range(LIMITS.max_unauthenticated + 1)
    ]
    assert await pairs[0][0].read() == b""
    assert await harness.get("/healthz") == (200, "ok\n")
    for _, writer in pairs:
        writer.close()
