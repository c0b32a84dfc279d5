"""Compare the way of CPU seconds into objects with that of the OpenTelemetry Collector.

The same control group is metered by all of them at the same time: by the scraper into S3, and by
the Collector's `host_metrics` receiver into a receiver that stores each request as an object. No
other exporter of the Collector's than `otlp_http` is built here.

An hour of objects is measured in three minutes: all intervals are a twentieth of the scraper's
defaults. CPU is measured at the defaults. The truth of the accuracy is the kernel's counter of the
group.
"""

import random
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

import psutil
import zstandard

from lab.bench import collector, go_peers
from lab.bench.figures import Row, ratios, row
from lab.bench.lab import SCRAPER, Daemons, Lab, cpu_ns
from lab.bench.otlp import count_seconds, decode_points
from lab.real.burner import Burner, burning
from lab.real.counters import cpu_usec, settled
from lab.real.parts import kernel
from lab.real.parts.kernel import ControlGroup
from lab.real.parts.process import PartError, RealProcess
from lab.real.stored import billed, verified

GROUP = "billing_path"
OURS = SCRAPER
OURS_GROUP = f"{SCRAPER}, meter cgroup"
EVERY = "Collector, every reading"
MINUTE = "Collector, one reading per record"
OURS_MINUTE = f"{SCRAPER}, one reading per record"
PAIRS = ((OURS, EVERY), (OURS_MINUTE, MINUTE), (OURS, MINUTE))  # ours, the peer's
HOUR = 3600.0
SPEED = 20  # of the hour of objects
OBJECTS = 2  # of one value of bytes and objects, after the first one
SETTLE_SECONDS = 5.0  # the start is measured elsewhere
PATIENCE_SECONDS = 300.0
DOWN_SECONDS = 0.2  # after a SIGKILL
KILLS, RESTARTS = 10, 5
LOAD_SECONDS = 40.0
LOOK_SECONDS = 0.1
BATCH_POINTS = 100_000  # more than any object holds: the time alone ends a batch
SEED = 7


@dataclass(frozen=True)
class Pace:
    """Seconds between two readings, of one record, and between two objects."""

    sample: float
    window: int
    seal: int

    @property
    def scraper(self) -> dict[str, str]:
        """Return the scraper's settings."""
        return {
            "BYOC_BILLING_SAMPLE_SECONDS": f"{self.sample:g}",
            "BYOC_BILLING_WINDOW_SECONDS": str(self.window),
            "BYOC_BILLING_SEAL_SECONDS": str(self.seal),
        }


DEFAULT = Pace(5, 60, 900)  # of the scraper
FAST = Pace(5 / SPEED, 60 // SPEED, 900 // SPEED)
COUNTED = Pace(1, 10, 20)  # of the accuracy


def settings() -> str:
    """Return the intervals as a table in Markdown; the page has the same lines."""
    paces = {"CPU": DEFAULT, "bytes and objects": FAST, "accuracy": COUNTED}
    lines = [
        "| measured | every reading | one reading per record | one record | one object |",
        "|---|---:|---:|---:|---:|",
    ]
    for what, pace in paces.items():
        seconds = (pace.sample, pace.window, pace.window, pace.seal)
        lines.append(f"| {what} | {' | '.join(f'{one:g} s' for one in seconds)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Container:
    """A control group, and the name of the processes that run in it."""

    name: str
    group: ControlGroup
    begun_ns: int  # nothing was used before; since 1970

    @contextmanager
    def burning(self) -> Iterator[Burner]:
        """Run the busy process in it."""
        with burning(self.name, self.group.command([])) as burner:
            yield burner

    def replace(self) -> None:
        """Make a new group at the same path, as the restart of a container does."""
        for directory in self.group.directories.values():
            directory.rmdir()
            directory.mkdir()


@contextmanager
def container() -> Iterator[Container]:
    """Make a group in which nothing has run."""
    with kernel.cgroup_v1("cpuacct", "memory") as group:
        yield Container(f"met-{secrets.token_hex(3)}", group, time.time_ns())


class Contestant(Protocol):
    """A running program that meters and stores objects."""

    @property
    def process(self) -> RealProcess:
        """Return its process, which may be killed and started."""

    def objects(self) -> list[bytes]:
        """Return all that it has stored."""

    def core_seconds(self) -> float:
        """Return the CPU that its objects show. Raises PartError if they are damaged."""


@dataclass
class Scraper:
    """`byoc-agents run billing-scraper`, with a service of its own in the bench's S3."""

    lab: Lab
    daemons: Daemons
    service: str

    @property
    def process(self) -> RealProcess:
        return self.daemons.process

    def objects(self) -> list[bytes]:
        return list(self._stored().values())

    def core_seconds(self) -> float:
        """Return the total of `byoc-agents verify`."""
        place = self.lab.place("objects")
        for key, body in self._stored().items():
            (place / key).parent.mkdir(parents=True, exist_ok=True)
            (place / key).write_bytes(body)
        report = verified(str(place))
        if not report.ok:
            raise PartError(f"{self.service}: {report.findings}: expected no finding")
        return float(billed(report))

    def _stored(self) -> dict[str, bytes]:
        stored = dict(self.lab.receivers.s3.objects)
        return {key: body for key, body in stored.items() if f"/service={self.service}/" in key}


@dataclass
class Collector:
    """The Collector on the processes of one name."""

    process: RealProcess
    stored: list[bytes]
    begun_ns: int

    def objects(self) -> list[bytes]:
        return list(self.stored)

    def core_seconds(self) -> float:
        unpack = zstandard.ZstdDecompressor().decompressobj
        points = [
            one for body in self.objects() for one in decode_points(unpack().decompress(body))
        ]
        return count_seconds(points, self.begun_ns)


class Store(ThreadingHTTPServer):
    """Stores the body of each POST as an object, in a list per path."""

    daemon_threads = True

    def __init__(self) -> None:
        self.objects: dict[str, list[bytes]] = {}
        super().__init__(("127.0.0.1", 0), _StoreRequest)

    def bucket(self, name: str) -> tuple[str, list[bytes]]:
        """Return the URL that stores into a new list, and the list."""
        return f"http://127.0.0.1:{self.server_port}/{name}", self.objects.setdefault(name, [])


class _StoreRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[self.path.lstrip("/")].append(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write no line per request."""


@contextmanager
def storing() -> Iterator[Store]:
    """Serve a store in a thread."""
    with Store() as store:
        thread = threading.Thread(target=store.serve_forever, daemon=True)
        thread.start()
        try:
            yield store
        finally:
            store.shutdown()
            thread.join()


@dataclass
class Field:
    """Start the programs of one comparison on one container, until the stack is closed."""

    lab: Lab
    container: Container
    store: Store
    stack: ExitStack

    def start_all(self, pace: Pace) -> dict[str, Contestant]:
        """Start the scraper with its default meter and the Collector, each in two ways."""
        target = f"process:{self.container.name}"
        started: dict[str, Contestant] = {
            OURS: self.start_scraper(pace, target),
            OURS_MINUTE: self.start_scraper(replace(pace, sample=pace.window), target),
        }
        if self.lab.go_peers:
            started[EVERY] = self.start_collector(pace.sample, pace.seal)
            started[MINUTE] = self.start_collector(pace.window, pace.seal)
        return started

    def start_scraper(self, pace: Pace, target: str) -> Contestant:
        """Start a scraper on `target`."""
        service, place = secrets.token_hex(6), self.lab.place("scraper")
        environ = self.lab.environ(place) | pace.scraper
        environ |= {"BYOC_SERVICE_ID": service, "BYOC_BILLING_TARGET": target}
        daemons = Daemons(self.lab.image.command, (SCRAPER,), place, environ)
        return Scraper(self.lab, self.stack.enter_context(daemons), service)

    def start_collector(self, interval: float, seal: float) -> Contestant:
        """Start a Collector that reads once per `interval` and posts once per `seal` seconds."""
        url, stored = self.store.bucket(secrets.token_hex(6))
        made = collector.metrics(
            self.lab.place("collector"),
            {"process": host_process(self.container.name)},
            f"{interval * 1000:.0f}ms",
            collector.Exporter(url, compression="zstd"),
            collector.Queue(batch=BATCH_POINTS, flush=f"{seal:g}s"),
        )
        return Collector(self.stack.enter_context(made), stored, self.container.begun_ns)


def host_process(name: str) -> dict[str, object]:
    """Return the scraper of these processes: CPU and memory, and the attributes that name them."""
    metrics = ("disk.io", "memory.virtual")
    attributes = ("command", "command_line", "owner", "parent_pid", "executable.path")
    return {
        "include": {"names": [name], "match_type": "strict"},
        "mute_process_all_errors": True,  # of processes that end while they are read
        "metrics": {f"process.{one}": {"enabled": False} for one in metrics},
        "resource_attributes": {f"process.{one}": {"enabled": False} for one in attributes},
    }


@contextmanager
def comparing(lab: Lab) -> Iterator[Field]:
    """Yield a field on a new container; its programs are stopped at the exit."""
    with container() as metered, storing() as store, ExitStack() as stack:
        yield Field(lab, metered, store, stack)


def measure(lab: Lab) -> list[Row]:
    """Measure the objects of an hour and their CPU, then the accuracy."""
    if lab.go_peers and not go_peers.available(GROUP):
        lab = replace(lab, go_peers=False)
    print(settings(), flush=True)
    objects, sizes, cpu = _costs(lab)
    rows = [
        row(GROUP, "processes on the machine", [len(psutil.pids())], ""),
        *_against("bytes per container-hour", sizes, "bytes"),
        *_against("objects per container-hour", objects, ""),
        *_against("CPU per container-hour", cpu, "s"),
    ]
    for trial in TRIALS:
        rows += _accuracy(lab, trial)
    return rows


Figures = dict[str, list[float]]  # by program


def _against(what: str, found: Figures, unit: str) -> list[Row]:
    compared = [
        row(
            GROUP, f"{what}: {ours} / {peer}", ratios(found[ours], found[peer]), "x", better="lower"
        )
        for ours, peer in PAIRS
        if peer in found
    ]
    return compared + [row(GROUP, f"{what}: {name}", found[name], unit) for name in found]


# The cost.


def _costs(lab: Lab) -> tuple[Figures, Figures, Figures]:
    """Return objects, bytes and CPU seconds per container-hour."""
    objects: Figures = defaultdict(list)
    sizes: Figures = defaultdict(list)
    cpu: Figures = defaultdict(list)
    for _ in range(lab.runs(2)):
        with comparing(lab) as field:
            usual, fast = field.start_all(DEFAULT), field.start_all(FAST)
            with field.container.burning() as burner:
                burner.pulse()
                time.sleep(SETTLE_SECONDS)
                used, arrivals = _observed(lab, usual, fast)
                burner.rest()
            for name, values in used.items():
                cpu[name] += values
            for name, times in arrivals.items():
                count = len(times) - 1  # the first one only begins the time
                hours = (times[-1] - times[0]) * SPEED / HOUR
                objects[name].append(count / hours)
                sizes[name].append(sum(map(len, fast[name].objects()[1 : count + 1])) / hours)
    return objects, sizes, cpu


def _observed(
    lab: Lab, usual: Mapping[str, Contestant], fast: Mapping[str, Contestant]
) -> tuple[Figures, Figures]:
    """Return CPU seconds per hour of `usual`, and the times at which objects of `fast` came."""
    values, wanted = lab.runs(2), lab.runs(OBJECTS)
    cpu: Figures = {name: [] for name in usual}
    arrivals: Figures = {name: [] for name in fast}
    began, deadline = time.monotonic(), time.monotonic() + PATIENCE_SECONDS
    before = {name: cpu_ns(one.process.pid) for name, one in usual.items()}
    while len(cpu[OURS]) < values or any(len(times) <= wanted for times in arrivals.values()):
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        for name, one in fast.items():
            new = len(one.objects()) - len(arrivals[name])
            arrivals[name] += [now] * min(new, wanted + 1 - len(arrivals[name]))
        if now - began >= DEFAULT.window:  # so each value has the work of one record
            after = {name: cpu_ns(one.process.pid) for name, one in usual.items()}
            for name, ns in after.items():
                cpu[name].append((ns - before[name]) / 1e9 / (now - began) * HOUR)
            began, before = now, after
        if now > deadline:
            raise PartError(f"objects after {PATIENCE_SECONDS:.0f} s: {arrivals}")
    return cpu, arrivals


# The accuracy.


@dataclass(frozen=True)
class Trial:
    """A load, and what ends at random moments of it."""

    name: str
    load: Callable[[Burner, float], None]
    kills: int = 0  # of each metering program
    restarts: int = 0  # of the container


def _pulse(burner: Burner, seconds: float) -> None:
    burner.pulse()
    time.sleep(seconds)


def _mix(burner: Burner, seconds: float) -> None:
    burner.mix(seconds)


KILLED = Trial(f"{KILLS} SIGKILLs of the meter", _pulse, kills=KILLS)
CHILDREN = Trial(f"short-lived children, {KILLS} SIGKILLs of the meter", _mix, kills=KILLS)
RESTARTED = Trial(f"{RESTARTS} restarts of the container", _pulse, restarts=RESTARTS)
TRIALS = (KILLED, CHILDREN, RESTARTED)


def _accuracy(lab: Lab, trial: Trial) -> list[Row]:
    """Return each program's error against the kernel's counter."""
    errors: Figures = defaultdict(list)
    for number in range(lab.runs(2)):
        truth, counted = count_trial(lab, trial, random.Random(SEED + number))
        for name, seconds in counted.items():
            errors[name].append(
                (truth - seconds) / trial.restarts
                if trial.restarts
                else (seconds - truth) / truth * 100
            )
    if trial.restarts:
        what, unit = f"{trial.name}: CPU not counted at each", "core s"
    else:
        what, unit = f"{trial.name}: error of the CPU seconds", "%"
    return [row(GROUP, f"{what}: {name}", values, unit) for name, values in errors.items()]


def count_trial(lab: Lab, trial: Trial, rng: random.Random) -> tuple[float, dict[str, float]]:
    """Return the core seconds by the kernel, and by the objects of each program."""
    seconds = 15.0 if lab.quick else LOAD_SECONDS
    with comparing(lab) as field:
        metered = field.container
        running = field.start_all(COUNTED)
        running[OURS_GROUP] = field.start_scraper(COUNTED, f"cgroup:{metered.group['cpuacct']}")
        time.sleep(3 * COUNTED.sample)  # all have read the empty container
        usec = 0
        for _ in range(trial.restarts):
            with metered.burning() as burner:
                trial.load(burner, rng.uniform(0.5, 1.5) * seconds / (trial.restarts + 1))
            usec += settled(metered.group)
            metered.replace()
        with metered.burning() as burner, ThreadPoolExecutor(len(running)) as pool:
            killers = [
                pool.submit(kill_often, one.process, _moments(rng, trial.kills, seconds))
                for one in running.values()
            ]
            trial.load(burner, seconds / (trial.restarts + 1))
            for killer in killers:
                killer.result()
            burner.send("rest")  # answered by a pulse; nothing else runs any more
            time.sleep(1.5 * COUNTED.window)  # all have read it once more
            for one in running.values():
                one.process.stop()
            usec += cpu_usec(metered.group)
    return usec / 1e6, {name: one.core_seconds() for name, one in running.items()}


def _moments(rng: random.Random, count: int, seconds: float) -> list[float]:
    return sorted(rng.uniform(0, seconds) for _ in range(count))


def kill_often(process: RealProcess, moments: Sequence[float]) -> None:
    """Kill and start the program at these seconds from now, or as soon as it has started."""
    began = time.monotonic()
    for moment in moments:
        time.sleep(max(0.0, began + moment - time.monotonic()))
        process.kill()
        time.sleep(DOWN_SECONDS)
        process.start()
