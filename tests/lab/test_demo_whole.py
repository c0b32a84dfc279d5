"""`make demo` as a person starts it."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import psutil
import pytest

WHOLE_SECONDS = 400  # it takes 40; this is for a machine that is very busy


async def start(directory: Path, *options: str) -> Process:
    environ = os.environ | {"TMPDIR": str(directory), "AWS_PROFILE": "nobody", "BYOC_TYPO": "1"}
    argv = [sys.executable, "-m", "lab.demo", *options]
    return await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE, env=environ)


def of_the_demo(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def left_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.real)]
)
async def test_it_can_be_stopped_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Stopped in the middle of a scene, while daemons and workload run."""
    demo = await start(tmp_path)
    assert demo.stdout is not None
    async with asyncio.timeout(60):
        async for line in demo.stdout:
            if b"the workload starts" in line:
                break
        children = of_the_demo(demo.pid)
        demo.send_signal(number)
        _, err = await demo.communicate()
    assert len(children) >= 2
    assert (demo.returncode, err) == (130, b"stopped; every process of the demo has ended\n")
    _, alive = psutil.wait_procs(children, timeout=10)  # a grandchild burns for a second at most
    assert alive == []
    assert left_in(tmp_path) == []


@pytest.mark.real
async def test_all_of_it(tmp_path: Path) -> None:
    """It ends well, in a pipe, and what it keeps can be verified."""
    demo = await start(tmp_path, "--keep")
    async with asyncio.timeout(WHOLE_SECONDS):
        out, err = await demo.communicate()
    print(out.decode())
    assert (demo.returncode, err) == (0, b"")
    assert b"\x1b" not in out
    (kept,) = left_in(tmp_path)
    assert f"byoc-agents verify {kept / 'bucket'}" in out.decode()
    verify = [sys.executable, "-m", "byoc_agents.app.cli", "verify", str(kept / "bucket")]
    verified = await asyncio.create_subprocess_exec(*verify, stdout=PIPE)
    reported, _ = await verified.communicate()
    assert (verified.returncode, b"OK: no missing" in reported) == (0, True)
