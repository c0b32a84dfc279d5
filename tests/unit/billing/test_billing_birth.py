"""A counter may be counted from zero only if its own birth is known."""

import shutil

import pytest

from byoc_agents.billing.record import MAX_CPUS
from byoc_agents.billing.sources.cgroup import CgroupSource, of_process
from byoc_agents.billing.sources.cgroup_paths import Locator
from byoc_agents.billing.sources.procfs import Finder
from byoc_agents.billing.sources.reading import TargetAbsentError, TargetUnreadableError
from tests.unit.billing.cgroup_host import BOOT_ID, ID, PID, Host

START_TICKS, START_NS = 500, 5_000_000_000
NS = 1_000_000_000


def source(host: Host, now_ns: int) -> CgroupSource:
    finder = Finder(host.proc, PID)
    locate = of_process(Locator(host.proc), finder, host.proc)
    return CgroupSource(locate, host.proc, BOOT_ID, boot_ns=lambda: now_ns)


async def birth(host: Host, now_ns: int = START_NS + 10 * NS) -> int | None:
    found = source(host, now_ns)
    try:
        return (await found.read()).born_boot_ns
    finally:
        found.close()


def used(host: Host, usec: int) -> None:
    host.file(f"sys/{ID}/cpu.stat", f"usage_usec {usec}\n")


def cpus(host: Host, count: int) -> None:
    host.file("proc/stat", "cpu  1\n" + "".join(f"cpu{n} 1\n" for n in range(count)))


@pytest.mark.parametrize(
    ("usec", "known"), [(0, True), (20_000_000, True), (20_200_000, False), (10**12, False)]
)
async def test_a_container_s_counter_that_its_processes_had_no_time_for_is_older_than_they_are(
    bare: Host, usec: int, known: bool
) -> None:
    """Two CPUs, ten seconds."""
    cpus(bare, 2)
    used(bare, usec)
    assert await birth(bare) == (START_NS if known else None)


async def test_without_a_number_of_cpus_only_the_impossible_on_any_machine_is_seen(
    bare: Host,
) -> None:
    used(bare, 10 * MAX_CPUS * 1_000_000)
    assert await birth(bare) == START_NS
    used(bare, 11 * MAX_CPUS * 1_000_000)
    assert await birth(bare) is None


async def test_a_reading_says_how_many_cpus_the_machine_has(bare: Host) -> None:
    cpus(bare, 64)
    found = source(bare, START_NS)
    assert (await found.read()).machine_cpus == 64
    found.close()


async def test_an_older_process_that_cannot_be_looked_at_leaves_the_birth_unknown(
    bare: Host,
) -> None:
    (bare.root / f"sys/{ID}/cgroup.procs").write_text(f"{PID}\n{PID + 1}\n")
    assert await birth(bare) == START_NS, "it has ended meanwhile"
    mount = "22 20 0:6 / /proc rw - proc proc rw,hidepid=2\n"
    with (bare.root / "proc/self/mountinfo").open("a") as table:
        table.write(mount)
    assert await birth(bare) is None, "it may only be hidden"


async def test_a_process_of_another_pid_namespace_may_be_older(bare: Host) -> None:
    (bare.root / f"sys/{ID}/cgroup.procs").write_text(f"0\n{PID}\n")
    assert await birth(bare) is None


@pytest.mark.parametrize("path", ["user.slice/session-3.scope", "supervisord.service"])
async def test_a_cgroup_that_others_used_before_has_no_birth(bare: Host, path: str) -> None:
    bare.v2(f"sys/{path}", f"{PID - 1}\n{PID}\n")
    bare.process(PID - 1, f"0::/{path}\n", [bare.mount("/", "sys")], start=100)
    bare.file(f"proc/{PID}/cgroup", f"0::/{path}\n")
    assert await birth(bare) is None


async def test_a_live_process_without_a_cgroup_file_has_not_ended(bare: Host) -> None:
    """No such file in gVisor."""
    (bare.root / f"proc/{PID}/cgroup").unlink()
    with pytest.raises(TargetUnreadableError, match=f"process {PID} runs: this kernel shows no"):
        await source(bare, START_NS).read()
    shutil.rmtree(bare.root / f"proc/{PID}")
    with pytest.raises(TargetAbsentError):
        await source(bare, START_NS).read()


async def test_a_live_process_without_a_mount_table_has_not_ended(bare: Host) -> None:
    bare.file(f"proc/{PID}/cgroup", "0::/elsewhere\n")  # so the target's own mounts are looked at
    (bare.root / f"proc/{PID}/mountinfo").unlink()
    with pytest.raises(TargetUnreadableError, match="mountinfo: No such file"):
        await source(bare, START_NS).read()


async def test_a_path_that_is_on_no_cgroup_file_system_is_not_an_absent_cgroup(
    bare: Host,
) -> None:
    with pytest.raises(TargetUnreadableError, match="expected a directory of a cgroup file system"):
        await bare.at_path(bare.root / "nowhere/x").read()
    with pytest.raises(TargetAbsentError):
        await bare.at_path(bare.root / "sys/x").read()
