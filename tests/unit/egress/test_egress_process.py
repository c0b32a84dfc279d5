"""The audit hook cannot be taken out again, so each case runs in a process of its own."""

import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from byoc_agents.egress.audit_events import ALLOWED, DENIED
from byoc_agents.egress.audit_hook import NATIVE_CLIENTS

PRELUDE = """
import asyncio, socket, sys, urllib.request
from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.gate import EgressRefusedError, Gate
from byoc_agents.egress.audit_hook import enforce_process
good, bad = sys.argv[1:]
refused = []
gate = Gate([https_destination(good)], on_refused=lambda why, _: refused.append(str(why)))
enforce_process(gate)
bad_port = int(bad.rsplit(":", 1)[1])
good_port = int(good.rsplit(":", 1)[1])
"""


@pytest.fixture
def ports() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two listening sockets: the destination and the stranger."""
    with (
        socket.create_server(("127.0.0.1", 0)) as good,
        socket.create_server(("127.0.0.1", 0)) as bad,
    ):
        yield good, bad


def run(code: str, ports: tuple[socket.socket, socket.socket]) -> str:
    """Run the code with the URLs of both sockets; return what it printed."""
    return run_with(code, *(f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in ports))


def run_with(code: str, *urls: str) -> str:
    """Run the code in a new process, behind a gate to the first URL."""
    command = [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code), *urls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def nobody_came(listener: socket.socket) -> bool:
    listener.settimeout(0)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    return False


def test_a_socket_opened_past_the_gate_fails(ports: tuple[socket.socket, socket.socket]) -> None:
    code = """
        def attempt(action, *args):
            try:
                action(*args)
            except EgressRefusedError as error:
                return str(error.refusal)
            return "open"

        def connect(address, family=socket.AF_INET):
            with socket.socket(family) as sock:
                sock.connect(address)

        def send(address):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"secret", address)

        def sendmsg(address):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendmsg([b"secret"], [], 0, address)

        print(attempt(connect, ("127.0.0.1", good_port)))
        print(attempt(connect, ("127.0.0.1", bad_port)))
        print(attempt(connect, ("localhost", bad_port)))
        print(attempt(connect, ("::1", bad_port), socket.AF_INET6))
        print(attempt(connect, ("169.254.169.254", 80)))
        print(attempt(send, ("127.0.0.1", bad_port)))
        print(attempt(sendmsg, ("127.0.0.1", bad_port)))
        print(attempt(socket.getaddrinfo, "exfil.example.com", 53))
        print(attempt(socket.gethostbyname, "exfil.example.com"))
        print(attempt(socket.getaddrinfo, "127.0.0.1", 80))
        print(attempt(urllib.request.urlopen, bad))
        """
    said = run(code, ports).split()
    assert said == [
        "open",
        "port",
        "host",
        "port",
        "imds",
        "operation",
        "operation",
        "host",
        "host",
        "open",
        "operation",
    ]
    assert nobody_came(ports[1])


def test_asyncio_and_threads_are_covered_too(ports: tuple[socket.socket, socket.socket]) -> None:
    code = """
        import aiohttp

        async def stock():
            async with aiohttp.ClientSession() as session:
                await session.get(bad)

        async def stream():
            await asyncio.open_connection("127.0.0.1", bad_port)

        async def thread():
            await asyncio.to_thread(socket.create_connection, ("127.0.0.1", bad_port))

        async def main():
            for attempt in (stock, stream, thread):
                try:
                    await attempt()
                except EgressRefusedError as error:
                    print(error.refusal)

        asyncio.run(main())
        """
    assert run(code, ports).split() == ["port", "port", "port"]
    assert nobody_came(ports[1])


def test_listening_and_unix_sockets_go_on(ports: tuple[socket.socket, socket.socket]) -> None:
    code = """
        async def main():
            server = await asyncio.start_server(lambda r, w: w.close(), "localhost", 0)
            server.close()
            await server.wait_closed()
            left, right = socket.socketpair()
            left.sendmsg([b"x"])
            print(right.recv(1))
            left.close()
            right.close()

        asyncio.run(main())
        print(refused)
        """
    assert run(code, ports).split("\n") == ["b'x'", "[]"]


def test_the_container_credential_fetcher_cannot_be_led_astray(
    ports: tuple[socket.socket, socket.socket],
) -> None:
    code = """
        import os
        from byoc_agents.errors import SendError
        from byoc_agents.egress.aws import aws_session, fetch_credentials

        os.environ.update(AWS_CONTAINER_CREDENTIALS_FULL_URI=bad, AWS_CONFIG_FILE="/none",
                          AWS_SHARED_CREDENTIALS_FILE="/none")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            os.environ.pop(name, None)
        try:
            asyncio.run(fetch_credentials(aws_session(gate, "eu-west-1")))
        except SendError as error:
            print(error.reason, *refused)
        """
    assert run(code, ports).split() == ["egress_refused", "port"]
    assert nobody_came(ports[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_sink_still_reaches_its_destination(host: str, tmp_path: Path) -> None:
    code = """
        from byoc_agents.message import Message
        from byoc_agents.egress.aws import aws_session
        from byoc_agents.sinks.s3 import S3Sink

        async def main():
            session = aws_session(gate, "eu-west-1")
            session.set_credentials("AKIAEXAMPLE", "secret")
            sink = S3Sink(session, gate, "bucket", region="eu-west-1", endpoint_url=good)
            async with sink:
                (outcome,) = await sink.send([Message("k", "t", b"x", 0)])
                print(outcome.reason)

        asyncio.run(main())
        print(refused)
        """
    journal = str(tmp_path / "journal")
    command = [sys.executable, "-m", "lab.fakes", "--journal", journal]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as s3:
        assert s3.stdout
        try:
            url = f"http://{host}:{int(s3.stdout.readline())}"
            assert run_with(code, url, "http://127.0.0.1:1").split() == ["ok", "[]"]
        finally:
            s3.terminate()


def test_an_unknown_event_of_a_guarded_family_is_refused(
    ports: tuple[socket.socket, socket.socket],
) -> None:
    code = """
        for family in ("os", "socket", "ctypes", "subprocess", "sys", "other"):
            try:
                sys.audit(f"{family}.new")
                print("open")
            except EgressRefusedError as error:
                print(error.refusal)
        """
    assert run(code, ports).split() == ["operation"] * 4 + ["open"] * 2


def test_the_hook_refuses_every_denied_event_with_its_reason_and_no_allowed_one(
    ports: tuple[socket.socket, socket.socket],
) -> None:
    code = """
        from byoc_agents.egress.audit_events import ALLOWED, DENIED
        for event in sorted({*ALLOWED, *DENIED}):
            try:
                sys.audit(event)
                print(event, "open")
            except EgressRefusedError as error:
                print(event, error.refusal)
        print("reported", len(refused))
        """
    found = dict(line.split() for line in run(code, ports).splitlines())
    assert found.pop("reported") == str(len(DENIED))
    assert found == dict.fromkeys(ALLOWED, "open") | {e: str(why) for e, why in DENIED.items()}


def test_only_the_functions_of_the_installer_are_called_and_only_until_it_is_done() -> None:
    """CPython 3.14 reports each call by ctypes, so the event is raised here for every version."""
    code = """
        import os, sys
        from byoc_agents.egress.audit_hook import enforce_process
        from byoc_agents.egress.gate import EgressRefusedError, Gate
        from byoc_agents.egress.seccomp import prepare_filter
        install = prepare_filter()
        (address,) = install.addresses
        enforce_process(Gate([]), (), install.addresses)

        def attempt(*args):
            try:
                sys.audit("ctypes.call_function", *args)
            except EgressRefusedError as error:
                return str(error.refusal)
            return "open"

        class Other(int):
            pass

        print(attempt(address, ()), attempt(address + 1, ()), attempt(Other(address), ()))
        install()
        print(attempt(address, ()))
        """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["open", "operation", "operation", "operation"]


def test_the_installer_keeps_no_function_of_ctypes_when_it_is_done() -> None:
    code = """
        import ctypes, gc
        from byoc_agents.egress.seccomp import prepare_filter

        def found():
            gc.collect()
            functions = [one for one in gc.get_objects() if isinstance(one, ctypes._CFuncPtr)]
            return sum(getattr(one, "__name__", "") == "syscall" for one in functions)

        install = prepare_filter()
        print(found())
        install()
        print(found())
        """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "0"]


def test_no_native_client_can_be_imported(
    ports: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """Each one exists, as a module of that name, and so does one that is not a native client."""
    for name in (*NATIVE_CLIENTS, "harmless"):
        (tmp_path / f"{name}.py").touch()
    code = f"""
        sys.path.insert(0, {str(tmp_path)!r})
        for name in {sorted(NATIVE_CLIENTS)}:
            sys.modules.pop(name, None)
            try:
                __import__(name)
                print(name)
            except ImportError as error:
                assert "the gate cannot check its sockets" in str(error)
        import harmless
        """
    assert run(code, ports) == ""


def test_it_listens_on_the_configured_addresses_only(
    ports: tuple[socket.socket, socket.socket],
) -> None:
    code = """
        for host in ("0.0.0.0", "127.0.0.2", "localhost", "", "127.0.0.1"):
            try:
                socket.socket().bind((host, 0))
                print("open")
            except EgressRefusedError as error:
                print(error.refusal)
        """
    assert run(code, ports).split() == ["listen"] * 4 + [
        "open"
    ]  # urllib3 binds so to look for IPv6


def test_a_configured_address_may_be_listened_on() -> None:
    code = """
        import contextlib
        from byoc_agents.egress.audit_hook import enforce_process
        from byoc_agents.egress.gate import Gate
        free = socket.create_server(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        enforce_process(Gate([]), [("localhost", port)])
        socket.create_server(("127.0.0.1", port)).close()
        with contextlib.suppress(EgressRefusedError):
            socket.socket().bind(("127.0.0.1", port ^ 1))
            print("open")
        """
    bare = PRELUDE.replace("enforce_process(gate)\n", "") + textwrap.dedent(code)
    command = [sys.executable, "-c", bare, "http://127.0.0.1:1", "http://127.0.0.1:2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_no_client_of_the_standard_library_asks_a_proxy_for_another_host(
    ports: tuple[socket.socket, socket.socket],
) -> None:
    code = """
        import http.client
        client = http.client.HTTPSConnection("127.0.0.1", good_port)
        client.set_tunnel("exfil.example.com")
        try:
            client.request("GET", "/")
        except EgressRefusedError as error:
            print(error.refusal)
        """
    assert run(code, ports) == "operation"
    assert nobody_came(ports[0])
