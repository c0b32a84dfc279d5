"""Real Prometheus and Alertmanager before the forwarder, a control plane with faults behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from lab.real.alerts_lab import (
    AM_CONFIG,
    DUPLICATES,
    HOOK,
    PATIENCE_SECONDS,
    RELAYED,
    Forwarder,
    Plane,
    control_plane,
    daemon,
    metric,
    pair,
    raise_alert,
    reached,
)
from lab.real.parts.process import RealProcess, free_port
from lab.receiver import rejected

Started = Callable[[str], RealProcess]
PROMETHEUS_CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{alertmanager}"]}}]}}]}}
scrape_configs: [{{job_name: clickhouse, static_configs: [{{targets: ["127.0.0.1:{target}"]}}]}}]
"""
RULES = """
groups:
  - name: g
    rules:
      - alert: Watchdog
        expr: vector(1)
        labels: {severity: none}
      - alert: ClickHouseDown
        expr: up == 0
        labels: {severity: critical, team: secret-team}
        annotations: {summary: "{{ $labels.job }} is down", description: secret-description}
"""


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    async with control_plane() as plane:
        yield plane


@pytest.fixture
async def forwarder(plane: Plane, tmp_path: Path) -> AsyncIterator[Forwarder]:
    async with daemon(plane.url, tmp_path) as forwarder:
        yield forwarder


async def test_a_rule_that_fires_is_reported_and_so_is_its_end(
    plane: Plane, forwarder: Forwarder, alertmanager: Started, prometheus: Started, tmp_path: Path
) -> None:
    target = free_port()
    rules = tmp_path / "rules.yml"
    await asyncio.to_thread(rules.write_text, RULES)
    first = alertmanager(AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK))
    prometheus(PROMETHEUS_CONFIG.format(rules=rules, alertmanager=first.port, target=target))
    await plane.until(lambda: ("ClickHouseDown", "firing") in plane.delivered())
    await plane.until(lambda: plane.of("byoc.alert.watchdog.v1"))

    async def scraped(_: web.Request) -> web.Response:
        return web.Response(text="up_again 1\n")

    app = web.Application()
    app.router.add_get("/metrics", scraped)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", target).start()
    try:
        await plane.until(lambda: ("ClickHouseDown", "resolved") in plane.delivered())
    finally:
        await runner.cleanup()
    assert plane.delivered() == [("ClickHouseDown", "firing"), ("ClickHouseDown", "resolved")]
    began, ended = plane.of("byoc.alert.v1")
    assert began["starts_at"] == ended["starts_at"] < ended["ends_at"]
    assert began["annotations"] == {"summary": "clickhouse is down"}
    assert began["labels"] == {"alertname": "ClickHouseDown", "severity": "critical"}
    assert b"secret-" not in b"".join(plane.receiver.bodies)
    assert plane.of("byoc.alert.heartbeat.v1")


def answers(status: int, **headers: str) -> Callable[[int, web.Request], web.Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _number, _request: web.Response(status=status, headers=named)


def cut(_number: int, request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


TRANSIENT = {
    "401": answers(401),
    "403": answers(403),
    "404": answers(404),
    "429": answers(429, Retry_After="1"),
    "500": answers(500),
    "503": answers(503, Retry_After="1"),
    "redirect": answers(307, Location="http://127.0.0.1:9/elsewhere"),
    "cut": cut,
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT.keys())
async def test_whatever_the_control_plane_answers_each_alert_is_reported_once_and_in_order(
    plane: Plane,
    forwarder: Forwarder,
    alertmanager: Started,
    fault: Callable[[int, web.Request], web.Response],
) -> None:
    first = alertmanager(AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK))
    plane.fault = fault
    before = plane.receiver.requests
    for number, (name, ended) in enumerate([("A", False), ("B", False), ("A", True)], start=1):
        await raise_alert(first, name, ended=ended)
        await reached(forwarder, RELAYED, number)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while plane.receiver.requests < before + 2:  # noqa: ASYNC110  faults wake nobody
            await asyncio.sleep(0.05)
    assert plane.delivered() == []
    plane.fault = lambda _number, _request: None
    await plane.until(lambda: len(plane.delivered()) == 3)
    assert plane.delivered() == [("A", "firing"), ("B", "firing"), ("A", "resolved")]
    assert metric(forwarder, "byoc_dead_letters_total") == 0


async def test_the_control_plane_is_away_while_the_forwarder_is_killed_and_comes_back(
    plane: Plane, forwarder: Forwarder, alertmanager: Started
) -> None:
    first = alertmanager(AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK))
    plane.fault = cut
    await raise_alert(first, "A")
    await reached(forwarder, RELAYED, 1)
    forwarder.process.kill()
    await raise_alert(first, "B")
    forwarder.process.start()
    plane.fault = lambda _number, _request: None
    await plane.until(lambda: len(plane.delivered()) == 2)
    await raise_alert(first, "A", ended=True)
    await plane.until(lambda: len(plane.delivered()) == 3)
    assert plane.delivered() == [("A", "firing"), ("B", "firing"), ("A", "resolved")]


@pytest.mark.parametrize("status", [413, 422])
async def test_one_rejected_event_is_a_dead_letter_and_the_others_are_delivered(
    plane: Plane, forwarder: Forwarder, alertmanager: Started, status: int
) -> None:
    first = alertmanager(AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK))
    await plane.until(lambda: plane.of("byoc.alert.heartbeat.v1"))
    plane.fault = lambda _number, request: (
        rejected(request, status) if b'"alertname":"A"' in plane.receiver.last_body else None
    )
    await raise_alert(first, "A")
    held = 'byoc_send_attempts_total{daemon="alert-forwarder",result="rejects_all"}'
    await reached(forwarder, held, 1)
    await raise_alert(first, "B")
    await plane.until(plane.delivered)
    assert plane.delivered() == [("B", "firing")]
    await reached(forwarder, "byoc_dead_letters_total{", 1)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_control_plane_that_rejects_everything_is_held_and_loses_nothing(
    plane: Plane, forwarder: Forwarder, alertmanager: Started, status: int
) -> None:
    first = alertmanager(AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK))
    await plane.until(lambda: plane.of("byoc.alert.heartbeat.v1"))
    plane.fault = lambda _number, request: (
        web.Response(status=400) if status == 400 else rejected(request, status)
    )
    await raise_alert(first, "A")
    held = "bad_response" if status == 400 else "rejects_all"
    await reached(
        forwarder, f'byoc_send_attempts_total{{daemon="alert-forwarder",result="{held}"}}', 1
    )
    assert metric(forwarder, "byoc_dead_letters_total") == 0
    plane.fault = lambda _number, _request: None
    await plane.until(plane.delivered)
    assert plane.delivered() == [("A", "firing")]


@pytest.mark.parametrize("gossip", [True, False], ids=["in sight", "out of sight"])
async def test_two_alertmanagers_report_once(
    plane: Plane, forwarder: Forwarder, tmp_path: Path, gossip: bool
) -> None:
    config = AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK)
    with pair(tmp_path, config, gossip=gossip) as (one, other):
        for peer in (one, other):
            await raise_alert(peer, "A")
        await plane.until(plane.delivered)
        if not gossip:
            await reached(forwarder, DUPLICATES, 1)
        one.kill()
        await raise_alert(other, "B")
        await plane.until(lambda: len(plane.delivered()) == 2)
        await raise_alert(other, "A", ended=True)
        await plane.until(lambda: len(plane.delivered()) == 3)
    assert plane.delivered() == [("A", "firing"), ("B", "firing"), ("A", "resolved")]
    assert plane.receiver.duplicates == 0
