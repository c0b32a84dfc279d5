"""Alerts that fire again with their old start, out-of-date copies, and ends that never come."""

import asyncio
import datetime as dt
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lab.real.alerts_lab import (
    AM_CONFIG,
    HOOK,
    Plane,
    control_plane,
    daemon,
    metric,
    pair,
    post,
    reached,
)
from lab.real.parts.process import RealProcess, free_port

Started = Callable[[str], RealProcess]
REOPEN_SECONDS = 16  # Alertmanager's shortest: 10 s for a notification, 2 s for a peer, one flush
SETTINGS = {
    "BYOC_ALERTS_REOPEN_SECONDS": str(REOPEN_SECONDS),
    "BYOC_ALERTS_REMINDER_SECONDS": "60",
    "BYOC_ALERTS_HEARTBEAT_SECONDS": "1",
}
RECEIVED = 'byoc_alerts_received_total{{daemon="alert-forwarder",outcome="{}"}}'
PROMETHEUS_CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
alerting:
  alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{one}", "127.0.0.1:{other}"]}}]}}]
scrape_configs: [{{job_name: clickhouse, static_configs: [{{targets: ["127.0.0.1:{target}"]}}]}}]
"""
RULES = """
groups:
  - name: g
    rules:
      - {alert: ClickHouseDown, expr: up == 0, labels: {severity: critical}}
"""


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    async with control_plane() as plane:
        yield plane


def statuses(plane: Plane) -> list[str]:
    """Return the reported statuses, `reminder` for a firing that was reported before."""
    return [
        "reminder" if data["notification"] == "reminder" else data["status"]
        for data in plane.of("byoc.alert.v1")
    ]


@asynccontextmanager
async def target_up(port: int) -> AsyncIterator[None]:
    async def scraped(_: web.Request) -> web.Response:
        return web.Response(text="up_again 1\n")

    app = web.Application()
    app.router.add_get("/metrics", scraped)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("gossip", [True, False], ids=["in sight", "out of sight"])
async def test_prometheus_is_silent_for_a_while_and_the_alert_fires_again_with_its_start(
    plane: Plane, prometheus: Started, tmp_path: Path, *, gossip: bool
) -> None:
    """Both Alertmanagers end it meanwhile; the forwarder is killed before it is confirmed."""
    target, rules = free_port(), tmp_path / "rules.yml"
    await asyncio.to_thread(rules.write_text, RULES)
    async with daemon(plane.url, tmp_path, **SETTINGS) as forwarder:
        config = AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK)
        config = config.replace("repeat_interval: 1h", "repeat_interval: 20s")
        with pair(tmp_path, config, gossip=gossip) as (one, other):
            ports = {"one": one.port, "other": other.port, "target": target}
            sender = prometheus(PROMETHEUS_CONFIG.format(rules=rules, **ports))
            await plane.until(lambda: statuses(plane) == ["firing"])
            os.killpg(sender.pid, signal.SIGSTOP)
            try:
                await plane.until(lambda: statuses(plane) == ["firing", "resolved"])
            finally:
                os.killpg(sender.pid, signal.SIGCONT)
            await reached(forwarder, RECEIVED.format("unconfirmed"), 1)
            forwarder.process.kill()
            forwarder.process.start()
            await plane.until(lambda: statuses(plane)[2:] == ["firing"])
            await plane.until(lambda: statuses(plane)[3:] == ["reminder"], 120)
            async with target_up(target):
                await plane.until(lambda: statuses(plane)[-1] == "resolved")
                # It fires again as soon as the target is down.
                found, alerts = statuses(plane), plane.of("byoc.alert.v1")
    assert [one for one in found if one != "reminder"] == ["firing", "resolved"] * 2
    assert len({data["starts_at"] for data in alerts}) == 1
    assert alerts[1]["ends_at"] < alerts[2]["received_at"] < alerts[-1]["ends_at"]
    assert plane.receiver.duplicates == 0
    assert plane.receiver.mismatches == {}


@dataclass
class Held:
    """A relay between a peer and the forwarder: connections wait until they are let through."""

    forwarder_port: int
    port: int = 0
    let_through: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.waiting.set()
        await self.let_through.wait()
        answers, requests = await asyncio.open_connection("127.0.0.1", self.forwarder_port)
        await asyncio.gather(_pipe(reader, requests), _pipe(answers, writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def held(forwarder_port: int) -> AsyncIterator[Held]:
    between = Held(forwarder_port)
    async with await asyncio.start_server(between.carry, "127.0.0.1", 0) as server:
        between.port = server.sockets[0].getsockname()[1]
        yield between


def down(starts: dt.datetime, ends: dt.datetime) -> list[dict[str, Any]]:
    labels = {"alertname": "A", "severity": "critical"}
    return [{"labels": labels, "startsAt": starts.isoformat(), "endsAt": ends.isoformat()}]


async def tell(peers: list[RealProcess], alerts: list[dict[str, Any]]) -> None:
    """Do as Prometheus does: tell every Alertmanager the same."""
    for peer in peers:
        await asyncio.to_thread(post, f"{peer.url}/api/v2/alerts", alerts)


async def test_an_out_of_date_copy_of_a_peer_is_taken_back_and_stays_silent(
    plane: Plane, tmp_path: Path
) -> None:
    async with (
        daemon(plane.url, tmp_path, **SETTINGS) as forwarder,
        held(forwarder.webhook_port) as between,
    ):
        configs = [
            AM_CONFIG.format(port=port, hook=HOOK)
            for port in (forwarder.webhook_port, between.port)
        ]
        with pair(tmp_path, *configs, gossip=False) as peers:
            starts = dt.datetime.now(tz=dt.UTC) - dt.timedelta(seconds=5)
            await tell(peers, down(starts, starts + dt.timedelta(minutes=5)))
            await plane.until(lambda: statuses(plane) == ["firing"])
            await between.waiting.wait()
            await tell(peers, down(starts, dt.datetime.now(tz=dt.UTC)))
            await plane.until(lambda: statuses(plane) == ["firing", "resolved"])
            between.let_through.set()
            await reached(forwarder, RECEIVED.format("unconfirmed"), 1)
            await reached(forwarder, RECEIVED.format("duplicate"), 1)
            beats = len(plane.of("byoc.alert.heartbeat.v1"))
            await plane.until(
                lambda: len(plane.of("byoc.alert.heartbeat.v1")) > beats + REOPEN_SECONDS + 2
            )
    assert statuses(plane) == ["firing", "resolved"]
    assert plane.of("byoc.alert.heartbeat.v1")[-1]["open_episodes"] == 0
    assert plane.receiver.mismatches == {}


async def test_an_alert_that_fires_again_within_seconds_is_reported_and_so_is_its_end(
    plane: Plane, alertmanager: Started, tmp_path: Path
) -> None:
    """As with two Prometheus servers, of which one takes the alert for over."""
    async with daemon(plane.url, tmp_path, **SETTINGS) as forwarder:
        peers = [alertmanager(AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK))]
        starts = dt.datetime.now(tz=dt.UTC) - dt.timedelta(seconds=20)
        later = dt.timedelta(seconds=7)
        for start in (starts, starts + later):
            await tell(peers, down(start, starts + dt.timedelta(minutes=5)))
        await plane.until(lambda: statuses(plane) == ["firing"])
        await tell(peers, down(starts, dt.datetime.now(tz=dt.UTC)))
        await plane.until(lambda: statuses(plane) == ["firing", "resolved"])
        await tell(peers, down(starts + later, starts + dt.timedelta(minutes=5)))
        await plane.until(lambda: statuses(plane) == ["firing", "resolved", "firing"])
        await tell(peers, down(starts + later, dt.datetime.now(tz=dt.UTC)))
        await plane.until(lambda: statuses(plane) == ["firing", "resolved"] * 2)
    assert plane.receiver.mismatches == {}
    assert len(plane.receiver.events) == len(plane.seen)


async def test_alertmanager_loses_its_memory_and_the_episode_before_is_ended(
    plane: Plane, alertmanager: Started, tmp_path: Path
) -> None:
    async with daemon(plane.url, tmp_path, **SETTINGS) as forwarder:
        first = alertmanager(AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK))
        starts = dt.datetime.now(tz=dt.UTC) - dt.timedelta(seconds=20)
        await tell([first], down(starts, starts + dt.timedelta(minutes=5)))
        await plane.until(lambda: statuses(plane) == ["firing"])
        first.kill()
        first.start()
        again = starts + dt.timedelta(seconds=15)
        await tell([first], down(again, starts + dt.timedelta(minutes=5)))
        await plane.until(lambda: statuses(plane) == ["firing", "resolved", "firing"])
        await tell([first], down(again, dt.datetime.now(tz=dt.UTC)))
        await plane.until(lambda: statuses(plane) == ["firing", "resolved"] * 2)
    alerts = plane.of("byoc.alert.v1")
    assert [data["end_inferred"] for data in alerts] == [False, True, False, False]
    assert alerts[0]["starts_at"] == alerts[1]["starts_at"] < alerts[2]["starts_at"]


async def test_an_end_while_silenced_is_not_reported_and_the_heartbeat_still_counts_it(
    plane: Plane, alertmanager: Started, tmp_path: Path
) -> None:
    """Alertmanager says nothing: the contract's two hours are what ends the belief in it."""
    async with daemon(plane.url, tmp_path, **SETTINGS) as forwarder:
        first = alertmanager(AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK))
        now = dt.datetime.now(tz=dt.UTC)
        starts = now - dt.timedelta(seconds=5)
        await tell([first], down(starts, starts + dt.timedelta(minutes=5)))
        await plane.until(lambda: statuses(plane) == ["firing"])
        silence = {
            "matchers": [{"name": "alertname", "value": "A", "isRegex": False}],
            "startsAt": now.isoformat(),
            "endsAt": (now + dt.timedelta(minutes=5)).isoformat(),
            "createdBy": "test",
            "comment": "test",
        }
        await asyncio.to_thread(post, f"{first.url}/api/v2/silences", silence)
        await tell([first], down(starts, dt.datetime.now(tz=dt.UTC)))
        beats = len(plane.of("byoc.alert.heartbeat.v1"))
        await plane.until(lambda: len(plane.of("byoc.alert.heartbeat.v1")) > beats + 5)
        assert metric(forwarder, RECEIVED.format("relayed")) == 1
    assert plane.of("byoc.alert.heartbeat.v1")[-1]["open_episodes"] == 1
    (episodes,) = plane.receiver.episodes.values()
    received_ms = int(now.timestamp() * 1000)
    assert set(episodes.states(received_ms).values()) == {"firing"}
    assert set(episodes.states(received_ms + 7_300_000).values()) == {"unknown"}
