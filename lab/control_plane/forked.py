"""Consumers that start in milliseconds: forks of a server that has imported everything.

A start of Python with its imports costs seconds of CPU, which a thousand kills would pay each time.
Each consumer is a process of its own that runs `byoc-control-plane run consumer`, and is killed
with SIGKILL.
"""

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from byoc_control_plane.run import main
from lab.demo.process import DemoError, tail, whole_lines

START_SECONDS = 60.0
LISTENING = '"metrics.listening"'


class ForkedConsumer:
    """One running consumer."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid or 0

    async def kill(self) -> None:
        """Kill it with SIGKILL; return after it has ended."""
        self._process.kill()
        await asyncio.to_thread(self._process.join)


async def start_forked(log: Path, settings: Mapping[str, str]) -> ForkedConsumer:
    """Start a consumer that writes into `log`; return once it receives. Raises DemoError."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # at the first start only
    log.write_text("")  # noqa: ASYNC240  a small file
    settings = {"BYOC_PLANE_LISTEN": "127.0.0.1:0"} | dict(settings)
    process = context.Process(target=_consume, args=(str(log), settings))
    process.start()
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.is_alive():
        if any(LISTENING in line for line in whole_lines(log)):
            return ForkedConsumer(process)
        await asyncio.sleep(0.01)
    process.kill()
    raise DemoError(f"no {LISTENING} in {log.name}; its last lines:\n{tail(log)}")


def _consume(log: str, settings: Mapping[str, str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.environ.update(settings)
    sys.exit(main(["consumer"]))
