"""Track how far each stream is received, and which of them are silent.

Each process that receives writes one row per second: the time of its last complete reception, and
since when reception has been uninterrupted and without backlog. The view `silent_now` counts
silence from these rows alone. So an outage of this side never looks like silence of the other.

A backlog of one organization alone is the organization's: it sends more than its own groups of the
queue take. It has rows of its own, and the others are judged on.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import rfc3339
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.store import Store, StoreError, fetch_rows, insert_rows

StreamName = Literal["state", "alerts"]

INTERVAL_SECONDS = 1.0
OUTAGE_MS = 10_000  # a longer interruption starts the count again; `silent_now` has the same number
BACK_MS = 60_000  # a clock that goes back by more had been ahead; no request to a queue is so long
PAUSE_FACTOR = 4  # pause after the queries, in multiples of their time: at most a fifth of it
MAX_SERIES = 1000  # silent daemons, or organizations, with a series of their own

SILENT = (
    "SELECT organization_id, service_id, replica, daemon, silent_seconds FROM silent_now "
    "ORDER BY silent_seconds DESC"
)
DAEMONS = "SELECT daemon, count() AS daemons FROM agents_now WHERE supervised GROUP BY daemon"

# A time more than a minute after the clock of ClickHouse is of a wrong clock.
PROGRESS = (
    "WITH horizons AS (SELECT stream, max(at) AS horizon FROM byoc_progress FINAL "
    "WHERE organization_id = '' AND at <= now64(3) + INTERVAL 1 MINUTE GROUP BY stream) "
    "SELECT stream, toUnixTimestamp64Milli(any(horizon)) AS at_ms, "
    "toUnixTimestamp64Milli(max(steady_since)) AS steady_ms "
    "FROM byoc_progress FINAL INNER JOIN horizons USING (stream) "
    "WHERE organization_id = '' AND at BETWEEN horizon - INTERVAL 10 SECOND AND horizon "
    "GROUP BY stream"
)  # the newest progress of each stream, as milliseconds since 1970

DELAYED = (
    "SELECT stream, organization_id, toUnixTimestamp64Milli(max(steady_since)) AS until_ms "
    "FROM byoc_progress FINAL "
    "WHERE organization_id != '' AND at <= now64(3) + INTERVAL 1 MINUTE "
    "GROUP BY stream, organization_id ORDER BY until_ms DESC LIMIT 1000"
)  # of each organization whose messages had waited, the last time

AHEAD = (
    "SELECT stream, greatest(0, toUnixTimestamp64Milli(max(at)) - toUnixTimestamp64Milli(now64(3)))"
    " / 1000 AS ahead_seconds FROM byoc_progress FINAL WHERE organization_id = '' GROUP BY stream"
)  # how far the times that were written are after the server's own


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
        self._behind = False
        self._late: dict[str, int] = {}  # organization -> when its messages had waited
        self._delayed: dict[str, int] = {}  # the same, of one organization alone; not written yet

    @property
    def now_ms(self) -> int:
        """Return the wall time, milliseconds since 1970."""
        return self._clock.wall_ns() // 1_000_000

    def observe(self, at_ms: int, *, caught_up: bool = True, late: Iterable[str] = ()) -> None:
        """Record that everything up to `at_ms` was received, or that a backlog is left.

        `late` are the organizations whose messages had waited. This side is behind if there are
        several within OUTAGE_MS, and after an interruption until no message has waited. Otherwise
        the backlog is of one organization alone, and only its silence is counted from now.
        """
        if self._at_ms is not None and self._at_ms - at_ms > BACK_MS:
            self._at_ms, self._written_ms = None, 0  # the clock had been ahead: begin again
            self._late.clear()
            self._delayed.clear()
        interrupted = self._at_ms is None or at_ms - self._at_ms > OUTAGE_MS
        self._at_ms = max(at_ms, self._at_ms or 0)
        late = frozenset(late)
        self._late |= dict.fromkeys(late, self._at_ms)
        self._late = {name: ms for name, ms in self._late.items() if self._at_ms - ms <= OUTAGE_MS}
        several = len(self._late) > 1
        self._behind = bool(late) and (interrupted or self._behind or several)
        if interrupted or self._behind or not caught_up or self._steady_ms is None:
            self._steady_ms = self._at_ms
        else:
            self._delayed |= dict.fromkeys(late, self._at_ms)

    def expect_redelivery(self, seconds: float) -> None:
        """Record that a message that was lost here comes again only after so long."""
        self._redelivery_seconds = seconds

    def delay(self, organization_id: str) -> None:
        """Record that messages of one organization were refused for their number."""
        if self._at_ms is not None and organization_id:
            self._delayed[organization_id] = self._at_ms

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
        delayed, self._delayed = self._delayed, {}
        rows = {"": self._steady_ms} | delayed
        try:
            lines = [self._line(at_ms, since_ms, name) for name, since_ms in rows.items()]
            await insert_rows(self._store, "byoc_progress", lines)
        except StoreError:
            self._delayed = delayed | self._delayed
            raise
        if self._at_ms >= at_ms:  # else the clock was set back meanwhile
            self._written_ms = at_ms

    def _line(self, at_ms: int, steady_ms: int, organization_id: str) -> bytes:
        return msgspec.json.encode(
            {
                "stream": self._stream,
                "consumer": self._consumer,
                "at": rfc3339(at_ms),
                "steady_since": rfc3339(min(steady_ms, at_ms)),
                "redelivery_seconds": self._redelivery_seconds,
                "organization_id": organization_id,
            }
        )


def share_series(silent: Sequence[Mapping[str, Any]], limit: int) -> list[Mapping[str, Any]]:
    """Return at most `limit` rows, by turns of each organization, in the given order.

    One customer with many silent daemons must not hide those of the others.
    """
    if len(silent) <= limit:
        return list(silent)
    owners: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in silent:
        owners[row["organization_id"]].append(row)
    turns = zip_longest(*(rows[:limit] for rows in owners.values()))
    return [row for turn in turns for row in turn if row is not None][:limit]


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
        ahead = await fetch_rows(self._store, AHEAD)
        delayed = await fetch_rows(self._store, DELAYED)
        self._metrics.silent_seconds.clear()
        for row in share_series(silent, MAX_SERIES):
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
        for row in ahead:
            self._metrics.ahead.labels(row["stream"]).set(row["ahead_seconds"])
        self._metrics.delayed.clear()
        for row in delayed:
            series = self._metrics.delayed.labels(row["stream"], row["organization_id"])
            series.set(row["until_ms"] / 1000)
