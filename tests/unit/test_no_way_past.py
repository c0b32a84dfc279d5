"""The guard in conftest.py, tried on tests that leave; and the modules that may open sockets."""

import ast
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import byoc_agents

PACKAGE = Path(byoc_agents.__file__).parent
ROOT = PACKAGE.parents[1]

LEAVING = {
    "connect": 'socket.socket().connect(("192.0.2.1", 443))',
    "connect_ex": 'socket.socket().connect_ex(("192.0.2.1", 443))',
    "a private address": 'socket.create_connection(("10.0.0.1", 443))',
    "IPv6": 'socket.socket(socket.AF_INET6).connect(("2001:db8::1", 443))',
    "the metadata service": 'urllib.request.urlopen("http://169.254.169.254/")',
    "a datagram": 'socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))',
    "a name": 'socket.getaddrinfo("example.com", 443)',
    "asyncio": 'asyncio.run(asyncio.open_connection("192.0.2.1", 443))',
    "a thread": 'run_in_thread(socket.create_connection, ("192.0.2.1", 443))',
}
STAYING = {
    "loopback": 'socket.socket().connect_ex(("127.0.0.1", 1))',
    "IPv6 loopback": 'socket.socket(socket.AF_INET6).connect_ex(("::1", 1))',
    "localhost": 'socket.getaddrinfo("localhost", 80)',
    "an address instead of a name": 'socket.getaddrinfo("192.0.2.1", 80)',
    "listening": 'socket.create_server(("127.0.0.1", 0))',
    "inside the machine": "socket.socketpair()",
}
FILE = """
import asyncio, contextlib, pytest, socket, threading, urllib.request


def run_in_thread(action, *args):
    def run():
        with contextlib.suppress(OSError):
            action(*args)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


@pytest.fixture
def leaving():
    with contextlib.suppress(OSError):
        socket.create_connection(("192.0.2.1", 443))


def test_stays_after_one_that_left():
    pass


def test_leaves_in_a_fixture(leaving):
    pass
"""


def written(cases: dict[str, str], name: str) -> str:
    """Return one test for each case; each swallows the error."""
    return "".join(
        f"def test_{name}_{place}():\n    with contextlib.suppress(OSError):\n        {action}\n\n"
        for place, action in enumerate(cases.values())
    )


def test_a_test_that_leaves_this_machine_fails_even_if_it_swallows_the_error(
    tmp_path: Path,
) -> None:
    code = FILE + written(LEAVING, "leaves") + written(STAYING, "stays")
    (tmp_path / "test_it.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-rA", "--tb=no", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    ends = re.findall(r"^(PASSED|FAILED|ERROR) .*::test_(\w+)", done.stdout, re.MULTILINE)
    stopped = {name for end, name in ends if end != "PASSED"}
    passed = {name for end, name in ends if end == "PASSED"}
    leaving = {f"leaves_{place}" for place in range(len(LEAVING))}
    staying = {f"stays_{place}" for place in range(len(STAYING))}
    assert stopped == {*leaving, "leaves_in_a_fixture"}, done.stdout
    assert passed == {*staying, "stays_after_one_that_left"}


def test_the_guard_is_on_here(request: pytest.FixtureRequest) -> None:
    plugins = request.config.pluginmanager.get_plugins()
    (guard,) = [p for p in plugins if getattr(p, "__file__", "") == str(ROOT / "conftest.py")]
    with pytest.raises(guard.OutsideError):
        socket.getaddrinfo("example.com", 443)
    assert guard.attempts == ["socket.getaddrinfo to example.com"]
    guard.attempts.clear()


# What opens sockets or makes something that does, and the only files that may name it.
OPENERS = {
    "ClientSession",
    "TCPConnector",
    "create_connection",
    "open_connection",
    "urlopen",
    "HTTPConnection",
    "HTTPSConnection",
    "create_datagram_endpoint",
    "AioSession",
    "get_session",
}
MAY_OPEN = {
    "egress/gate.py": {"aiohttp.ClientSession", "aiohttp.TCPConnector", "socket.socket"},
    "egress/aws.py": {"AioSession"},
    "app/listening.py": {"socket.socket"},  # of a listener, which connects to nothing
}
NO_DAEMON = ("audit/",)  # runs in a process of its own


def opened(path: Path) -> set[str]:
    """Return the openers that a file calls; a name in a type is none."""
    calls = [
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    names = {ast.unparse(function) for function in calls}
    return {name for name in names if name == "socket.socket" or name.split(".")[-1] in OPENERS}


FILES = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(NO_DAEMON)])
def test_only_the_gate_opens_sockets(name: str) -> None:
    assert opened(PACKAGE / name) == MAY_OPEN.get(name, set())
