"""Signals to the process: a clean end with exit code 0 from the first import to the last line."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from byoc_agents.app.signals import stopping

RUN = (sys.executable, "-m", "byoc_agents.app.cli", "run", "alert-forwarder")
ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
IMPORTING = """
import sys
sys.argv = ["byoc-agents", "run", "alert-forwarder"]
import byoc_agents.app.signals
def pause(*_):
    print("importing", flush=True)
    sys.stdin.read()
sys.meta_path.insert(0, type("Finder", (), {
    "find_spec": lambda self, name, *_: pause() if name == "dataclasses" else None
})())
from byoc_agents.app.cli import main
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "BYOC_ORGANIZATION_ID": "o",
        "BYOC_SERVICE_ID": "s",
        "BYOC_REGION": "r",
        "BYOC_STATE_DIR": str(tmp_path),
        "BYOC_LISTEN": "127.0.0.1:0",
        "BYOC_ALERTS_LISTEN": "127.0.0.1:0",
        "BYOC_ALERTS_URL": "http://127.0.0.1:1/",
        "BYOC_ALERTS_TOKEN": "t",
        "BYOC_ALERTS_SIGNING_SECRET": "whsec_" + "a" * 44,
        "BYOC_ALERTS_WEBHOOK_TOKEN": "token",
        "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
        "BYOC_ALERTS_NAMESPACE": "clickhouse",
        "BYOC_SHUTDOWN_GRACE_SECONDS": "0",
    }


def take_signals() -> None:
    """Let the child handle every signal, also if the tests run in the background or by nohup."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def running(
    command: tuple[str, ...], environ: dict[str, str], stderr: int | IO[bytes] = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        preexec_fn=take_signals,  # noqa: PLW1509  the child runs one line before it is replaced
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream:
                stream.close()


def until(stream: IO[bytes] | None, text: bytes) -> None:
    assert stream
    assert any(text in line for line in stream), f"ended before {text!r}"


@pytest.mark.parametrize("number", ENDING)
def test_while_it_imports(environ: dict[str, str], number: signal.Signals) -> None:
    with running((sys.executable, "-c", IMPORTING), environ) as child:
        until(child.stdout, b"importing")
        child.send_signal(number)
        assert child.wait(20) == 0


@pytest.mark.parametrize("number", ENDING)
def test_while_it_runs(environ: dict[str, str], number: signal.Signals) -> None:
    with running(RUN, environ) as child:
        until(child.stderr, b"webhook.listening")
        child.send_signal(number)
        assert child.stderr
        rest = child.stderr.read()
        assert child.wait(20) == 0
        assert b"daemon.stopped" in rest  # the last line is not lost


@pytest.mark.parametrize("log", ["/dev/full", "gone", "unread"])
def test_with_a_log_that_cannot_be_written(environ: dict[str, str], log: str) -> None:
    reader, writer = os.pipe()
    if log == "gone":
        os.close(reader)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ |= {"BYOC_LISTEN": f"127.0.0.1:{port}", "BYOC_LOG_LEVEL": "debug"}
    if log == "unread":
        os.set_blocking(writer, False)
        while True:
            try:
                os.write(writer, b"x" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(writer, True)
    target = os.open(log, os.O_WRONLY) if log.startswith("/") else writer
    with running(RUN, environ, target) as child:
        while True:  # until it serves its pages: by then it has logged
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    for descriptor in {target, writer} | ({reader} if log != "gone" else set()):
        os.close(descriptor)


def test_a_webhook_port_that_is_taken_ends_the_start_with_2(environ: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with running(RUN, environ | {"BYOC_ALERTS_LISTEN": where}) as child:
            until(child.stderr, f"BYOC_ALERTS_LISTEN: {where}: ".encode())
            assert child.wait(20) == 2


def test_the_handlers_of_before_come_back_and_an_ignored_signal_stays_so() -> None:
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in ENDING}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping(lambda: asked.append(1)):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [1, 1]
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {number: signal.getsignal(number) for number in ENDING} == before


def test_while_the_token_of_aws_cannot_be_read(environ: dict[str, str], tmp_path: Path) -> None:
    """The token becomes a FIFO after the start: /healthz and SIGTERM still work."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = tmp_path / "token"
    token.write_text("TOKEN")
    environ = {key: text for key, text in environ.items() if "ALERTS" not in key} | {
        "BYOC_REGION": "eu-west-1",
        "BYOC_LISTEN": f"127.0.0.1:{port}",
        "BYOC_BILLING_BUCKET": "usage",
        "BYOC_BILLING_TARGET": "pid:1",
        "BYOC_BILLING_SAMPLE_SECONDS": "0.1",
        "BYOC_BILLING_WINDOW_SECONDS": "1",
        "BYOC_BILLING_SEAL_SECONDS": "1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/agents",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
    }
    with running((*RUN[:-1], "billing-scraper"), environ) as child:
        until(child.stderr, b"daemon.started")
        token.unlink()
        os.mkfifo(token)
        until(child.stderr, b"is a FIFO; expected a regular file")
        assert healthy(port)
        child.send_signal(signal.SIGTERM)
        assert child.stderr
        child.stderr.read()
        assert child.wait(20) == 0


def healthy(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as response:
        return bool(response.status == 200)
