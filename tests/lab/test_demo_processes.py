"""The demo's processes, and its AWS: real ones, for a second."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError
from rich.console import Console

from lab.demo import main
from lab.demo.aws import Door, embedded
from lab.demo.control_plane import control_plane
from lab.demo.fifo import queue
from lab.demo.process import DemoError, end, started, whole_lines, written
from lab.demo.screen import Screen
from lab.demo.storage import BUCKET, bucket
from lab.demo.workload_process import running_workload

SLEEPER = [sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(600)"]


async def until(happens: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not happens():  # noqa: ASYNC110  other processes set no event
            await asyncio.sleep(0.02)


async def test_a_process_is_gone_when_its_block_ends_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="scene"):  # noqa: PT012
        async with started(SLEEPER, tmp_path / "log") as child:
            await written(tmp_path / "log", "ready", child)
            raise RuntimeError("a scene fails")
    assert not psutil.pid_exists(child.pid)


async def test_a_process_that_ends_early_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "raise SystemExit('no such setting')"]
    with pytest.raises(DemoError, match="no such setting"):
        async with started(argv, tmp_path / "log") as child:
            await written(tmp_path / "log", "admin.listening", child)


async def test_the_exit_code_of_a_killed_process(tmp_path: Path) -> None:
    async with started(SLEEPER, tmp_path / "log") as child:
        await written(tmp_path / "log", "ready", child)
        assert await end(child, signal.SIGKILL) == -signal.SIGKILL


async def test_the_workload_has_a_name_rests_and_gives_account(tmp_path: Path) -> None:
    async with running_workload(f"demo-t-{os.getpid()}", tmp_path, 1) as run:
        workload = psutil.Process(run.pid)
        assert workload.name() == f"demo-t-{os.getpid()}"
        await until(lambda: bool(workload.children()))
        await run.rest()
        assert workload.children() == [], "it has waited for them"
        times = workload.cpu_times()
        await run.end()
    seen = times.user + times.system + times.children_user + times.children_system
    assert run.rusage.children_core_seconds > 0
    assert run.rusage.core_seconds == pytest.approx(seen, abs=0.2)


async def test_the_workload_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    """The parent is killed and cannot clean up."""
    code = (
        "import os, subprocess, sys, time;"
        "argv = [sys.executable, '-m', 'lab.demo.workload', *sys.argv[1:], str(os.getpid())];"
        "print(subprocess.Popen(argv, stdout=2).pid, flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", code, "demo-o", str(tmp_path / "rusage")]
    log = tmp_path / "log"
    async with started(argv, log) as parent:
        await written(log, "working", parent)
    pid = int(next(line for line in whole_lines(log) if line.isdecimal()))
    await until(lambda: not psutil.pid_exists(pid) or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def wsgi(door: Door, method: str) -> list[str]:
    statuses: list[str] = []
    environ = {"REQUEST_METHOD": method, "CONTENT_LENGTH": "3", "wsgi.input": io.BytesIO(b"abc")}
    list(door(environ, lambda status, _headers: statuses.append(status)))
    return statuses


def test_a_shut_door_refuses_what_would_be_stored_and_nothing_else() -> None:
    def inside(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [b""]

    door = Door(inside)
    assert wsgi(door, "PUT") == ["200 OK"]
    door.shut = True
    assert [wsgi(door, method) for method in ("PUT", "GET", "POST")] == [
        ["503 Slow Down"],
        ["200 OK"],
        ["200 OK"],
    ]
    assert (door.puts, door.refused) == (1, 1)


async def test_the_bucket_and_the_queue_are_there_and_empty() -> None:
    async with embedded() as aws, bucket(aws) as storage, queue(aws) as messages:
        await storage.refresh()
        await messages.refresh()
        assert (storage.records, messages.states) == ([], [])
        assert (await storage.audit()).ok
        aws.door.shut = True
        async with aws.client("s3") as client:
            with pytest.raises(ClientError, match="SlowDown"):
                await client.put_object(Bucket=BUCKET, Key="k", Body=b"b")


async def test_a_control_plane_that_is_down_says_503_and_keeps_nothing() -> None:
    async with control_plane() as (plane, settings):
        assert settings["BYOC_ALERTS_URL"] == plane.url
        assert plane.respond(1, SimpleNamespace()) is None  # type: ignore[arg-type]  # not looked at
        plane.down = True
        refused = plane.respond(2, SimpleNamespace())  # type: ignore[arg-type]  # not looked at
        assert refused is not None
        assert (refused.status, plane.refused, plane.alerts) == (503, 1, [])


async def test_in_a_pipe_there_are_lines_without_control_codes() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=100))
    async with screen.moving():
        screen.scene("S3 refuses", 3, 7)
        screen.say("S3 answers 503")
        screen.show(["usage   2 records on disk"], [])
    assert "\x1b" not in out.getvalue()
    assert [line.strip() for line in out.getvalue().split("\n") if line] == [
        "3/7  S3 refuses",
        "0 s  S3 answers 503",
        "0 s    usage   2 records on disk",
    ]


async def test_on_a_terminal_there_is_a_panel_that_goes_away_again() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=100, force_terminal=True, _environ={}))
    async with screen.moving():
        screen.scene("S3 refuses", 3, 7)
        screen.show(["usage   2 records on disk"], [])
    shown = out.getvalue()
    assert "\x1b[?25l" in shown, "the cursor is hidden"
    assert "\x1b[?25h" in shown, "and shown again"


def test_an_unknown_option_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--fast"])
    assert stopped.value.code == 2
    assert "--keep" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """Import finds a rich that is not there."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('No rich', name='rich')")
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    argv = [sys.executable, "-m", "lab.demo"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "demo: no rich here; `make demo` installs it\n"
