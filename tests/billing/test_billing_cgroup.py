"""Cgroups on fake trees of v1, v2 and both, and the real /proc for what only a kernel can say."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.billing import counters
from agents.billing.cgroup import CgroupSource, at_path, of_process
from agents.billing.hierarchy import Hierarchy, Locator, parse_membership, parse_mounts, unescaped
from agents.billing.proc import Finder, ProcFs
from agents.billing.reading import Reading, TargetAbsentError, TargetUnreadableError

BOOT_ID = "8cf25f06-7a2e-4b5b-aef5-5834d36300d2"
ID = "0123456789abcdef" * 4
OTHER_ID = "fedcba9876543210" * 4
PID, AGENT = 41, 7
HUGE = "9223372036854771712"


@dataclass
class Host:
    """A machine's /proc and cgroup file systems below one directory."""

    root: Path

    @property
    def proc(self) -> ProcFs:
        return ProcFs(self.root / "proc")

    def file(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def process(self, pid: int | str, cgroup: str, mounts: list[str], start: int = 500) -> None:
        self.file(f"proc/{pid}/cgroup", cgroup)
        self.file(f"proc/{pid}/mountinfo", "".join(f"{line}\n" for line in mounts))
        stat = f"{pid} (a ) S b) S 1 " + "0 " * 17 + f"{start} 0 0\n"
        self.file(f"proc/{pid}/stat", stat)
        self.file(f"proc/{pid}/status", "Name:\tx\nUid:\t1\t101\t1\t1\nGid:\t1\t102\t1\t1\n")
        self.file(f"proc/{pid}/statm", "900 300 1 1 0 1 0\n")

    def v2(self, path: str, pids: str = f"{PID}\n", *, memory: bool = True) -> Path:
        files = {
            "cgroup.controllers": "cpu memory\n",
            "cgroup.events": "populated 1\n",
            "cgroup.procs": pids,
            "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n",
        }
        if memory:
            files |= {"memory.current": "4096\n", "memory.max": "8589934592\n"}
            files |= {"cpu.max": "150000 100000\n"}
        for name, text in files.items():
            self.file(f"{path}/{name}", text)
        return self.root / path

    def v2_root(self, path: str) -> None:
        self.v2(path, memory=False)
        (self.root / path / "cgroup.events").unlink()

    def v1(self, mount: str, path: str, files: dict[str, str]) -> Path:
        self.file(f"{mount}/cgroup.sane_behavior", "0\n")
        for name, text in {"cgroup.procs": f"{PID}\n", **files}.items():
            self.file(f"{mount}/{path}/{name}", text)
        return self.root / mount / path

    def mount(self, root: str, point: str, kind: str = "cgroup2", names: str = "") -> str:
        inside = point if point.startswith("/") else str(self.root / point)
        return f"30 23 0:29 {root} {inside} rw,relatime shared:9 - {kind} {kind} rw,{names}"

    def of_process(self, pid: int = PID) -> CgroupSource:
        finder = Finder(self.proc, pid)
        return CgroupSource(of_process(Locator(self.proc), finder, self.proc), self.proc, BOOT_ID)

    def at_path(self, path: Path) -> CgroupSource:
        return CgroupSource(at_path(Locator(self.proc), path), self.proc, BOOT_ID)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def bare(host: Host) -> Host:
    """Make a v2 machine: target and agent are services in the same namespaces."""
    host.v2_root("sys")
    mounts = [host.mount("/", "sys")]
    host.v2("sys/agent.service", f"{AGENT}\n")
    host.process("self", "0::/agent.service\n", mounts)
    host.v2(f"sys/{ID}")
    host.process(PID, f"0::/{ID}\n", mounts)
    return host


def a_pod(host: Host) -> Host:
    """Make a pod of two containers, the agent's and the target's, that share processes only.

    Each has its own cgroup as the root of its own mount; the kernel shows a sibling as `/../x`.
    """
    host.v2("sys", f"{AGENT}\n")
    host.process("self", "0::/\n", [host.mount("/", "sys")])
    host.v2(f"proc/{PID}/root/sys/fs/cgroup")
    path = f"/../cri-containerd-{ID}.scope"
    host.process(PID, f"0::{path}\n", [host.mount(path, "/sys/fs/cgroup")])
    return host


@pytest.fixture
def pod(host: Host) -> Host:
    return a_pod(host)


@pytest.fixture
def old(host: Host) -> Host:
    """Make a v1 machine: a hierarchy for each controller, and v2 stands empty beside them."""
    names = {"cpuacct": "cpu,cpuacct", "memory": "memory"}
    mounts = [host.mount("/", f"sys/{names[n]}", "cgroup", names[n]) for n in names]
    mounts.append(host.mount("/", "sys/unified"))
    host.v2_root("sys/unified")
    host.v1("sys/cpu,cpuacct", f"docker/{ID}", CPU_V1)
    host.v1("sys/memory", f"docker/{ID}", MEMORY_V1)
    host.v1("sys/cpu,cpuacct", "agent", CPU_V1)
    host.process("self", "2:cpu,cpuacct:/agent\n3:memory:/\n0::/\n", mounts)
    host.process(PID, f"2:cpu,cpuacct:/docker/{ID}\n3:memory:/docker/{ID}\n0::/\n", mounts)
    return host


CPU_V1 = {
    "cpuacct.usage": "1500000999\n",
    "cpu.cfs_quota_us": "-1\n",
    "cpu.cfs_period_us": "100000\n",
}
MEMORY_V1 = {"memory.usage_in_bytes": "4096\n", "memory.limit_in_bytes": f"{HUGE}\n"}


def figures(reading: Reading) -> tuple[object, ...]:
    limits = (reading.cpu_limit_millicores, reading.memory_limit_bytes)
    return (reading.source, reading.cpu_usec, reading.memory_bytes, *limits)


@pytest.fixture
def open_descriptors() -> Iterator[None]:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    yield
    assert len(list(descriptors.iterdir())) == before


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


async def test_without_the_memory_controller_memory_is_what_is_resident(bare: Host) -> None:
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
    for _ in range(2):  # another agent finds the same
        source = bare.of_process()
        assert (await source.read()).incarnation == expected
        source.close()


@pytest.mark.usefixtures("open_descriptors")
async def test_a_cgroup_made_anew_at_the_same_path_is_another_incarnation(bare: Host) -> None:
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


REFUSED = {
    "our own": ("/agent.service", "the agent's own cgroup, or one that holds it"),
    "the root": ("/", "the machine's root cgroup"),
    "not there": ("/gone", "No such file or directory"),
    "in another namespace": ("/../x", "no cgroup mount holds it"),
    "of others": ("/others", "does not hold the process"),
}


@pytest.mark.usefixtures("open_descriptors")
@pytest.mark.parametrize("name", REFUSED)
async def test_no_cgroup_is_billed_but_the_target_s_own(bare: Host, name: str) -> None:
    path, reason = REFUSED[name]
    bare.v2("sys/others", "1\n")
    bare.v2("x")  # what `/../x` would be, joined to our mount
    bare.file(f"proc/{PID}/cgroup", f"0::{path}\n")
    with pytest.raises(TargetUnreadableError, match=reason):
        await bare.of_process().read()


@pytest.mark.parametrize("path", ["sys", "sys/agent.service", "sys/slice"])
async def test_neither_is_one_that_is_named_by_its_path(bare: Host, path: str) -> None:
    bare.v2("sys/slice")
    bare.v2("sys/slice/agent.service")
    bare.file("proc/self/cgroup", "0::/slice/agent.service\n")
    bare.file("sys/agent.service/cgroup.controllers", "")
    if path == "sys/agent.service":
        bare.file("proc/self/cgroup", "0::/agent.service\n")
    with pytest.raises(TargetUnreadableError, match=r"root cgroup|own cgroup"):
        await bare.at_path(bare.root / path).read()


async def test_our_own_cgroup_is_none_in_a_container_either(pod: Host) -> None:
    """A process of our own container shows as `/`: that is our mount's root."""
    pod.file(f"proc/{PID}/cgroup", "0::/\n")
    with pytest.raises(TargetUnreadableError, match="own cgroup"):
        await pod.of_process().read()


async def test_v1_root_of_one_controller_leaves_the_others(old: Host) -> None:
    old.file(f"proc/{PID}/cgroup", f"2:cpu,cpuacct:/docker/{ID}\n3:memory:/\n0::/\n")
    source = old.of_process()
    expected = 300 * os.sysconf("SC_PAGE_SIZE")
    assert figures(await source.read()) == ("cgroup.v1", 1_500_000, expected, None, None)
    source.close()


async def test_the_unified_hierarchy_serves_where_v1_has_no_cgroup(old: Host) -> None:
    old.v2("sys/unified/clickhouse.service", memory=False)
    old.file(f"proc/{PID}/cgroup", "2:cpu,cpuacct:/\n3:memory:/\n0::/clickhouse.service\n")
    source = old.of_process()
    assert figures(await source.read())[:2] == ("cgroup.v2", 1_500_000)
    source.close()


GARBAGE = {
    "cpu.stat": ["", "usage_usec\n", "usage_usec -1\n", "user_usec 5\n", "usage_usec x\n"],
    "memory.current": ["", "max\n", "-5\n", "1 2\n", "9" * 5000],
    "cpu.max": ["", "max\n", "5\n", "100000 0\n", "a b\n"],
    "memory.max": ["", "none\n"],
}


@pytest.mark.usefixtures("open_descriptors")
@pytest.mark.parametrize(("file", "text"), [(f, t) for f, texts in GARBAGE.items() for t in texts])
async def test_garbage_in_a_file_names_the_file(bare: Host, file: str, text: str) -> None:
    bare.file(f"sys/{ID}/{file}", text)
    with pytest.raises(TargetUnreadableError, match=f"{ID}/{file}: not in the form"):
        await bare.of_process().read()


async def test_a_missing_cpu_counter_is_not_read_as_zero(bare: Host) -> None:
    (bare.root / f"sys/{ID}/cpu.stat").unlink()
    with pytest.raises(TargetAbsentError, match="went away"):
        await bare.of_process().read()


async def test_a_proc_that_does_not_know_us_is_no_proof_of_absence(host: Host) -> None:
    with pytest.raises(TargetUnreadableError, match="self/mountinfo: No such file"):
        await host.at_path(host.root).read()


async def test_a_directory_that_is_no_cgroup_says_what_is_missing(host: Host) -> None:
    host.process("self", "0::/\n", [])
    with pytest.raises(TargetUnreadableError, match=r"no cgroup with cpu.stat or cpuacct.usage"):
        await host.at_path(host.root).read()


def test_denied_tells_the_file_who_we_are_and_what_to_set() -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        root.chmod(0o755)
        host = a_pod(Host(root))
        locked = root / f"proc/{PID}/root"
        locked.chmod(0)
        ids, text = as_somebody(lambda: Locator(host.proc).of_process(PID))
        locked.chmod(0o755)
    assert text == (
        f"cgroup of process {PID}: {locked}/sys/fs/cgroup: Permission denied; we are {ids}, "
        "it wants uid 101 gid 102: set runAsUser and runAsGroup of the agent to the target's, "
        "and allowPrivilegeEscalation: false on both"
    )


def as_somebody(do: Callable[[], object]) -> tuple[str, str]:
    """Return (ids, error text) of a refused call; for root a child without rights makes it."""
    nobody = 65534
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(nobody)
            os.setuid(nobody)
        try:
            do()
        except TargetUnreadableError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    uid, gid = (os.geteuid(), os.getegid()) if os.geteuid() else (nobody, nobody)
    return f"uid {uid} gid {gid}", text


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


async def test_the_end_of_a_real_process_is_seen_though_its_pid_seems_alive(
    host: Host, child: subprocess.Popen[bytes]
) -> None:
    """Its /proc/PID/cgroup is the real one; all else is a fake that goes on answering."""
    mounts = [host.mount("/", "sys")]
    host.process("self", "", mounts)
    host.process(child.pid, "", mounts)
    membership = host.root / f"proc/{child.pid}/cgroup"
    membership.unlink()
    membership.symlink_to(f"/proc/{child.pid}/cgroup")
    inside = parse_membership(membership.read_text())[""]
    host.v2(f"sys{inside}".rstrip("/"), f"{child.pid}\n")
    source = host.of_process(child.pid)
    assert (await source.read()).cpu_usec == 1_500_000
    child.kill()
    child.wait()
    with pytest.raises(TargetAbsentError, match=f"process {child.pid} has ended"):
        await source.read()


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (counters.parse_cpu_stat, b"nr_periods 1\nusage_usec 7\n", 7),
        (counters.parse_cpu_max, b"max 100000\n", None),
        (counters.parse_cpu_max, b"1000 100000\n", 10),
        (counters.parse_cpu_max, b"3200000 100000\n", 32_000),
        (counters.parse_quota, b"-1\n", None),
        (counters.parse_quota, b"250000\n", 250_000),
        (counters.parse_memory_max, b"max\n", None),
        (counters.parse_memory_max, HUGE.encode() + b"\n", None),
        (counters.parse_memory_max, b"18446744073709551615\n", None),
        (counters.parse_memory_max, b"4611686018427387903\n", 2**62 - 1),
        (counters.parse_memory_max, b"0\n", 0),
        (counters.parse_count, b"0\n", 0),
    ],
)
def test_what_the_kernel_writes(parse: object, text: bytes, value: int | None) -> None:
    assert callable(parse)
    assert parse(text) == value


PARSERS: list[Callable[[bytes], int | None]] = [
    counters.parse_cpu_stat,
    counters.parse_cpu_max,
    counters.parse_quota,
    counters.parse_memory_max,
    counters.parse_count,
]
NEAR = st.from_regex(rb"(usage_usec |max |-)?[0-9]{0,25}( [0-9]{0,25})?\n?", fullmatch=True)


@given(st.binary(max_size=100) | NEAR)
def test_no_content_makes_a_parser_crash(content: bytes) -> None:
    for parse in PARSERS:
        try:
            value = parse(content)
        except ValueError:
            continue
        assert value is None or value >= 0


LINES = st.lists(st.text("0:/.,ab \n-") | st.text(), max_size=4).map("\n".join)


@given(LINES)
def test_no_table_makes_a_parser_crash(text: str) -> None:
    assert all(path.startswith("/") for path in parse_membership(text).values())
    assert isinstance(parse_mounts(text), list)


def test_the_real_tables_of_this_machine_are_understood() -> None:
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    named = {name for mount in mounts for name in mount.names}
    assert set(parse_membership(Path("/proc/self/cgroup").read_text())) <= named


def test_a_mount_point_may_hold_a_space() -> None:
    line = r"31 23 0:28 / /sys/a\040b rw - cgroup2 cgroup2 rw"
    assert parse_mounts(line)[0].point == Path("/sys/a b")
    assert unescaped(r"a\134b\9") == r"a\b\9"
