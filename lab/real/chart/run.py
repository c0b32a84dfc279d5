"""Run a rendered pod with a real Docker Engine, by options that equal the kubelet's work.

One container acts as the pod's sandbox; the others share its network and process namespaces.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.real.chart.pods import Pod, environment
from lab.real.parts.docker import BASE, Container, Engine

GET = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], %r, 120).read().decode())"
RELAY = Path(__file__).with_name("relay.py")
Files = Mapping[str, Mapping[str, str]]  # volume -> file -> content


@dataclass(frozen=True)
class Sandbox:
    """A running pod: its spec, its namespaces, and its volumes as directories of this machine."""

    engine: Engine
    pod: Pod
    pause: Container
    volumes: Path

    @contextmanager
    def run(
        self, spec: dict[str, Any], image: str, *command: str, options: tuple[str, ...] = ()
    ) -> Iterator[Container]:
        """Run a container of the pod, with `command` instead of its arguments if one is given."""
        asked = (*self._shared(), *security(spec), *limits(spec), *self._mounts(spec), *options)
        asked += (f"--group-add={self.pod.spec['securityContext']['fsGroup']}",)
        asked += tuple(f"--env={name}={value}" for name, value in environment(spec).items())
        arguments = command or tuple(spec.get("args", ()))
        with self.engine.run(image, *arguments, options=asked) as container:
            yield container

    def get(self, url: str, data: bytes | None = None) -> str:
        """Get a URL from inside the pod's network. Raises CalledProcessError."""
        return self._inside([sys.executable, "-c", GET % (data,), url])

    def probe(self, spec: dict[str, Any], name: str) -> str:
        """Send the request of a rendered httpGet probe."""
        asked = spec[name]["httpGet"]
        return self.get(f"http://127.0.0.1:{asked['port']}{asked['path']}")

    @contextmanager
    def relaying(self, ports: Mapping[int, int]) -> Iterator[None]:
        """Relay ports of the pod's loopback (keys) to ports of this machine's loopback (values)."""
        pairs = [f"{near}:{far}" for near, far in ports.items()]
        here = f"/proc/{os.getpid()}/ns/net"
        command = [*self._enter(), sys.executable, str(RELAY), here, *pairs]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as relay:
            assert relay.stdout is not None
            assert relay.stdout.readline() == b"ready\n"
            try:
                yield
            finally:
                relay.kill()

    def _enter(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pause.pid}/ns/net"]

    def _inside(self, command: list[str]) -> str:
        done = subprocess.run(
            [*self._enter(), *command], capture_output=True, text=True, check=True, env={}
        )
        return done.stdout

    def _shared(self) -> tuple[str, ...]:
        assert self.pod.spec["shareProcessNamespace"] is True
        return tuple(f"--{kind}=container:{self.pause.id}" for kind in ("pid", "network"))

    def _mounts(self, spec: dict[str, Any]) -> tuple[str, ...]:
        found = []
        for mount in spec["volumeMounts"]:
            if "subPath" in mount:  # files of ClickHouse's own, which the stand-in brings itself
                continue
            rights = ":ro" if mount.get("readOnly") else ""
            found.append(f"--volume={self.volumes / mount['name']}:{mount['mountPath']}{rights}")
        return tuple(found)


@contextmanager
def sandbox(engine: Engine, pod: Pod, directory: Path, files: Files) -> Iterator[Sandbox]:
    """Make a pod's namespaces and volumes, as the kubelet does for its fsGroup.

    It gives the files of a Secret the volume's mode and the group fsGroup, of which every container
    of the pod is a member.
    """
    group = pod.spec["securityContext"]["fsGroup"]
    volumes = {one["name"]: one for one in pod.spec["volumes"]}
    for name in {mount["name"] for one in _containers(pod) for mount in one["volumeMounts"]}:
        place = directory / name
        place.mkdir()
        for file, content in files.get(name, {}).items():
            (place / file).write_text(content)
            os.chown(place / file, 0, group)
            (place / file).chmod(volumes[name]["secret"]["defaultMode"])
        os.chown(place, 0, group)
        place.chmod(0o2777)
    with engine.run(BASE, "sleep", "3600", options=("--network=none",)) as pause:
        yield Sandbox(engine, pod, pause, directory)


def security(spec: dict[str, Any]) -> tuple[str, ...]:
    """Return a rendered securityContext as options. Docker's own seccomp is RuntimeDefault."""
    asked = dict(spec["securityContext"])
    assert asked.pop("runAsNonRoot") is True
    assert asked.pop("seccompProfile") == {"type": "RuntimeDefault"}
    options = [f"--user={asked.pop('runAsUser')}:{asked.pop('runAsGroup')}"]
    options += [f"--cap-drop={name}" for name in asked.pop("capabilities")["drop"]]
    if asked.pop("readOnlyRootFilesystem"):
        options.append("--read-only")
    if not asked.pop("allowPrivilegeEscalation"):
        options.append("--security-opt=no-new-privileges")
    assert not asked, f"not looked at: {asked}"
    return tuple(options)


def limits(spec: dict[str, Any]) -> tuple[str, ...]:
    """Return the rendered limits as options."""
    asked = spec["resources"]["limits"]
    return (f"--memory={_bytes(asked['memory'])}", f"--cpus={_cores(asked['cpu'])}")


def resident_bytes(container: Container) -> int:
    """Return the container's memory that cannot be dropped, from its control group."""
    stat = Path("/sys/fs/cgroup/memory") / _group(container, "memory") / "memory.stat"
    return int(re.findall(r"^total_rss (\d+)$", stat.read_text(), re.MULTILINE)[0])


def used_core_seconds(container: Container) -> float:
    """Return the container's CPU in core seconds, from the kernel."""
    usage = Path("/sys/fs/cgroup/cpuacct") / _group(container, "cpuacct") / "cpuacct.usage"
    return int(usage.read_text()) / 1e9


def _group(container: Container, controller: str) -> str:
    lines = Path(f"/proc/{container.pid}/cgroup").read_text().splitlines()
    triples = [line.split(":", 2) for line in lines]  # id, controllers, path; cgroups(7)
    paths = {name: path for _, names, path in triples for name in names.split(",")}
    return paths[controller].lstrip("/")


def _containers(pod: Pod) -> list[dict[str, Any]]:
    return [*pod.spec.get("initContainers", []), *pod.spec["containers"]]


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


def _cores(text: str) -> float:
    return int(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)
