"""The project's own images, built by a real engine from `images/Dockerfile`."""

import hashlib
import io
import json
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from byoc_agents import __version__
from lab.real.parts import install
from lab.real.parts.docker import BASE, FOREIGN_BASE, Container, Engine
from lab.real.parts.install import ROOT
from lab.real.parts.process import POLL_SECONDS, PartError

DOCKERFILE = ROOT / "images" / "Dockerfile"
DAEMONS = ("billing-scraper", "state-exporter", "alert-forwarder")
ALL_IN_ONE = "byoc-agents"
ACCESS_BROKER = "access-broker"
CA_IN_BUILD = "/run/secrets/ca.pem"  # where the Dockerfile mounts the secret `ca`
KEPT = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout")


UID = 65532  # the image's own; any other may run it, too
WAIT_SECONDS = 120
SETTINGS = {  # every daemon's, with nowhere to send to but its own disk
    "BYOC_ORGANIZATION_ID": "org",
    "BYOC_SERVICE_ID": "svc",
    "BYOC_REGION": "eu-central-1",
    "BYOC_SHUTDOWN_GRACE_SECONDS": "1",
    "BYOC_BILLING_BUCKET": "file:///var/lib/byoc-agents",
    "BYOC_BILLING_TARGET": "pid:1",
    "BYOC_STATE_QUEUE_URL": "file:///var/lib/byoc-agents",
    "BYOC_ALERTS_URL": "https://127.0.0.1:1/v1/events",
    "BYOC_ALERTS_TOKEN": "token",
    "BYOC_ALERTS_SIGNING_SECRET": "whsec_" + "a2tr" * 8,
    "BYOC_ALERTS_WEBHOOK_TOKEN": "token",
    "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
    "BYOC_ALERTS_NAMESPACE": "clickhouse",
}
PROVIDED = "/etc/byoc-agents/access"  # where the files of the access broker are mounted
BROKER_SETTINGS = {  # of the access broker, with a server that does not respond
    "BYOC_ORGANIZATION_ID": "org",
    "BYOC_SERVICE_ID": "svc",
    "BYOC_REGION": "eu-central-1",
    "BYOC_SHUTDOWN_GRACE_SECONDS": "1",
    "BYOC_ACCESS_POLICY_FILE": f"{PROVIDED}/policy.yaml",
    "BYOC_ACCESS_CA_DIR": PROVIDED,
    "BYOC_ACCESS_SERVERS": "r0=https://127.0.0.1:1",
    "BYOC_ACCESS_PASSWORD": "password",
    "BYOC_ACCESS_EVENTS_URL": "file:///var/lib/byoc-agents",
}
OF_DAEMON = {
    "billing-scraper": "BYOC_BILLING_",
    "state-exporter": "BYOC_STATE_",
    "alert-forwarder": "BYOC_ALERTS_",
}


def hardened(user: int = UID) -> tuple[str, ...]:
    """Return the options of a hardened container: no root, no capability, read-only."""
    return (
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        f"--user={user}",
        "--health-interval=1s",
    )


def environment(settings: Mapping[str, str]) -> list[str]:
    """Return settings as options of `docker run`."""
    return [f"--env={name}={value}" for name, value in settings.items()]


def run_options(*daemons: str) -> list[str]:
    """Return the settings of these daemons as options of `docker run`."""
    foreign = tuple(start for name, start in OF_DAEMON.items() if name not in daemons)
    return environment({k: v for k, v in SETTINGS.items() if not k.startswith(foreign)})


def until_healthy(container: Container) -> None:
    """Wait until the image's health check succeeds. Raises PartError with the log."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (state := container.inspect()["State"])["Health"]["Status"] != "healthy":
        if not state["Running"] or time.monotonic() > deadline:
            raise PartError(f"not healthy: {state}\n{container.logs()[-4000:]}")
        time.sleep(POLL_SECONDS)


def tag(target: str) -> str:
    """Return the name that `make images` gives to a target."""
    return f"byoc-agents/{target}:{__version__}"


def make(docker: Engine, directory: Path) -> Path:
    """Run `make images` with this engine, on the local base; return the OCI layout."""
    return _make(docker, directory, "amd64", BASE)


def make_other(docker: Engine, directory: Path, *options: str, source: Path = ROOT) -> Path:
    """Run `make images` with other options or from another folder; do not load the images."""
    return _make(docker, directory, "amd64", BASE, *options, "LOAD=", source=source)


def make_foreign(docker: Engine, directory: Path, *options: str, source: Path = ROOT) -> Path:
    """Run `make images` for arm64; return the OCI layout. Its images are not loaded."""
    _load_foreign_base(docker)
    return _make(docker, directory, "arm64", FOREIGN_BASE, *options, source=source)


def _load_foreign_base(docker: Engine) -> None:
    """Load what `docker import` would take for an image of this machine's architecture."""
    layer = install.foreign_base_image()
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    image = {"architecture": "arm64", "os": "linux", "config": {}}
    image["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    listing = [{"Config": "config.json", "RepoTags": [FOREIGN_BASE], "Layers": ["base.tar"]}]
    contents = {"config.json": image, "manifest.json": listing}
    _load(docker, {"base.tar": layer}, contents)


def _make(
    docker: Engine, directory: Path, arch: str, base: str, *more: str, source: Path = ROOT
) -> Path:
    variables = [one for one in more if not one.startswith("-")]
    options = [one for one in more if one.startswith("-")]
    given = " ".join([*build_arguments(directory, base), *options])
    place = directory / "images"
    command = ["make", "images", f"DOCKER={docker.program}", f"ARCH={arch}", f"IMAGES={place}"]
    command += variables
    done = subprocess.run(
        [*command, f"BUILD_ARGS={given}"],
        cwd=source,
        env=docker.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PartError(f"make images ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return place / arch


def load(docker: Engine, layout: Path, suffix: str) -> Callable[[str], str]:
    """Load the images of a layout into the engine, with a suffix at their tags."""
    content = json.loads((layout / "manifest.json").read_bytes())
    for image in content:
        image["RepoTags"] = [f"{name}{suffix}" for name in image["RepoTags"]]
    _load(docker, {"blobs": layout / "blobs"}, {"manifest.json": content})
    return lambda target: tag(target) + suffix


def _load(docker: Engine, files: Mapping[str, Path], contents: Mapping[str, Any]) -> None:
    """Run `docker load` on files of this machine and on JSON."""
    with tempfile.TemporaryDirectory() as directory:
        name = Path(directory) / "images.tar"
        with tarfile.open(name, "w") as archive:
            for inner, path in files.items():
                archive.add(path, inner)
            for inner, content in contents.items():
                data = json.dumps(content).encode()
                entry = tarfile.TarInfo(inner)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        docker.output("load", "--input", str(name))


def build_arguments(directory: Path, base: str = BASE) -> list[str]:
    """Return build options for the local base, with pip settings and CAs as secrets."""
    pip = directory / "pip.conf"
    pip.write_text(_pip_settings())
    secrets = (f"--secret=id=pip,src={pip}", f"--secret=id=ca,src={_ca_file()}")
    return [f"--build-arg=BUILDER={BASE}", f"--build-arg=BASE={base}", *secrets]


def _pip_settings() -> str:
    """Return a pip.conf with this machine's index settings only."""
    output = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    pairs = [line.split("=", 1) for line in output.stdout.splitlines() if "=" in line]
    settings = {key.split(".")[-1]: value.strip("'") for key, value in pairs}
    kept = {key: settings[key] for key in KEPT if key in settings}
    kept = {key: value for key, value in kept.items() if not value.startswith("file:")}
    return "\n".join(
        ["[global]", f"cert = {CA_IN_BUILD}", *(f"{k} = {v}" for k, v in kept.items())]
    )


def _ca_file() -> str:
    found = ssl.get_default_verify_paths().cafile
    if not found:
        raise PartError("no CA bundle on this machine: ca-certificates is missing")
    return found
