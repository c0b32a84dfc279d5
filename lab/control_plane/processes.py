"""Run processes of the control plane, which a test may kill and start again."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lab.demo.process import Child, end, started, written
from lab.real.parts import install

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}  # of the fake's account


class _Listening(msgspec.Struct):
    host: str
    port: int


@dataclass(slots=True)
class PlaneProcess:
    """A running `byoc-control-plane run ...`."""

    child: Child
    metrics_url: str
    events_url: str  # empty without a receiver

    @property
    def fleet_url(self) -> str:
        """Return the URL of the page of the fleet."""
        return self.metrics_url.removesuffix("/metrics") + "/fleet"

    async def kill(self) -> None:
        """Kill it with SIGKILL."""
        await end(self.child, signal.SIGKILL)

    async def stop(self) -> int:
        """Stop it with SIGTERM; return the exit code."""
        return await end(self.child, signal.SIGTERM)


def plane_environment() -> dict[str, str]:
    """Return the environment in which a process can import both distributions and chdb."""
    paths = [ROOT / "control-plane", ROOT / "agents", install.CHDB]
    return {"PYTHONPATH": os.pathsep.join(map(str, paths))}


@asynccontextmanager
async def running_plane(
    parts: Sequence[str], log: Path, settings: Mapping[str, str]
) -> AsyncIterator[PlaneProcess]:
    """Start a process and wait until it receives; it is always ended at the exit."""
    argv = [sys.executable, "-m", "byoc_control_plane", "run", *parts]
    environ = {"BYOC_PLANE_LISTEN": "127.0.0.1:0"} | plane_environment() | dict(settings)
    async with started(argv, log, environ) as child:
        metrics = await _address(log, '"metrics.listening"', child)
        events = ""
        if "receiver" in parts:
            address = await _address(log, '"receiver.listening"', child)
            events = f"{address}/v1/events"
        yield PlaneProcess(child, f"{metrics}/metrics", events)


async def _address(log: Path, event: str, child: Child) -> str:
    line = await written(log, event, child, 60)
    found = msgspec.json.decode(line, type=_Listening)
    return f"http://{found.host}:{found.port}"
