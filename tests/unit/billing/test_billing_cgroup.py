"""The readings of a cgroup of v1, v2 and both, and the selection of the cgroup."""

import os
import shutil

import pytest

from byoc_agents.billing.sources.cgroup import CgroupSource, of_process
from byoc_agents.billing.sources.cgroup_paths import Hierarchy, Locator
from byoc_agents.billing.sources.procfs import Finder
from byoc_agents.billing.sources.reading import TargetAbsentError
from tests.unit.billing.cgroup_host import (
    BOOT_ID,
    CPU_V1,
    ID,
    MEMORY_V1,
    OTHER_ID,
    PID,
    Host,
    figures,
)


@pytest.mark.usefixtures("open_descriptors")
async def test_v2_gives_all_four_figures(bare: Host) -> None:
    source = bare.of_process()
    reading = await source.read()
    assert figures(reading) == ("cgroup.v2", 1_500_000, 4096, 1500, 8 * 1024**3)
    assert reading.container_id == ID
    assert reading.resets_to_zero
    assert source.name == "cgroup.v2"
    source.close()


async def test_v1_gives_all_four_figures_and_its_huge_number_is_no_limit(old: Host) -> None:
    source = old.of_process()
    assert figures(await source.read()) == ("cgroup.v1", 1_500_000, 4096, None, None)
    old.v1("sys/cpu,cpuacct", f"docker/{ID}", CPU_V1 | {"cpu.cfs_quota_us": "50000\n"})
    old.v1("sys/memory", f"docker/{ID}", {"memory.limit_in_bytes": "1048576\n"})
    assert figures(await source.read())[3:] == (500, 1048576)
    assert source.name == "cgroup.v1"
    source.close()


async def test_v1_controllers_are_found_from_one_directory_of_any_of_them(old: Host) -> None:
    for mount in ("cpu,cpuacct", "memory"):
        source = old.at_path(old.root / "sys" / mount / "docker" / ID)
        assert figures(await source.read()) == ("cgroup.v1", 1_500_000, 4096, None, None)
        source.close()


async def test_a_sibling_container_is_read_below_its_own_root(pod: Host) -> None:
    (pod.root / "sys/cpu.stat").write_text("usage_usec 666\n")  # ours: never that
    source = pod.of_process()
    reading = await source.read()
    assert (reading.cpu_usec, reading.container_id) == (1_500_000, ID)
    source.close()


async def test_a_sibling_of_v1_is_read_through_its_bind_mounts(host: Host) -> None:
    """Docker with v1 shows the host's paths and mounts only the container's own directory."""
    for who, name in (("self", OTHER_ID), (PID, ID)):
        inside = "" if who == "self" else f"proc/{PID}/root"
        for controllers, files in (("cpu,cpuacct", CPU_V1), ("memory", MEMORY_V1)):
            for file, text in files.items():
                host.file(f"{inside}/sys/{controllers}/{file}".lstrip("/"), text)
            host.file(f"{inside}/sys/{controllers}/cgroup.procs".lstrip("/"), f"{PID}\n")
        prefix = "sys" if who == "self" else "/sys"
        mounts = [
            host.mount(f"/docker/{name}", f"{prefix}/{controllers}", "cgroup", controllers)
            for controllers in ("cpu,cpuacct", "memory")
        ]
        host.process(who, f"2:cpu,cpuacct:/docker/{name}\n3:memory:/docker/{name}\n", mounts)
    host.file("sys/cpu,cpuacct/cpuacct.usage", "666000\n")
    source = host.of_process()
    assert figures(await source.read())[:3] == ("cgroup.v1", 1_500_000, 4096)
    source.close()


async def test_without_the_memory_controller_memory_is_the_resident_memory(bare: Host) -> None:
    for name in ("memory.current", "memory.max", "cpu.max"):
        (bare.root / f"sys/{ID}/{name}").unlink()
    bare.v2(f"sys/{ID}/below", f"{PID}\n0\n9999\n", memory=False)  # 0: of another pid namespace
    source = bare.of_process()
    expected = 2 * 300 * os.sysconf("SC_PAGE_SIZE")
    assert figures(await source.read()) == ("cgroup.v2", 1_500_000, expected, None, None)
    source.close()


async def test_every_read_is_fresh(bare: Host) -> None:
    source = bare.of_process()
    await source.read()
    (bare.root / f"sys/{ID}/cpu.stat").write_text("nr_periods 0\nusage_usec 1500001\n")
    (bare.root / f"sys/{ID}/memory.max").write_text("max\n")
    assert figures(await source.read()) == ("cgroup.v2", 1_500_001, 4096, 1500, None)
    source.close()


async def test_the_incarnation_is_boot_device_and_inode(bare: Host) -> None:
    status = (bare.root / f"sys/{ID}").stat()
    expected = f"8cf25f06-{status.st_dev:x}-{status.st_ino}"
    for _ in range(2):  # another daemon finds the same
        source = bare.of_process()
        assert (await source.read()).incarnation == expected
        source.close()


@pytest.mark.usefixtures("open_descriptors")
async def test_a_cgroup_created_again_at_the_same_path_is_another_incarnation(bare: Host) -> None:
    path = bare.root / f"sys/{ID}"
    source = bare.at_path(path)
    before = await source.read()
    path.rename(bare.root / "sys/before")  # keeps its inode, and its files go on answering
    bare.v2(f"sys/{ID}")
    (path / "cpu.stat").write_text("usage_usec 1\n")
    after = await source.read()
    assert (after.cpu_usec, after.incarnation != before.incarnation) == (1, True)
    source.close()


async def test_a_process_that_moves_is_followed(bare: Host) -> None:
    source = bare.of_process()
    before = await source.read()
    bare.v2("sys/elsewhere")
    (bare.root / "sys/elsewhere/cpu.stat").write_text("usage_usec 1\n")
    bare.file(f"proc/{PID}/cgroup", "0::/elsewhere\n")
    after = await source.read()
    assert (after.cpu_usec, after.incarnation != before.incarnation) == (1, True)
    source.close()


@pytest.mark.usefixtures("open_descriptors")
async def test_a_pid_that_changes_hands_while_we_look_is_not_read(bare: Host) -> None:
    class Slow(Locator):
        def of_process(self, pid: int) -> Hierarchy:
            bare.process(pid, f"0::/{ID}\n", [bare.mount("/", "sys")], start=900)
            return super().of_process(pid)

    locate = of_process(Slow(bare.proc), Finder(bare.proc, PID), bare.proc)
    with pytest.raises(TargetAbsentError, match="names another one now"):
        await CgroupSource(locate, bare.proc, BOOT_ID).read()


@pytest.mark.usefixtures("open_descriptors")
async def test_a_removed_cgroup_is_absent_and_found_again(bare: Host) -> None:
    path = bare.root / f"sys/{ID}"
    source = bare.at_path(path)
    await source.read()
    shutil.rmtree(path)
    with pytest.raises(TargetAbsentError, match=f"no cgroup {path}"):
        await source.read()
    bare.v2(f"sys/{ID}")
    assert (await source.read()).cpu_usec == 1_500_000
    source.close()


async def test_closed_is_opened_again(bare: Host) -> None:
    source = bare.of_process()
    first = await source.read()
    source.close()
    source.close()
    assert await source.read() == first
    source.close()


async def test_a_container_is_born_with_its_oldest_process(bare: Host) -> None:
    (bare.root / f"sys/{ID}/cgroup.procs").write_text(f"{PID}\n{PID + 1}\n9999\n")
    bare.process(PID + 1, f"0::/{ID}\n", [bare.mount("/", "sys")], start=250)
    source = bare.of_process()
    assert (await source.read()).born_boot_ns == 2_500_000_000
    shutil.rmtree(bare.root / f"proc/{PID + 1}")
    source.close()
    assert (await source.read()).born_boot_ns == 2_500_000_000  # remembered
    source.close()


@pytest.mark.parametrize("path", ["clickhouse.service", f"{ID}/nested"])
async def test_another_cgroup_has_no_birth_to_trust(bare: Host, path: str) -> None:
    bare.v2(f"sys/{path}")
    bare.file(f"proc/{PID}/cgroup", f"0::/{path}\n")
    source = bare.of_process()
    assert (await source.read()).born_boot_ns is None
    source.close()


async def test_v1_root_of_one_controller_leaves_the_others(old: Host) -> None:
    old.file(f"proc/{PID}/cgroup", f"2:cpu,cpuacct:/docker/{ID}\n3:memory:/\n0::/\n")
    source = old.of_process()
    expected = 300 * os.sysconf("SC_PAGE_SIZE")
    assert figures(await source.read()) == ("cgroup.v1", 1_500_000, expected, None, None)
    source.close()


async def test_the_unified_hierarchy_is_used_if_v1_has_no_cgroup(old: Host) -> None:
    old.v2("sys/unified/clickhouse.service", memory=False)
    old.file(f"proc/{PID}/cgroup", "2:cpu,cpuacct:/\n3:memory:/\n0::/clickhouse.service\n")
    source = old.of_process()
    assert figures(await source.read())[:2] == ("cgroup.v2", 1_500_000)
    source.close()
