"""The webhook over TLS, and certificates that change."""

import ssl
from pathlib import Path

import aiohttp
import pytest

from byoc_agents.app.http_server import Listen, PortLimits, serve
from lab.fakes.certificate import certificate
from tests.unit.alerts.webhook_world import BEARER, BODY, Make

HEADERS = {"Authorization": BEARER}


def listen(directory: Path, name: str) -> Listen:
    cert, key = certificate(directory, name)
    return Listen("127.0.0.1", 0, str(cert), str(key))


def renew(old: Listen, new: Listen) -> None:
    Path(new.cert_file).replace(old.cert_file)
    Path(new.key_file).replace(old.key_file)


def spoil(file: str) -> None:
    Path(file).write_text("no certificate")


async def test_tls_and_a_renewed_listen(make: Make, tmp_path: Path) -> None:
    old, new = listen(tmp_path, "old"), listen(tmp_path, "new")
    trusts = {
        n: ssl.create_default_context(cafile=x.cert_file) for n, x in {"o": old, "n": new}.items()
    }
    async with make(listen=old) as world:
        async with world.session.post(
            world.url, data=BODY, headers=HEADERS, ssl=trusts["o"]
        ) as answer:
            assert answer.status == 200
        renew(old, new)
        async with (
            aiohttp.ClientSession() as fresh,
            fresh.post(world.url, data=BODY, headers=HEADERS, ssl=trusts["n"]) as answer,
        ):
            assert answer.status == 200
        spoil(old.cert_file)
        async with (
            aiohttp.ClientSession() as fresh,
            fresh.post(world.url, data=BODY, headers=HEADERS, ssl=trusts["n"]) as answer,
        ):
            assert answer.status == 200


async def test_a_certificate_that_is_no_use_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no certificate")
    listen = Listen("127.0.0.1", 0, str(tmp_path / "x"), str(tmp_path / "x"))

    async def answer(_: aiohttp.web.BaseRequest) -> aiohttp.web.Response:
        raise AssertionError

    with pytest.raises(OSError, match="PEM"):
        async with serve(answer, listen, PortLimits(max_unauthenticated=5)):
            pass
