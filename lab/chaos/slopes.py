"""Find growth in a soak: fit a straight line through each figure, after the warm-up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WARM_UP = 1 / 6  # of the time: pools fill, code pages are touched
HOUR_SECONDS = 3600.0
MIB = 1024.0**2


@dataclass(frozen=True)
class Bound:
    """The largest rise of a figure per hour, in `unit`, and its title in the plot."""

    figure: str
    title: str
    unit: str
    scale: float  # raw value of one unit
    an_hour: float


BOUNDS = (
    Bound("rss_bytes", "resident memory", "MiB", MIB, 4),
    Bound("fds", "file descriptors", "", 1, 3),
    Bound("threads", "threads", "", 1, 1),
    Bound("tasks", "asyncio tasks", "", 1, 2),
    Bound("cpu_percent", "CPU of one core", "%", 1, 0.5),
    Bound("backlog_events", "events waiting to be sent", "", 1, 2),
    Bound("backlog_bytes", "bytes waiting to be sent", "KiB", 1024, 8),
    Bound("disk_bytes", "state directory", "MiB", MIB, 64),
)


@dataclass(frozen=True)
class Slope:
    """The fitted line of one figure."""

    bound: Bound
    points: list[tuple[float, float]]  # seconds, value in the bound's unit
    an_hour: float

    @property
    def holds(self) -> bool:
        return self.an_hour <= self.bound.an_hour


def slopes(samples: Sequence[dict[str, Any]]) -> list[Slope]:
    """Return the fitted line of each figure after the warm-up."""
    return [_slope(bound, samples) for bound in BOUNDS]


def _slope(bound: Bound, samples: Sequence[dict[str, Any]]) -> Slope:
    points = _points(bound, samples)
    late = [point for point in points if point[0] >= WARM_UP * points[-1][0]]
    return Slope(bound, points, steepness(late) * HOUR_SECONDS)


def _points(bound: Bound, samples: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    if bound.figure != "cpu_percent":
        return [(one["seconds"], one[bound.figure] / bound.scale) for one in samples]
    minute = 12  # samples: CPU over a minute, of which each sample has but a few ticks
    return [
        (b["seconds"], 100 * (b["cpu_seconds"] - a["cpu_seconds"]) / (b["seconds"] - a["seconds"]))
        for a, b in zip(samples, samples[minute:], strict=False)
    ]


def steepness(points: Sequence[tuple[float, float]]) -> float:
    """Return the rise per second of the line of least squares."""
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    square = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / square if square else 0.0
