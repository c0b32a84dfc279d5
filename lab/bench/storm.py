"""Measure a storm: a real Alertmanager notifies the forwarder of 10,000 alerts at once.

The forwarder must have stored and delivered all of them within a minute.
"""

import json
import time
from urllib.parse import urlsplit

import psutil

from lab.bench import peers, sender
from lab.bench.figures import Row, row
from lab.bench.lab import FORWARDER, Daemons, Lab, cpu_ns, rss_mib, until

ALERTS, OF_A_POST = 10_000, 100


def measure(lab: Lab) -> list[Row]:
    """Send the storm, and wait until the control plane has the last alert."""
    count = ALERTS // 10 if lab.quick else ALERTS
    plane, wanted = lab.receivers.plane, sender.names(count)
    plane.names.clear()
    with (
        lab.daemons(FORWARDER) as ours,
        peers.alertmanager(lab.place("alertmanager"), ours.webhook) as theirs,
    ):
        used, began = cpu_ns(ours.process.pid), time.monotonic()
        sender.send(f"{theirs.url}/api/v2/alerts", _posts(count), senders=2)
        held: list[float] = []

        def over() -> bool:
            held.append(_connections(ours))
            return plane.names >= wanted

        until(over, 300, every=0.1)
        seconds, cpu = time.monotonic() - began, cpu_ns(ours.process.pid) - used
        memory = rss_mib(ours.probe)
    return [
        row("storm", f"storm of {count:,} alerts: until all are delivered", [seconds], "s",
            "<= 60"),
        row("storm", f"storm of {count:,} alerts: CPU per alert", [cpu / 1e3 / count], "us"),
        row("storm", f"storm of {count:,} alerts: connections that Alertmanager holds", held, ""),
        row("storm", f"storm of {count:,} alerts: memory after it", [memory], "MiB"),
    ]  # fmt: skip


def _connections(ours: Daemons) -> int:
    """Return the number of open connections to the webhook, idle ones included."""
    port = urlsplit(ours.webhook).port
    found = ours.probe.net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in found)


def _posts(count: int) -> list[bytes]:
    alerts = [json.loads(body)[0] for body in sender.posts(count)]
    batches = range(0, count, OF_A_POST)
    return [json.dumps(alerts[first : first + OF_A_POST]).encode() for first in batches]
