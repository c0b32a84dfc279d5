"""The project's own images, built by a real engine from `images/Dockerfile`."""

import ssl
import subprocess
import sys
from pathlib import Path

from tests.real.parts.docker import BASE, Engine
from tests.real.parts.install import ROOT
from tests.real.parts.process import PartError

DOCKERFILE = ROOT / "images" / "Dockerfile"
DAEMONS = ("billing-scraper", "state-exporter", "alert-forwarder")
ALL_IN_ONE = "byoc-agents"
CA_IN_BUILD = "/run/secrets/ca.pem"  # where the Dockerfile mounts the secret `ca`
KEPT = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout")


def tag(target: str) -> str:
    """Return the name that a target is built under."""
    return f"byoc-test/{target}:latest"


def build(docker: Engine, directory: Path, target: str, *options: str) -> None:
    """Build one target on the local base, with this machine's pip settings and CAs as secrets."""
    pip = directory / "pip.conf"
    pip.write_text(_pip_settings())
    secrets = (f"--secret=id=pip,src={pip}", f"--secret=id=ca,src={_ca_file()}")
    bases = (f"--build-arg=BUILDER={BASE}", f"--build-arg=BASE={BASE}")
    docker.build(DOCKERFILE, tag(target), f"--target={target}", *bases, *secrets, *options)


def _pip_settings() -> str:
    """Return a pip.conf with what of ours means something elsewhere: where the index is."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    pairs = [line.split("=", 1) for line in said.stdout.splitlines() if "=" in line]
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
