"""Generate the responses of a ClickHouse server, or of something else in its place."""

import asyncio
import contextlib
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from byoc_agents.billing.sources.clickhouse import ServerSource
from byoc_agents.billing.sources.reading import TargetUnreadableError
from byoc_agents.clickhouse import ClickHouse, ClickHouseError, ClickHouseReply, Row, parse_rows
from byoc_agents.state.observation import Ping
from byoc_agents.state.probes import Prober
from lab.fakes.core import FakeClock
from lab.fakes.state import MODERN
from lab.fuzz.harness import Harness


def rows(data: bytes) -> None:
    """Read a response of status 200: rows, each with every column, or ClickHouseError."""
    try:
        found = parse_rows(ClickHouseReply(200, 0, data))
    except ClickHouseError:
        return
    assert all(isinstance(name, str) for row in found for name in row)
    assert len({frozenset(row) for row in found}) <= 1


class FixedResponse(ClickHouse):
    """A server that gives the same response to every request."""

    def __init__(self, body: bytes) -> None:
        super().__init__("http://127.0.0.1:1")
        self._body = body

    async def ping(self) -> None:
        """Respond."""

    async def replicas_status(self) -> bool:
        """Return no lag."""
        return True

    async def query(
        self,
        sql: str,  # noqa: ARG002
        params: Mapping[str, str] | None = None,  # noqa: ARG002
        settings: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> list[Row]:
        """Return the response."""
        return parse_rows(ClickHouseReply(200, 0, self._body))


@cache
def loop() -> asyncio.AbstractEventLoop:
    """Return one loop for all runs: a new one per run would take most of the time."""
    return asyncio.new_event_loop()


def probes(data: bytes) -> None:
    """Probe a server: the result is an observation whose figures are numbers."""
    seen = loop().run_until_complete(Prober(FixedResponse(data), clock=FakeClock()).observe())
    assert seen.ping is Ping.OK
    figures: dict[str, Any] = msgspec.structs.asdict(seen.figures)
    assert all(math.isfinite(value) for value in figures.values() if value is not None)


def counters(data: bytes) -> None:
    """Read a server's counters: figures that fit their fields, or TargetUnreadableError."""
    source = ServerSource(FixedResponse(data), FakeClock())
    with contextlib.suppress(TargetUnreadableError):
        reading = loop().run_until_complete(source.read())
        assert 0 <= reading.cpu_usec < 2**64
        assert 0 <= reading.memory_bytes < 2**64
        assert reading.cpu_limit_millicores is None or reading.cpu_limit_millicores >= 0


def encode_rows(pairs: Mapping[str, str]) -> bytes:
    """Return (name, value) rows as JSONCompact."""
    meta = [{"name": name, "type": "String"} for name in ("name", "value")]
    return msgspec.json.encode({"meta": meta, "data": list(pairs.items())})


COUNTERS = {"OSCPUVirtualTimeMicroseconds": "123", "MemoryResident": "4e9", "uptime": "77"}
TYPED = (
    b'{"meta":[{"name":"x","type":"Nullable(UInt64)"},{"name":"y","type":"Float64"}],'
    b'"data":[["18446744073709551615",1.5],[null,"nan"]]}'
)
WORDS = [b'"meta":[', b'"data":[', b"null", b'"UInt64"', b'"nan"', b'"inf"', b"1e400",
         b'"-1"', b"Code: 60. ", b'"LowCardinality(', b'"9"', b'"1_0"', b'"uptime"',
         b'"name"', b'""']  # fmt: skip
HARNESSES = {
    "clickhouse-rows": Harness(rows, [TYPED, encode_rows(COUNTERS)], WORDS),
    "clickhouse-probes": Harness(probes, [encode_rows(MODERN)], WORDS),
    "clickhouse-counters": Harness(counters, [encode_rows(COUNTERS)], WORDS),
}
