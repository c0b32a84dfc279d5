"""A daemon that runs: what the kernel enforces on it, and a machine that has no such filter."""

import json
import os
import re
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

RUN = ("run", "alert-forwarder")
MODULE = (sys.executable, "-m", "byoc_agents.app.cli", *RUN)
# A Python without ctypes: the filter cannot be prepared there.
WITHOUT_CTYPES = f"""
import sys
sys.modules["ctypes"] = sys.modules["_ctypes"] = None
sys.argv = ["byoc-agents", *{RUN!r}]
from byoc_agents.app.cli import main
sys.exit(main())
"""
# A kernel that refuses seccomp(2), as one without CONFIG_SECCOMP_FILTER does. The parent's own
# filter answers for it; it is put on with prctl(2).
REFUSED_BY_KERNEL = f"""
import os, sys
from byoc_agents.egress import seccomp
from lab.seccomp_probes import install_program
machine = seccomp.MACHINES[os.uname().machine]
install_program([
    seccomp.Instruction(seccomp.LOAD, 0, 0, seccomp.NUMBER),
    seccomp.Instruction(seccomp.JUMP_EQUAL, 0, 1, machine.seccomp),
    seccomp.Instruction(seccomp.RETURN, 0, 0, seccomp.ERRNO | seccomp.ENOSYS),
    seccomp.Instruction(seccomp.RETURN, 0, 0, seccomp.ALLOW),
])
os.execv(sys.executable, {MODULE!r})
"""
REFUSALS = [
    pytest.param((sys.executable, "-c", WITHOUT_CTYPES), "ctypes", id="no ctypes"),
    pytest.param(
        (sys.executable, "-c", REFUSED_BY_KERNEL), "seccomp: Function not implemented", id="kernel"
    ),
]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "BYOC_ORGANIZATION_ID": "o",
        "BYOC_SERVICE_ID": "s",
        "BYOC_REGION": "eu-west-1",
        "BYOC_STATE_DIR": str(tmp_path / "state"),
        "BYOC_LISTEN": "127.0.0.1:0",
        "BYOC_ALERTS_LISTEN": "127.0.0.1:0",
        "BYOC_ALERTS_URL": "http://127.0.0.1:1/",
        "BYOC_ALERTS_TOKEN": "t",
        "BYOC_ALERTS_SIGNING_SECRET": "whsec_" + "a" * 44,
        "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
        "BYOC_ALERTS_NAMESPACE": "clickhouse",
        "BYOC_ALERTS_WEBHOOK_TOKEN": "hook",
        "BYOC_SHUTDOWN_GRACE_SECONDS": "0",
    }


@contextmanager
def started(
    command: tuple[str, ...], environ: dict[str, str]
) -> Iterator[tuple[int, dict[str, Any], list[dict[str, Any]]]]:
    """Run a daemon until it has started; give its pid, and its log by event and in order."""
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr
            lines: list[dict[str, Any]] = []
            for line in child.stderr:
                lines.append(json.loads(line))
                if lines[-1]["event"] == "daemon.started":
                    break
            yield child.pid, {line["event"]: line for line in lines}, lines
        finally:
            child.terminate()
            child.communicate(timeout=30)
    assert child.returncode == 0


def filters(pid: int) -> str:
    """Return the line about seccomp of a process; a container may have a filter of its own."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line for line in text.splitlines() if line.startswith("Seccomp"))


def enforced(log: dict[str, Any]) -> str:
    """Return the value of the metric."""
    port = log["admin.listening"]["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
        found = re.search(r"^byoc_seccomp_enforced\S* (\S+)$", text, re.MULTILINE)
    assert found
    return found[1]


def test_the_kernel_holds_a_running_daemon_and_every_thread_of_it(
    environ: dict[str, str], tmp_path: Path
) -> None:
    ledger = tmp_path / "state" / "alert-forwarder" / "ledger"
    ledger.mkdir(parents=True)
    for path in (ledger, tmp_path / "state"):
        path.chmod(0o777)
    with started(MODULE, environ) as (pid, log, lines):
        assert log["state.parent_writable"]["path"] == str(tmp_path / "state")
        assert stat.S_IMODE(ledger.stat().st_mode) == 0o770
        events = [line["event"] for line in lines]
        assert events.index("webhook.listening") < events.index("seccomp.enforced")
        assert enforced(log) == "1.0"
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            text = status.read_text()
            assert "NoNewPrivs:\t1\n" in text
            assert "Seccomp:\t2\n" in text
        core = re.search(r"Max core file size +(\S+)", Path(f"/proc/{pid}/limits").read_text())
        assert core
        assert core[1] == "0"
        written = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
        assert any(path.name == "spool.db" for path in written)
        assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}


@pytest.mark.parametrize(("command", "why"), REFUSALS)
def test_without_the_filter_the_daemons_run_and_say_so(
    environ: dict[str, str], command: tuple[str, ...], why: str
) -> None:
    with started(command, environ) as (_, log, _lines):
        assert "seccomp.enforced" not in log
        assert log["seccomp.refused"]["level"] == "error"
        assert why in log["seccomp.refused"]["error"]
        assert enforced(log) == "0.0"


@pytest.mark.parametrize(("command", "why"), REFUSALS)
def test_a_filter_that_is_required_and_refused_stops_the_start(
    environ: dict[str, str], command: tuple[str, ...], why: str
) -> None:
    done = subprocess.run(
        command,
        env=environ | {"BYOC_SECCOMP": "require"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    (mistake,) = [line for line in done.stderr.splitlines() if "BYOC_SECCOMP" in line]
    assert "BYOC_SECCOMP: the filter was refused: " in mistake
    assert why in mistake
    assert "expected a kernel with seccomp, or BYOC_SECCOMP=on" in done.stderr


def test_the_filter_can_be_switched_off(environ: dict[str, str]) -> None:
    with started(MODULE, environ | {"BYOC_SECCOMP": "off"}) as (pid, log, _lines):
        assert log["seccomp.off"]["level"] == "warning"
        assert filters(pid) == filters(os.getpid())
        assert enforced(log) == "0.0"
