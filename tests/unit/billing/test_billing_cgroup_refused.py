"""No cgroup is billed but the target's own, and what cannot be read says what is missing."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from byoc_agents.billing.sources.cgroup_paths import Locator, parse_membership
from byoc_agents.billing.sources.reading import TargetAbsentError, TargetUnreadableError
from tests.unit.billing.cgroup_host import ID, PID, Host, a_pod

REFUSED = {
    "our own": ("/agent.service", "the daemon's own cgroup, or one that contains it"),
    "the root": ("/", "the machine's root cgroup"),
    "not there": ("/gone", "No such file or directory"),
    "in another namespace": ("/../x", "no cgroup mount contains it"),
    "of others": ("/others", "does not contain the process"),
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
    with pytest.raises(TargetUnreadableError, match=r"cpu\.stat: No such file"):
        await bare.of_process().read()  # the cgroup is there: nothing has ended


async def test_a_proc_that_does_not_know_us_is_no_proof_of_absence(host: Host) -> None:
    with pytest.raises(TargetUnreadableError, match="self/mountinfo: No such file"):
        await host.at_path(host.root).read()


async def test_a_directory_that_is_not_a_cgroup_names_the_missing_files(host: Host) -> None:
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
        "expected uid 101 gid 102: set runAsUser and runAsGroup of the daemon to the target's, "
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
    with os.fdopen(reader) as response:
        text = response.read()
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
