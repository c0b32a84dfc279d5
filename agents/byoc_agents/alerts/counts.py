"""What came in at the webhook, and what became of it, counted."""

from functools import cache
from typing import Literal

from byoc_agents.app.metrics import Metrics

AlertOutcome = Literal[
    "relayed", "reminder", "duplicate", "unconfirmed", "watchdog", "not_selected", "odd"
]
FATES: tuple[AlertOutcome, ...] = (
    "relayed",
    "reminder",
    "duplicate",
    "unconfirmed",
    "watchdog",
    "not_selected",
    "odd",
)


class Counts:
    """Counters with the label `agent`; every fate exists from the start."""

    def __init__(self, metrics: Metrics, agent: str) -> None:
        self._alerts = {fate: metrics.alerts.labels(agent, fate) for fate in FATES}
        self._requests = cache(lambda status: metrics.alerts_requests.labels(agent, str(status)))
        self._truncated = metrics.alerts_truncated.labels(agent)

    def alerts(self, fate: AlertOutcome, number: int = 1) -> None:
        """Count alerts."""
        self._alerts[fate].inc(number)

    def request(self, status: int) -> None:
        """Count an answered request."""
        self._requests(status).inc()

    def truncated(self, number: int) -> None:
        """Count alerts that Alertmanager did not show."""
        self._truncated.inc(number)
