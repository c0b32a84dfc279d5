"""A real /proc: one that hides other users' processes, and one in which a pid is used again."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

SERVER = f"server-{os.getpid()}"  # another test may run a clickhouse-server at the same time
LOOK = """
import os, sys
from byoc_agents.billing.sources.procfs import Finder, ProcFs
if sys.argv[2] != "0":
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
wanted = int(sys.argv[1]) if sys.argv[1].isdecimal() else sys.argv[1]
try:
    print("found", Finder(ProcFs(), wanted).find().pid)
except Exception as error:
    print(type(error).__name__, error)
"""
NOBODY = 65534


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of that name, as another user."""
    idle = ["/bin/sleep", "300"]
    with subprocess.Popen([SERVER, idle[1]], executable=idle[0], user=101, group=101) as process:
        yield process
        process.kill()


def look(wanted: object, hidepid: str, uid: int) -> str:
    """Return what a process of that uid finds in a /proc mounted so."""
    mounted = f'mount -t proc -o hidepid={hidepid} proc /proc && exec "$@"'
    inside = ["unshare", "-m", "--propagation", "private", "sh", "-c", mounted, "sh"]
    found = subprocess.run(
        [*inside, sys.executable, "-c", LOOK, str(wanted), str(uid)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout


@pytest.mark.parametrize("hidepid", ["1", "2", "invisible", "ptraceable"])
@pytest.mark.parametrize("by", ["pid", "name"])
def test_a_hidden_process_is_unreadable_and_never_absent(
    server: subprocess.Popen[bytes], hidepid: str, by: str
) -> None:
    wanted = server.pid if by == "pid" else SERVER
    assert look(wanted, hidepid, NOBODY).startswith("TargetUnreadableError ")


@pytest.mark.parametrize(("hidepid", "uid"), [("0", NOBODY), ("2", 101), ("2", 0)])
def test_who_sees_it_finds_it(server: subprocess.Popen[bytes], hidepid: str, uid: int) -> None:
    assert look(SERVER, hidepid, uid) == f"found {server.pid}\n"


@pytest.mark.parametrize(
    ("hidepid", "uid", "error"),
    [
        ("0", NOBODY, "TargetAbsentError"),
        ("2", 0, "TargetAbsentError"),
        ("2", NOBODY, "TargetUnreadableError"),
        ("2", 101, "TargetUnreadableError"),
    ],
)
@pytest.mark.parametrize("wanted", [4_194_303, "no-such-server"])
def test_one_that_does_not_run_is_absent_only_to_who_would_see_it(
    hidepid: str, uid: int, error: str, wanted: object
) -> None:
    assert look(wanted, hidepid, uid).startswith(f"{error} ")


REUSE = """
import asyncio, json, subprocess
from pathlib import Path
from byoc_agents.app.clock import SystemClock
from byoc_agents.billing.sources.target import open_target, parse_target
from byoc_agents.clickhouse import ClickHouse

def start():
    return subprocess.Popen(["reused-server", "300"], executable="/bin/sleep")

async def read(target):
    seen = await target.read()
    return seen.reading and seen.reading.incarnation, seen.absent

async def main():
    first = start()
    client = ClickHouse("http://127.0.0.1:1")
    names = (f"pid:{first.pid}", "process:reused-server")
    targets = [open_target(parse_target(name), client, SystemClock()) for name in names]
    before = [await read(target) for target in targets]
    await asyncio.sleep(0.02)  # two clock ticks, so that the start times differ
    first.kill()
    first.wait()
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
    second = start()
    after = [await read(target) for target in targets]
    second.kill()
    print(json.dumps([first.pid, second.pid, before, after]))

asyncio.run(main())
"""


def test_a_pid_that_another_process_has_now_is_another_counter() -> None:
    """In a pid namespace of its own, where the next pid can be chosen."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", REUSE]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    first, second, before, after = json.loads(done.stdout)
    assert first == second, "the kernel has given the pid again"
    assert before[0] == before[1]
    assert before[0][0].split("-")[1] == str(first)
    assert after[0] == [None, True], "the process with this pid was named, and it has ended"
    incarnation, absent = after[1]
    assert not absent
    assert incarnation != before[1][0]
    assert incarnation.split("-")[:2] == before[1][0].split("-")[:2], "only the start time differs"
