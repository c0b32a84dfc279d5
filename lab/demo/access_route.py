"""The two ways of the access demo's engineer to the stand-in ClickHouse.

`through_tailnet` is the lab of `lab.tailnet`: real Tailscale and nginx with the chart's
configuration, in network namespaces. `through_loopback` needs neither root nor a real part: the
engineer connects to the listener directly.
"""

import datetime as dt
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from lab.demo.access_server import Ready
from lab.real.chart import render
from lab.real.parts import helm
from lab.real.parts.install import CACHE
from lab.tailnet import certificates, environment, parts
from lab.tailnet.engineer import Engineer
from lab.tailnet.environment import Program, inside, launch
from lab.tailnet.listener import NATIVE_PORT

SERVER = "lab.demo.access_server"
PARTS = ("tailnet", "nginx", *(f"helm-{version}" for version in helm.VERSIONS[:1]))
BUILD = ".venv/bin/python -m lab.tailnet.parts"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Route:
    """The way to the server, and the place of the programs next to the server."""

    name: str
    engineer: Engineer
    address: str
    port: int
    server_url: str  # for the broker
    before: tuple[str, ...] = ()  # the command that enters the broker's place
    log: str = ""  # the file with the engineers' connections, if there is one
    close: Callable[[], None] | None = None  # scale the endpoint to 0


def find_obstacle() -> str:
    """Return why the tailnet cannot run on this machine, or an empty text."""
    if os.geteuid():
        return "network namespaces need root"
    if programs := [one for one in ("ip", "nft", "curl") if shutil.which(one) is None]:
        return f"no {', '.join(programs)} here"
    if missing := [one for one in PARTS if not (CACHE / f"{one}.stamp").exists()]:
        return f"no {', '.join(missing)} in {CACHE.name}: `{BUILD}` builds them"
    return ""


@contextmanager
def through_tailnet(directory: Path) -> Iterator[Route]:
    """Start the lab with one pod of ClickHouse's endpoint, by relay only. Raises PartError."""
    values = directory / "values.yaml"
    values.write_text(yaml.safe_dump(environment.values()))
    documents = render.manifests(values)
    with environment.built(directory, documents, [SERVER]) as lab:
        yield Route(
            name=f"Tailscale {parts.VERSION} by a relay, and nginx",
            engineer=lab.engineer(),
            address=lab.start_pod("clickhouse", documents),
            port=NATIVE_PORT,
            server_url=_read_ready(lab.running["listener"]).http,
            before=inside("servers"),
            log="proxy.log",
            close=lab.stop_pod,
        )


@contextmanager
def through_loopback(directory: Path) -> Iterator[Route]:
    """Start the server alone. Raises PartError."""
    certificates.make(directory, environment.SERVICE, dt.datetime.now(dt.UTC))
    own = [LOOPBACK, *certificates.server_files(directory), "0", "0"]
    server = launch("listener", [sys.executable, "-m", SERVER, *own], directory, os.environ)
    try:
        server.wait_for(lambda: b"\n" in server.log.read_bytes(), "start")
        ready = _read_ready(server)
        yield Route(
            name="the loopback interface, without a tailnet",
            engineer=Engineer(directory),
            address=LOOPBACK,
            port=ready.native,
            server_url=ready.http,
        )
    finally:
        server.stop()


def _read_ready(server: Program) -> Ready:
    return msgspec.json.decode(server.log.read_bytes().splitlines()[0], type=Ready)
