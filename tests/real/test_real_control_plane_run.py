"""`make control-plane ARGS=--once`, and what a person sees who configures it wrongly."""

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from byoc_agents import __version__
from byoc_control_plane.store import HttpStore, fetch_rows
from lab.control_plane.__main__ import running_store
from lab.control_plane.processes import ROOT, plane_environment

pytestmark = pytest.mark.real


def run(*argv: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BYOC_"))}
    return subprocess.run(
        [sys.executable, "-m", *argv],
        cwd=ROOT,
        env=environ | plane_environment() | settings,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_rows_of_all_three_streams_are_read_back_and_it_ends_with_0() -> None:
    done = run("lab.control_plane", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("read back")]
    for table in ("byoc_usage", "byoc_state", "byoc_alerts"):
        assert f"{table} " in line
        assert f"{table} 0 " not in line
    assert '"replica": "demo-replica-0", "state": "running"' in done.stdout
    shown = [json.loads(line) for line in done.stdout.splitlines() if '"ledger_root"' in line]
    assert [row["daemon"] for row in shown] == ["alert-forwarder", "state-exporter"]
    for row in shown:
        assert row["agent_version"] == __version__
        assert re.fullmatch(r"[0-9a-f]{64}", row["configuration_sha256"])
        assert int(row["ledger_size"]) > 0
        assert len(base64.b64decode(row["ledger_root"])) == 32
    (heads,) = re.findall(r"^heads    (\d+) confirmed by the ledgers$", done.stdout, re.MULTILINE)
    assert int(heads) >= 2


async def test_a_second_run_into_one_store_reads_back_its_own_rows_only(tmp_path: Path) -> None:
    counts = [
        "SELECT count() AS n FROM byoc_usage FINAL WHERE service_id = '{}'",
        "SELECT count() AS n FROM byoc_state FINAL WHERE service_id = '{}'",
        "SELECT count() AS n FROM byoc_alerts FINAL WHERE service_id = '{}' AND fingerprint != ''",
    ]
    services = []
    async with running_store(tmp_path, "") as url, aiohttp.ClientSession() as session:
        store = HttpStore(url, session)
        for _ in range(2):
            done = await asyncio.to_thread(run, "lab.control_plane", "--once", "--store", url)
            assert done.returncode == 0, done.stdout + done.stderr
            (service,) = re.findall(r"^service  (\S+)$", done.stdout, re.MULTILINE)
            services.append(service)
            (line,) = [line for line in done.stdout.splitlines() if line.startswith("read back")]
            shown = [int(number) for number in re.findall(r" (\d+) rows", line)]
            found = [(await fetch_rows(store, one.format(service)))[0]["n"] for one in counts]
            # The daemons send on until they stop, after the rows have been counted.
            assert all(0 < few <= all_ for few, all_ in zip(shown, found, strict=True))
            heads = re.findall(r"^heads    (\d+) confirmed", done.stdout, re.MULTILINE)
            assert int(heads[0]) >= 2
        query = "SELECT DISTINCT service_id FROM byoc_usage ORDER BY service_id"
        assert [row["service_id"] for row in await fetch_rows(store, query)] == sorted(services)
    assert len(set(services)) == 2


async def test_a_store_that_does_not_respond_is_named() -> None:
    done = await asyncio.to_thread(
        run, "lab.control_plane", "--once", "--store", "http://127.0.0.1:9/"
    )
    assert done.returncode == 1
    assert "ClickHouse does not respond" in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_in_settings_are_reported_together() -> None:
    done = run(
        *("byoc_control_plane", "run", "receiver", "consumer"),
        BYOC_PLANE_STORE_URL="ftp://x",
        BYOC_PLANE_LOOPS="9",
        BYOC_PLANE_TOKEN="t",
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert any(
        line.startswith("BYOC_PLANE_STORE_URL: invalid value 'ftp://x'") and "expected" in line
        for line in lines
    )
    assert any(line.startswith("BYOC_PLANE_LOOPS: invalid value '9'") for line in lines)
    assert any(line.startswith("BYOC_PLANE_QUEUE_URL: is required") for line in lines)
    assert any(line.startswith("BYOC_PLANE_SIGNING_SECRET: is required") for line in lines)


def test_a_misspelled_setting_stops_the_start() -> None:
    done = run(
        *("byoc_control_plane", "run", "receiver"),
        BYOC_PLANE_STORE_URL="chdb:/nowhere",
        BYOC_PLANE_TOKEN="t",
        BYOC_PLANE_SIGNING_SECRET="whsec_" + "a" * 32,
        BYOC_PLANE_TOKENS="t",
    )
    assert done.returncode == 2
    assert "BYOC_PLANE_TOKENS" in done.stderr


@pytest.mark.parametrize("engine", ["single", "replicated", "shared"])
def test_the_sql_is_printed_for_each_engine(engine: str) -> None:
    done = run("byoc_control_plane", "schema", "--engine", engine)
    prefix = {"single": "", "replicated": "Replicated", "shared": "Shared"}[engine]
    assert done.returncode == 0
    assert done.stdout.count(f"ENGINE = {prefix}ReplacingMergeTree") == 7
    assert "currentUser()" in run("byoc_control_plane", "schema", "--tenants").stdout
