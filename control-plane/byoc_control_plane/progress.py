"""Track how far each stream is received, and which of them are silent.

Each process that receives writes one row per second: the time of its last complete reception, and
since when reception has been uninterrupted and without backlog. The view `silent_now` counts
silence from these rows alone. So an outage of this side never looks like silence of the other.
"""

from typing import Literal

import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import rfc3339
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.store import Store, StoreError, fetch_rows, insert_rows

StreamName = Literal["state", "alerts"]

INTERVAL_SECONDS = 1.0
OUTAGE_MS = 10_000  # a longer interruption starts the count again; `silent_now` has the same number
PAUSE_FACTOR = 4  # pause after the queries, in multiples of their time: at most a fifth of it
MAX_SERIES = 1000  # silent daemons with a series of their own

SILENT = (
    "SELECT organization_id, service_id, replica, daemon, silent_seconds FROM silent_now "
    "ORDER BY silent_seconds DESC"
)
DAEMONS = "SELECT daemon, count() AS daemons FROM agents_now WHERE supervised GROUP BY daemon"

PROGRESS = (
    "WITH horizons AS (SELECT stream, max(at) AS horizon FROM byoc_progress GROUP BY stream) "
    "SELECT stream, toUnixTimestamp64Milli(any(horizon)) AS at_ms, "
    "toUnixTimestamp64Milli(max(steady_since)) AS steady_ms "
    "FROM byoc_progress FINAL INNER JOIN horizons USING (stream) "
    "WHERE at >= horizon - INTERVAL 10 SECOND GROUP BY stream"
)  # the newest progress of each stream, as milliseconds since 1970


class Progress:
    """The progress of one process on one stream."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        stream: StreamName,
        consumer: str,
        *,
        redelivery_seconds: float,
    ) -> None:
        """`redelivery_seconds`: after so long a message that was lost here has come again."""
        self._store = store
        self._clock = clock
        self._stream = stream
        self._consumer = consumer
        self._redelivery_seconds = redelivery_seconds
        self._at_ms: int | None = None  # of the last reception that was observed
        self._steady_ms: int | None = None
        self._written_ms = 0

    @property
    def now_ms(self) -> int:
        """Return the wall time, milliseconds since 1970."""
        return self._clock.wall_ns() // 1_000_000

    def observe(self, at_ms: int, *, caught_up: bool) -> None:
        """Record that everything up to `at_ms` was received, or that a backlog is left."""
        interrupted = self._at_ms is None or at_ms - self._at_ms > OUTAGE_MS
        self._at_ms = max(at_ms, self._at_ms or 0)
        if interrupted or not caught_up or self._steady_ms is None:
            self._steady_ms = self._at_ms

    async def load(self) -> None:
        """Continue the uninterrupted reception of the stream if there is one.

        Another process, or an earlier start of this one, received until a few seconds ago.
        """
        for row in await fetch_rows(self._store, PROGRESS):
            if row["stream"] == self._stream:
                self._at_ms, self._steady_ms = int(row["at_ms"]), int(row["steady_ms"])

    async def run(self) -> None:
        """Write the progress once per second until cancelled, as long as there is any."""
        while True:
            await self._clock.sleep(INTERVAL_SECONDS)
            try:
                await self.write()
            except StoreError as error:
                structlog.get_logger().warning("progress.not_written", error=str(error)[:300])

    async def write(self) -> None:
        """Write a row if there is news. Raises StoreError."""
        if self._at_ms is None or self._steady_ms is None or self._at_ms <= self._written_ms:
            return
        at_ms = self._at_ms
        if self._written_ms and at_ms - self._written_ms > OUTAGE_MS:
            self._steady_ms = at_ms  # the store was unavailable, so reception is unknown
        line = msgspec.json.encode(
            {
                "stream": self._stream,
                "consumer": self._consumer,
                "at": rfc3339(at_ms),
                "steady_since": rfc3339(self._steady_ms),
                "redelivery_seconds": self._redelivery_seconds,
            }
        )
        await insert_rows(self._store, "byoc_progress", [line])
        self._written_ms = at_ms


class SilenceWatch:
    """Shows the views of the store as metrics: once per second, less often in a huge fleet."""

    def __init__(self, store: Store, clock: Clock, metrics: PlaneMetrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics

    async def run(self) -> None:
        """Refresh until cancelled. While the store does not respond, the last figures stay."""
        while True:
            started_ns = self._clock.boot_ns()
            try:
                await self.refresh()
            except StoreError as error:
                self._metrics.store_errors.inc()
                structlog.get_logger().warning("silence.not_checked", error=str(error)[:300])
            took_seconds = (self._clock.boot_ns() - started_ns) / 1e9
            await self._clock.sleep(max(INTERVAL_SECONDS, PAUSE_FACTOR * took_seconds))

    async def refresh(self) -> None:
        """Read the views once. Raises StoreError."""
        silent = await fetch_rows(self._store, SILENT)
        daemons = await fetch_rows(self._store, DAEMONS)
        progress = await fetch_rows(self._store, PROGRESS)
        self._metrics.silent_seconds.clear()
        for row in silent[:MAX_SERIES]:
            names = (row["organization_id"], row["service_id"], row["replica"], row["daemon"])
            self._metrics.silent_seconds.labels(*names).set(row["silent_seconds"])
        for daemon in ("state-exporter", "alert-forwarder"):
            known = sum(row["daemons"] for row in daemons if row["daemon"] == daemon)
            self._metrics.daemons.labels(daemon).set(known)
            count = sum(row["daemon"] == daemon for row in silent)
            self._metrics.silent_daemons.labels(daemon).set(count)
        for row in progress:
            self._metrics.progress.labels(row["stream"]).set(row["at_ms"] / 1000)
            self._metrics.steady.labels(row["stream"]).set(row["steady_ms"] / 1000)
