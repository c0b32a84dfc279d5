"""Send notifications as Alertmanager does, in version 4 of its webhook."""

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from byoc_agents.alerts.payload import Status
from byoc_agents.app.cloudevents import rfc3339
from lab.demo.process import DemoError
from lab.fakes.http import WEBHOOK_HEADERS

NEVER = "0001-01-01T00:00:00Z"  # endsAt while an alert fires
PRIVATE = "sql-of-a-customer"  # appears in every field that is not on the allow-list


@dataclass(slots=True)
class Alertmanager:
    """Notifies the forwarder of one alert at a time. `accepted` are those answered with 200."""

    session: aiohttp.ClientSession
    accepted: list[tuple[str, str]] = field(default_factory=list)  # alertname, status
    _began_ms: dict[str, int] = field(default_factory=dict)

    async def notify(self, webhook: str, name: str, status: Status) -> None:
        """Post one notification. Raises DemoError if it is not accepted."""
        now_ms = time.time_ns() // 1_000_000
        began_ms = self._began_ms.setdefault(name, now_ms)
        body = notification(name, began_ms, now_ms if status == "resolved" else None)
        async with self.session.post(
            f"http://{webhook}/v1/alerts", json=body, headers=WEBHOOK_HEADERS
        ) as response:
            if response.status != 200:
                raise DemoError(f"the forwarder answers {response.status} to a notification")
        self.accepted.append((name, status))


def notification(name: str, began_ms: int, ended_ms: int | None) -> dict[str, Any]:
    """Return a notification of one alert. Times in ms since 1970; no end = it is firing."""
    status = "firing" if ended_ms is None else "resolved"
    labels = {"alertname": name, "severity": "critical", "query": PRIVATE}
    alert = {
        "status": status,
        "labels": labels,
        "annotations": {"summary": f"{name} on demo-replica-0", "description": PRIVATE},
        "startsAt": rfc3339(began_ms),
        "endsAt": NEVER if ended_ms is None else rfc3339(ended_ms),
        "generatorURL": f"http://prometheus.invalid/graph?g0.expr={PRIVATE}",
        "fingerprint": hashlib.sha256(name.encode()).hexdigest()[:16],
    }
    return {
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{name}"}}',
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "byoc",
        "groupLabels": {"alertname": name},
        "commonLabels": labels,
        "commonAnnotations": alert["annotations"],
        "externalURL": "http://alertmanager.invalid",
        "alerts": [alert],
    }
