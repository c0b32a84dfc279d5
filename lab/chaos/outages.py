"""Compute the exporter's last report on an unreachable ClickHouse before it came back."""

import time
from dataclasses import dataclass

from lab.chaos.daemon import Daemon

REPORTED = "state.published"  # after the commit
UNREPORTED = "state.write_failed"  # there was no room; repeated once there is


@dataclass(frozen=True)
class Outage:
    """One outage at its end."""

    kind: str
    quiet_seconds: float  # how long it had lasted while the exporter ran
    word: str  # its last report: the state and the codes of its reasons


def seen(kind: str, began: float, exporter: Daemon) -> Outage:
    """Return the exporter's reports on an outage since `began` (monotonic), just before its end.

    No ping is answered during an outage. A report that found no room on the disk is in the log.
    """
    hindered = exporter.frozen or not exporter.running()
    quiet_seconds = time.monotonic() - max(began, exporter.touched)
    return Outage(kind, 0.0 if hindered else quiet_seconds, last_word(exporter))


def last_word(exporter: Daemon) -> str:
    """Return the last state that it reported, or had no room to report; "" for none."""
    lines = exporter.logged(REPORTED, UNREPORTED)
    return str(lines[-1]["state_key"]) if lines else ""
