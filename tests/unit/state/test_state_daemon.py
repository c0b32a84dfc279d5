"""The whole daemon between a ClickHouse and a queue: settings in, bytes on the wire out."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from byoc_agents.app.clock import SystemClock
from byoc_agents.app.daemon import Daemon
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.run import Configuration, configure, daemon_spec
from byoc_agents.app.runtime import Runtime
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import ConfigError
from byoc_agents.servers import is_service, parse_servers
from byoc_agents.state.daemon import NAME
from byoc_agents.state.message import SCHEMAS
from byoc_agents.state.observation import ProbeSource
from lab.fakes.sqs import FakeSqs
from lab.fakes.state import HEALTHY, FakeClickHouse

SENTINEL = "CUSTOMERSECRET"
PASSWORD = "PASSWORDSECRET"
LIMIT_SECONDS = 20.0


def environ(place: Path, sqs: FakeSqs, clickhouse: str, **more: str) -> dict[str, str]:
    return {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REPLICA": "r-0",
        "BYOC_REGION": "eu-west-1",
        "BYOC_STATE_DIR": str(place),
        "BYOC_STATE_QUEUE_URL": sqs.queue_url,
        "BYOC_STATE_POLL_SECONDS": "0.1",
        "BYOC_STATE_HEARTBEAT_SECONDS": "1",
        "BYOC_STATE_LIMITS": "PING_FAILED=1/0/0.2,READONLY_REPLICA=1/0",
        "BYOC_CLICKHOUSE_URL": clickhouse,
        "BYOC_CLICKHOUSE_PASSWORD": PASSWORD,
        "BYOC_ALLOW_INSECURE_ENDPOINTS": "true",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "AWSSECRET",
        **more,
    }


def configured(settings: dict[str, str]) -> Configuration:
    return configure([NAME], settings)


@asynccontextmanager
async def running(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Daemon]:
    """Run the daemon as `byoc_agents.app.run` does, and stop it in good order at the end."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, settings[name])
    configuration = configured(settings)
    runtime = Runtime(
        core=configuration.core,
        environ=settings,
        gate=Gate(configuration.destinations, allow_insecure=True),
        clock=SystemClock(),
        metrics=Metrics(),
    )
    own = configuration.daemons[NAME]
    async with daemon_spec(NAME).open_daemon(runtime, configuration.clickhouse, own) as daemon:
        stop = asyncio.Event()
        task = asyncio.create_task(daemon.run(stop, 5.0))
        try:
            yield daemon
        finally:
            stop.set()
            await task


def sent_data(sqs: FakeSqs, replica: str = "r-0") -> list[dict[str, Any]]:
    found = [json.loads(sent.body)["data"] for sent in sqs.messages]
    return [data for data in found if data.get("replica", "") == replica]


def transitions(sqs: FakeSqs) -> list[str]:
    return [data["state"] for data in sent_data(sqs) if data["kind"] == "transition"]


class Queue(FakeSqs):
    """A queue that a test can wait for."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()
        super().__init__(on_sent=lambda _: self._arrived.set())

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            while not met():
                self._arrived.clear()
                await self._arrived.wait()

    async def has_got(self, state: str) -> None:
        await self.until(lambda: transitions(self)[-1:] == [state])


async def test_running_degraded_failed_and_back_arrive_in_order_and_stopping_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Queue() as sqs, FakeClickHouse(password=PASSWORD) as clickhouse:
        clickhouse.server.rows |= HEALTHY
        async with running(environ(tmp_path, sqs, clickhouse.url), monkeypatch):
            await sqs.has_got("running")
            clickhouse.server.rows["system.metrics.ReadonlyReplica"] = "1"
            await sqs.has_got("degraded")
            await clickhouse.http.__aexit__()
            await sqs.has_got("failed")
            clickhouse.server.rows |= {"system.metrics.ReadonlyReplica": "0", "uptime": "5"}
            await clickhouse.http.__aenter__()
            await sqs.has_got("starting")
            clickhouse.server.rows["uptime"] = "181"
            await sqs.has_got("running")
            await sqs.until(lambda: sent_data(sqs)[-1]["kind"] == "heartbeat")
        states = ["running", "degraded", "failed", "starting", "running", "stopping"]
        assert transitions(sqs) == states
        assert [data["transition"] for data in sent_data(sqs) if data["kind"] == "transition"] == [
            1,
            2,
            3,
            4,
            5,
            6,
        ]
        sequences = [data["sequence"] for data in sent_data(sqs)]
        assert sequences == sorted(set(sequences))
        for sent in sqs.messages:
            event = json.loads(sent.body)
            assert (sent.deduplication_id, sent.group) == (event["id"], "svc/r-0")
            schema = json.loads((SCHEMAS / f"{event['type']}.json").read_text())
            jsonschema.Draft202012Validator(schema).validate(event)


def everything_below(place: Path) -> bytes:
    return b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())


async def test_no_text_of_the_customer_is_published_whatever_the_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        Queue() as sqs,
        FakeClickHouse(password=PASSWORD, text=SENTINEL) as clickhouse,
    ):
        server = clickhouse.server
        server.lags = True
        server.rows["version"] = f"24.8.1.{SENTINEL}"
        server.rows["system.disks.free_ratio"] = SENTINEL
        server.rows |= {f"{source}.{SENTINEL}": SENTINEL for source in ProbeSource}
        async with running(environ(tmp_path, sqs, clickhouse.url), monkeypatch) as daemon:
            await sqs.has_got("degraded")
            status = json.dumps(daemon.status(), default=str)
        async with running(
            environ(tmp_path, sqs, clickhouse.url, BYOC_CLICKHOUSE_PASSWORD="wrong"), monkeypatch
        ):
            await sqs.until(lambda: "AUTH_FAILED" in sqs.messages[-1].body)
        wire = b"".join(
            repr(request.headers).encode() + request.target.encode() + request.body
            for request in sqs.http.requests
        )
        disk = await asyncio.to_thread(everything_below, tmp_path)
    for secret in (SENTINEL, PASSWORD, "AWSSECRET", clickhouse.url):
        assert secret.encode() not in wire
        assert secret.encode() not in disk
    assert SENTINEL not in status
    assert b"24.8.1" in wire, "the number of the version alone"


async def test_an_exporter_of_a_service_publishes_each_replica_and_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        Queue() as sqs,
        FakeClickHouse(password=PASSWORD) as first,
        FakeClickHouse(password=PASSWORD) as second,
    ):
        first.server.rows |= HEALTHY
        second.server.rows |= HEALTHY
        both = f"a={first.url},b={second.url}"
        async with running(environ(tmp_path, sqs, both), monkeypatch):
            await sqs.until(lambda: any("service.summary" in sent.body for sent in sqs.messages))
            await second.http.__aexit__()
            await sqs.until(lambda: "partially_running" in sqs.messages[-1].body)
            await second.http.__aenter__()
        groups = {sent.group for sent in sqs.messages}
    assert groups == {"svc/a", "svc/b", "svc/"}
    assert [d["state"] for d in sent_data(sqs, "b") if d["kind"] == "transition"][:2] == [
        "running",
        "failed",
    ]
    assert all(data["state"] == "running" for data in sent_data(sqs, "a"))


def test_every_destination_of_the_exporter_is_in_its_table(tmp_path: Path) -> None:
    settings = environ(tmp_path, FakeSqs(), "a=http://10.0.0.1:8123,b=https://ch.example:8443") | {
        "BYOC_STATE_QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/1/state.fifo"
    }
    found = [str(destination) for destination in configured(settings).destinations]
    assert found == [
        "http://10.0.0.1:8123",
        "https://ch.example:8443",
        "https://sqs.eu-west-1.amazonaws.com:443",
    ]


@pytest.mark.parametrize(
    ("variable", "text", "wanted"),
    [
        ("BYOC_STATE_QUEUE_URL", "https://sqs.eu-west-1.amazonaws.com/1/state", "FIFO"),
        ("BYOC_STATE_POLL_SECONDS", "0", "0.1 to 60"),
        ("BYOC_STATE_LIMITS", "DISK_LOW=1", "enter/leave"),
        ("BYOC_STATE_LIMITS", "DISK=1/0", "no such code"),
        ("BYOC_CLICKHOUSE_URL", "a=http://h:1,a=http://h:2", "twice"),
        ("BYOC_CLICKHOUSE_URL", "http://user:pw@h:1", "without user"),
        ("BYOC_CLICKHOUSE_URL", "a=http://h:1,nonsense", "name=url"),
    ],
)
def test_a_wrong_setting_is_named_with_the_expected_value(
    tmp_path: Path, variable: str, text: str, wanted: str
) -> None:
    settings = environ(tmp_path, FakeSqs(), "http://127.0.0.1:8123") | {variable: text}
    with pytest.raises(ConfigError) as caught:
        configured(settings)
    assert any(variable in mistake and wanted in mistake for mistake in caught.value.mistakes)


@pytest.mark.parametrize(
    ("text", "servers", "service"),
    [
        ("http://127.0.0.1:8123", {"me": "http://127.0.0.1:8123"}, False),
        ("a=http://x:1", {"a": "http://x:1"}, True),
        (" a=http://x:1 , b=https://y ", {"a": "http://x:1", "b": "https://y"}, True),
    ],
)
def test_one_url_or_a_service_of_named_ones(
    text: str, servers: dict[str, str], service: bool
) -> None:
    assert parse_servers(text, "me") == servers
    assert is_service(text) is service
