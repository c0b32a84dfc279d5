"""The images, built and run by a real engine: shut in, healthy, and nothing inside but us."""

import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byoc_agents import __version__
from byoc_agents.app.cli import main
from images.collect import Elf
from lab.real.parts import install
from lab.real.parts.docker import BASE, Engine
from lab.real.parts.images import (
    ACCESS_BROKER,
    ALL_IN_ONE,
    BROKER_SETTINGS,
    DAEMONS,
    DOCKERFILE,
    PROVIDED,
    environment,
    hardened,
    load,
    make_other,
    run_options,
    until_healthy,
)

ALONE = (*hardened(), "--network=none")
GET = """
import sys, urllib.request
for page in sys.argv[1:]:
    with urllib.request.urlopen("http://127.0.0.1:9464" + page) as response:
        print(response.status, response.read().decode().split()[0])
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
import importlib.util
for name in ("pip", "ensurepip", "setuptools", "pkg_resources", "venv", "distutils", "wheel"):
    if importlib.util.find_spec(name):
        print(name)
"""
PYTHON = "usr/bin/python3.11"  # of the base of these tests; the released image has usr/local/bin
PROGRAMS = {
    PYTHON,
    "usr/bin/python3",
    "usr/local/bin/byoc-agents",
    "usr/local/bin/byoc-agents-healthcheck",
}
PLACES = {
    *("etc", "lib", "lib64", "opt/byoc-agents", "usr/bin", "usr/lib", "usr/local/bin"),
    "var/lib/byoc-agents",
}
BASE_PACKAGES = {
    *("base-files", "libbz2-1.0", "libc6", "libexpat1", "libffi8", "libgcc-s1", "liblzma5"),
    *("libpython3.11-minimal", "libpython3.11-stdlib", "libsqlite3-0", "libssl3", "libstdc++6"),
    *("libuuid1", "python3.11-minimal", "zlib1g"),
}
READ = "import sys; print(open(sys.argv[1]).read())"
TRUSTED = """
import ssl
for ca in ssl.create_default_context().get_ca_certs():
    print(dict(part[0] for part in ca["subject"]).get("organizationName"))
"""

OWN_PACKAGES = re.compile(
    r"opt/byoc-agents/lib/(cffi|cryptography|pycparser)(-[\d.]+\.dist-info)?/"
    r"|opt/byoc-agents/code/byoc_agents/access(_commands)?/"
)
BROKER_CODE = {"daemon.py", "__pycache__/daemon.cpython-311.pyc", "sql/views.sql"}
OWN_FILES = {"opt/byoc-agents/code/sbom.json", "opt/byoc-agents/lib/_cffi_backend"}

Images = Callable[[str], str]


def layers(layout: Path, name: str) -> list[str]:
    """Return the layers of an image, from the lowest."""
    content = json.loads((layout / "manifest.json").read_bytes())
    (found,) = [one["Layers"] for one in content if f"/{name}:" in one["RepoTags"][0]]
    return list(found)


def files(layout: Path, name: str = ALL_IN_ONE) -> dict[str, tarfile.TarInfo]:
    """Return every file and link in the layers of an image, by path."""
    found: dict[str, tarfile.TarInfo] = {}
    for layer in layers(layout, name):
        with tarfile.open(layout / layer) as archive:
            found |= {entry.name: entry for entry in archive if not entry.isdir()}
    return found


def said(docker: Engine, image: str, *command: str, entrypoint: str) -> list[str]:
    """Run one command in a container of its own, shut in; return its lines."""
    run = ("run", "--rm", *ALONE, f"--entrypoint={entrypoint}", image, *command)
    return docker.output(*run).splitlines()


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


def test_a_mistake_in_the_settings_is_reported_and_ends_with_2(
    docker: Engine, images: Images
) -> None:
    with docker.run(images("state-exporter"), options=ALONE) as container:
        assert container.wait() == 2
        assert "BYOC_STATE_QUEUE_URL: is required" in container.logs()


def test_the_health_check_says_no_where_nothing_listens(docker: Engine, images: Images) -> None:
    options = [*ALONE, "--entrypoint=byoc-agents-healthcheck"]
    with docker.run(images("state-exporter"), options=options) as container:
        assert container.wait() == 1


def test_four_images_are_the_same_layers_and_the_brokers_has_one_more(
    docker: Engine, images: Images
) -> None:
    found = {
        name: docker.image(images(name))["RootFS"]["Layers"]
        for name in (*DAEMONS, ALL_IN_ONE, ACCESS_BROKER)
    }
    *shared, _ = found.pop(ACCESS_BROKER)
    assert [one for one in found.values() if one != shared] == []


@pytest.mark.parametrize("name", [*DAEMONS, ACCESS_BROKER, ALL_IN_ONE])
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


def test_the_sbom_lists_every_pin_every_package_of_the_base_and_nothing_else(
    docker: Engine, images: Images, layout: Path
) -> None:
    file = "/opt/byoc-agents/code/sbom.json"
    text = "\n".join(said(docker, images(ALL_IN_ONE), "-c", READ, file, entrypoint="python3"))
    sbom = json.loads(text)
    assert sbom == json.loads((layout / "sbom.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    about = sbom["metadata"]["component"]
    assert (about["name"], about["version"]) == ("byoc-agents", __version__)
    kinds: dict[str, list[dict[str, Any]]] = {"pypi": [], "deb": []}
    for part in sbom["components"]:
        kinds[part["purl"].split(":")[1].split("/")[0]].append(part)
    assert {named(part) for part in kinds["pypi"]} == pins()
    assert {part["name"] for part in kinds["deb"]} == BASE_PACKAGES
    own = json.loads((layout / "sbom-access-broker.json").read_text())
    added = [one for one in own["components"] if one not in sbom["components"]]
    assert {named(part) for part in added} == pins("access.txt")
    assert [one for one in sbom["components"] if one not in own["components"]] == []
    assert all("arch=amd64&distro=debian-12" in part["purl"] for part in kinds["deb"])


def named(part: dict[str, Any]) -> tuple[str, str]:
    return re.sub(r"[-_.]+", "-", part["name"]).lower(), part["version"]


def pins(file: str = "runtime.txt") -> set[tuple[str, str]]:
    text = (install.ROOT / "constraints" / file).read_text()
    return {
        (name, version) for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    }


def test_the_user_may_write_to_its_state_alone(docker: Engine, images: Images) -> None:
    options = ["run", "--rm", "--network=none", "--user=65532:65532", "--entrypoint=python3"]
    paths = docker.output(*options, images(ALL_IN_ONE), "-c", WRITABLE).splitlines()
    assert paths == ["/var/lib/byoc-agents"]


def test_what_is_imported_is_compiled(docker: Engine, images: Images) -> None:
    assert said(docker, images(ALL_IN_ONE), "-IS", "-c", NOT_COMPILED, entrypoint="python3") == []


def test_what_is_compiled_is_used_whatever_the_time_of_its_source(layout: Path) -> None:
    """By PEP 552: bit 0 of the flags says that the file has a hash, bit 1 that it is checked."""
    flags: set[int] = set()
    for layer in layers(layout, ACCESS_BROKER):
        with tarfile.open(layout / layer) as archive:
            for entry in archive:
                file = archive.extractfile(entry) if entry.name.endswith(".pyc") else None
                flags |= {int.from_bytes(file.read(8)[4:], "little")} if file else set()
    assert flags == {1}


def test_no_installer_is_inside(docker: Engine, images: Images) -> None:
    assert said(docker, images(ALL_IN_ONE), "-c", FOUND, entrypoint="python3") == []


def test_nothing_is_inside_but_python_and_the_daemons(layout: Path) -> None:
    """No shell, no apt, no pip: these are all programs, and all places that files are in."""
    inside = files(layout)
    programs = {name for name in inside if "bin" in Path(name).parts}
    assert programs == PROGRAMS
    assert {name for name in inside if not name.startswith(tuple(PLACES))} == set()
    executable = {name for name, entry in inside.items() if entry.isfile() and entry.mode & 0o111}
    libraries = {name for name in executable if ".so" in Path(name).name}
    assert executable - libraries == PROGRAMS - {"usr/bin/python3"}
    assert [
        name for name, entry in inside.items() if entry.mode & 0o6022 and not entry.issym()
    ] == []


def test_every_library_that_is_named_is_inside(layout: Path) -> None:
    inside = {Path(name).name for name in files(layout, ACCESS_BROKER)}
    missing = set()
    for layer in layers(layout, ACCESS_BROKER):
        with tarfile.open(layout / layer) as archive:
            for entry in archive:
                file = archive.extractfile(entry) if entry.isfile() else None
                if file and (entry.name == PYTHON or ".so" in Path(entry.name).suffixes):
                    missing |= {*Elf(file.read()).needed} - inside
    assert missing == set()


def test_the_brokers_own_layer_has_its_code_packages_and_sbom_only(layout: Path) -> None:
    *_, own = layers(layout, ACCESS_BROKER)
    with tarfile.open(layout / own) as archive:
        names = {entry.name for entry in archive if not entry.isdir()}
    rest = {name.partition(".cpython")[0] for name in names if not OWN_PACKAGES.match(name)}
    assert rest == OWN_FILES
    before = {*files(layout)}
    assert {name for name in before if OWN_PACKAGES.match(name)} == set()
    assert {*names} >= {f"opt/byoc-agents/code/byoc_agents/access/{name}" for name in BROKER_CODE}
    assert names & before == {"opt/byoc-agents/code/sbom.json"}


@pytest.fixture
def provided(tmp_path: Path) -> Path:
    """Make the files that the broker needs: an authority, and the policy of docs/access.md."""
    place = tmp_path / "provided"
    place.mkdir()
    assert main(["access", "init-ca", str(place), "--service", "svc"]) == 0
    page = (install.ROOT / "docs/access.md").read_text()
    (policy,) = re.findall(r"^```yaml\n(version: 1\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (place / "policy.yaml").write_text(policy)
    for path in (tmp_path, place, *place.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return place


@pytest.mark.parametrize("user", [65532, 12345], ids=["own-uid", "any-uid"])
def test_the_access_broker_runs_shut_in_obeys_its_commands_and_ends_well(
    docker: Engine, images: Images, provided: Path, user: int
) -> None:
    options = [*hardened(user), "--network=none", *environment(BROKER_SETTINGS)]
    options.append(f"--volume={provided}:{PROVIDED}:ro")
    with docker.run(images(ACCESS_BROKER), options=options) as container:
        until_healthy(container)
        pages = container.execute("python3", "-c", GET, "/healthz", "/metrics")
        assert pages.splitlines() == ["200 ok", "200 #"]
        status = json.loads(container.execute("python3", "-c", STATUS))
        assert status["daemons"].keys() == {ACCESS_BROKER}
        said = container.execute("byoc-agents", "access", "kill", "on", "--wait", "10")
        assert "nobody has access" in said
        assert container.stop() == 0


@pytest.mark.parametrize("name", [*DAEMONS, ALL_IN_ONE])
def test_no_other_image_can_run_the_access_broker(
    docker: Engine, images: Images, provided: Path, name: str
) -> None:
    options = [*ALONE, *environment(BROKER_SETTINGS), f"--volume={provided}:{PROVIDED}:ro"]
    with docker.run(images(name), "run", ACCESS_BROKER, options=options) as container:
        assert container.wait() == 2
        assert container.logs() == (
            "access-broker: byoc_agents.access is missing: expected the image access-broker"
        )


@pytest.mark.parametrize("name", [*DAEMONS, ALL_IN_ONE])
def test_no_other_image_has_the_commands_of_access(
    docker: Engine, images: Images, name: str
) -> None:
    with docker.run(images(name), "access", "status", options=ALONE) as container:
        assert container.wait() == 2
        assert container.logs() == (
            "byoc-agents access: byoc_agents.access_commands is missing:"
            " expected the image access-broker"
        )


def test_the_completion_has_the_commands_of_the_image(docker: Engine, images: Images) -> None:
    found = {}
    for name in (ACCESS_BROKER, ALL_IN_ONE):
        lines = said(docker, images(name), "completion", "bash", entrypoint="byoc-agents")
        found[name] = set(re.findall(r"^ *\*:([a-z-]+)\) words=", "\n".join(lines), re.MULTILINE))
    assert "export" in found[ALL_IN_ONE]
    assert found[ACCESS_BROKER] - found[ALL_IN_ONE] == {"access"}


def test_the_systems_cas_are_trusted(docker: Engine, images: Images) -> None:
    assert len(said(docker, images(ALL_IN_ONE), "-c", TRUSTED, entrypoint="python3")) > 100


def test_amazons_cas_alone_will_do(docker: Engine, tmp_path: Path) -> None:
    made = make_other(docker, tmp_path, "--build-arg=TRUST=amazon")
    image = load(docker, made, "-amazon")(ALL_IN_ONE)
    organizations = said(docker, image, "-c", TRUSTED, entrypoint="python3")
    assert {*organizations} == {"Amazon", "Starfield Technologies, Inc."}
    with docker.run(image, options=[*ALONE, *run_options(*DAEMONS)]) as container:
        until_healthy(container)
        assert container.stop() == 0


def test_hadolint_finds_nothing() -> None:
    command = [str(install.hadolint()), "--no-color", str(DOCKERFILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)
