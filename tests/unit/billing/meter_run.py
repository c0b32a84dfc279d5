"""Samples for a meter, and what it made of them: one core busy, 1000 bytes, from noon on."""

from collections.abc import Iterable

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.billing.meter import Meter
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.window import Period, Sample

NOON = parse_rfc3339("2026-11-23T12:00:00Z")
SECOND = 1_000_000_000
UP = 50_000 * SECOND  # boot clock at noon


def reading(cpu_seconds: float, **fields: object) -> Reading:
    known = {
        "source": "cgroup.v2",
        "incarnation": "boot-1-7",
        "container_id": "c" * 64,
        "cpu_usec": round(cpu_seconds * 1_000_000),
        "memory_bytes": 1000,
        "born_boot_ns": UP - 100 * SECOND,
        "cpu_limit_millicores": 2000,
        "memory_limit_bytes": 4096,
    }
    return Reading(**(known | fields))  # type: ignore[arg-type]


def sample(seconds: float, seen: Reading | None = None, **fields: object) -> Sample:
    """Return a sample `seconds` after noon; by default of one core busy since noon."""
    at = seconds + float(fields.pop("wall_off_seconds", 0))  # type: ignore[arg-type]
    known = {
        "wall_ms": NOON + round(at * 1000),
        "boot_ns": UP + round(seconds * SECOND),
        "boot_id": "boot",
        "reading": seen,
    }
    return Sample(**(known | fields))  # type: ignore[arg-type]


def ran(seconds: float, **fields: object) -> Sample:
    return sample(seconds, reading(seconds), **fields)


class Run:
    """Feeds samples to a meter that started at noon and remembers the periods."""

    def __init__(self, first: Sample | None = None) -> None:
        self.meter = Meter(window_ms=60_000)
        self.state, self.start_gap = self.meter.start(first or ran(0), "no_checkpoint")
        self.periods: list[Period] = []

    def feed(self, samples: Iterable[Sample], *, hold: bool = False) -> "Run":
        for one in samples:
            self.state, closed = self.meter.observe(self.state, one, hours_only=hold)
            self.periods += closed
        return self

    def close(self) -> "Run":
        self.state, closed = self.meter.close(self.state)
        self.periods += closed
        return self

    def shown(self) -> list[tuple[float, float, object]]:
        """Return (start, end, core seconds or the gap's reason), in seconds after noon."""
        return [
            ((p.start_ms - NOON) / 1000, (p.end_ms - NOON) / 1000, used(p) or p.gap_reason)
            for p in self.periods
        ]


def used(period: Period) -> float:
    window = period.window
    return (window.reading.cpu_usec - window.cpu_start_usec) / 1e6 if window else 0.0


def every(start: int, stop: int) -> list[Sample]:
    return [ran(second) for second in range(start, stop, 5)]
