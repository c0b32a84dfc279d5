"""Publish the images as a release does: to a registry on loopback, signed with a key."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from byoc_agents import __version__
from lab.real.parts import install
from lab.real.parts.process import PartError, RealProcess

SOURCE = "git+https://example.com/owner/byoc-agents@refs/tags/v" + __version__
BUILDER = "https://example.com/owner/byoc-agents/.github/workflows/release.yml"
RUN = "https://example.com/owner/byoc-agents/actions/runs/1"


def environment() -> dict[str, str]:
    """Return the environment of skopeo and cosign, with an empty password for cosign's key."""
    skopeo = install.registry()
    path = f"{skopeo}/usr/bin:{install.cosign().parent}:{os.environ['PATH']}"
    own = {"PATH": path, "COSIGN_PASSWORD": "", **install.library_path(skopeo)}
    return {**os.environ, **own}


def run(*command: str, cwd: Path | None = None) -> str:
    """Run one of these tools. Raises PartError, with its output, if it fails."""
    done = subprocess.run(
        command, env=environment(), cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PartError(f"{command[:3]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def merge(target: Path, parts: Sequence[Path]) -> dict[str, str]:
    """Make one layout of several architectures; return the digest of each image."""
    script = str(install.ROOT / "images/oci.py")
    lines = run(sys.executable, script, "merge", str(target), *map(str, parts)).splitlines()
    return dict(line.split() for line in lines)


def make_key(directory: Path) -> Path:
    """Make a key pair with cosign; return the private key. The public one is `cosign.pub`."""
    run("cosign", "generate-key-pair", cwd=directory)
    return directory / "cosign.key"


@dataclass(frozen=True)
class Publication:
    """The published images and their references."""

    registry: RealProcess
    layout: Path
    key: Path  # public
    digests: dict[str, str]

    @property
    def repository(self) -> str:
        return f"127.0.0.1:{self.registry.port}/byoc-agents"

    def reference(self, name: str) -> str:
        """Return the name of an image with its digest."""
        return f"{self.repository}/{name}@{self.digests[name]}"


def publish(registry: RealProcess, directory: Path, parts: Sequence[Path]) -> Publication:
    """Merge, copy, sign and attest by the release's script."""
    layout = directory / "layout"
    digests, key = merge(layout, parts), make_key(directory)
    made = Publication(registry, layout, key.with_name("cosign.pub"), digests)
    script = str(install.ROOT / "images/publish.py")
    sboms = [str(part / "sbom.json") for part in parts]
    lines = run(
        *(sys.executable, script, str(layout), made.repository, f"--version={__version__}"),
        *("--source", SOURCE, "--builder", BUILDER, "--invocation", RUN),
        *("--key", str(key), "--plain-http", "--sboms", *sboms),
    ).splitlines()
    if dict(line.split() for line in lines) != digests:
        raise PartError(f"published {lines}, expected {digests}")
    return made
