"""Run daemons in one process, restarted as a kubelet does, and read its pages and figures."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lab.real.parts.process import DIRECT, free_port
from lab.real.scraper import PATIENCE_SECONDS, clean_environ, eventually

ROOT = Path(__file__).resolve().parents[2]
DOWN_SECONDS = 4.0  # to end in good order
RESTART_SECONDS = 0.3  # before it is started again; a kubelet waits longer


@dataclass(frozen=True)
class Figures:
    """The resources of a process at one time."""

    pid: int
    rss_bytes: int
    fds: int
    threads: int
    tasks: int
    cpu_seconds: float


@dataclass(eq=False)
class Daemon:
    """One process with one or more daemons. It is started again when it ends."""

    names: tuple[str, ...]
    directory: Path
    settings: Mapping[str, str]
    ends: list[int] = field(default_factory=list)  # exit codes; -9: killed
    port: int = field(default_factory=free_port)
    touched: float = 0.0  # monotonic: when it was last started or sent a signal
    frozen: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _wanted: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def log(self) -> Path:
        return self.directory / f"{'+'.join(self.names)}.log"

    def start(self) -> None:
        """Start it, and restart it when it ends."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._wanted.set()
        threading.Thread(target=self._restart_until_over, daemon=True).start()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        with self._lock:
            if self._process and self._process.poll() is None:
                self._process.send_signal(number)
                self.touched = time.monotonic()
                self.frozen = number == signal.SIGSTOP

    @contextmanager
    def still(self) -> Iterator[None]:
        """Stop every thread of it for a moment, while none is inside a system call."""
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None or self.frozen:
                yield
                return
            process.send_signal(signal.SIGSTOP)
            try:
                eventually(lambda: _held(process.pid))
                yield
            finally:
                process.send_signal(signal.SIGCONT)

    @contextmanager
    def down(self, number: signal.Signals) -> Iterator[None]:
        """End it with a signal, by SIGKILL if it takes too long, and keep it down for a while."""
        self._wanted.clear()
        self.send(number)
        with suppress(AssertionError):
            eventually(lambda: not self.running(), DOWN_SECONDS)
        self.send(signal.SIGKILL)
        eventually(lambda: not self.running())
        try:
            yield
        finally:
            self._wanted.set()

    def stop(self) -> int:
        """Stop it with SIGTERM and do not restart it; return the exit code."""
        self._end()
        with self._lock:
            process = self._process
        assert process is not None, "it never ran"
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        return process.wait(2 * PATIENCE_SECONDS)

    def kill(self) -> None:
        """Kill it and do not restart it: open files would keep the disk from being unmounted."""
        self._end()
        self.send(signal.SIGKILL)
        eventually(lambda: not self.running())

    def running(self) -> bool:
        with self._lock:
            return self._process is not None and self._process.poll() is None

    def healthy(self) -> bool:
        return self.page("healthz") is not None

    def page(self, name: str) -> str | None:
        """Return the text of a page, or None if its status is not 200."""
        try:
            with DIRECT.open(f"http://127.0.0.1:{self.port}/{name}", timeout=5) as response:
                return str(response.read().decode())
        except OSError:  # HTTPError as well
            return None

    def status(self) -> dict[str, Any]:
        """Return daemon -> its part of /status; empty without a response."""
        text = self.page("status")
        return dict(json.loads(text)["daemons"]) if text else {}

    def figures(self) -> Figures | None:
        """Return the figures of the process, or None if it has ended."""
        with self._lock:
            process = self._process
        if process is None:
            return None
        try:
            seen = psutil.Process(process.pid)
            with seen.oneshot():
                cpu = seen.cpu_times()
                return Figures(
                    process.pid,
                    seen.memory_info().rss,
                    seen.num_fds(),
                    seen.num_threads(),
                    self._tasks(),
                    cpu.user + cpu.system,
                )
        except psutil.Error:
            return None

    def logged(self, *events: str) -> list[dict[str, Any]]:
        """Return the log lines of all processes with one of these events."""
        found = []
        for line in self.log.read_text(errors="replace").split("\n"):
            if any(f'"{event}"' in line for event in events):
                with suppress(ValueError):  # a kill may cut a line
                    found.append(json.loads(line))
        return [one for one in found if one.get("event") in events]

    def _end(self) -> None:
        """Do not start it again."""
        self._over.set()
        self._wanted.set()  # who waits for that sees that it is over

    def _tasks(self) -> int:
        before = len(self.logged("chaos.tasks"))
        self.send(signal.SIGUSR1)
        reported = eventually(lambda: self.logged("chaos.tasks")[before:])
        return int(reported[-1]["tasks"])

    def _restart_until_over(self) -> None:
        while not self._over.is_set():
            self._wanted.wait()
            with self._lock:
                if self._wanted.is_set() and not self._over.is_set():
                    self._process = self._spawned()
                    self.touched, self.frozen = time.monotonic(), False
                    process = self._process
                else:
                    continue
            self.ends.append(process.wait())
            time.sleep(RESTART_SECONDS)

    def _spawned(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "lab.chaos.launch", *self.names],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environ({**self.settings, "BYOC_LISTEN": f"127.0.0.1:{self.port}"}),
                cwd=ROOT,
                start_new_session=True,
            )


def _held(pid: int) -> bool:
    """Return whether every thread has stopped or ended: in /proc/PID/task/TID/stat, field 3."""
    tasks = Path(f"/proc/{pid}/task").glob("*/stat")
    with suppress(OSError):  # one has ended while we look
        return all(task.read_text().rpartition(")")[2].split()[0] in "TZX" for task in tasks)
    return False
