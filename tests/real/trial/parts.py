"""Starts everything that localstack/compose.yaml names, on loopback and free ports."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.real.parts import clickhouse, localstack, prometheus
from tests.real.parts.process import DIRECT, POLL_SECONDS, PartError, RealProcess
from tests.real.trial.files import AGENTS, Files, written

PROGRAM = Path(sys.executable).with_name("byoc-agents")
INIT = "/_localstack/init/ready"  # what LocalStack says of the scripts it ran
INIT_SECONDS = 60  # for what takes two

Say = Callable[[str], None]


def start(directory: Path, running: ExitStack, say: Say) -> dict[str, RealProcess]:
    """Start all, receivers first; return service -> process. `running` stops them, last first."""
    files, started = Files(directory), {}
    makers = {
        "localstack": _localstack,
        "clickhouse": _clickhouse,
        "control-plane": control_plane,
    }
    for name, make in makers.items():
        started[name] = running.enter_context(make(files))
        say(f"{name:16} {started[name].url}")
    _wait_init(started["localstack"])
    for name in AGENTS:
        started[name] = running.enter_context(agent(files, name, started["clickhouse"].pid))
        say(f"{name:16} {started[name].url}/status")
    for name, make in {"alertmanager": _alertmanager, "prometheus": _prometheus}.items():
        started[name] = running.enter_context(make(files))
        say(f"{name:16} {started[name].url}")
    return started


def agent(files: Files, name: str, target_pid: int) -> RealProcess:
    """Return one agent; the scraper meters the process it is given: other servers may run here."""
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
    return localstack.localstack(place, files.port("localstack", 4566))


def _wait_init(running: RealProcess) -> None:
    """Wait until LocalStack has made the bucket and the queue. Raises PartError."""
    deadline = time.monotonic() + INIT_SECONDS
    while (states := _init_states(running)) != ["SUCCESSFUL"]:
        if "ERROR" in states or time.monotonic() > deadline:
            raise PartError(f"LocalStack's init scripts: {states}:\n{running.log_tail()}")
        time.sleep(POLL_SECONDS)


def _init_states(running: RealProcess) -> list[str]:
    with DIRECT.open(running.url + INIT, timeout=30) as answer:
        return [script["state"] for script in json.load(answer)["scripts"]]


def _clickhouse(files: Files) -> RealProcess:
    place = files.directory / "clickhouse"
    return clickhouse.old_clickhouse(place, files.port("clickhouse", 8123))


def control_plane(files: Files) -> RealProcess:
    """Return the reference control plane; a GET of `/` shows every event it has."""
    port, secrets = files.port("control-plane", 8080), files.directory / "secrets"
    command = [sys.executable, "-m", "agents.alerts.receiver", f"--port={port}"]
    command += [f"--token-file={secrets / 'control-plane-token'}"]
    command += [f"--signing-secret-file={secrets / 'signing-secret'}"]
    log = files.directory / "control-plane.log"
    return RealProcess("control-plane", command, port, ready_path="/", log=log)


def _alertmanager(files: Files) -> RealProcess:
    config = files.text("alertmanager/alertmanager.yml")
    place = files.directory / "alertmanager"
    return prometheus.alertmanager(place, config, files.port("alertmanager", 9093))


def _prometheus(files: Files) -> RealProcess:
    place = files.directory / "prometheus"
    written(place, {"rules.yml": files.text("prometheus/rules.yml")})
    config = files.text("prometheus/prometheus.yml")
    return prometheus.prometheus(place, config, files.port("prometheus", 9090))
