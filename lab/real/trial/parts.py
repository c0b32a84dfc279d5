"""Start the services of localstack/compose.yaml on free loopback ports."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from lab.real.parts import clickhouse as clickhouse_part
from lab.real.parts import localstack as localstack_part
from lab.real.parts import prometheus as prometheus_part
from lab.real.parts.process import DIRECT, POLL_SECONDS, PartError, RealProcess
from lab.real.trial.files import DAEMONS, Files, written

PROGRAM = Path(sys.executable).with_name("byoc-agents")
INIT = "/_localstack/init/ready"  # the results of the scripts that LocalStack ran
INIT_SECONDS = 60  # for what takes two

Say = Callable[[str], None]


class Part(Protocol):
    """One service of the trial: started on entry, stopped on exit."""

    @property
    def url(self) -> str: ...
    def stop(self) -> None: ...
    def log_tail(self) -> str: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


Started = dict[str, Part]
Ours = Callable[[Files, str, int], Part]  # files, name of a service of ours, ClickHouse's pid


def start(directory: Path, running: ExitStack, say: Say, ours: Ours | None = None) -> Started:
    """Start all, receivers first; return service -> part. `running` stops them, last first."""
    files, ours = Files(directory), ours or process
    started: Started = {}

    def add(name: str, part: Part, page: str = "") -> None:
        started[name] = running.enter_context(part)
        say(f"{name:16} {part.url}{page}")

    localstack, clickhouse = _localstack(files), _clickhouse(files)
    add("localstack", localstack)
    _wait_init(localstack)
    add("clickhouse", clickhouse)
    add("control-plane", ours(files, "control-plane", clickhouse.pid))
    for name in DAEMONS:
        add(name, ours(files, name, clickhouse.pid), "/status")
    add("alertmanager", _alertmanager(files))
    add("prometheus", _prometheus(files))
    return started


def process(files: Files, name: str, clickhouse_pid: int) -> RealProcess:
    """Return one of our services as a process of this machine."""
    if name == "control-plane":
        return control_plane(files)
    return daemon(files, name, clickhouse_pid)


def daemon(files: Files, name: str, target_pid: int) -> RealProcess:
    """Return one daemon; the scraper meters a given process, as other servers may run here."""
    environment = files.environment(name) | {"BYOC_STATE_DIR": str(files.directory / "state")}
    if "BYOC_BILLING_TARGET" in environment:
        environment["BYOC_BILLING_TARGET"] = f"pid:{target_pid}"
    return RealProcess(
        name=name,
        command=[str(PROGRAM), "run", name],
        port=files.port(name, 9464),
        ready_path="/readyz",
        log=files.directory / f"{name}.log",
        environment=environment,
    )


def _localstack(files: Files) -> RealProcess:
    place = files.directory / "localstack"
    shutil.copytree(files.directory / "init", place / "etc/localstack/init")  # below its root
    return localstack_part.localstack(place, files.port("localstack", 4566))


def _wait_init(running: RealProcess) -> None:
    """Wait until LocalStack has made the bucket and the queue. Raises PartError."""
    deadline = time.monotonic() + INIT_SECONDS
    while (states := _init_states(running)) != ["SUCCESSFUL"]:
        if "ERROR" in states or time.monotonic() > deadline:
            raise PartError(f"LocalStack's init scripts: {states}:\n{running.log_tail()}")
        time.sleep(POLL_SECONDS)


def _init_states(running: RealProcess) -> list[str]:
    with DIRECT.open(running.url + INIT, timeout=30) as response:
        return [script["state"] for script in json.load(response)["scripts"]]


def _clickhouse(files: Files) -> RealProcess:
    place = files.directory / "clickhouse"
    return clickhouse_part.old_clickhouse(place, files.port("clickhouse", 8123))


def control_plane(files: Files) -> RealProcess:
    """Return the reference control plane; a GET of `/` shows every event it has."""
    port, secrets = files.port("control-plane", 8080), files.directory / "secrets"
    command = [sys.executable, "-m", "lab.receiver", f"--port={port}"]
    command += [f"--token-file={secrets / 'control-plane-token'}"]
    command += [f"--signing-secret-file={secrets / 'signing-secret'}"]
    log = files.directory / "control-plane.log"
    return RealProcess("control-plane", command, log, port=port, ready_path="/")


def _alertmanager(files: Files) -> RealProcess:
    config = files.text("alertmanager/alertmanager.yml")
    place = files.directory / "alertmanager"
    return prometheus_part.alertmanager(place, config, files.port("alertmanager", 9093))


def _prometheus(files: Files) -> RealProcess:
    place = files.directory / "prometheus"
    written(place, {"rules.yml": files.text("prometheus/rules.yml")})
    config = files.text("prometheus/prometheus.yml")
    return prometheus_part.prometheus(place, config, files.port("prometheus", 9090))
