"""`make control-plane ARGS=--once` ends only after each stream and each head has arrived."""

from pathlib import Path
from typing import Any

import pytest

from byoc_agents import __version__
from lab.control_plane.__main__ import AGENTS, HEADS, STREAMS, RunRows
from lab.control_plane.memory_store import MemoryStore

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


def test_ci_runs_exactly_the_documented_command() -> None:
    text = CI.read_text()
    assert 'make "$@"' in text
    assert "phase control-plane ARGS=--once\n" in text
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text  # a phase that fails ends the run
