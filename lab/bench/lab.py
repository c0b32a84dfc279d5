"""Start the daemons as separate processes, and read their use of CPU and memory."""

import base64
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Self

import psutil

from lab.bench.image import Image
from lab.bench.receivers import Receivers
from lab.fakes.http import WEBHOOK_TOKEN
from lab.real.parts.process import RealProcess, free_port

MIB = 1024**2
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
SCRAPER, EXPORTER, FORWARDER = "billing-scraper", "state-exporter", "alert-forwarder"
DAEMONS = (SCRAPER, EXPORTER, FORWARDER)
FOREIGN = ("AWS_", "BYOC_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
PATIENCE_SECONDS = 120.0


@dataclass
class Lab:
    """The directory, the receivers and the options of a run."""

    directory: Path
    receivers: Receivers
    image: Image
    target: str  # what the scraper meters: a control group, as in a pod
    quick: bool = False
    millions: Sequence[int] = (1,)  # records that the verifier reads
    minutes: float = 2  # of steady load
    go_peers: bool = True  # build and run the peers that are Go modules
    _numbers: Iterator[int] = field(default_factory=count)

    def place(self, name: str) -> Path:
        """Return a new directory."""
        made = self.directory / f"{next(self._numbers)}-{name}"
        made.mkdir(parents=True)
        return made

    def runs(self, thorough: int, quick: int = 1) -> int:
        """Return the number of repetitions."""
        return quick if self.quick else thorough

    @contextmanager
    def daemons(self, *names: str, **settings: str) -> Iterator["Daemons"]:
        """Run these daemons in one process against the receivers."""
        place = self.place("+".join(names))
        with Daemons(self.image.command, names, place, self.environ(place) | settings) as made:
            yield made

    def environ(self, place: Path) -> dict[str, str]:
        """Return every setting of the three daemons, with their state in `place`."""
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(FOREIGN)}
        return {
            **kept,
            **self.image.environ,
            "BYOC_ORGANIZATION_ID": "org",
            "BYOC_SERVICE_ID": "service",
            "BYOC_REPLICA": "replica-0",
            "BYOC_REGION": "eu-central-1",
            "BYOC_STATE_DIR": str(place / "state"),
            "BYOC_LOG_LEVEL": "warning",
            "BYOC_BILLING_BUCKET": "usage",
            "BYOC_BILLING_TARGET": self.target,
            "BYOC_STATE_QUEUE_URL": self.receivers.sqs.queue_url,
            "BYOC_CLICKHOUSE_URL": self.receivers.clickhouse.url,
            "BYOC_ALERTS_URL": self.receivers.plane.url,
            "BYOC_ALERTS_TOKEN": "token",
            "BYOC_ALERTS_SIGNING_SECRET": SECRET,
            "BYOC_ALERTS_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
            "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
            "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
            "BYOC_ALERTS_ANNOTATIONS": "summary",
            "AWS_ENDPOINT_URL_S3": self.receivers.s3.url,
            "AWS_ENDPOINT_URL_SQS": self.receivers.sqs.http.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
        }


@contextmanager
def one_core() -> Iterator[None]:
    """Run programs started inside on the last core only; `elsewhere` keeps it free."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Keep the bench's own threads, the sender and the receivers, off that core."""
    cores = sorted(os.sched_getaffinity(0))
    _confine(cores[:-1] or cores)
    try:
        yield
    finally:
        _confine(cores)


def _confine(cores: Sequence[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


@dataclass
class Daemons:
    """`byoc-agents run ...` as one process."""

    command: Sequence[str]
    names: Sequence[str]
    place: Path
    environ: Mapping[str, str]

    def __post_init__(self) -> None:
        page, webhook = free_port(), free_port()
        listen = {
            "BYOC_LISTEN": f"127.0.0.1:{page}",
            "BYOC_ALERTS_LISTEN": f"127.0.0.1:{webhook}",
        }
        self.webhook = f"http://127.0.0.1:{webhook}/v1/alerts"
        wanted = {k: v for k, v in self.environ.items() if _theirs(k, self.names)}
        self.process = RealProcess(
            name="+".join(self.names),
            command=[*self.command, "run", *self.names],
            port=page,
            ready_path="/readyz",
            log=self.place / "log",
            environment={**wanted, **{k: v for k, v in listen.items() if _theirs(k, self.names)}},
        )

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    @property
    def probe(self) -> psutil.Process:
        """Return the process as psutil shows it."""
        return psutil.Process(self.process.pid)


def _theirs(name: str, daemons: Sequence[str]) -> bool:
    """Return whether a variable belongs to one of these daemons: another's would be a mistake."""
    starts = {SCRAPER: "BYOC_BILLING_", EXPORTER: "BYOC_STATE_", FORWARDER: "BYOC_ALERTS_"}
    if name == "BYOC_STATE_DIR":
        return True
    return not any(name.startswith(s) and d not in daemons for d, s in starts.items())


def cpu_seconds(probe: psutil.Process) -> float:
    """Return the CPU time of a process so far, user and system: from /proc/PID/stat, 10 ms."""
    used = probe.cpu_times()
    return used.user + used.system


def cpu_ns(pid: int) -> int:
    """Return the same in nanoseconds, of all threads: /proc/PID/task/TID/schedstat."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total


def rss_mib(probe: psutil.Process) -> float:
    """Return the resident memory in MiB, including the pages of libraries."""
    return float(probe.memory_info().rss) / MIB


def wakeups(pid: int) -> int:
    """Return the number of voluntary context switches of a process's threads so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def until(
    true: Callable[[], object], seconds: float = PATIENCE_SECONDS, *, every: float = 0.005
) -> None:
    """Wait for a condition. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{true} is not so after {seconds:.0f} s")
        time.sleep(every)
