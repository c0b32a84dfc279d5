"""`make localstack` and localstack/compose.yaml: the same files, run and checked."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from byoc_agents import __version__
from byoc_agents.app import run
from lab.real.parts import install, prometheus
from lab.real.parts.compose import compose
from lab.real.parts.process import RealProcess
from lab.real.trial import parts as trial_parts
from lab.real.trial.__main__ import watch
from lab.real.trial.files import DAEMONS, SERVICES, SOURCE, Files, parse

TRIAL = [sys.executable, "-m", "lab.real.trial"]
END_SECONDS = 300  # on a machine that is busy with other things
HARDENING = {
    "user": "65532:65532",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
}


def test_one_of_each_arrives_and_verifies_and_the_trial_ends_by_itself() -> None:
    done = subprocess.run(
        [*TRIAL, "--once", "--seconds", "240"],
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    arrived = done.stdout.split("what arrives")[1]
    assert re.search(r"^bucket +\d+ records, \d+ bytes: v1/org=org-trial/", arrived, re.MULTILINE)
    assert re.search(r"^queue +transition 0: (starting|running)", arrived, re.MULTILINE)
    assert "byoc.alert.v1 ClickHouseTrial firing" in arrived
    assert "OK: no missing, duplicate or damaged records" in arrived


def test_ctrl_c_stops_everything_in_good_order() -> None:
    with _process_of(TRIAL) as trial:
        assert trial.stdout is not None
        for line in trial.stdout:
            if line.startswith("what arrives"):
                break
        family = psutil.Process(trial.pid).children(recursive=True)
        assert {"prometheus", "clickhouse-server"} <= {child.name() for child in family}
        trial.send_signal(signal.SIGINT)
        said, _ = trial.communicate(timeout=END_SECONDS)
    assert trial.returncode == 0, said
    assert said.endswith("stopping ...\n")
    assert [child for child in family if child.is_running()] == []


def test_what_does_not_arrive_in_time_is_named_and_the_exit_code_is_1(
    localstack: RealProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (SOURCE / "init/ready.d/receivers.py").read_text()
    subprocess.run(
        [install.localstack(), "-c", script],
        env={**os.environ, **localstack.environment},
        check=True,
    )
    files = Files(tmp_path)
    agents = {name: trial_parts.daemon(files, name, target_pid=1) for name in DAEMONS}
    for daemon in agents.values():
        daemon.log.write_text(f"log of {daemon.name}\n")
    with trial_parts.control_plane(files) as plane:
        started: trial_parts.Started = {"localstack": localstack, "control-plane": plane}
        assert watch(started | agents, patience_seconds=0) == 1
    said = capsys.readouterr().out
    assert "did not arrive: usage, state, alert" in said
    assert "log of state-exporter" in said


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """Return what Docker Compose itself makes of the file: services by name."""
    program = [str(compose()), "-f", str(SOURCE / "compose.yaml")]
    done = subprocess.run(
        [*program, "config", "--format", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # it warns of unset variables and unknown keys
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


def test_compose_names_the_services_that_the_other_way_starts(composed: dict[str, Any]) -> None:
    assert set(composed) == set(SERVICES)


def test_every_image_is_pinned_and_ours_are_of_this_version(composed: dict[str, Any]) -> None:
    for name, service in composed.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(\.\d+)?", service["image"]), name
        if service["image"].startswith("byoc-agents/"):
            target = service["build"]["target"]
            assert service["image"] == f"byoc-agents/{target}:{__version__}"


@pytest.mark.parametrize("daemon", DAEMONS)
def test_the_settings_of_a_daemon_are_known_and_complete(
    daemon: str, composed: dict[str, Any]
) -> None:
    service = composed[daemon]
    assert service["environment"] == parse((SOURCE / f"env/{daemon}.env").read_text())
    environ = {name: _on_this_side(value) for name, value in service["environment"].items()}
    hosts = {d.host for d in run.configure([daemon], environ).destinations}
    assert hosts <= set(composed)


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_daemon_is_hardened_by_compose_and_by_docker_run(
    daemon: str, composed: dict[str, Any]
) -> None:
    service = composed[daemon]
    assert {key: service[key] for key in HARDENING} == HARDENING
    assert not {"privileged", "cap_add"} & {key for key, value in service.items() if value}
    words = _docker_run(daemon)
    assert "--read-only" in words
    for option, value in {"--cap-drop": "ALL", "--user": "65532:65532"}.items():
        assert words[words.index(option) + 1] == value
    assert words[words.index("--security-opt") + 1] == "no-new-privileges"
    assert words[words.index("--env-file") + 1] == f"env/{daemon}.env"
    assert words[-1] == service["image"]


def test_the_control_plane_looks_for_the_package_where_the_images_have_it(
    composed: dict[str, Any],
) -> None:
    *places, lab = composed["control-plane"]["environment"]["PYTHONPATH"].split(":")
    assert lab == "/srv"  # where ../lab is mounted; the image has no receiver
    for path in install.ROOT.glob("images/launcher.py"):
        assert {place in path.read_text() for place in places} == {True}


def test_what_is_mounted_is_there_and_ports_are_on_loopback(composed: dict[str, Any]) -> None:
    for service in composed.values():
        for mount in service.get("volumes", []):
            assert Path(mount["source"]).exists()
            assert mount["read_only"]
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("promtool", ["check", "config", "prometheus/prometheus.yml"]),
        ("amtool", ["check-config", "alertmanager/alertmanager.yml"]),
    ],
    ids=["promtool", "amtool"],
)
def test_the_configurations_are_accepted_by_their_own_tools(
    tool: str, arguments: list[str]
) -> None:
    place = install.debian()
    program = [*prometheus.SEEING_SHARE, str(place / "usr/share"), str(place / "usr/bin" / tool)]
    done = subprocess.run(
        [*program, *arguments],
        cwd=SOURCE,
        env={**os.environ, **install.library_path(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_secret_of_the_trial_is_no_secret() -> None:
    """Whoever copies the folder must not take its keys for real ones."""
    assert "trial" in (SOURCE / "secrets/webhook-token").read_text()
    assert "trial" in (SOURCE / "secrets/control-plane-token").read_text()


def _on_this_side(value: str) -> str:
    return value.replace("/etc/secrets", str(SOURCE / "secrets"))


def _docker_run(daemon: str) -> list[str]:
    """Return the words of the README's `docker run` of a daemon, `$harden` put in."""
    text = (SOURCE / "README.md").read_text()
    (harden,) = re.findall(r'^harden="(.+)"$', text, re.MULTILINE)
    (line,) = re.findall(rf"^docker run .*env/{daemon}\.env .*$", text, re.MULTILINE)
    return shlex.split(line.replace("$harden", harden))


@contextmanager
def _process_of(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a session of its own; it and what it started are gone at the end."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # it stops what it started
            process.wait(timeout=END_SECONDS)
