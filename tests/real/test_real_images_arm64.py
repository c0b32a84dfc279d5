"""The images for arm64, cross-built, with their three daemons run by qemu-user."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from byoc_agents import __version__
from lab.real.parts import install
from lab.real.parts.docker import Container, Engine
from lab.real.parts.images import DAEMONS, hardened, load, run_options
from lab.real.parts.process import PartError
from lab.real.scraper import eventually

PYTHON = ("/qemu", "/usr/bin/python3", "-IS")
HEALTHCHECK = "/usr/local/bin/byoc-agents-healthcheck"
PAGES = """
import platform, sys, urllib.request
print(platform.machine())
for page in sys.argv[1:]:
    with urllib.request.urlopen("http://127.0.0.1:9464" + page) as response:
        print(response.status, response.read().decode().split()[0])
"""


@pytest.fixture(scope="module")
def foreign(docker: Engine, foreign_layout: Path) -> Callable[[str], str]:
    return load(docker, foreign_layout, "-arm64")


def healthy(container: Container) -> bool:
    """Run the image's own health check. An engine that cannot run arm64 never runs it itself."""
    state = container.inspect()["State"]
    assert state["Running"], container.logs()
    try:
        container.execute(*PYTHON, HEALTHCHECK)
    except PartError:
        return False
    return True


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_daemon_runs_and_ends_well(
    docker: Engine, foreign: Callable[[str], str], daemon: str
) -> None:
    image = foreign(daemon)
    assert docker.image(image)["Architecture"] == "arm64"
    config = docker.image(image)["Config"]
    options = [
        *hardened(),
        *("--platform=linux/arm64", "--network=none", "--no-healthcheck"),
        *("--entrypoint=/qemu", f"--volume={install.emulator()}:/qemu:ro"),
        *run_options(daemon),
    ]
    options.remove("--health-interval=1s")
    command = (*PYTHON[1:], f"/usr/local/bin/{config['Entrypoint'][0]}", *config["Cmd"])
    with docker.run(image, *command, options=options) as container:
        eventually(lambda: healthy(container), seconds=120)
        pages = container.execute(*PYTHON, "-c", PAGES, "/healthz", "/readyz", "/metrics")
        assert pages.splitlines() == ["aarch64", "200 ok", "200 ok", "200 #"]
        assert container.stop() == 0


def test_both_architectures_have_the_same_packages_and_files(
    layout: Path, foreign_layout: Path
) -> None:
    native, other = (
        json.loads((one / "sbom.json").read_text()) for one in (layout, foreign_layout)
    )
    names = [
        {(part["name"], part["version"]) for part in sbom["components"]} for sbom in (native, other)
    ]
    assert names[0] == names[1]
    assert other["metadata"]["component"]["version"] == __version__
    assert all("arch=amd64" not in part["purl"] for part in other["components"])
