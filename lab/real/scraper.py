"""Run `byoc-agents run billing-scraper` as a process that a test kills, pauses and reads."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from lab.real.parts.localstack import REGION
from lab.real.parts.process import DIRECT, POLL_SECONDS

T = TypeVar("T")

NAME = "billing-scraper"
PROGRAM = Path(sys.executable).with_name("byoc-agents")
PATIENCE_SECONDS = 60.0  # for what takes a second on a machine that has time
FOREIGN = ("AWS_", "BYOC_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
SAMPLE_SECONDS = 0.2
WINDOW_SECONDS = 1
SETTINGS = {
    "BYOC_ORGANIZATION_ID": "org",
    "BYOC_SERVICE_ID": "service",
    "BYOC_REPLICA": "replica-0",
    "BYOC_POD_UID": "uid",
    "BYOC_REGION": REGION,
    "BYOC_LISTEN": "127.0.0.1:0",
    "BYOC_BILLING_SAMPLE_SECONDS": str(SAMPLE_SECONDS),
    "BYOC_BILLING_WINDOW_SECONDS": str(WINDOW_SECONDS),
    "BYOC_BILLING_SEAL_SECONDS": "1",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
}


def eventually(look: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Poll until a response is true; return it. Raises AssertionError after a timeout."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"{look} returned {seen!r} after {seconds:.0f} s"
        time.sleep(POLL_SECONDS)
    return seen


def passed(seconds: float) -> None:
    """Wait until that much real time has passed."""
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= end, seconds + PATIENCE_SECONDS)


def clean_environ(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with these settings and no others of an account or a daemon."""
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(FOREIGN)}
    return {**kept, **settings}


@dataclass(eq=False)
class Scraper:
    """A scraper on one state directory, with one process at a time."""

    directory: Path
    settings: Mapping[str, str]
    prefix: Sequence[str] = ()  # a command that runs its arguments
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was never started"
        return self._process

    @property
    def state(self) -> Path:
        """Return the directory of the spool."""
        return Path(self.settings.get("BYOC_STATE_DIR", str(self.directory / "state")))

    def start(self) -> None:
        """Spawn the process; `listening` waits for it."""
        self.starts += 1
        self.directory.mkdir(parents=True, exist_ok=True)
        state = {"BYOC_STATE_DIR": str(self.state)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self.prefix, str(PROGRAM), "run", NAME],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environ({**SETTINGS, **state, **self.settings}),
                start_new_session=True,
            )

    def listening(self) -> None:
        """Wait until it answers."""
        eventually(lambda: self.page("healthz")[0] == 200)

    def end(self, number: signal.Signals) -> int:
        """Send a signal, wait, return the exit code (-9 when it was killed)."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> int:
        """Stop it with SIGTERM; return the exit code."""
        return self.end(signal.SIGTERM)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def page(self, name: str) -> tuple[int, str]:
        """Return status and text of a page; (0, "") without a response."""
        assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.log()}"
        listen = self.logged("admin.listening")
        if not listen:
            return 0, ""
        try:
            url = f"http://127.0.0.1:{listen[-1]['port']}/{name}"
            with DIRECT.open(url, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()
        except OSError:  # not yet, or a machine that is busy
            return 0, ""

    def status(self) -> dict[str, Any]:
        """Return its part of /status; empty without a response."""
        code, text = self.page("status")
        return dict(json.loads(text)["daemons"][NAME]) if code == 200 else {}

    def last_error(self) -> str:
        """Return the reason that delays the oldest object; "" if there is none."""
        return str((self.status().get("last_error") or {}).get("reason", ""))

    def delivered(self) -> bool:
        """Return whether all objects are sent."""
        status = self.status()
        return bool(status) and status["backlog"]["oldest"] is None

    def counted(self, metric: str, **labels: str) -> int:
        """Return the sum of a metric over all series with these labels."""
        text = eventually(lambda: self.page("metrics")[1])  # no response would count as 0
        families = text_string_to_metric_families(text)
        samples = [one for family in families for one in family.samples if one.name == metric]
        return int(sum(one.value for one in samples if labels.items() <= one.labels.items()))

    def sampled(self, more: int = 2) -> None:
        """Wait for a sample that begins after this call: the second next one."""
        before = self.counted("byoc_billing_samples_total")
        eventually(lambda: self.counted("byoc_billing_samples_total") >= before + more)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of the current process's log with that event."""
        lines = self.log().split("\n")[:-1]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in events if one.get("event") == event]

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def _log(self) -> Path:
        return self.directory / f"scraper-{self.starts}.log"


@contextmanager
def scraping(
    directory: Path, target: str, bucket: Mapping[str, str], *prefix: str, **settings: str
) -> Iterator[Scraper]:
    """Start a scraper and wait for its pages; it is always ended at the exit."""
    named = {"BYOC_BILLING_TARGET": target, **bucket, **settings}
    with ending(Scraper(directory, named, prefix)) as scraper:
        scraper.start()
        scraper.listening()
        yield scraper


@contextmanager
def ending(scraper: Scraper) -> Iterator[Scraper]:
    """Kill the process at the end, also a paused one."""
    try:
        yield scraper
    finally:
        if scraper.running():
            scraper.end(signal.SIGKILL)
