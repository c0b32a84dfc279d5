"""The same commit gives the same digests: in another folder, on another day, with another umask."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.real.parts import install
from lab.real.parts.docker import BASE, Engine
from lab.real.parts.images import make_foreign, make_other

SOURCES = ("agents", "constraints", "images", "LICENSE", "Makefile", "pyproject.toml")
LATER = "byoc-test/base-later:latest"
# A builder whose clock is two days ahead. Only files are read from the base itself.
DOCKERFILE = f"""
FROM {BASE}
COPY libfaketimeMT.so.1 /libfaketimeMT.so.1
ENV LD_PRELOAD=/libfaketimeMT.so.1 FAKETIME=+2d
"""


def builder_of_another_day(docker: Engine, directory: Path) -> None:
    """Make the image LATER."""
    (directory / "later").mkdir(parents=True)
    (directory / "later" / "Dockerfile").write_text(DOCKERFILE)
    shutil.copy(install.faketime(), directory)
    docker.build(directory / "later" / "Dockerfile", LATER)
    clock = docker.output("run", "--rm", "--network=none", LATER, "date", "+%s")
    now = subprocess.run(["date", "+%s"], capture_output=True, text=True, check=True).stdout
    assert int(clock) - int(now) > 86_400


@contextmanager
def masked(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def copied(target: Path) -> Path:
    """Copy the sources, as another person has them: modes for the owner only, and other times."""
    target.mkdir(parents=True)
    for name in SOURCES:
        source = install.ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy(source, target)
    shutil.copy(install.ROOT / ".dockerignore", target)
    for path in target.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    where = ["git", "-C", str(install.ROOT), "rev-parse", "--absolute-git-dir"]
    git = subprocess.run(where, capture_output=True, text=True, check=True).stdout
    (target / ".git").write_text(f"gitdir: {git}")
    return target


@pytest.mark.parametrize("make_again", [make_other, make_foreign], ids=["amd64", "arm64"])
def test_two_builds_give_the_same_digests(
    docker: Engine,
    layout: Path,
    foreign_layout: Path,
    make_again: Callable[..., Path],
    tmp_path: Path,
) -> None:
    first = foreign_layout if make_again is make_foreign else layout
    builder_of_another_day(docker, tmp_path / "builder")
    with masked(0o077):
        source = copied(tmp_path / "elsewhere" / "byoc")
        options = ("--no-cache", f"--build-arg=BUILDER={LATER}")
        again = make_again(docker, tmp_path, *options, source=source)
    assert (again / "index.json").read_text() == (first / "index.json").read_text()
    blobs = [{file.name for file in (one / "blobs/sha256").iterdir()} for one in (first, again)]
    assert blobs[0] == blobs[1]
