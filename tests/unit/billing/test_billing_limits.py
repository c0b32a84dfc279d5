"""Tests of the sources of a container's size, and of the limit that binds it."""

from pathlib import Path

import pytest

from byoc_agents.billing.sources.cgroup_paths import Levels, levels
from byoc_agents.billing.sources.reading import Reading
from tests.unit.billing.cgroup_host import AGENT, CPU_V1, HUGE, ID, MEMORY_V1, PID, Host

GIB = 1 << 30
NO_CPU, NO_MEMORY = "max 100000\n", "max\n"
POD = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8.slice"


class Tree:
    """A v2 machine: each cgroup with its own limits, the target in the last one."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.v2_root("sys")
        host.v2("sys/agent.service", f"{AGENT}\n")
        self.mounts = [host.mount("/", "sys")]
        host.process("self", "0::/agent.service\n", self.mounts)

    def cgroup(self, path: str, cpu: str = NO_CPU, memory: str = NO_MEMORY) -> None:
        self.host.v2(f"sys/{path}")
        self.host.file(f"sys/{path}/cpu.max", cpu)
        self.host.file(f"sys/{path}/memory.max", memory)

    async def read(self, path: str) -> Reading:
        self.host.process(PID, f"0::/{path}\n", self.mounts)
        source = self.host.of_process()
        try:
            return await source.read()
        finally:
            source.close()


@pytest.fixture
def tree(host: Host) -> Tree:
    return Tree(host)


def size(reading: Reading) -> tuple[object, ...]:
    cpu = (reading.cpu_limit_millicores, reading.cpu_limit_source)
    return (*cpu, reading.memory_limit_bytes, reading.memory_limit_source)


@pytest.mark.parametrize(
    ("above", "leaf"),
    [
        ("system.slice/db.service", f"system.slice/db.service/libpod-payload-{ID}"),
        ("job.slice/job-1.slice", f"job.slice/job-1.slice/docker-{ID}.scope"),
        (POD, f"{POD}/cri-containerd-{ID}.scope"),
        ("kubepods/burstable/pod8", f"kubepods/burstable/pod8/{ID}"),
    ],
)
async def test_a_limit_above_the_container_is_its_limit_and_not_the_node_s(
    tree: Tree, above: str, leaf: str
) -> None:
    tree.cgroup(above, "200000 100000\n", f"{GIB}\n")
    tree.cgroup(leaf)
    expected = (2000, "cgroup_ancestor", GIB, "cgroup_ancestor")
    assert size(await tree.read(leaf)) == expected


async def test_a_cgroup_that_the_runtime_makes_inside_the_container_is_the_container(
    tree: Tree,
) -> None:
    """The subgroup `container` of crun: the limits are the container's own, one level up."""
    tree.cgroup(f"machine.slice/libpod-{ID}.scope", "200000 100000\n", f"{GIB}\n")
    tree.cgroup(f"machine.slice/libpod-{ID}.scope/container")
    reading = await tree.read(f"machine.slice/libpod-{ID}.scope/container")
    assert size(reading) == (2000, "cgroup", GIB, "cgroup")


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [
        (("200000 100000\n", f"{GIB}\n"), ("max 100000\n", "max\n"), (2000, "cgroup", GIB)),
        (("200000 100000\n", f"{GIB}\n"), ("100000 100000\n", "max\n"), (1000, "ancestor", GIB)),
        (("200000 100000\n", "max\n"), ("400000 100000\n", f"{GIB}\n"), (2000, "cgroup", GIB)),
        (("max 100000\n", f"{2 * GIB}\n"), ("max 100000\n", f"{GIB}\n"), (None, None, GIB)),
    ],
)
async def test_the_smallest_limit_on_the_path_binds_each_figure_for_itself(
    tree: Tree,
    own: tuple[str, str],
    above: tuple[str, str],
    expected: tuple[int | None, str | None, int],
) -> None:
    tree.cgroup("job.slice", *above)
    tree.cgroup(f"job.slice/docker-{ID}.scope", *own)
    reading = await tree.read(f"job.slice/docker-{ID}.scope")
    millicores, source, memory_bytes = expected
    assert (reading.cpu_limit_millicores, reading.memory_limit_bytes) == (millicores, memory_bytes)
    assert (reading.cpu_limit_source or "").removeprefix("cgroup_") == (source or "")


@pytest.mark.parametrize(
    ("cpu", "memory", "expected"),
    [
        ("200000 100000\n", "max\n", (2000, "cgroup_ancestor", None, "unknown")),
        ("max 100000\n", f"{GIB}\n", (None, "unknown", GIB, "cgroup_ancestor")),
        ("max 100000\n", "max\n", (None, None, None, None)),
    ],
)
async def test_with_limits_of_the_pod_only_the_downward_api_must_not_be_asked(
    tree: Tree, cpu: str, memory: str, expected: tuple[object, ...]
) -> None:
    tree.cgroup(POD, cpu, memory)
    tree.cgroup(f"{POD}/cri-containerd-{ID}.scope")
    assert size(await tree.read(f"{POD}/cri-containerd-{ID}.scope")) == expected


async def test_a_container_with_one_limit_of_its_own_may_have_the_other_declared(
    tree: Tree,
) -> None:
    """Exclusive CPUs have no quota, neither in the container nor in the pod."""
    tree.cgroup(POD, NO_CPU, f"{2 * GIB}\n")
    tree.cgroup(f"{POD}/cri-containerd-{ID}.scope", NO_CPU, f"{GIB}\n")
    reading = await tree.read(f"{POD}/cri-containerd-{ID}.scope")
    assert size(reading) == (None, None, GIB, "cgroup")


@pytest.mark.parametrize(
    "node", ["kubepods.slice", "kubepods.slice/kubepods-besteffort.slice", "kubepods/burstable"]
)
async def test_what_the_node_may_give_to_all_pods_is_nobody_s_size(tree: Tree, node: str) -> None:
    tree.cgroup(node, "6400000 100000\n", f"{256 * GIB}\n")
    tree.cgroup(f"{node}/pod8")
    tree.cgroup(f"{node}/pod8/{ID}")
    assert size(await tree.read(f"{node}/pod8/{ID}")) == (None, None, None, None)


async def test_a_limit_of_zero_is_no_size(tree: Tree) -> None:
    tree.cgroup("x.service", "0 100000\n", "0\n")
    assert size(await tree.read("x.service")) == (None, None, None, None)


async def test_a_changed_limit_is_seen_on_every_level(tree: Tree) -> None:
    tree.cgroup("job.slice", "400000 100000\n", "max\n")
    tree.cgroup("job.slice/x.service", "800000 100000\n", "max\n")
    tree.host.process(PID, "0::/job.slice/x.service\n", tree.mounts)
    source = tree.host.of_process()
    assert (await source.read()).cpu_limit_millicores == 4000
    tree.host.file("sys/job.slice/cpu.max", "100000 100000\n")
    assert (await source.read()).cpu_limit_millicores == 1000
    tree.host.file("sys/job.slice/cpu.max", NO_CPU)
    assert (await source.read()).cpu_limit_millicores == 8000
    source.close()


async def test_v1_limits_are_found_in_each_controller_s_own_tree(old: Host) -> None:
    old.v1("sys/cpu,cpuacct", "docker", {**CPU_V1, "cpu.cfs_quota_us": "50000\n"})
    old.v1("sys/memory", "docker", {**MEMORY_V1, "memory.limit_in_bytes": f"{GIB}\n"})
    source = old.of_process()
    expected = (500, "cgroup_ancestor", GIB, "cgroup_ancestor")
    assert size(await source.read()) == expected
    old.file(f"sys/memory/docker/{ID}/memory.limit_in_bytes", f"{GIB // 2}\n")
    assert (await source.read()).memory_limit_source == "cgroup"
    old.file("sys/memory/docker/memory.limit_in_bytes", f"{HUGE}\n")
    old.file(f"sys/memory/docker/{ID}/memory.limit_in_bytes", f"{HUGE}\n")
    assert (await source.read()).memory_limit_source == "unknown", "the CPU limit is the parent's"
    source.close()


async def test_a_cgroup_named_by_its_path_is_bound_from_above_too(tree: Tree) -> None:
    tree.cgroup("a.slice", "200000 100000\n", f"{GIB}\n")
    tree.cgroup("a.slice/x.service")
    source = tree.host.at_path(tree.host.root / "sys/a.slice/x.service")
    reading = await source.read()
    assert (reading.cpu_limit_millicores, reading.memory_limit_bytes) == (2000, GIB)
    assert reading.exclusive, "nothing else is in it: the cgroup itself is the target"
    source.close()


def test_inside_a_container_only_its_own_cgroup_is_to_be_seen(tmp_path: Path) -> None:
    directory = tmp_path / "sys/fs/cgroup"
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").touch()
    assert levels(directory, f"/../cri-containerd-{ID}.scope") == Levels((directory,), ())
