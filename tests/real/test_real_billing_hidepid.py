"""A real /proc that hides other users' processes, in a mount namespace of its own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

SERVER = "clickhouse-server"
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
