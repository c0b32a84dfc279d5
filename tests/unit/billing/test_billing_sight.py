"""A process that cannot be seen is not one that does not run; and whose process it is."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from byoc_agents.billing.sources.procfs import Finder, PodContainer, ProcFs
from byoc_agents.billing.sources.reading import (
    TargetAbsentError,
    TargetForeignError,
    TargetUnreadableError,
)

SERVER = "clickhouse-server"
CAP_SYS_PTRACE = "0000000000080000"
OURS, OTHERS = "0b51c2f4-0000-4000-8000-000000000000", "ffffffff-0000-4000-8000-000000000000"


@dataclass
class Node:
    """A /proc with its own mount table, as the daemon's process sees it."""

    root: Path

    def file(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def mounted(self, options: str = "rw", more: str = "") -> None:
        old = "21 20 0:5 / /proc rw - proc proc rw,hidepid=invisible\n"  # another one lies over it
        self.file("self/mountinfo", f"{old}22 20 0:6 / /proc rw - proc proc {options}\n{more}")
        self.file("self/status", "CapEff:\t0000000000000000\n")

    def process(self, pid: int, *arguments: str, cgroup: str = "0::/x\n", mounts: str = "") -> None:
        name = Path(arguments[0]).name[:15]
        self.file(f"{pid}/stat", f"{pid} ({name}) S 0 " + "0 " * 17 + "500 0\n")
        self.file(f"{pid}/comm", f"{name}\n")
        self.file(f"{pid}/cmdline", "".join(f"{argument}\0" for argument in arguments))
        self.file(f"{pid}/cgroup", cgroup)
        self.file(f"{pid}/mountinfo", mounts)

    def finder(self, wanted: int | str = SERVER, **options: bool | str) -> Finder:
        shared = bool(options.get("shared", True))
        container = str(options.get("container", ""))
        return Finder(ProcFs(self.root), wanted, shared=shared, container=container)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    made.mounted()
    made.file("self/cgroup", "0::/agent.service\n")
    made.process(1, "/sbin/init", cgroup="0::/init.scope\n")
    return made


@pytest.mark.parametrize("wanted", [41, SERVER])
def test_if_all_processes_are_visible_a_missing_one_is_absent(
    node: Node, wanted: int | str
) -> None:
    with pytest.raises(TargetAbsentError):
        node.finder(wanted).find()


@pytest.mark.parametrize("wanted", [41, SERVER])
@pytest.mark.parametrize(
    "hide",
    ["no process 1", "hidepid=2", "hidepid=invisible", "hidepid=4", "hidepid=ptraceable,gid=5"],
)
def test_if_processes_are_hidden_a_missing_one_is_unreadable(
    node: Node, wanted: int | str, hide: str
) -> None:
    if hide == "no process 1":
        (node.root / "1/stat").unlink()
    else:
        node.mounted(f"rw,{hide}")  # and process 1 is ours, so it says nothing about others
    for finder in (node.finder(wanted), node.finder(wanted, shared=False)):
        with pytest.raises(TargetUnreadableError, match=r"hides other users' processes.*hidepid"):
            finder.find()


@pytest.mark.parametrize("wanted", [41, SERVER])
def test_a_process_that_was_seen_and_is_hidden_now_has_not_ended(
    node: Node, wanted: int | str
) -> None:
    node.process(41, f"/usr/bin/{SERVER}")
    finder = node.finder(wanted)
    finder.find()
    (node.root / "41/stat").rename(node.root / "41/hidden")
    node.mounted("rw,hidepid=2")
    with pytest.raises(TargetUnreadableError):
        finder.find()
    node.mounted("rw,hidepid=0")
    with pytest.raises(TargetAbsentError):
        finder.find()


def test_who_may_trace_all_processes_sees_them_all(node: Node) -> None:
    node.mounted("rw,hidepid=2")
    node.file("self/status", f"CapEff:\t{CAP_SYS_PTRACE}\n")
    with pytest.raises(TargetAbsentError):
        node.finder().find()


class Refusing(ProcFs):
    """A /proc that refuses the files of one process, as hidepid=1 and some LSMs do."""

    def text(self, pid: int, name: str) -> str:
        if pid == 41:
            raise PermissionError(errno.EACCES, "Permission denied")
        return super().text(pid, name)


def test_a_process_whose_files_are_refused_may_be_the_server(node: Node) -> None:
    node.process(41, f"/usr/bin/{SERVER}")
    with pytest.raises(TargetUnreadableError, match="41/cmdline: Permission denied"):
        Finder(Refusing(node.root), SERVER).find()


@pytest.mark.parametrize("wanted", [41, SERVER])
def test_in_a_container_of_its_own_nobody_else_is_seen(node: Node, wanted: int | str) -> None:
    """Without a shared pid namespace process 1 is ours, or our container's init."""
    node.process(1, "/usr/bin/tini", cgroup="0::/\n")
    node.file("self/cgroup", "0::/\n")
    finder = node.finder(wanted)
    with pytest.raises(TargetUnreadableError, match="shareProcessNamespace: true"):
        finder.find()
    node.process(41, f"/usr/bin/{SERVER}")  # all in one container
    finder.find()
    (node.root / "41/stat").unlink()
    with pytest.raises(TargetAbsentError):
        finder.find()


def kubelet(uid: str, name: str) -> str:
    where = f"/var/lib/kubelet/pods/{uid}/containers/{name}/8f2c1a90"
    return f"9 8 0:7 {where} /dev/termination-log rw - ext4 /dev/sda1 rw\n"


@pytest.fixture
def pod(node: Node) -> Node:
    node.mounted("rw", kubelet(OURS, "billing-scraper"))
    return node


def test_the_kubelet_s_mount_names_pod_and_container(pod: Node) -> None:
    pod.process(41, SERVER, mounts=kubelet(OURS, "clickhouse"))
    assert ProcFs(pod.root).pod_container(41) == PodContainer(OURS, "clickhouse")
    assert ProcFs(pod.root).pod_container("self") == PodContainer(OURS, "billing-scraper")
    assert ProcFs(pod.root).pod_container(1) is None
    assert ProcFs(pod.root).pod_container(99) is None


def test_of_two_servers_in_a_pod_the_named_container_s_is_taken(pod: Node) -> None:
    pod.process(41, SERVER, mounts=kubelet(OURS, "clickhouse"))
    pod.process(42, SERVER, mounts=kubelet(OURS, "second"))
    assert pod.finder(container="clickhouse").find().pid == 41
    assert pod.finder(container="second").find().pid == 42
    with pytest.raises(TargetUnreadableError, match=r"in a pod.*BYOC_CONTAINER_NAME"):
        pod.finder().find()


def test_the_server_of_an_init_container_is_not_the_one_to_meter(pod: Node) -> None:
    pod.process(42, SERVER, mounts=kubelet(OURS, "init-schema"))
    with pytest.raises(TargetForeignError, match=r"container init-schema .*expected .*clickhouse"):
        pod.finder(container="clickhouse").find()
    assert pod.finder().find().pid == 42, "nobody named a container"


@pytest.mark.parametrize(
    ("cgroup", "mounts"),
    [
        ("0::/x\n", kubelet(OTHERS, "clickhouse")),
        (f"0::/../../kubepods-pod{OTHERS.replace('-', '_')}.slice/cri-containerd-a.scope\n", ""),
        (f"4:cpu:/kubepods/burstable/pod{OTHERS}/abc\n", ""),
    ],
)
def test_with_the_host_s_pids_a_neighbor_s_server_is_never_ours(
    pod: Node, cgroup: str, mounts: str
) -> None:
    pod.process(42, SERVER, cgroup=cgroup, mounts=mounts)
    with pytest.raises(TargetAbsentError):
        pod.finder().find()
    pod.process(41, SERVER, mounts=kubelet(OURS, "clickhouse"))
    assert pod.finder().find().pid == 41


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("/usr/bin/clickhouse", "--server", "--config-file=x"), True),
        (("/usr/bin/clickhouse", "server"), True),
        (("ch", "server"), True),
        (("/usr/bin/clickhouse", "client", "--server"), False),
        (("/usr/bin/clickhouse",), False),
        ((f"/usr/bin/{SERVER}", "--version"), False),
        ((f"/usr/bin/{SERVER}", "--config=x", "--help"), False),
    ],
)
def test_what_counts_as_a_server_is_what_the_binary_itself_takes_for_one(
    node: Node, arguments: tuple[str, ...], found: bool
) -> None:
    node.process(41, *arguments)
    if found:
        assert node.finder().find().pid == 41
        return
    with pytest.raises(TargetAbsentError):
        node.finder().find()


def test_the_machine_s_cpus_are_those_of_proc_stat(node: Node) -> None:
    assert ProcFs(node.root).cpus() is None
    node.file("stat", "cpu  1 2 3\ncpu0 1 2 3\ncpu1 1 2 3\ncpu12 1 2 3\nintr 5\n")
    assert ProcFs(node.root).cpus() == 3
    assert ProcFs().cpus() == os.cpu_count()
