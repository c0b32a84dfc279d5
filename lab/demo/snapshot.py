"""A snapshot of the status of the daemons and of the received data."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from byoc_agents.alerts.events import Alert
from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.billing.record import Usage

SCRAPER, EXPORTER, FORWARDER = "billing-scraper", "state-exporter", "alert-forwarder"


@dataclass(frozen=True, slots=True)
class Backlog:
    """The sealed messages of one daemon that are not yet sent, and the error that delays them."""

    events: int = 0
    oldest_seconds: float = 0.0
    last_error: str = ""  # the reason of the shipper's last error

    @classmethod
    def of(cls, status: dict[str, Any]) -> "Backlog":
        """Read it from a daemon's part of /status."""
        backlog, error = status["backlog"], status["last_error"]
        oldest, now_ms = backlog["oldest"], datetime.now(UTC).timestamp() * 1000
        seconds = (now_ms - parse_rfc3339(oldest)) / 1000 if oldest else 0.0
        return cls(backlog["events"], max(0.0, seconds), error["reason"] if error else "")

    def sentence(self, receiver: str) -> str:
        """Return the backlog as a sentence."""
        if not self.events:
            return "nothing is held up"
        why = f"{receiver} refuses ({self.last_error})" if self.last_error else "on the way"
        return f"{why}: {count(self.events, 'event')} on disk, oldest {self.oldest_seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Status and received data at one time."""

    status: dict[str, Any]  # daemon -> its part of /status; empty while the daemons do not run
    objects: int
    records: list[Usage]  # in the bucket
    states: list[str]  # that reached the queue
    alerts: list[Alert]  # that the control plane has

    def backlog(self, daemon: str) -> Backlog:
        """Return the backlog of a daemon; an empty one if it does not run."""
        return Backlog.of(self.status[daemon]) if daemon in self.status else Backlog()

    def held_up(self, daemon: str) -> int:
        """Return the number of messages of a daemon that its receiver does not accept."""
        backlog = self.backlog(daemon)
        return backlog.events if backlog.last_error else 0

    def has_sent_all(self, daemon: str) -> bool:
        """Return whether a daemon runs and has an empty backlog."""
        return daemon in self.status and not self.backlog(daemon).events

    @property
    def target_error(self) -> str:
        """Return the scraper's error of its target, or an empty string."""
        return str(self.status.get(SCRAPER, {}).get("target_error", ""))

    @property
    def webhook(self) -> str:
        """Return the forwarder's address; empty while it does not listen."""
        return str(self.status.get(FORWARDER, {}).get("webhook_address", ""))

    @property
    def restarts(self) -> int:
        """Return the number of records in the bucket that begin a new incarnation of the target."""
        return sum(usage.restart_observed for usage in self.records)

    def sentences(self) -> list[str]:
        """Return one line for each daemon."""
        usage, state, alerts = (
            self.backlog(daemon).sentence(receiver) if daemon in self.status else "does not run"
            for daemon, receiver in (
                (SCRAPER, "S3"),
                (EXPORTER, "SQS"),
                (FORWARDER, "the control plane"),
            )
        )
        return [
            f"usage   {usage}; in S3: {count(len(self.records), 'record')}",
            f"state   {state}; in SQS: {', '.join(self.states) or 'nothing'}",
            f"alerts  {alerts}; at the control plane: {len(self.alerts)}",
        ]


def count(number: int, noun: str) -> str:
    """Return `1 record` or `2 records`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
