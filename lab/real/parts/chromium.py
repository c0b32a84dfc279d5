"""Debian's headless Chromium, driven over its DevTools protocol, without network."""

import asyncio
import base64
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from lab.real.parts.process import PartError

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--proxy-server=direct://",
    "--remote-debugging-address=127.0.0.1",
    "--remote-debugging-port=0",
)
INSTALL = ("apt-get", "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core")
START_SECONDS, RESPONSE_SECONDS = 30.0, 20.0


def executable() -> str:
    """Return the program, installed from Debian if it is missing. Raises PartError."""
    if not shutil.which("chromium"):
        for command in (("apt-get", "update"), INSTALL):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PartError(f"{' '.join(command)}: {done.stderr[-500:]}")
    found = shutil.which("chromium")
    if not found:
        raise PartError("chromium: Debian's package gave no such program")
    return found


class Tab:
    """One page. `requests` has the URLs it requested, `console` its messages."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self.console: list[str] = []
        self._socket = socket
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()

    async def listen(self) -> None:
        """Receive the browser's messages until the connection ends."""
        async for frame in self._socket:
            reply = frame.json()
            if "id" in reply:
                self._answers.pop(reply["id"]).set_result(reply)
            else:
                self._note(reply["method"], reply["params"])

    def _note(self, method: str, params: Any) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded":
            self.console.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(params["exceptionDetails"]))
        elif method == "Page.loadEventFired":
            self._loaded.set()

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        reply = await asyncio.wait_for(self._answers[number], RESPONSE_SECONDS)
        if "error" in reply:
            raise AssertionError(f"{method}: {reply['error']}")
        return reply["result"]

    async def open(self, url: str) -> None:
        """Load a page and wait for its load event."""
        for domain in ("Network", "Log", "Runtime", "Page"):
            await self.call(f"{domain}.enable")
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), RESPONSE_SECONDS)

    async def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        reply = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    async def look(self, width: int, height: int, scheme: str) -> None:
        """Set the window's size and the preferred colors: light or dark."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def screenshot(self, image_format: str = "png") -> bytes:
        """Return a screenshot of the window: `png`, or `webp`, which is half as large."""
        shot = await self.call("Page.captureScreenshot", format=image_format)
        return base64.b64decode(shot["data"])


@contextlib.asynccontextmanager
async def tab() -> AsyncIterator[Tab]:
    """Start a browser with an empty profile and yield its page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            executable(),
            *FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await asyncio.wait_for(_port(Path(profile), process), START_SECONDS)
            async with _connected(port) as page:
                yield page
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _port(profile: Path, process: asyncio.subprocess.Process) -> int:
    """Return the port from the browser's file, None before it exists."""
    file = profile / "DevToolsActivePort"
    while not (file.exists() and file.read_text().count("\n")):
        if process.returncode is not None:
            raise PartError(f"chromium ended at once with {process.returncode}")
        await asyncio.sleep(0.05)
    return int(file.read_text().split()[0])


@contextlib.asynccontextmanager
async def _connected(port: int) -> AsyncIterator[Tab]:
    async with aiohttp.ClientSession(trust_env=False) as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
            pages = await response.json(content_type=None)
        url = next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
        async with session.ws_connect(url, max_msg_size=64 * 1024**2) as socket:
            page = Tab(socket)
            listener = asyncio.create_task(page.listen())
            try:
                yield page
            finally:
                listener.cancel()
                await asyncio.wait([listener])
