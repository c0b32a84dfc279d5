"""Attack the daemons as an unknown client: `python -m lab.strangers`, as root.

Each daemon runs with the usual log level in a control group with the chart's memory limit. Its CPU
is not limited, unlike in the chart (100m). Each scenario runs for some seconds: closed
connections are opened again, up to 2,000 per second. Meanwhile a genuine client, which has the same
address as the strangers, asks the attacked admin server for /healthz, and posts a recorded
notification of a real Alertmanager to the forwarder's webhook, whichever of its ports is attacked.
Each has new connections, and each notification has new alerts, which must all be stored. One line
per scenario: the process's peak resident memory, the group's peak (with page cache), restarts, the
longest time until a genuine request was answered, and the connections that were opened. Loopback
only. Exit 1 if a bound is broken.
"""

import argparse
import http.client
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab.fakes.http import WEBHOOK_HEADERS, WEBHOOK_TOKEN
from lab.real.alerts_lab import RELAYED
from lab.real.parts import kernel
from lab.real.parts.process import free_port, responds
from lab.real.scraper import clean_environ, eventually

MIB = 1024**2
LIMIT_BYTES = 96 * MIB  # the chart's memory limit
PEAK_BYTES = 80 * MIB
RESPONSE_SECONDS = 2.0
KEPT_UP_SECONDS = 5.0
REOPENED_PER_SECOND = 2000
PROBE_SECONDS = 0.25  # between two genuine requests
BODY_BYTES = 4 * MIB
DESCRIPTORS = 12_000
DAEMONS = ("alert-forwarder", "billing-scraper", "state-exporter")
GENUINE = (
    Path(__file__).parents[1] / "tests/unit/alerts/data/alertmanager-webhook-firing-group3.json"
)
GENUINE_ALERTS = 3  # in it
GZIP_MIB = 1024  # in each bomb, which has 1 MB


@dataclass(frozen=True)
class Scenario:
    """Connections that each send the same bytes: at once, or one byte per turn (`drips`)."""

    name: str
    connections: int
    sent: Callable[[str], bytes]  # of the first line of the request
    drips: bool = False


def head(*lines: str, end: str = "\r\n\r\n") -> Callable[[str], bytes]:
    """Return a request without a body."""
    return lambda first: ("\r\n".join([first, "Host: x", *lines]) + end).encode()


def headers(count: int, size: int) -> list[str]:
    """Return header lines of `size` bytes each."""
    return [f"X-{number}: {'a' * (size - 8)}" for number in range(count)]


def body(content: bytes, *lines: str) -> Callable[[str], bytes]:
    """Return a request with a body."""
    before = head(*lines, f"Content-Length: {len(content)}")
    return lambda first: before(first) + content


def bomb() -> bytes:
    """Return 1 MB of gzip that is GZIP_MIB of zeros."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(compressor.compress(bytes(MIB)) for _ in range(GZIP_MIB)) + compressor.flush()


def zeros() -> bytes:
    """Return a notification whose alerts are two million zeros."""
    return b'{"alerts":[' + b"0," * (BODY_BYTES // 2 - 20) + b"0]}"


def labels() -> bytes:
    """Return a notification with one alert of 280,000 labels."""
    named = b",".join(b'"l%d":"v"' % number for number in range(280_000))
    alert = b'{"status":"firing","startsAt":"2026-11-23T12:00:00Z","labels":{%b}}' % named
    return b'{"alerts":[%b]}' % alert


def storm() -> bytes:
    """Return a genuine notification of 5,000 alerts, 13 MiB."""
    alert = json.loads(GENUINE.read_bytes())["alerts"][0]
    alert["annotations"]["description"] = "x" * 2400
    alerts = [alert | {"fingerprint": f"{number:016x}"} for number in range(5000)]
    return json.dumps({"version": "4", "receiver": "byoc", "alerts": alerts}).encode()


def scenarios() -> list[Scenario]:
    """Return the scenarios of every port."""
    slow = head(*headers(30, 1000))
    return [
        Scenario("largest heads", 500, head(*headers(31, 1000), "Content-Length: 0")),
        Scenario("heads without an end", 500, head(*headers(31, 1000), end="\r\nX")),
        Scenario("heads over the bounds", 500, head(*headers(120, 8000))),
        Scenario("silent connections", 5000, lambda _: b""),
        Scenario("slow heads", 500, slow, drips=True),
        Scenario("gzip bombs of 1 GiB", 200, body(bomb(), "Content-Encoding: gzip")),
        Scenario("bodies of zeros, no token", 200, body(zeros())),
        Scenario("requests without a pause", 50, lambda first: 500 * head()(first)),
    ]


def authenticated() -> list[Scenario]:
    """Return the scenarios of the webhook with the token."""
    token = f"Authorization: Bearer {WEBHOOK_TOKEN}"
    return [
        Scenario("bodies of zeros, with the token", 8, body(zeros(), token)),
        Scenario("280,000 labels, with the token", 8, body(labels(), token)),
        Scenario("gzip bombs, with the token", 50, body(bomb(), token, "Content-Encoding: gzip")),
        Scenario("5,000 genuine alerts, 13 MiB", 4, body(storm(), token)),
    ]


class Strangers(threading.Thread):
    """Runs a scenario from one thread until stopped."""

    def __init__(self, port: int, scenario: Scenario, first: str) -> None:
        super().__init__()
        self.opened = 0
        self._port = port
        self._scenario = scenario
        self._content = memoryview(scenario.sent(first))
        self._over = threading.Event()
        self._left: dict[socket.socket, int] = {}  # -> how much of the content was sent
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Open, send, and open a new connection for each closed one."""
        began = time.monotonic()
        while not self._over.is_set():
            allowed = self._scenario.connections - self.opened
            allowed += int((time.monotonic() - began) * REOPENED_PER_SECOND)
            for _ in range(min(200, allowed, self._scenario.connections - len(self._left))):
                self._open()
            for key, events in self._selector.select(0.02):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if events & selectors.EVENT_READ and self._ended(sock):
                    self._close(sock)
                elif events & selectors.EVENT_WRITE:
                    self._send(sock)
            if self._scenario.drips:
                time.sleep(0.05)
        for sock in [*self._left]:
            self._close(sock)
        self._selector.close()

    def stop(self) -> None:
        """Close all connections."""
        self._over.set()
        self.join()

    def _open(self) -> None:
        sock = socket.socket()
        sock.settimeout(0)
        sock.connect_ex(("127.0.0.1", self._port))
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._content else 0)
        self._selector.register(sock, wanted)
        self._left[sock] = 0
        self.opened += 1

    def _send(self, sock: socket.socket) -> None:
        start = self._left[sock]
        end = start + 1 if self._scenario.drips else len(self._content)
        try:
            self._left[sock] += sock.send(self._content[start:end])
        except BlockingIOError:
            return
        except OSError:
            self._close(sock)
            return
        if self._left[sock] == len(self._content):
            self._selector.modify(sock, selectors.EVENT_READ)

    def _ended(self, sock: socket.socket) -> bool:
        try:
            return not sock.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _close(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        sock.close()
        del self._left[sock]


@dataclass(frozen=True)
class Figures:
    """The result of one scenario at one port."""

    daemon: str
    port: str
    scenario: str
    resident_bytes: int  # peak
    group_bytes: int  # peak, page cache included
    restarts: int
    slowest_seconds: float  # of the genuine requests
    genuine: int
    lost: int  # alerts of accepted notifications that were not stored
    opened: int

    @property
    def holds(self) -> bool:
        """Return whether every bound holds."""
        return (
            self.resident_bytes < PEAK_BYTES
            and not self.restarts
            and not self.lost
            and self.genuine > 0
            and self.slowest_seconds < RESPONSE_SECONDS
        )


@dataclass(frozen=True)
class Limited:
    """A daemon in its group."""

    process: subprocess.Popen[bytes]
    group: kernel.ControlGroup
    ports: dict[str, int]


@contextmanager
def limited(daemon: str, place: Path) -> Iterator[Limited]:
    """Run a daemon in a group with the limit."""
    admin, webhook = free_port(), free_port()
    environ = {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "service",
        "BYOC_REGION": "eu-west-1",
        "BYOC_STATE_DIR": str(place / "state"),
        "BYOC_LISTEN": f"127.0.0.1:{admin}",
        "BYOC_BILLING_BUCKET": f"file://{place}/bucket",
        "BYOC_BILLING_TARGET": f"pid:{os.getpid()}",
        "BYOC_STATE_QUEUE_URL": f"file://{place}/queue",
        "BYOC_CLICKHOUSE_URL": "http://127.0.0.1:9",
        "BYOC_ALERTS_URL": "http://127.0.0.1:9/v1/events",
        "BYOC_ALERTS_TOKEN": "token",
        "BYOC_ALERTS_SIGNING_SECRET": "whsec_" + "a2tr" * 8,
        "BYOC_ALERTS_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
        "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
        "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
        "BYOC_ALERTS_ANNOTATIONS": "summary",
        "BYOC_ALERTS_LISTEN": f"127.0.0.1:{webhook}",
        "MALLOC_ARENA_MAX": "1",  # as in the images
    }
    command = [sys.executable, "-m", "byoc_agents.app.cli", "run", daemon]
    for name in ("bucket", "queue"):
        (place / name).mkdir()
    with kernel.memory_limited(LIMIT_BYTES) as group, (place / "log").open("wb") as log:
        process = subprocess.Popen(
            group.command(command), env=clean_environ(environ), stderr=log, start_new_session=True
        )
        try:
            eventually(lambda: responds(f"http://127.0.0.1:{admin}/readyz"))
            yield Limited(process, group, {"admin": admin, "webhook": webhook})
        finally:
            process.kill()
            process.wait()


def measure(daemon: str, port_name: str, scenario: Scenario) -> Figures:
    """Run one scenario against one port, `webhook` or `admin`."""
    first = "POST /v1/alerts HTTP/1.1" if port_name == "webhook" else "GET /healthz HTTP/1.1"
    with tempfile.TemporaryDirectory() as place, limited(daemon, Path(place)) as running:
        ports, process = running.ports, running.process
        strangers = Strangers(ports[port_name], scenario, first)
        strangers.start()
        seconds: list[float] = []
        posted = 0
        try:
            ends_at = time.monotonic() + KEPT_UP_SECONDS
            while time.monotonic() < ends_at and process.poll() is None:
                if port_name == "admin":
                    seconds.append(genuine(ports["admin"]))
                if daemon == "alert-forwarder":
                    seconds.append(genuine(ports["webhook"], notification(posted)))
                    posted += 1
                time.sleep(PROBE_SECONDS)
        finally:
            strangers.stop()
        ended = process.poll() is not None
        stored = 0 if ended or not posted else stored_alerts(ports["admin"])
        return Figures(
            daemon=daemon,
            port=port_name,
            scenario=scenario.name,
            resident_bytes=0 if ended else peak_resident_bytes(process.pid),
            group_bytes=running.group.peak_bytes(),
            restarts=int(ended),
            slowest_seconds=max(seconds),
            genuine=len(seconds),
            lost=max(0, posted * GENUINE_ALERTS - stored),
            opened=strangers.opened,
        )


def notification(number: int) -> bytes:
    """Return the genuine notification with alerts that no other number has."""
    posted = json.loads(GENUINE.read_bytes())
    for index, alert in enumerate(posted["alerts"]):
        alert["fingerprint"] = f"a{number:07x}{index:08x}"
    return json.dumps(posted).encode()


def genuine(port: int, content: bytes | None = None) -> float:
    """Return the seconds until a genuine request was answered 200; it tries again, up to 30 s.

    It posts the content to the webhook, or asks for /healthz if there is none.
    """
    began = time.monotonic()
    while time.monotonic() - began < 30:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with suppress(OSError, http.client.HTTPException):
            if content is not None:
                connection.request("POST", "/v1/alerts", content, WEBHOOK_HEADERS)
            else:
                connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                connection.close()
                break
        connection.close()
        time.sleep(0.05)
    return time.monotonic() - began


def stored_alerts(admin_port: int) -> int:
    """Return how many alerts the forwarder has stored to be relayed, duplicates left out."""

    def read_metrics() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", admin_port, timeout=10)
        with suppress(OSError, http.client.HTTPException), closing(connection):
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            if response.status == 200:
                return response.read().decode()
        return ""  # the strangers' connections still count

    lines = eventually(read_metrics).splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(RELAYED))


def peak_resident_bytes(pid: int) -> int:
    """Return the largest resident memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def plan(daemons: Sequence[str]) -> Iterator[tuple[str, str, Scenario]]:
    """Yield every scenario with its daemon and port."""
    everywhere, known = scenarios(), authenticated()
    for daemon in daemons:
        for scenario in everywhere:
            yield daemon, "admin", scenario
        if daemon == "alert-forwarder":
            for scenario in everywhere + known:
                yield daemon, "webhook", scenario


def allow_connections() -> None:
    """Raise the limit of open files for the strangers. Raises ValueError if that is not allowed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, max(hard, DESCRIPTORS)))


ROW = "{:16} {:8} {:32} {:>9} {:>9} {:>8} {:>9} {:>8} {:>8}  {}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per scenario; return 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("daemon", nargs="*", help=", ".join(DAEMONS))
    parser.add_argument("--only", default="", help="scenarios whose name contains this text")
    options = parser.parse_args(argv)
    allow_connections()
    print(
        f"limit {LIMIT_BYTES // MIB} MiB; bounds: resident below {PEAK_BYTES // MIB} MiB,"
        f" no restart, every genuine request answered within {RESPONSE_SECONDS:g} s"
        " and its alerts stored\n"
    )
    print(ROW.format("daemon", "port", "scenario", "resident", "group", "restarts", "slowest",
                     "genuine", "opened", ""))  # fmt: skip
    broken = 0
    for daemon, port, scenario in plan(options.daemon or DAEMONS):
        if options.only not in scenario.name:
            continue
        row = measure(daemon, port, scenario)
        broken += not row.holds
        print(
            ROW.format(
                *(row.daemon, row.port, row.scenario, f"{row.resident_bytes / MIB:.1f} MiB"),
                *(f"{row.group_bytes / MIB:.1f} MiB", row.restarts, f"{row.slowest_seconds:.2f} s"),
                *(row.genuine, row.opened, "ok" if row.holds else "BROKEN"),
            ),
            flush=True,
        )
    print("\nOK" if not broken else f"\nFAILED: {broken} scenarios")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
