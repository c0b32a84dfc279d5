"""Puts this folder on `sys.path` (tests import `lab.real.parts`), and guards the whole suite.

A test in whose process a socket is opened to anything but this machine, or a name is asked for,
fails, wherever in the code that happened and whatever was made of the error.
"""

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from tests.real.workers import FileScheduling

CONNECTING = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
ASKING = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})
NO_QUESTION = frozenset({"", "localhost"})

attempts: list[str] = []

# How fast this machine is at the moment says nothing about the code: on a busy one the first text
# that hypothesis draws takes longer than its health check allows.
hypothesis.settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-machine")


class OutsideError(OSError):
    """A test tried to leave this machine. Nothing was sent."""


def stays_here(host: Any) -> bool:
    """Return whether an address is this machine: loopback, or all of its own (listening)."""
    try:
        address = ipaddress.ip_address(str(host).split("%", 1)[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def hook(event: str, args: tuple[Any, ...]) -> None:
    """Refuse and remember what would leave."""
    if event in CONNECTING:
        sock, address = args
        if sock.family in {socket.AF_INET, socket.AF_INET6} and address is not None:
            _check(event, address[0])
    elif event in ASKING:
        host = args[0].decode() if isinstance(args[0], bytes) else args[0] or ""
        if host not in NO_QUESTION and not _literal(host):
            _check(event, host)


def _literal(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host.split("%", 1)[0]))
    except ValueError:
        return False


def _check(event: str, host: Any) -> None:
    if not stays_here(host) and host not in NO_QUESTION:
        attempts.append(f"{event} to {host}")
        raise OutsideError(attempts[-1])


sys.addaudithook(hook)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling | None:
    """Spread the tests against real parts by `make test-real` in a way of their own."""
    return FileScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def _guarded(item: pytest.Item) -> Iterator[None]:
    """Fail the test that tried to leave, also where the code under test took the error."""
    try:
        yield
    finally:
        said = ", ".join(attempts)
        attempts.clear()
        if said:
            pytest.fail(f"{item.name} went past the gate: {said}", pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failure at once: a run that is stopped later prints no summary."""
    if report.failed and not os.environ.get("PYTEST_XDIST_WORKER"):
        sys.stderr.write(f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Guard the fixtures' beginning."""
    return (yield from _guarded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Guard the test itself."""
    return (yield from _guarded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Guard the fixtures' end."""
    return (yield from _guarded(item))
