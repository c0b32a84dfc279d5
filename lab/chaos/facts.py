"""Record Alertmanager's notifications and their outcomes, without keeping the requests."""

import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from byoc_agents.app.cloudevents import parse_rfc3339
from lab.fakes.http import Reply, Request

FULL = 503  # the forwarder's response if its spool is full
FINGERPRINT_SECRET = "f" * 32


@dataclass(frozen=True)
class Fact:
    """One notification of Alertmanager about one alert."""

    fingerprint: str
    starts_at_ms: int
    status: str


def fact(fingerprint: str, starts_at: str, status: str) -> Fact:
    """Return a fact with its time as a number: one time can have several texts."""
    return Fact(fingerprint, parse_rfc3339(starts_at), status)


@dataclass
class Notified:
    """The notifications that passed on the way to the forwarder."""

    offered: set[Fact] = field(default_factory=set)  # that reached the forwarder
    accepted: set[Fact] = field(default_factory=set)  # and were answered with 2xx
    turned_away: int = 0  # notifications answered with 503

    def given(self, request: Request) -> None:
        """Record each request to the forwarder, whatever its outcome."""
        self.offered.update(_facts(request))

    def taken(self, request: Request, reply: Reply) -> None:
        """Record the forwarder's response."""
        self.turned_away += reply.status == FULL
        if 200 <= reply.status < 300:
            self.accepted.update(_facts(request))


def _facts(request: Request) -> Iterator[Fact]:
    for one in json.loads(request.body)["alerts"]:
        yield fact(keyed(one["fingerprint"]), one["startsAt"], one["status"])


def keyed(fingerprint: str) -> str:
    """Return the fingerprint under which the forwarder reports an alert."""
    message = f"fingerprint\n{fingerprint}".encode()
    return hmac.digest(FINGERPRINT_SECRET.encode(), message, "sha256").hex()[:16]
