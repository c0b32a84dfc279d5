"""Start, wait for and stop one real program, by its process group."""

import http.client
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

POLL_SECONDS = 0.05
LOG_TAIL_BYTES = 4000
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback: no proxy


class PartError(RuntimeError):
    """A real part is missing or did not start. The message names the part and the reason."""


def free_port() -> int:
    """Return a loopback TCP port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Return whether a loopback TCP port accepts a connection."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def responds(url: str) -> bool:
    """Return whether a GET of `url` gets a 2xx within two seconds."""
    try:
        with DIRECT.open(url, timeout=2) as response:
            return bool(200 <= response.status < 300)
    except urllib.error.HTTPError as refused:
        refused.close()
        return False
    except (OSError, http.client.HTTPException):
        return False


@dataclass(eq=False)
class Program:
    """A program in a process group of its own. Standard output and error go to `log`.

    `start` after `stop` or `kill` runs the same command again, on the same files.
    """

    name: str
    command: list[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        """Return the leader's process id. Raises PartError if nothing runs."""
        if self._process is None:
            raise PartError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Spawn it, and return at once."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise PartError, with the end of the log, if it was started and has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            code = self._process.returncode
            raise PartError(f"{self.name} ended with {code}:\n{self.log_tail()}")

    def stop(self, grace_seconds: float = 15.0) -> None:
        """Send SIGTERM, wait, then send SIGKILL to the rest of the group."""
        self._end(signal.SIGTERM, grace_seconds)

    def kill(self) -> None:
        """Kill the group, as the loss of a machine does."""
        self._end(signal.SIGKILL, 15.0)

    def restart(self) -> None:
        self.stop()
        self.start()

    def log_tail(self) -> str:
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

    def _end(self, first: signal.Signals, grace_seconds: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        self._signal_group(process.pid, first)
        self._ended_within(process, grace_seconds)
        self._signal_group(process.pid, signal.SIGKILL)
        process.wait(timeout=15)

    @staticmethod
    def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    @staticmethod
    def _signal_group(group: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


@dataclass(eq=False, kw_only=True)
class RealProcess(Program):
    """A program that listens on 127.0.0.1.

    `start` returns when a GET of `ready_path` gets a 2xx, or, if that is empty, when the
    port accepts a connection.

    A context manager: started on entry, stopped on exit. `start` after `stop` or `kill` uses the
    same port.
    """

    port: int
    ready_path: str
    ready_seconds: float = 60.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Spawn and wait until ready. Raises PartError, with the end of the log, if it is not."""
        super().start()
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self.ready_seconds
        while not self._ready():
            self.check()
            if time.monotonic() > deadline:
                raise PartError(
                    f"{self.name} not ready after {self.ready_seconds:.0f} s:\n{self.log_tail()}"
                )
            time.sleep(POLL_SECONDS)

    def _ready(self) -> bool:
        return responds(self.url + self.ready_path) if self.ready_path else listens(self.port)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
