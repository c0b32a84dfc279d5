"""The resident memory that a connection costs the forwarder's process, as the kernel counts it."""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lab.fakes.certificate import certificate
from lab.real.parts.process import free_port
from lab.real.scraper import clean_environ, eventually
from tests.unit.alerts.webhook_harness import BEARER, TOKEN, head

CONNECTIONS = 64
MIB = 1024**2
SIZE = 4_000_000
STABLE_SECONDS = 0.5
SETTINGS = {
    "BYOC_ORGANIZATION_ID": "org",
    "BYOC_SERVICE_ID": "service",
    "BYOC_REGION": "eu-west-1",
    "BYOC_LOG_LEVEL": "error",
    "BYOC_ALERTS_URL": "http://127.0.0.1:9/v1/events",  # nothing listens on this port
    "BYOC_ALERTS_TOKEN": "token",
    "BYOC_ALERTS_WEBHOOK_TOKEN": TOKEN,
    "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
    "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
    "BYOC_ALERTS_SIGNING_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "MALLOC_ARENA_MAX": "1",  # as in the images
}


@contextmanager
def forwarder(directory: Path, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the daemon. Yield its process and the port of the webhook."""
    port = free_port()
    addresses = {
        "BYOC_STATE_DIR": str(directory / "state"),
        "BYOC_LISTEN": f"127.0.0.1:{free_port()}",
        "BYOC_ALERTS_LISTEN": f"127.0.0.1:{port}",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "byoc_agents.app.cli", "run", "alert-forwarder"],
        env=clean_environ({**SETTINGS, **addresses, **more}),
    )
    try:
        eventually(lambda: answers(port))
        yield process, port
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def rss_kib(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def stable_rss_kib(pid: int) -> int:
    """Return the resident memory after it has not grown for STABLE_SECONDS."""
    most_kib, since = 0, time.monotonic()

    def is_stable() -> bool:
        nonlocal most_kib, since
        if (now_kib := rss_kib(pid)) > most_kib:
            most_kib, since = now_kib, time.monotonic()
        return time.monotonic() - since >= STABLE_SECONDS

    eventually(is_stable)
    return most_kib


def send_until_blocked(connection: socket.socket, content: bytes) -> None:
    """Send until the buffers are full for 50 ms."""
    connection.settimeout(0.05)
    with suppress(TimeoutError, OSError):
        connection.sendall(content)


def test_an_idle_tls_connection_is_small(tmp_path: Path) -> None:
    cert, key = map(str, certificate(tmp_path, "webhook"))
    files = {"BYOC_ALERTS_TLS_CERT_FILE": cert, "BYOC_ALERTS_TLS_KEY_FILE": key}
    context = ssl.create_default_context(cafile=cert)
    with forwarder(tmp_path, **files) as (process, port), ExitStack() as stack:
        before = stable_rss_kib(process.pid)
        for _ in range(CONNECTIONS):
            plain = socket.create_connection(("127.0.0.1", port))
            stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
        each = (stable_rss_kib(process.pid) - before) / CONNECTIONS
    assert each < 128, f"{each:.0f} KiB; asyncio's own buffer is 256"


def test_an_unfinished_body_needs_less_memory_than_its_limit(tmp_path: Path) -> None:
    """A few bodies are read; each of the others only fills its buffers."""
    with forwarder(tmp_path) as (process, port), ExitStack() as stack:
        before = stable_rss_kib(process.pid)
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            send_until_blocked(connection, head(SIZE) + bytes(SIZE - 1))
        each = (stable_rss_kib(process.pid) - before) / CONNECTIONS
    assert each < 512, f"{each:.0f} KiB; it was 888"


def test_a_storm_of_5000_alerts_in_one_group_is_stored_within_the_charts_memory(
    tmp_path: Path,
) -> None:
    """Without `max_alerts`, Alertmanager sends them in one notification of about 8 MiB."""
    alerts = [
        {
            "status": "firing",
            "labels": {
                "alertname": "ClickHouseTooManyParts",
                "severity": "warning",
                "pod": f"chi-main-0-{number % 6}-0",
                "table": f"events_{number:05d}",
            },
            "annotations": {"summary": "A partition holds many parts.", "description": "x" * 900},
            "startsAt": "2026-11-23T12:00:00Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus:9090/graph?" + "y" * 300,
            "fingerprint": f"{number:016x}",
        }
        for number in range(5000)
    ]
    body = json.dumps({"version": "4", "receiver": "byoc", "status": "firing", "alerts": alerts})
    assert len(body) > 7 * MIB
    with forwarder(tmp_path) as (process, port):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/alerts",
            data=body.encode(),
            headers={"Content-Type": "application/json", "Authorization": BEARER},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == 200
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert peak
    assert int(peak[1]) < 96 * 1024, f"{int(peak[1]) / 1024:.0f} MiB; the chart's limit is 96"
