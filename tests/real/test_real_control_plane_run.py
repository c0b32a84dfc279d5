"""`make control-plane ARGS=--once`, and what a person sees who configures it wrongly."""

import base64
import json
import os
import re
import subprocess
import sys

import pytest

from byoc_agents import __version__
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
    assert done.stdout.count(f"ENGINE = {prefix}ReplacingMergeTree") == 6
    assert "currentUser()" in run("byoc_control_plane", "schema", "--tenants").stdout
