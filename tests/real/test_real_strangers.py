"""Unknown clients against the daemons in the chart's memory limit, and genuine ones among them."""

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.fakes.http import WEBHOOK_TOKEN
from lab.real.alerts_lab import AM_CONFIG
from lab.real.parts.process import DIRECT, RealProcess
from lab.real.scraper import eventually
from lab.strangers import (
    DAEMONS,
    PEAK_BYTES,
    RESPONSE_SECONDS,
    Scenario,
    Strangers,
    allow_connections,
    limited,
    measure,
    peak_resident_bytes,
    plan,
    scenarios,
)

pytestmark = pytest.mark.quiet
PLAN = list(plan(DAEMONS))
Started = Callable[[str], RealProcess]


@pytest.mark.parametrize(
    ("daemon", "port", "scenario"), PLAN, ids=[f"{d}-{p}-{s.name}" for d, p, s in PLAN]
)
def test_no_unknown_client_ends_a_daemon_or_keeps_a_genuine_one_out(
    daemon: str, port: str, scenario: Scenario
) -> None:
    allow_connections()
    figures = measure(daemon, port, scenario)
    assert figures.holds, figures


@pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.name)
def test_a_real_alertmanager_delivers_among_unknown_clients(
    scenario: Scenario, alertmanager: Started, tmp_path: Path
) -> None:
    """Those with the token are left out: their own notifications are accepted as well."""
    allow_connections()
    with limited("alert-forwarder", tmp_path) as running:
        theirs = alertmanager(AM_CONFIG.format(port=running.ports["webhook"], hook=WEBHOOK_TOKEN))
        first = "POST /v1/alerts HTTP/1.1"
        strangers = Strangers(running.ports["webhook"], scenario, first)
        strangers.start()
        try:
            eventually(lambda: strangers.opened >= scenario.connections)
            began = time.monotonic()
            post_alert(theirs.url)
            pages = f"http://127.0.0.1:{running.ports['admin']}"
            eventually(lambda: notified(pages))
            seconds = time.monotonic() - began
        finally:
            strangers.stop()
        assert running.process.poll() is None
        assert peak_resident_bytes(running.process.pid) < PEAK_BYTES
    assert seconds < RESPONSE_SECONDS


def post_alert(alertmanager: str) -> None:
    alert = {"labels": {"alertname": "Down", "severity": "critical"}}
    request = urllib.request.Request(
        f"{alertmanager}/api/v2/alerts",
        data=json.dumps([alert]).encode(),
        headers={"Content-Type": "application/json"},
    )
    with DIRECT.open(request, timeout=10) as response:
        assert response.status == 200


def notified(pages: str) -> bool:
    """Return whether Alertmanager's notification was accepted."""
    with DIRECT.open(f"{pages}/status", timeout=10) as response:
        return bool(json.load(response)["daemons"]["alert-forwarder"]["last_notification"])
