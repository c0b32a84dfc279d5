"""Machines of every kind for the tests of cgroups, and the proof that nothing stays open."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.billing.cgroup_host import AGENT, CPU_V1, ID, MEMORY_V1, PID, Host, a_pod


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def bare(host: Host) -> Host:
    """Make a v2 machine: target and daemon are services in the same namespaces."""
    host.v2_root("sys")
    mounts = [host.mount("/", "sys")]
    host.v2("sys/agent.service", f"{AGENT}\n")
    host.process("self", "0::/agent.service\n", mounts)
    host.v2(f"sys/{ID}")
    host.process(PID, f"0::/{ID}\n", mounts)
    return host


@pytest.fixture
def pod(host: Host) -> Host:
    return a_pod(host)


@pytest.fixture
def old(host: Host) -> Host:
    """Make a v1 machine: one hierarchy per controller, and an empty v2 hierarchy."""
    names = {"cpuacct": "cpu,cpuacct", "memory": "memory"}
    mounts = [host.mount("/", f"sys/{names[n]}", "cgroup", names[n]) for n in names]
    mounts.append(host.mount("/", "sys/unified"))
    host.v2_root("sys/unified")
    host.v1("sys/cpu,cpuacct", f"docker/{ID}", CPU_V1)
    host.v1("sys/memory", f"docker/{ID}", MEMORY_V1)
    host.v1("sys/cpu,cpuacct", "daemon", CPU_V1)
    host.process("self", "2:cpu,cpuacct:/daemon\n3:memory:/\n0::/\n", mounts)
    host.process(PID, f"2:cpu,cpuacct:/docker/{ID}\n3:memory:/docker/{ID}\n0::/\n", mounts)
    return host


@pytest.fixture
def open_descriptors() -> Iterator[None]:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    yield
    assert len(list(descriptors.iterdir())) == before
