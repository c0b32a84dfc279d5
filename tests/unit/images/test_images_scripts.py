"""The scripts that an image is made with, and its health check."""

import asyncio
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from images.healthcheck import DEFAULT, address, healthy
from images.trust import bundle
from lab.fakes.http import FakeHttp, always, reply

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("listen", "asked"),
    [
        (DEFAULT, ("127.0.0.1", 9464)),
        ("0.0.0.0:80", ("127.0.0.1", 80)),
        ("[::]:80", ("127.0.0.1", 80)),
        ("[::1]:9464", ("::1", 9464)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_the_health_check_asks_where_the_daemon_listens(
    listen: str, asked: tuple[str, int]
) -> None:
    assert address(listen) == asked


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
async def test_the_health_check_ends_with_what_healthz_says(status: int, code: int) -> None:
    async with FakeHttp(always(reply(status))) as server:
        assert await asyncio.to_thread(checked, server.url.removeprefix("http://")) == code
    assert [request.target for request in server.requests] == ["/healthz"]


def checked(listen: str) -> int:
    """Return the exit code of the health check, as an image runs it."""
    program = [sys.executable, "-IS", str(ROOT / "images" / "healthcheck.py")]
    return subprocess.run(program, env={"BYOC_LISTEN": listen}, check=False).returncode


def test_nothing_that_listens_is_not_healthy() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not healthy("127.0.0.1", bound.getsockname()[1])


def test_amazons_roots_are_a_few_of_the_systems() -> None:
    every, few = (read(bundle(choice)) for choice in ("system", "amazon"))
    assert 0 < len(few) <= 6
    assert {*few} < {*every}


def read(pem: str) -> list[bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem)
    return context.get_ca_certs(binary_form=True)


def test_another_choice_of_cas_is_a_mistake() -> None:
    with pytest.raises(SystemExit, match="TRUST=none"):
        bundle("none")
