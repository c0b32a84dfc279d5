"""Measure resident memory after work: the daemons, a bare server, and the peers."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from lab.bench import peers, sender
from lab.bench.figures import Row, ratios, row
from lab.bench.lab import DAEMONS, EXPORTER, FORWARDER, SCRAPER, Daemons, Lab, rss_mib, until
from lab.real.parts import kernel
from lab.real.parts.process import DIRECT

BUSY = {  # an hour's work in some seconds
    "BYOC_BILLING_SAMPLE_SECONDS": "0.1",
    "BYOC_BILLING_WINDOW_SECONDS": "1",
    "BYOC_BILLING_SEAL_SECONDS": "1",
    "BYOC_STATE_POLL_SECONDS": "1",
    "BYOC_STATE_HEARTBEAT_SECONDS": "1",
}
ALERTS, OBJECTS, MESSAGES = 500, 5, 5
ALONE = {SCRAPER: "<= 48", EXPORTER: "<= 47", FORWARDER: "<= 40"}


def measure(lab: Lab) -> list[Row]:
    """Run every program in turn, once per run."""
    found: dict[str, list[float]] = {}
    for _ in range(lab.runs(3)):
        for name in DAEMONS:
            found.setdefault(name, []).append(_ours(lab, name))
        found.setdefault("all", []).append(_ours(lab, *DAEMONS))
        for name, of in (
            ("bare", _bare),
            ("am", _alertmanager),
            ("node", _node),
            ("cd", _collectd),
        ):
            found.setdefault(name, []).append(of(lab))
    rows = [row("memory", f"{n} alone", found[n], "MiB", ALONE[n]) for n in DAEMONS]
    against = ratios(found["all"], found["bare"])
    return [
        *rows,
        row("memory", "all three in one process", found["all"], "MiB", "<= 52"),
        row("memory", "all three / a bare aiohttp server", against, "x", "<= 1.45"),
        row("memory", "a bare aiohttp server", found["bare"], "MiB"),
        row("memory", f"Alertmanager after {ALERTS} alerts", found["am"], "MiB"),
        row("memory", "node_exporter after 20 scrapes", found["node"], "MiB"),
        row("memory", "collectd, cgroups and write_http", found["cd"], "MiB"),
    ]


def _ours(lab: Lab, *names: str) -> float:
    with lab.daemons(*names, **BUSY) as running:
        worked(lab, running)
        return rss_mib(running.probe)


def worked(lab: Lab, running: Daemons) -> None:
    """Wait until each daemon of the process has delivered something."""
    receivers, names = lab.receivers, running.names
    puts, messages = len(receivers.s3.puts), len(receivers.sqs.messages)
    if FORWARDER in names:
        sender.send(running.webhook, sender.webhooks(ALERTS))
        until(lambda: receivers.plane.names >= sender.names(ALERTS))
        receivers.plane.names.clear()
    if SCRAPER in names:
        until(lambda: len(receivers.s3.puts) >= puts + OBJECTS)
    if EXPORTER in names:
        until(lambda: len(receivers.sqs.messages) >= messages + MESSAGES)


def _bare(lab: Lab) -> float:
    with peers.bare_aiohttp(lab.place("bare"), lab.image.python) as (pid, url):
        sender.send(url, sender.webhooks(ALERTS))
        return rss_mib(psutil.Process(pid))


def _alertmanager(lab: Lab) -> float:
    with peers.alertmanager(lab.place("alertmanager"), lab.receivers.plane.url) as running:
        sender.send(f"{running.url}/api/v2/alerts", sender.posts(ALERTS))
        until(lambda: lab.receivers.plane.names >= sender.names(ALERTS))
        lab.receivers.plane.names.clear()
        return rss_mib(psutil.Process(running.pid))


def _node(lab: Lab) -> float:
    with peers.node_exporter(lab.place("node")) as (pid, url):
        for _ in range(20):
            with DIRECT.open(url) as response:
                response.read()
        return rss_mib(psutil.Process(pid))


def _collectd(lab: Lab) -> float:
    with collecting(lab) as pid:
        posts = lab.receivers.plane.posts
        until(lambda: lab.receivers.plane.posts > posts + 2)
        return rss_mib(psutil.Process(pid))


@contextmanager
def collecting(lab: Lab) -> Iterator[int]:
    """Run collectd on one group, two below the root as its plugin requires; return its pid."""
    with kernel.cgroup_v1("cpuacct") as group:
        inner = group["cpuacct"] / "metered"
        inner.mkdir()
        url = lab.receivers.plane.url
        try:
            with peers.collectd(lab.place("collectd"), url, inner.name) as pid:
                yield pid
        finally:
            inner.rmdir()
