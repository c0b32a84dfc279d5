"""What runs in the namespaces of a cluster leaves nothing, however its owner ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.cluster.machine import GROUP, find_hierarchies
from lab.real.parts import install
from lab.real.parts.install import ROOT
from lab.real.scraper import eventually

OWNER = "import sys; from lab.cluster import machine; sys.exit(machine.run(sys.argv[1:], {}))"
# Programs that outlive their parent, one in a group of its own, and a mount: as a kubelet's pods.
BUSY = """
set -e
trap '' INT TERM
for hierarchy in $(grep -E ' cgroup2? ' /proc/mounts | cut -d' ' -f2); do
  group=$hierarchy/$BYOC_CLUSTER_GROUP/pods/one
  mkdir -p $group
  for file in cpuset.cpus cpuset.mems; do
    for part in pods pods/one; do
      [ ! -e $hierarchy/$file ] || cat $hierarchy/$file > $hierarchy/$BYOC_CLUSTER_GROUP/$part/$file
    done
  done
done
mkdir $BYOC_CLUSTER_RUN/mount
mount -t tmpfs tmpfs $BYOC_CLUSTER_RUN/mount
setsid sh -c 'echo $$ > "$0"; exec sleep 600' $group/cgroup.procs &
cat /proc/sys/kernel/panic > $BYOC_CLUSTER_RUN/ready
"""


def groups() -> set[Path]:
    return {path for place in find_hierarchies() for path in place.glob(f"{GROUP}*")}


def traces() -> set[str]:
    """Return the mounts, processes, directories and network devices of this machine."""
    found = {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}
    found |= {str(path) for path in Path("/tmp").glob(f"{GROUP}*")} | {str(p) for p in groups()}
    found |= {line.split(":")[0] for line in Path("/proc/net/dev").read_text().splitlines()}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it has ended
            continue
        if b"lab.cluster" in command or command == b"sleep\x00600\x00":
            found.add(path.parent.name)
    return found


@contextmanager
def owning(directory: Path, rest: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start an owner whose command is busy, then does the rest; give it when it is busy."""
    command = ["bash", "-c", f"{BUSY}\n{rest}"]
    environment = os.environ | {"TMPDIR": str(directory)}
    # A background job of a shell ignores SIGINT, and so would its children.
    arguments = ["env", "--default-signal=INT", sys.executable, "-c", OWNER, *command]
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, start_new_session=True) as owner:
        try:
            eventually(lambda: list(directory.glob("*/ready")) or owner.poll() is not None)
            yield owner
        finally:
            owner.kill()


def test_an_ended_command_leaves_nothing_and_gives_its_exit_code(tmp_path: Path) -> None:
    before = traces()
    with owning(tmp_path, "exit 7") as owner:
        assert owner.wait() == 7
    assert traces() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_owner_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    before = traces()
    with owning(tmp_path, "sleep 600 & wait; wait") as owner:
        assert len(traces() - before) > len(find_hierarchies())
        owner.send_signal(number)
        assert owner.wait() == 128 + number
    assert traces() == before
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_leaves_no_process_and_the_next_one_removes_its_groups(
    tmp_path: Path,
) -> None:
    before = traces()
    with owning(tmp_path, "sleep 600 & wait") as owner:
        owner.kill()
        owner.wait()
    eventually(lambda: traces() - before == {str(path) for path in groups()})
    assert groups()
    with owning(tmp_path / "..", "exit 0") as owner:
        assert owner.wait() == 0
    assert traces() == before


def test_the_machines_own_settings_are_not_those_of_the_kubelet(tmp_path: Path) -> None:
    """The kubelet sets some of the whole machine's; inside, it finds them set already."""
    own = Path("/proc/sys/kernel/panic").read_text()
    with owning(tmp_path, "echo 10 > /proc/sys/kernel/panic; sleep 600 & wait; wait") as owner:
        (ready,) = tmp_path.glob("*/ready")
        assert ready.read_text() == "10\n"
        assert Path("/proc/sys/kernel/panic").read_text() == own
        owner.terminate()
        owner.wait()
    assert Path("/proc/sys/kernel/panic").read_text() == own


def test_a_part_is_made_once_and_again_for_other_inputs(tmp_path: Path) -> None:
    place = tmp_path / "part"
    assert not install.is_made(place, "go.mod", "go.sum")
    with install.build_once(place, "go.mod", "go.sum") as missing:
        assert missing
        place.mkdir()
    assert install.is_made(place, "go.mod", "go.sum")
    assert not install.is_made(place, "go.mod", "another go.sum")
