"""Counters of received alerts by outcome, and of answered webhook requests."""

from functools import cache
from typing import Literal

from byoc_agents.app.metrics import Metrics

AlertOutcome = Literal[
    "relayed", "reminder", "duplicate", "unconfirmed", "watchdog", "not_selected", "invalid"
]
OUTCOMES: tuple[AlertOutcome, ...] = (
    "relayed",
    "reminder",
    "duplicate",
    "unconfirmed",
    "watchdog",
    "not_selected",
    "invalid",
)


class Counts:
    """Counters with the label `daemon`; every outcome is exported from the start."""

    def __init__(self, metrics: Metrics, daemon: str) -> None:
        self._alerts = {
            outcome: metrics.alerts_received.labels(daemon, outcome) for outcome in OUTCOMES
        }
        self._requests = cache(lambda code: metrics.webhook_requests.labels(daemon, str(code)))
        self._truncated = metrics.alerts_truncated.labels(daemon)
        self._budget_bytes = metrics.alerts_budget_bytes.labels(daemon)
        self._budget_used_bytes = metrics.alerts_budget_used_bytes.labels(daemon)
        self._refusals_by_budget = metrics.alerts_budget_refusals.labels(daemon)

    def alerts(self, outcome: AlertOutcome, number: int = 1) -> None:
        """Count alerts."""
        self._alerts[outcome].inc(number)

    def request(self, status: int) -> None:
        """Count an answered request."""
        self._requests(status).inc()

    def add_truncated(self, number: int) -> None:
        """Count alerts that Alertmanager left out of a notification."""
        self._truncated.inc(number)

    def budget(self, used_bytes: int, daily_bytes: int) -> None:
        """Set the day's budget and how much of it is used."""
        self._budget_bytes.set(daily_bytes)
        self._budget_used_bytes.set(used_bytes)

    def add_refusal_by_budget(self) -> None:
        """Count a notification, or a delayed report, that the budget refused."""
        self._refusals_by_budget.inc()
