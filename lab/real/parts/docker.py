"""A real Docker Engine on its own socket, separate from any engine of this machine.

Root only. Containers have the host's network or none: no bridge, no rule of a firewall.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.real.parts import install
from lab.real.parts.process import POLL_SECONDS, PartError, RealProcess, free_port

BASE = "byoc-test/base:latest"  # Debian with Python and pip, imported into every engine
FOREIGN_BASE = "byoc-test/base-arm64:latest"  # Debian's Python for arm64, imported on demand
FLAGS = (
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--ip-masq=false",
    "--bridge=none",
    "--storage-driver=overlay2",
    "--shutdown-timeout=5",
)


@dataclass(frozen=True)
class Container:
    """One container, running or ended."""

    engine: "Engine"
    id: str

    @property
    def pid(self) -> int:
        """Return the pid of its first process on this machine; 0 once it has ended."""
        return int(self.inspect()["State"]["Pid"])

    def inspect(self) -> dict[str, Any]:
        return self.engine.inspect("container", self.id)

    def logs(self) -> str:
        """Return standard output and error."""
        return self.engine.output("logs", self.id)

    def execute(self, *command: str) -> str:
        """Run a command inside; return its output. Raises PartError if it failed."""
        return self.engine.output("exec", self.id, *command)

    def stop(self, grace_seconds: int = 30) -> int:
        """Send SIGTERM, wait, send SIGKILL; return the exit code (137 = killed)."""
        self.engine.output("stop", "--time", str(grace_seconds), self.id)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended; return the exit code."""
        return int(self.engine.output("wait", self.id))


@dataclass(frozen=True)
class Engine:
    """A client of one engine."""

    place: Path  # where the programs were unpacked
    directory: Path

    @property
    def socket(self) -> str:
        return f"unix://{self.directory}/docker.sock"

    @property
    def program(self) -> str:
        return str(self.place / "usr/bin/docker")

    def output(self, *arguments: str) -> str:
        """Run `docker ARGUMENTS`; return its output. Raises PartError if it failed."""
        done = subprocess.run(
            [self.program, *arguments],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            command = " ".join(["docker", *arguments[:3]])
            raise PartError(f"{command} ... ended with {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout.strip()

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """Return the engine's description of a container or an image."""
        (found,) = json.loads(self.output(kind, "inspect", name))
        return dict(found)

    def image(self, tag: str) -> dict[str, Any]:
        return self.inspect("image", tag)

    def build(self, file: Path, tag: str, *options: str) -> None:
        """Build with BuildKit; the context is the directory above that of the Dockerfile."""
        context = str(file.parent.parent)
        options = ("--network=host", f"--file={file}", f"--tag={tag}", *options)
        self.output("build", "--progress=plain", *options, context)

    @contextmanager
    def run(self, image: str, *command: str, options: Sequence[str] = ()) -> Iterator[Container]:
        """Start a container in the background (`docker run -d`); it is removed at the end."""
        container = Container(
            self, self.output("create", *options, image, *command).splitlines()[-1]
        )
        try:
            self.output("start", container.id)
            yield container
        finally:
            self.output("rm", "--force", "--volumes", container.id)

    def environment(self) -> dict[str, str]:
        """Return the environment in which a client uses this engine, with BuildKit."""
        own = {
            "DOCKER_HOST": self.socket,
            "DOCKER_CONFIG": str(self.directory / "client"),
            "DOCKER_BUILDKIT": "1",
        }
        return {**os.environ, **own}


@contextmanager
def engine() -> Iterator[Engine]:
    """Run an engine with BASE, in a directory whose path is short enough for sockets."""
    programs, archive = install.engine(), install.base_image()
    with tempfile.TemporaryDirectory(prefix="byoc-docker-") as name:
        docker = Engine(programs, Path(name))
        try:
            with _daemon(docker):
                docker.output("import", str(archive), BASE)
                try:
                    yield docker
                finally:
                    _remove_containers(docker)
        finally:
            _unmount_below(docker.directory)


def _daemon(docker: Engine) -> RealProcess:
    directory, port = docker.directory, free_port()
    programs = f"{docker.place}/usr/sbin:{docker.place}/usr/bin"
    places = [
        f"--data-root={directory}/data",
        f"--exec-root={directory}/exec",
        f"--pidfile={directory}/docker.pid",
        f"--host={docker.socket}",
        f"--config-file={_settings(directory)}",
        f"--metrics-addr=127.0.0.1:{port}",
    ]
    return RealProcess(
        name="dockerd",
        command=[f"{docker.place}/usr/sbin/dockerd", *places, *FLAGS],
        port=port,
        ready_path="/metrics",
        log=directory / "dockerd.log",
        environment=install.library_path(docker.place)
        | {"PATH": f"{programs}:{os.environ['PATH']}"},
    )


def _settings(directory: Path) -> Path:
    """Return a file with settings that replaces this machine's own."""
    file = directory / "daemon.json"
    file.write_text("{}")
    return file


def _remove_containers(docker: Engine) -> None:
    if left := docker.output("ps", "--all", "--quiet").split():
        docker.output("rm", "--force", "--volumes", *left)


def _unmount_below(directory: Path) -> None:
    """Unmount the engine's remaining mounts, innermost first."""
    for place in reversed(_mounts_below(directory)):
        deadline = time.monotonic() + 10
        while subprocess.run(["umount", place], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise PartError(f"{place} stays mounted")
            time.sleep(POLL_SECONDS)


def _mounts_below(directory: Path) -> list[str]:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [place for place in mounts if place.startswith(f"{directory}/")]
