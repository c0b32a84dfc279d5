"""What the exporter had said of a ClickHouse that nobody could reach, when it was to come back."""

import time
from dataclasses import dataclass

from tests.chaos.daemon import Daemon
from tests.chaos.link import Link
from tests.chaos.machine import Disk

TOLD = "state.told"  # after the commit
UNTOLD = "state.not_kept"  # there was no room; said again when there is


@dataclass(frozen=True)
class Outage:
    """One outage at its end."""

    kind: str
    quiet_seconds: float  # for how long nothing else had been in the exporter's way
    word: str  # the last that it has said: the state and its reasons' codes


def seen(kind: str, began: float, exporter: Daemon, link: Link, disk: Disk) -> Outage:
    """Return what the exporter knows of an outage that began then (monotonic), just before its end.

    `link` is its path to ClickHouse: what answers on it by itself hides the server.
    """
    now = time.monotonic()
    hindered = exporter.frozen or not exporter.running() or disk.troubled or not link.sound
    since = max(began, exporter.touched, disk.touched, link.touched)
    return Outage(kind, 0.0 if hindered else now - since, last_word(exporter))


def last_word(exporter: Daemon) -> str:
    """Return what it has told last, or would have where there was no room; "" for nothing."""
    lines = exporter.logged(TOLD, UNTOLD)
    return str(lines[-1]["says"]) if lines else ""
