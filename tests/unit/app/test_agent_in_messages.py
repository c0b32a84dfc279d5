"""What the messages of running daemons say of their agent: version, configuration and ledger."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from byoc_agents import __version__
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.run import configure, daemon_spec
from byoc_agents.app.runtime import Runtime
from byoc_agents.egress.gate import Gate
from byoc_agents.ledger.heads import parse_heads
from byoc_agents.ledger.verify import verify
from byoc_agents.sinks.directory import TEMPORARY
from lab.fakes.state import HEALTHY, FakeClickHouse
from lab.receiver import Receiver, listening
from tests.unit.alerts.forwarder_settings import CORE, OUTWARD, OWN, SECRET

LIMIT_SECONDS = 20.0
CONFIGURATION = "c0ffee" + "5" * 58  # as `run` passes it on


async def run_until_three(
    name: str, environ: dict[str, str], arrived: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Run a daemon until three heartbeats have arrived; return their `data.agent`."""
    made = configure([name], environ)
    runtime = Runtime(
        core=made.core,
        environ=environ,
        gate=Gate(made.destinations, allow_insecure=True),
        clock=SystemClock(),
        metrics=Metrics(),
        configuration_sha256=CONFIGURATION,
    )
    opened = daemon_spec(name).open_daemon(runtime, made.clickhouse, made.daemons[name])
    async with opened as daemon:
        stop = asyncio.Event()
        task = asyncio.create_task(daemon.run(stop, 5.0))
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                while len(arrived()) < 3:  # noqa: ASYNC110  the daemon has no event for it
                    await asyncio.sleep(0.05)
        finally:
            stop.set()
            await task
    return [data["agent"] for data in arrived()]


def confirmed(place: Path, name: str, agents: list[dict[str, Any]]) -> None:
    """Each message names this version and configuration, and a head that its ledger has had."""
    assert {(one["version"], one["configuration_sha256"]) for one in agents} == {
        (__version__, CONFIGURATION)
    }
    heads = {(one["ledger_size"], one["ledger_root"]) for one in agents}
    assert min(size for size, _ in heads) > 0
    assert len(heads) > 1, "a send adds lines to the ledger"
    text = "".join(f"{size} {root}\n" for size, root in heads)
    verdict = verify(place / "state" / name / "ledger", parse_heads(text))
    assert verdict.ok, verdict.problems
    assert verdict.heads == len(heads)


async def test_each_heartbeat_of_the_exporter_has_the_head_of_its_ledger(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.mkdir()

    def arrived() -> list[dict[str, Any]]:
        files = [path for path in sent.rglob("*") if path.is_file()]
        whole = [path for path in files if not path.name.startswith(TEMPORARY)]
        return [json.loads(path.read_bytes())["data"] for path in whole]

    async with FakeClickHouse() as clickhouse:
        clickhouse.server.rows |= HEALTHY
        environ = CORE | {
            "BYOC_STATE_DIR": str(tmp_path / "state"),
            "BYOC_STATE_QUEUE_URL": f"file://{sent}",
            "BYOC_STATE_POLL_SECONDS": "0.1",
            "BYOC_STATE_HEARTBEAT_SECONDS": "1",
            "BYOC_CLICKHOUSE_URL": clickhouse.url,
        }
        agents = await run_until_three("state-exporter", environ, arrived)
    confirmed(tmp_path, "state-exporter", agents)


async def test_each_heartbeat_of_the_forwarder_has_the_head_of_its_ledger(tmp_path: Path) -> None:
    receiver = Receiver(OUTWARD, SECRET, clock=SystemClock())

    def arrived() -> list[dict[str, Any]]:
        return [event["data"] for event in receiver.events.values()]

    async with listening(receiver) as url:
        environ = (
            CORE
            | OWN
            | {
                "BYOC_STATE_DIR": str(tmp_path / "state"),
                "BYOC_ALERTS_URL": url,
                "BYOC_ALERTS_HEARTBEAT_SECONDS": "1",
                "BYOC_ALLOW_INSECURE_ENDPOINTS": "true",
            }
        )
        agents = await run_until_three("alert-forwarder", environ, arrived)
    confirmed(tmp_path, "alert-forwarder", agents)
