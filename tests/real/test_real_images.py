"""The images, built and run by a real engine: shut in, healthy, and nothing inside but us."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byoc_agents import __version__
from lab.real.parts import install
from lab.real.parts.docker import BASE, Engine
from lab.real.parts.images import (
    ALL_IN_ONE,
    DAEMONS,
    DOCKERFILE,
    build_arguments,
    hardened,
    run_options,
    until_healthy,
)

ALONE = (*hardened(), "--network=none")
GET = """
import sys, urllib.request
for page in sys.argv[1:]:
    with urllib.request.urlopen("http://127.0.0.1:9464" + page) as answer:
        print(answer.status, answer.read().decode().split()[0])
"""
STATUS = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9464/status").read().decode())
"""
WRITABLE = """
import os
skipped = {"/proc", "/sys", "/dev"}
for place, folders, files in os.walk("/"):
    folders[:] = [f for f in folders if os.path.join(place, f) not in skipped]
    for path in [place, *(os.path.join(place, file) for file in files)]:
        if os.access(path, os.W_OK) and not os.path.islink(path):
            print(path)
"""
NOT_COMPILED = """
import os, sys
sys.path[:0] = ["/opt/byoc-agents/code", "/opt/byoc-agents/lib"]
from byoc_agents.app import run
for name in run.DAEMONS:
    run.daemon_spec(name)
for module in list(sys.modules.values()):
    spec = getattr(module, "__spec__", None)
    if spec and spec.cached and not os.path.exists(spec.cached):
        print(spec.name)
"""
FOUND = """
import importlib.util, os, shutil
for name in "pip pip3 gcc cc c++ ld as make wheel curl wget".split():
    if shutil.which(name):
        print(name)
for name in ("pip", "ensurepip", "setuptools", "pkg_resources"):
    if importlib.util.find_spec(name):
        print("module", name)
for path in ("/etc/pip.conf", "/run/secrets", "/env", "/tool", "/finish.py", "/root/.cache/pip"):
    if os.path.exists(path):
        print(path)
"""
TRUSTED = """
import ssl
for ca in ssl.create_default_context().get_ca_certs():
    print(dict(part[0] for part in ca["subject"]).get("organizationName"))
"""
WITHOUT_SHELL = """
FROM {base}
RUN ["rm", "/usr/bin/sh", "/usr/bin/bash", "/usr/bin/dash", "/usr/bin/env"]
"""

Images = Callable[[str], str]


def said(docker: Engine, image: str, *command: str, entrypoint: str) -> list[str]:
    """Run one command in a container of its own, shut in; return its lines."""
    run = ("run", "--rm", *ALONE, f"--entrypoint={entrypoint}", image, *command)
    return docker.said(*run).splitlines()


@pytest.mark.parametrize("user", [65532, 12345], ids=["own-uid", "any-uid"])
@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_daemon_runs_shut_in_and_ends_well(
    docker: Engine, images: Images, daemon: str, user: int
) -> None:
    options = [*hardened(user), "--network=none", *run_options(daemon)]
    with docker.run(images(daemon), options=options) as container:
        until_healthy(container)
        pages = container.execute("python3", "-c", GET, "/healthz", "/readyz", "/metrics")
        assert pages.splitlines() == ["200 ok", "200 ok", "200 #"]
        assert container.stop() == 0
        events = [json.loads(line)["event"] for line in container.logs().splitlines()]
        assert "admin.listening" in events


def test_all_three_run_in_one_container(docker: Engine, images: Images) -> None:
    with docker.run(images(ALL_IN_ONE), options=[*ALONE, *run_options(*DAEMONS)]) as container:
        until_healthy(container)
        status = json.loads(container.execute("python3", "-c", STATUS))
        assert status["daemons"].keys() == {*DAEMONS}
        assert container.stop() == 0


def test_a_mistake_in_the_settings_is_told_and_ends_with_2(docker: Engine, images: Images) -> None:
    with docker.run(images("state-exporter"), options=ALONE) as container:
        assert container.wait() == 2
        assert "BYOC_STATE_QUEUE_URL: is required" in container.logs()


def test_the_health_check_says_no_where_nothing_listens(docker: Engine, images: Images) -> None:
    options = [*ALONE, "--entrypoint=byoc-agents-healthcheck"]
    with docker.run(images("state-exporter"), options=options) as container:
        assert container.wait() == 1


def test_the_four_images_are_the_same_layers(docker: Engine, images: Images) -> None:
    layers = {
        tuple(docker.image(images(name))["RootFS"]["Layers"]) for name in (*DAEMONS, ALL_IN_ONE)
    }
    assert len(layers) == 1


@pytest.mark.parametrize("name", [*DAEMONS, ALL_IN_ONE])
def test_an_image_says_what_it_is(docker: Engine, images: Images, name: str) -> None:
    config = docker.image(images(name))["Config"]
    prefix = "org.opencontainers.image."
    labels = {key.removeprefix(prefix): value for key, value in config["Labels"].items()}
    assert labels["title"] == name
    assert labels["version"] == __version__
    assert labels["base.name"] == BASE
    assert labels.keys() == {
        *("title", "description", "vendor", "licenses", "version"),
        *("revision", "created", "base.name"),
    }
    assert config["User"] == "65532:0"
    assert config["Entrypoint"] == ["byoc-agents"]
    assert config["Cmd"] == ["run", *(DAEMONS if name == ALL_IN_ONE else [name])]
    assert config["Healthcheck"]["Test"] == ["CMD", "byoc-agents-healthcheck"], "no shell"


def test_the_sbom_lists_every_pin_and_nothing_else(docker: Engine, images: Images) -> None:
    file = "/opt/byoc-agents/code/sbom.json"
    sbom = json.loads("\n".join(said(docker, images(ALL_IN_ONE), file, entrypoint="cat")))
    assert sbom["bomFormat"] == "CycloneDX"
    about = sbom["metadata"]["component"]
    assert (about["name"], about["version"]) == ("byoc-agents", __version__)
    assert {named(part) for part in sbom["components"]} == pins()


def named(part: dict[str, Any]) -> tuple[str, str]:
    return re.sub(r"[-_.]+", "-", part["name"]).lower(), part["version"]


def pins() -> set[tuple[str, str]]:
    text = (install.ROOT / "constraints" / "runtime.txt").read_text()
    return {
        (name, version) for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    }


def test_the_user_may_write_to_its_state_alone(docker: Engine, images: Images) -> None:
    options = ["run", "--rm", "--network=none", "--user=65532:65532", "--entrypoint=python3"]
    paths = docker.said(*options, images(ALL_IN_ONE), "-c", WRITABLE).splitlines()
    assert {*paths} - {"/tmp", "/var/tmp", "/run/lock"} == {"/var/lib/byoc-agents"}


def test_what_is_imported_is_compiled(docker: Engine, images: Images) -> None:
    assert said(docker, images(ALL_IN_ONE), "-IS", "-c", NOT_COMPILED, entrypoint="python3") == []


def test_no_installer_compiler_or_secret_is_inside(docker: Engine, images: Images) -> None:
    assert said(docker, images(ALL_IN_ONE), "-c", FOUND, entrypoint="python3") == []


def test_the_systems_cas_are_trusted(docker: Engine, images: Images) -> None:
    assert len(said(docker, images(ALL_IN_ONE), "-c", TRUSTED, entrypoint="python3")) > 100


def test_a_base_without_a_shell_and_amazons_cas_will_do(docker: Engine, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    file = tmp_path / "base" / "Dockerfile"
    file.write_text(WITHOUT_SHELL.format(base=BASE))
    base, image = "byoc-test/base-without-shell:latest", "byoc-test/without-shell:latest"
    docker.build(file, base)
    options = [*build_arguments(tmp_path, base), "--build-arg=TRUST=amazon"]
    docker.build(DOCKERFILE, image, *options)
    organizations = said(docker, image, "-c", TRUSTED, entrypoint="python3")
    assert {*organizations} == {"Amazon", "Starfield Technologies, Inc."}
    with docker.run(image, options=[*ALONE, *run_options(*DAEMONS)]) as container:
        until_healthy(container)
        assert container.stop() == 0


def test_hadolint_finds_nothing() -> None:
    command = [str(install.hadolint()), "--no-color", str(DOCKERFILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)
