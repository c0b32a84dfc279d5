"""Run `byoc-agents run ...` as a process that may be killed and started again."""

import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from lab.demo.process import Child, DemoError, end, started, tail, written

PATIENT = aiohttp.ClientTimeout(total=30)  # on a machine that is busy with other things
SAMPLES = "byoc_billing_samples_total"


class _Listen(msgspec.Struct):
    host: str
    port: int


class Daemons:
    """The daemons' process: one at a time, always on the same state directory."""

    def __init__(
        self,
        names: Sequence[str],
        settings: Mapping[str, str],
        directory: Path,
        session: aiohttp.ClientSession,
    ) -> None:
        self.child: Child | None = None
        self.log = directory / "agents.log"
        self._names = names
        self._environ = dict(settings)
        self._environ["BYOC_STATE_DIR"] = str(directory / "state")
        self._directory = directory
        self._session = session
        self._stack = AsyncExitStack()
        self._url = ""
        self._starts = 0

    async def __aenter__(self) -> Self:
        """Return it, not started yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill the process if it still runs."""
        await self._stack.aclose()

    async def start(self) -> int:
        """Start them and wait until they listen. Return the pid."""
        self._starts += 1
        self.log = self._directory / f"agents-{self._starts}.log"
        argv = [sys.executable, "-m", "byoc_agents.app.cli", "run", *self._names]
        child = await self._stack.enter_async_context(started(argv, self.log, self._environ))
        line = await written(self.log, '"admin.listening"', child)
        at = msgspec.json.decode(line, type=_Listen)
        self._url = f"http://{at.host}:{at.port}"
        self.child = child
        return child.pid

    async def kill(self) -> None:
        """Kill them with SIGKILL, as the failure of a machine does."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Stop them with SIGTERM. Raises DemoError if the exit code is not 0."""
        if code := await self._end(signal.SIGTERM):
            raise self._ended(code)

    async def _end(self, number: signal.Signals) -> int:
        child, self.child = self.child, None
        assert child is not None, "nothing was started"
        return await end(child, number)

    def _ended(self, code: int) -> DemoError:
        last = tail(self.log)  # the log may be deleted before the message is read
        return DemoError(f"the daemons ended with exit code {code}; their last lines:\n{last}")

    async def status(self) -> dict[str, Any]:
        """Return daemon -> its part of /status; empty while they do not run."""
        page = await self._page("status")
        return dict(msgspec.json.decode(page)["daemons"]) if page else {}

    async def samples(self) -> int:
        """Return the number of samples that this process has taken."""
        page = (await self._page("metrics")).decode()
        families = list(text_string_to_metric_families(page))
        found = [s for family in families for s in family.samples if s.name == SAMPLES]
        return int(sum(s.value for s in found if s.labels["source"] != "none"))

    async def _page(self, name: str) -> bytes:
        if self.child is None:
            return b""
        if self.child.returncode is not None:
            raise self._ended(self.child.returncode)
        try:
            async with self._session.get(f"{self._url}/{name}", timeout=PATIENT) as response:
                return await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DemoError(f"the daemons do not respond: {error}\n{tail(self.log)}") from error
