"""A sibling container's counters, read through /proc/PID/root/sys/fs/cgroup by the real scraper.

Containers as a runtime makes them for a pod that shares its process namespace: each has a control
group with its id in the name, a mount and a cgroup namespace, and a root directory whose
/sys/fs/cgroup shows its own group only. Every mount is made in a private mount namespace and ends
with it. Root only.
"""

import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from byoc_agents.billing.record import Usage
from lab.real.burner import ROOT, Burner, burning
from lab.real.parts import kernel
from lab.real.parts.kernel import ControlGroup
from lab.real.scraper import Scraper, eventually, scraping
from lab.real.stored import billed, directory, files, usages, verified

BURN_SECONDS = 1.0  # CPU; a child that is waited for adds half a second
TREE_SECONDS = 2.0  # 2 % of it is more than four clock ticks, which a process tree may be off
TOLERANCE_PERCENT = 2.0
CAPABILITY_SETS = 5  # proc(5): inheritable, permitted, effective, bounding, ambient
V1 = ("cpuacct", "cpu", "memory")
Ids = tuple[int, int]  # uid and gid of a process without a capability
PLAIN: Ids = (1000, 1000)
OTHER_GROUP: Ids = (1000, 1001)
WEAK_ROOT: Ids = (0, 0)

# $1 the new root, $2 a home that only its owner may enter: left out, but for the places in $3.
CONTAINER = """
root=$1; home=$2; places=$3; cgroups=$4; shift 4
mount --bind / "$root"
mount --bind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root$home"
for place in $places; do mkdir -p "$root$place"; mount --bind "$place" "$root$place"; done
mount -t tmpfs -o mode=755 tmpfs "$root/sys"
sys=$root/sys/fs/cgroup; mkdir -p "$sys"
eval "$cgroups"
"""


@dataclass(frozen=True)
class Layout:
    """The view of control groups that a runtime gives to its containers."""

    source: str  # what the records must name
    controllers: tuple[str, ...] = ()  # of v1; none: v2
    private: bool = True  # a cgroup namespace of its own (Docker with v1: the host's)

    @property
    def namespaces(self) -> list[str]:
        kinds = ["--mount", "--uts", "--ipc", *(["--cgroup"] if self.private else [])]
        return ["unshare", *kinds, "--propagation", "private"]

    def mounts(self, group: ControlGroup) -> str:
        """Return the commands that fill `$sys`."""
        binds = [
            f'mkdir "$sys/{name}"; mount --bind {group[name]} "$sys/{name}"'
            for name in self.controllers
        ]
        return "; ".join(binds) or 'mount -t cgroup2 cgroup2 "$sys"'


V2 = Layout("cgroup.v2")
V1_DOCKER = Layout("cgroup.v1", V1, private=False)
V1_PRIVATE = Layout("cgroup.v1", V1)


@dataclass(frozen=True)
class Container:
    """A container that is made, with nothing running in it."""

    id: str
    group: ControlGroup
    layout: Layout
    root: Path
    place: Path  # visible inside and outside

    def run(self, ids: Ids | None = None) -> list[str]:
        """Return a command that runs its arguments inside, as root or without any capability."""
        visible = f"{sys.base_prefix} {ROOT} {self.place}"
        mounts = self.layout.mounts(self.group)
        arguments = [str(self.root), str(Path.home()), visible, mounts]
        enter = f'{CONTAINER}\nexec chroot "$root" env --chdir={ROOT} "$@"'
        inside = ["sh", "-ec", enter, "sh", *arguments, *(without_capabilities(ids) if ids else [])]
        return self.group.command([*self.layout.namespaces, *inside])


@dataclass(frozen=True)
class Pod:
    """Two siblings and a directory that both users may write to."""

    name: str  # of the group that holds both
    target: Container
    daemon: Container
    place: Path

    @property
    def bucket(self) -> Path:
        return self.place / "bucket"

    @contextmanager
    def scraping(self, target: str, ids: Ids | None = None) -> Iterator[Scraper]:
        """Run the scraper in its container until it has read its target."""
        settings = directory(self.bucket) | {"BYOC_BILLING_METER": "cgroup"}
        (self.place / "daemon").mkdir()
        for path in (self.bucket, self.place / "daemon"):
            os.chown(path, *(ids or WEAK_ROOT))
        with scraping(self.place / "daemon", target, settings, *self.daemon.run(ids)) as scraper:
            eventually(lambda: scraper.status().get("source"))
            assert ids is None or capabilities(scraper.process.pid) == 0
            yield scraper


@dataclass(frozen=True)
class Bill:
    """The result of one workload, core seconds."""

    used: float  # the workload's rusage
    billed: float
    records: list[Usage]  # without the gaps

    def all(self, field: str) -> set[str]:
        """Return what the records say in a field."""
        return {getattr(one, field) for one in self.records}

    @property
    def difference_percent(self) -> float:
        return (self.billed / self.used - 1) * 100


def without_capabilities(ids: Ids) -> list[str]:
    user, group = (str(one) for one in ids)
    rights = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    return ["setpriv", "--reuid", user, "--regid", group, "--clear-groups", *rights]


@pytest.fixture(autouse=True)
def host_mounts() -> Iterator[None]:
    """Leave the machine's own hierarchies mounted as they are."""
    before = cgroup_mounts()
    yield
    assert cgroup_mounts() == before


@contextmanager
def pod(layout: Layout) -> Iterator[Pod]:
    """Make a pod of two containers; they are gone at the end."""
    made = kernel.cgroup_v1(*layout.controllers) if layout.controllers else kernel.cgroup_v2()
    with made as group, tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        place = Path(name)
        place.chmod(0o755)
        target, daemon = (
            stack.enter_context(container(group, layout, place)) for _ in ("target", "daemon")
        )
        yield Pod(next(iter(group.directories.values())).name, target, daemon, place)


@contextmanager
def container(parent: ControlGroup, layout: Layout, place: Path) -> Iterator[Container]:
    """Make a group below the pod's, named as containerd does, and an empty root directory."""
    identity = secrets.token_hex(32)
    below = {k: path / f"cri-containerd-{identity}.scope" for k, path in parent.directories.items()}
    for path in below.values():
        path.mkdir()
    root = Path(tempfile.mkdtemp())
    try:
        yield Container(identity, ControlGroup(below), layout, root, place)
    finally:
        root.rmdir()  # refused where something were still mounted on it
        for path in below.values():
            eventually(partial(empty, path))
            path.rmdir()


def metered(pod: Pod, burner: Burner, scraper: Scraper, core_seconds: float) -> Bill:
    """Burn, let the daemon end in good order, and read what it wrote."""
    before = burner.burn(0)
    used = burner.burn(core_seconds, children=1) - before
    assert scraper.stop() == 0, scraper.log()
    report, records = verified(str(pod.bucket)), usages(files(pod.bucket))
    assert report.findings == []
    bill = Bill(used, float(billed(report)), [one for one in records if one.quality != "gap"])
    print(
        f"\n{'/'.join(bill.all('source'))}: rusage {used:.3f}, billed {bill.billed:.3f} "
        f"core-seconds, {bill.difference_percent:+.2f} %, {sorted(bill.all('quality'))}"
    )
    return bill


def shown_to(daemon: int, target: int) -> str:
    """Return /proc/PID/cgroup of the target as the daemon's cgroup namespace shows it."""
    look = ["nsenter", "--target", str(daemon), "--cgroup", "cat", f"/proc/{target}/cgroup"]
    return subprocess.run(look, capture_output=True, text=True, check=True).stdout


def empty(group: Path) -> bool:
    """Return whether all that ran in a group has been reaped."""
    return not (group / "cgroup.procs").read_text()


def capabilities(pid: int) -> int:
    """Return what a process may have at most, from any of its sets: a bit each."""
    found = re.findall(r"^Cap\w+:\t(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert len(found) == CAPABILITY_SETS
    return max(int(one, 16) for one in found)


def cgroup_mounts(pid: int | str = "self") -> list[str]:
    """Return the lines of a process's mount table that show control groups."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [line for line in lines if re.search(r" - cgroup2? ", line)]


@pytest.mark.parametrize(
    ("layout", "ids", "by_name"),
    [
        pytest.param(V2, None, True, id="v2-root-by-name"),
        pytest.param(V2, PLAIN, False, id="v2-same-ids-no-capability-by-pid"),
        pytest.param(V1_DOCKER, PLAIN, True, id="v1-host-paths-same-ids-no-capability"),
        pytest.param(V1_PRIVATE, None, False, id="v1-own-cgroup-namespace"),
    ],
)
def test_a_siblings_own_counters_are_billed(layout: Layout, ids: Ids | None, by_name: bool) -> None:
    """Within two percent of its rusage, so nothing of the daemon's own group is in it."""
    name = f"sib-{secrets.token_hex(4)}"
    with pod(layout) as made, burning(name, made.target.run(ids)) as burner:
        target = f"process:{name}" if by_name else f"pid:{burner.pid}"
        with made.scraping(target, ids) as scraper:
            shown = shown_to(scraper.process.pid, burner.pid)
            seen = cgroup_mounts(scraper.process.pid)
            assert scraper.status()["target_error"] == ""
            bill = metered(made, burner, scraper, BURN_SECONDS)
    above = "/.." if layout.private else f"/{made.name}"
    assert f":{above}/cri-containerd-{made.target.id}.scope\n" in shown
    assert len(seen) == max(1, len(layout.controllers))
    assert all(made.daemon.id in line for line in seen)  # no way to the sibling by its own mounts
    assert bill.all("source") == {layout.source}
    assert bill.all("container_id") == {made.target.id}
    assert abs(bill.difference_percent) <= TOLERANCE_PERCENT


@pytest.mark.parametrize(
    ("daemon", "target"),
    [
        pytest.param(PLAIN, None, id="another-user"),
        pytest.param(OTHER_GROUP, PLAIN, id="another-group"),
        pytest.param(WEAK_ROOT, PLAIN, id="root-without-capabilities"),
    ],
)
def test_without_the_right_the_refusal_says_what_to_set_and_the_process_tree_is_billed(
    daemon: Ids, target: Ids | None
) -> None:
    name = f"sib-{secrets.token_hex(4)}"
    with (
        pod(V2) as made,
        burning(name, made.target.run(target)) as burner,
        made.scraping(f"process:{name}", daemon) as scraper,
    ):
        trouble = scraper.status()["target_error"]
        logged = [line["error"] for line in scraper.logged("billing.source_degraded")]
        bill = metered(made, burner, scraper, TREE_SECONDS)
    print(trouble)
    (uid, gid), (owner, owners) = daemon, target or WEAK_ROOT
    assert f"/proc/{burner.pid}/root/sys/fs/cgroup: Permission denied" in trouble
    assert f"we are uid {uid} gid {gid}, expected uid {owner} gid {owners}" in trouble
    assert "set runAsUser and runAsGroup of the daemon to the target's" in trouble
    assert logged == [trouble]
    assert bill.all("source") == {"process"}
    assert "measured" in bill.all("quality")
    assert abs(bill.difference_percent) <= TOLERANCE_PERCENT


def test_the_daemons_own_control_group_is_never_billed() -> None:
    """A target and the daemon in one container: its tree is billed, the daemon's CPU is not."""
    name = f"sib-{secrets.token_hex(4)}"
    with (
        pod(V2) as made,
        burning(name, made.daemon.run()) as burner,
        made.scraping(f"process:{name}") as scraper,
    ):
        trouble = scraper.status()["target_error"]
        assert "0::/\n" in shown_to(scraper.process.pid, burner.pid)
        bill = metered(made, burner, scraper, TREE_SECONDS)
    print(trouble)
    assert "the daemon's own cgroup, or one that contains it" in trouble
    assert bill.all("source") == {"process"}
    assert abs(bill.difference_percent) <= TOLERANCE_PERCENT
