"""Finding a process in a fake /proc, and reading our own in the real one."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.billing.sources.procfs import (
    Finder,
    ProcessIdentity,
    ProcFs,
    container_id,
    parse_stat,
)
from byoc_agents.billing.sources.reading import TargetAbsentError, TargetUnreadableError

ID = "0123456789abcdef" * 4


@dataclass
class Fake:
    """A /proc that counts how often it is listed."""

    root: Path

    def process(
        self,
        pid: int,
        comm: str,
        *arguments: str,
        start: int = 500,
        parent: int = 1,
        state: str = "S",
        exe: str = "",
    ) -> None:
        directory = self.root / str(pid)
        directory.mkdir(exist_ok=True)
        stat = f"{pid} ({comm}) {state} {parent} " + "0 " * 17 + f"{start} 0\n"
        (directory / "stat").write_text(stat)
        (directory / "comm").write_text(f"{comm}\n")
        (directory / "cmdline").write_bytes("".join(f"{a}\0" for a in arguments).encode())
        if exe:
            (directory / "exe").symlink_to(exe)

    def remove(self, pid: int) -> None:
        directory = self.root / str(pid)
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()

    def finder(self, wanted: int | str, *, shared: bool = True) -> Finder:
        return Finder(ProcFs(self.root), wanted, shared=shared)


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    made = Fake(tmp_path)
    made.process(1, "pause", "/pause")
    made.process(8, "python3", "/usr/bin/python3", "-m", "agents")
    (tmp_path / "meminfo").write_text("")
    return made


SERVERS = {
    "by its cut comm": ("clickhouse-serv", ("/usr/bin/clickhouse-server", "--config=x"), ""),
    "as the binary's command": ("clickhouse", ("/usr/bin/clickhouse", "server"), ""),
    "by its executable": ("renamed", ("renamed",), "/usr/bin/clickhouse-server"),
    "by executable and command": ("renamed", ("ch", "server"), "/usr/bin/clickhouse"),
    "with a title of its own": ("clickhouse-serv", ("clickhouse-server: main",), ""),
}


@pytest.mark.parametrize("name", SERVERS)
def test_the_server_is_found_by_every_name_it_goes_by(fake: Fake, name: str) -> None:
    comm, arguments, exe = SERVERS[name]
    fake.process(41, comm, *arguments, exe=exe)
    assert fake.finder("clickhouse-server").find() == ProcessIdentity(41, 500)


OTHERS = {
    "its client": ("clickhouse", ("/usr/bin/clickhouse", "client")),
    "a name that begins alike": ("clickhouse-serv", ("/usr/bin/clickhouse-serves-tea",)),
    "named in an argument": ("vi", ("vi", "clickhouse-server")),
    "a kernel thread": ("kworker/0:1", ()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_alike_is_not_the_server(fake: Fake, name: str) -> None:
    comm, arguments = OTHERS[name]
    fake.process(41, comm, *arguments)
    with pytest.raises(TargetAbsentError, match="no process called clickhouse-server"):
        fake.finder("clickhouse-server").find()


def test_of_forks_the_parent_is_taken(fake: Fake) -> None:
    fake.process(41, "nginx", "nginx")
    fake.process(42, "nginx", "nginx", parent=41)
    assert fake.finder("nginx").find().pid == 41


def test_of_two_that_are_no_family_none_is_taken(fake: Fake) -> None:
    fake.process(41, "nginx", "nginx")
    fake.process(42, "nginx", "nginx")
    with pytest.raises(TargetUnreadableError, match=r"41, 42 are all called nginx: set .* pid:N"):
        fake.finder("nginx").find()


def test_the_daemon_is_never_its_own_target(fake: Fake) -> None:
    fake.process(os.getpid(), "nginx", "nginx")
    with pytest.raises(TargetAbsentError):
        fake.finder("nginx").find()


def test_a_zombie_is_not_running(fake: Fake) -> None:
    fake.process(41, "nginx", "nginx", state="Z")
    for wanted in (41, "nginx"):
        with pytest.raises(TargetAbsentError):
            fake.finder(wanted).find()


def test_proc_is_searched_only_when_the_process_has_ended(fake: Fake) -> None:
    """Processes that appear while the found one runs are not seen: /proc is not searched."""
    fake.process(41, "nginx", "nginx")
    finder = fake.finder("nginx")
    assert finder.find().pid == 41
    fake.process(42, "nginx", "nginx")
    assert finder.find().pid == 41
    fake.remove(41)
    assert finder.find().pid == 42


@pytest.mark.parametrize("wanted", [41, "nginx"])
def test_another_process_with_the_same_pid_is_not_it(fake: Fake, wanted: int | str) -> None:
    fake.process(41, "nginx", "nginx")
    finder = fake.finder(wanted)
    finder.find()
    fake.process(41, "sshd", "sshd", start=900)
    with pytest.raises(TargetAbsentError):
        finder.find()


def test_a_restart_by_name_is_a_new_incarnation(fake: Fake) -> None:
    fake.process(41, "nginx", "nginx")
    finder = fake.finder("nginx")
    assert finder.find() == ProcessIdentity(41, 500)
    fake.process(41, "nginx", "nginx", start=900)
    assert finder.find() == ProcessIdentity(41, 900)


def test_unseen_is_absent_only_if_it_would_be_visible(fake: Fake) -> None:
    finder = fake.finder("nginx", shared=False)
    with pytest.raises(TargetUnreadableError, match="shareProcessNamespace: true"):
        finder.find()
    fake.process(41, "nginx", "nginx")
    finder.find()
    fake.remove(41)
    with pytest.raises(TargetAbsentError):
        finder.find()


def test_a_proc_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(TargetUnreadableError, match="none: No such file"):
        Finder(ProcFs(tmp_path / "none"), "nginx").find()


def test_our_own_process_is_read_from_the_real_proc() -> None:
    proc = ProcFs()
    me = proc.process(os.getpid())
    assert 0 < me.born_boot_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert proc.owner(os.getpid()) == f"uid {os.geteuid()} gid {os.getegid()}"
    assert proc.resident_bytes(os.getpid()) > 1024**2
    assert proc.resident_bytes(2**22 + 1) == 0
    assert proc.is_called(os.getpid(), Path("/proc/self/comm").read_text().strip())


def test_a_name_may_hold_brackets_and_spaces() -> None:
    assert parse_stat("1 (a) R 9 (b)) S 1 " + "0 " * 17 + "77 0") == ("S", 77)


@given(st.text() | st.from_regex(r"1 \(a\) [A-Z]( -?[0-9]{1,3}){0,30}", fullmatch=True))
def test_no_stat_makes_it_crash(text: str) -> None:
    try:
        state, _ = parse_stat(text)
    except TargetUnreadableError:
        return
    assert state


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"0::/../cri-containerd-{ID}.scope\n", ID),
        (f"4:memory:/kubepods/burstable/pod1/{ID}\n", ID),
        (f"0::/{'f' * 64}/docker/{ID}\n", ID),
        ("0::/system.slice/clickhouse.service\n", ""),
        (f"0::/{ID}0\n", ""),
        ("", ""),
    ],
)
def test_a_container_id_is_64_hex_digits(text: str, found: str) -> None:
    assert container_id(text) == found


def test_docker_s_own_mounts_name_the_container_if_the_cgroup_does_not(fake: Fake) -> None:
    layer = "a" * 64
    fake.process(41, "x")
    (fake.root / "41/cgroup").write_text("0::/\n")
    (fake.root / "41/mountinfo").write_text(
        f"1 2 0:3 / / rw - overlay overlay rw,upperdir=/var/lib/docker/overlay2/{layer}/diff\n"
        f"1 2 0:3 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda rw\n"
    )
    assert ProcFs(fake.root).container_id(41) == ID
    assert ProcFs(fake.root).container_id(99) == ""
