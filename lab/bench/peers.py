"""Start the peer programs, each configured to do the same work."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.bench import go_peers
from lab.bench.lab import until
from lab.fakes.http import WEBHOOK_TOKEN
from lab.real.parts import install, prometheus
from lab.real.parts.process import PartError, RealProcess, free_port, listens, responds

COLLECTD = """
BaseDir "{place}"
PIDFile "{place}/pid"
PluginDir "{plugins}"
TypesDB "{types}"
Interval 1
LoadPlugin cgroups
LoadPlugin write_http
<Plugin cgroups>
  CGroup "{group}"
  IgnoreSelected false
</Plugin>
<Plugin write_http>
  <Node "plane">
    URL "{url}"
    Format "JSON"
  </Node>
</Plugin>
"""
SYSLOG_NG = """@version: 3.38
options {{ stats-level(0); }};
source s {{ network(ip("127.0.0.1") port({port}) transport("tcp") flags(no-parse)
  max-connections(64) log-msg-size(16384) log-iw-size(6400)); }};
destination d {{ http(url("{url}") tls(ca-file("{ca_file}")) method("POST")
  body("${{MESSAGE}}") persist-name("d")
  headers("Content-Type: application/json", "Expect:")
  disk-buffer(reliable(yes) disk-buf-size(536870912) mem-buf-size(16777216) dir("{place}"))); }};
log {{ source(s); destination(d); flags(flow-control); }};
"""
ALERTMANAGER = """
route: {{receiver: r, group_by: ["{group_by}"], group_wait: {group_wait},
  group_interval: {group_interval}, repeat_interval: 1h}}
receivers:
- name: r
  webhook_configs:
  - {{url: "{url}", send_resolved: false, {timeout}http_config:
      {{tls_config: {{ca_file: "{ca_file}"}}, authorization: {{credentials: "{token}"}}}}}}
"""
BARE = """
import sys
from aiohttp import web
async def page(request):
    await request.read()
    return web.Response(text="ok")
app = web.Application()
app.router.add_get("/", page)
app.router.add_post("/", page)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
"""


@contextmanager
def collectd(place: Path, url: str, group: str) -> Iterator[int]:
    """Run collectd with cgroups (this group) and write_http at 1 s; yield its pid."""
    parts = install.peers()
    config = place / "collectd.conf"
    config.write_text(
        COLLECTD.format(
            place=place,
            plugins=parts / "usr/lib/collectd",
            types=parts / "usr/share/collectd/types.db",
            group=group,
            url=url,
        )
    )
    command = [str(parts / "usr/sbin/collectd"), "-f", "-C", str(config)]
    with spawned(command, place / "log", _libraries(parts)) as pid:
        yield pid


@contextmanager
def syslog_ng(place: Path, url: str, ca_file: str) -> Iterator[tuple[int, int]]:
    """Run syslog-ng: TCP lines in, a disk buffer, HTTPS out; yield its pid and port."""
    parts, port = install.peers(), free_port()
    config = place / "syslog-ng.conf"
    config.write_text(SYSLOG_NG.format(port=port, url=url, ca_file=ca_file, place=place))
    command = [
        str(parts / "usr/sbin/syslog-ng"), "-F", "-f", str(config), "--no-caps",
        "-R", str(place / "persist"), "-c", str(place / "ctl"), "-p", str(place / "pid"),
        f"--module-path={parts}/usr/lib/syslog-ng/3.38",
    ]  # fmt: skip
    with spawned(command, place / "log", _libraries(parts)) as pid:
        until(lambda: listens(port), 30)
        yield pid, port


@dataclass(frozen=True)
class Route:
    """How Alertmanager groups. As it is, each alert is sent at once in its own notification."""

    group_by: str = "..."
    group_wait: str = "0s"
    group_interval: str = "1m"
    timeout: str = ""  # of a notification; "" = the default, none

    def config(self, url: str, ca_file: str) -> str:
        """Return the configuration with one webhook."""
        return ALERTMANAGER.format(
            url=url,
            ca_file=ca_file,
            token=WEBHOOK_TOKEN,
            group_by=self.group_by,
            group_wait=self.group_wait,
            group_interval=self.group_interval,
            timeout=f"timeout: {self.timeout}, " if self.timeout else "",
        )


@contextmanager
def alertmanager(place: Path, url: str, ca_file: str = "") -> Iterator[RealProcess]:
    """Run Debian's Alertmanager so that it sends each alert at once in its own notification."""
    with prometheus.alertmanager(place, Route().config(url, ca_file)) as running:
        yield running


def current_alertmanager(
    place: Path, url: str, ca_file: str = "", route: Route | None = None, *flags: str
) -> RealProcess:
    """Return Alertmanager 0.35, not yet started."""
    config, port = place / "config.yml", free_port()
    config.write_text((route or Route()).config(url, ca_file))
    return RealProcess(
        name="alertmanager-0.35",
        command=[
            str(go_peers.alertmanager()), f"--config.file={config}", "--cluster.listen-address=",
            f"--storage.path={place}/data", f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error", *flags,
        ],
        port=port,
        ready_path="/-/ready",
        log=place / "log",
    )  # fmt: skip


@contextmanager
def node_exporter(place: Path) -> Iterator[tuple[int, str]]:
    """Run node_exporter with Debian's configuration; yield its pid and the URL of its page."""
    port = free_port()
    program = str(install.peers() / "usr/bin/prometheus-node-exporter")
    command = [program, f"--web.listen-address=127.0.0.1:{port}"]
    url = f"http://127.0.0.1:{port}/metrics"
    with spawned(command, place / "log", {}) as pid:
        until(lambda: responds(url), 30)
        yield pid, url


@contextmanager
def bare_aiohttp(place: Path, python: Path) -> Iterator[tuple[int, str]]:
    """Run a minimal aiohttp server with the packages of the image."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with spawned([str(python), "-c", BARE, str(port)], place / "log", {}) as pid:
        until(lambda: responds(url), 30)
        yield pid, url


@contextmanager
def spawned(command: Sequence[str], log: Path, environ: Mapping[str, str]) -> Iterator[int]:
    """Run a program until the end of the block. Raises PartError if it ended by itself."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **environ}
        )
    try:
        yield child.pid
        if child.poll() is not None:
            raise PartError(
                f"{command[0]} ended with {child.returncode}: {log.read_text()[-2000:]}"
            )
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _libraries(parts: Path) -> dict[str, str]:
    beside = install.library_path(parts)["LD_LIBRARY_PATH"]
    return {"LD_LIBRARY_PATH": f"{beside}:{parts}/usr/lib/syslog-ng"}
