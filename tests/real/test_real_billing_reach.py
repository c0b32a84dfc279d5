"""Tests of the access that the sidecar's ids give to ClickHouse in a shared process namespace.

The server is a real process of uid and gid 101 with no capability. The sidecar is tried with the
chart's default ids (65532, with ClickHouse's gid as a supplementary group, as `fsGroup` gives it)
and with ClickHouse's own ids, as `billingScraper.meter: cgroup` needs them. With
`meter: clickhouse` the pod has no shared process namespace: the sidecar is tried in a process
namespace of its own, with both pairs of ids.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from byoc_agents.app.keyed_ids import keyed_id

pytestmark = [pytest.mark.real, pytest.mark.quiet]  # no other program may have the name of a server

REPOSITORY = Path(__file__).parents[2]
CLICKHOUSE = 101
AGENT = 65532
SECRET = "CLICKHOUSE_PASSWORD=secret-of-the-server"
NEEDED = {"find it by its name", "stat", "statm", "cgroup"}
REFUSED = {
    "read a file through root",
    "write a file through root",
    "list root",
    "read environ",
    "read mem",
    "read maps",
    "list fd",
    "read a file through cwd",
    "follow exe",
    "copy memory",
    "attach as a debugger",
    "send a signal",
}
TRY = """
import ctypes, json, os, signal, sys
pid, uid, gid, secret = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.setgroups([101])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
proc = f"/proc/{pid}"

def start_of_heap():
    for line in open(f"{proc}/maps"):
        if "rw-p" in line:
            return int(line.split("-")[0], 16)

def peek():
    with open(f"{proc}/mem", "rb") as memory:
        memory.seek(start_of_heap())
        assert memory.read(8)

class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def copy_memory(address=4096):
    buffer = ctypes.create_string_buffer(8)
    local, remote = Vector(ctypes.addressof(buffer), 8), Vector(address, 8)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    if libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) < 0:
        code = ctypes.get_errno()
        if code == 14:  # EFAULT: allowed, but nothing is mapped there
            return
        raise OSError(code, "process_vm_readv")

def attach():
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(0x4206, pid, None, None) < 0:  # PTRACE_SEIZE
        raise OSError(ctypes.get_errno(), "ptrace")
    # the tracee is released when this process ends

def find():
    for one in filter(str.isdigit, os.listdir("/proc")):
        try:
            name = open(f"/proc/{one}/cmdline", "rb").read()
        except OSError:  # ended since
            continue
        if name.startswith(b"clickhouse-server"):
            return
    raise ProcessLookupError("clickhouse-server")

attempts = {
    "find it by its name": find,
    "stat": lambda: open(f"{proc}/stat").read(),
    "statm": lambda: open(f"{proc}/statm").read(),
    "cgroup": lambda: open(f"{proc}/cgroup").read(),
    "read a file through root": lambda: open(f"{proc}/root{secret}").read(),
    "write a file through root": lambda: open(f"{proc}/root{secret}", "a").close(),
    "list root": lambda: os.listdir(f"{proc}/root/"),
    "read environ": lambda: open(f"{proc}/environ").read(),
    "read mem": peek,
    "read maps": lambda: open(f"{proc}/maps").read(),
    "list fd": lambda: os.listdir(f"{proc}/fd"),
    "read a file through cwd": lambda: open(f"{proc}/cwd/{os.path.basename(secret)}").read(),
    "follow exe": lambda: os.readlink(f"{proc}/exe"),
    "copy memory": copy_memory,
    "send a signal": lambda: os.kill(pid, signal.SIGURG),
    "attach as a debugger": attach,
}
results = {}
for name, attempt in attempts.items():
    try:
        attempt()
        results[name] = "allowed"
    except OSError as error:
        results[name] = type(error).__name__
print(json.dumps(results))
"""


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file that only ClickHouse's user may read, in a directory that all may enter."""
    path = tmp_path / "part.bin"
    path.write_text("customer data")
    os.chown(path, CLICKHOUSE, CLICKHOUSE)
    path.chmod(0o600)
    for parent in (tmp_path, *tmp_path.parents[:3]):  # pytest and its workers make 0700
        parent.chmod(parent.stat().st_mode | 0o755)
    return path


@pytest.fixture
def server(secret: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process called clickhouse-server with ClickHouse's ids and a secret environment."""
    variable, _, value = SECRET.partition("=")
    with subprocess.Popen(
        ["clickhouse-server", "300"],
        executable="/bin/sleep",
        user=CLICKHOUSE,
        group=CLICKHOUSE,
        extra_groups=[],
        cwd=secret.parent,
        env={variable: value},
    ) as process:
        yield process
        process.kill()


def attempts(
    server: subprocess.Popen[bytes], ids: int, secret: Path, *, around: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return what each attempt of a process with these ids gives: `allowed`, or the error.

    `around` is the command that starts it, if another one than this process.
    """
    arguments = [str(server.pid), str(ids), str(ids), str(secret)]
    command = [*around, sys.executable, "-c", TRY, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_with_the_default_ids_only_what_the_meter_needs_is_readable(
    server: subprocess.Popen[bytes], secret: Path
) -> None:
    found = attempts(server, AGENT, secret)
    assert {name for name, result in found.items() if result == "allowed"} == NEEDED
    assert {name for name, result in found.items() if result == "PermissionError"} == REFUSED
    assert server.poll() is None
    assert secret.read_text() == "customer data"


def test_with_clickhouses_ids_all_of_it_is_open(
    server: subprocess.Popen[bytes], secret: Path
) -> None:
    """That is the price of `meter: cgroup`, and shows that the attempts above can succeed."""
    found = attempts(server, CLICKHOUSE, secret)
    assert {name for name, result in found.items() if result != "allowed"} == set()


OWN_PROCESSES = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.mark.parametrize("ids", [AGENT, CLICKHOUSE])
def test_without_a_shared_process_namespace_nothing_of_the_server_exists(
    server: subprocess.Popen[bytes], secret: Path, ids: int
) -> None:
    """That is `meter: clickhouse`: not even what the other meters need is there."""
    found = attempts(server, ids, secret, around=OWN_PROCESSES)
    missing = {"FileNotFoundError", "ProcessLookupError"}
    assert set(found) == NEEDED | REFUSED
    assert {name: result for name, result in found.items() if result not in missing} == {}
    assert server.poll() is None
    assert secret.read_text() == "customer data"


SCOPE = ("org-1", "svc-1", "chi-0-0-0")  # organization, service, replica: as a daemon has them
METER = """
import asyncio, json, os, sys
import byoc_agents.billing.sources.process_tree  # before the ids change: our files may be private
from byoc_agents.app.clock import SystemClock
from byoc_agents.billing.sources.target import open_target, parse_target
from byoc_agents.clickhouse import ClickHouse
uid = int(sys.argv[2])
os.setgroups([101])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
target = open_target(
    parse_target(sys.argv[1]),
    ClickHouse("http://127.0.0.1:1"),
    SystemClock(*sys.argv[4:]),
    meter=sys.argv[3],
)
seen = asyncio.run(target.read())
reading = seen.reading
print(json.dumps([reading and reading.source, reading and reading.incarnation, seen.error]))
"""


@pytest.mark.parametrize("target", ["pid", "name"])
def test_the_default_meter_reads_a_server_of_another_user(
    server: subprocess.Popen[bytes], target: str
) -> None:
    wanted = f"pid:{server.pid}" if target == "pid" else "process:clickhouse-server"
    done = subprocess.run(
        [sys.executable, "-c", METER, wanted, str(AGENT), "process", *SCOPE],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    source, incarnation, trouble = json.loads(done.stdout)
    stat = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    original = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    boot = keyed_id(original, "boot", *SCOPE)[:8]
    assert boot != original[:8]
    assert (source, trouble) == ("process", "")
    assert incarnation == f"{boot}-{server.pid}-{stat[19]}"
