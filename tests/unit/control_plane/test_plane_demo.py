"""`make control-plane ARGS=--once` ends only after each stream and each head has arrived."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from byoc_agents import __version__
from lab.control_plane.__main__ import AGENTS, HEADS, STREAMS, RunRows, wait_until_all_arrive
from lab.control_plane.memory_store import MemoryStore
from lab.demo.daemons import Daemons
from lab.demo.process import DemoError

SERVICE = "demo-service-1"
ROOT = "r" * 43 + "="
DAEMONS = ("alert-forwarder", "state-exporter")
CI = Path(__file__).parents[3] / ".ci" / "run"


def arrived() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each query when everything has arrived."""
    found: dict[str, list[dict[str, Any]]] = {query: [{"n": 1}] for query in STREAMS.values()}
    described = {"agent_version": __version__, "configuration_sha256": "0" * 64}
    described |= {"ledger_size": "1", "ledger_root": ROOT}
    found[AGENTS] = [{"daemon": daemon} | described for daemon in DAEMONS]
    found[HEADS] = [{"daemon": daemon, "head": "1"} for daemon in DAEMONS]
    return {query.format(service=SERVICE): rows for query, rows in found.items()}


async def is_complete(rows: dict[str, list[dict[str, Any]]]) -> bool:
    store = MemoryStore()
    store.results = list(rows.items())
    return await RunRows(store, SERVICE).are_complete()


async def test_it_ends_when_everything_has_arrived() -> None:
    assert await is_complete(arrived())


@pytest.mark.parametrize("table", STREAMS)
async def test_it_does_not_end_without_a_row_of_each_stream(table: str) -> None:
    query = STREAMS[table].format(service=SERVICE)
    assert not await is_complete(arrived() | {query: [{"n": 0}]})


@pytest.mark.parametrize("daemon", DAEMONS)
@pytest.mark.parametrize("query", [AGENTS, HEADS])
async def test_it_does_not_end_without_the_heads_of_both_daemons(query: str, daemon: str) -> None:
    rows, asked = arrived(), query.format(service=SERVICE)
    rows[asked] = [row for row in rows[asked] if row["daemon"] != daemon]
    assert not await is_complete(rows)


async def test_rows_that_do_not_arrive_show_the_logs_that_are_deleted(tmp_path: Path) -> None:
    for name in ("agents-1.log", "control-plane.log"):
        (tmp_path / name).write_text("".join(f"{name} line {line}\n" for line in range(20)))
    store = MemoryStore()
    store.results = list((arrived() | {HEADS.format(service=SERVICE): []}).items())
    with pytest.raises(DemoError) as raised:
        await wait_until_all_arrive(RunRows(store, SERVICE), tmp_path, seconds=0.01)
    said = str(raised.value)
    assert "not all streams arrived: " in said
    assert "agents-1.log line 19" in said
    assert "control-plane.log line 19" in said
    assert str(tmp_path) not in said


async def test_daemons_that_ended_show_their_last_lines(tmp_path: Path) -> None:
    """They are killed from outside, so stopping them finds an exit code that is not 0."""
    settings = {
        "BYOC_LISTEN": "127.0.0.1:0",
        "BYOC_ORGANIZATION_ID": "org-1",
        "BYOC_SERVICE_ID": "svc-1",
        "BYOC_REPLICA": "r-0",
        "BYOC_REGION": "eu-central-1",
        "BYOC_STATE_QUEUE_URL": "http://127.0.0.1:1/111122223333/state.fifo",
        "BYOC_CLICKHOUSE_URL": "http://127.0.0.1:1/",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    async with (
        aiohttp.ClientSession() as session,
        Daemons(["state-exporter"], settings, tmp_path, session) as daemons,
    ):
        await daemons.start()
        assert daemons.child is not None
        daemons.child.kill()
        await daemons.child.wait()
        with pytest.raises(DemoError) as raised:
            await daemons.status()
    said = str(raised.value)
    assert "exit code -9" in said
    assert daemons.log.read_text().splitlines()[-1] in said


def test_ci_runs_exactly_the_documented_command() -> None:
    text = CI.read_text()
    assert 'make "$@"' in text
    assert "phase control-plane ARGS=--once\n" in text
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text  # a phase that fails ends the run
