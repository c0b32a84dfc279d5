"""Compute the exporter's last report on an unreachable ClickHouse before it came back."""

import time
from dataclasses import dataclass

from lab.chaos.daemon import Daemon

TOLD = "state.published"  # after the commit
UNTOLD = "state.write_failed"  # there was no room; said again when there is


@dataclass(frozen=True)
class Outage:
    """One outage at its end."""

    kind: str
    quiet_seconds: float  # how long it had lasted while the exporter ran
    word: str  # the last that it has said: the state and its reasons' codes


def seen(kind: str, began: float, exporter: Daemon) -> Outage:
    """Return what the exporter knows of an outage that began then (monotonic), just before its end.

    Whatever its path to the server does meanwhile, no ping is answered; and what finds no room on
    a disk is logged as such.
    """
    hindered = exporter.frozen or not exporter.running()
    quiet_seconds = time.monotonic() - max(began, exporter.touched)
    return Outage(kind, 0.0 if hindered else quiet_seconds, last_word(exporter))


def last_word(exporter: Daemon) -> str:
    """Return the last state it reported, or would have if there had been room; "" for none."""
    lines = exporter.logged(TOLD, UNTOLD)
    return str(lines[-1]["state_key"]) if lines else ""
