"""The webhook over TLS, and certificates that change."""

import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest

from agents.alerts.door import Listen, serve
from tests.alerts.webhook_world import BODY, Make


def certificate(directory: Path, name: str) -> Listen:
    cert, key = str(directory / f"{name}.crt"), str(directory / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "1", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return Listen("127.0.0.1", 0, cert, key)


def renew(old: Listen, new: Listen) -> None:
    Path(new.cert_file).replace(old.cert_file)
    Path(new.key_file).replace(old.key_file)


def spoil(file: str) -> None:
    Path(file).write_text("no certificate")


async def test_tls_and_a_renewed_certificate(make: Make, tmp_path: Path) -> None:
    old, new = certificate(tmp_path, "old"), certificate(tmp_path, "new")
    trusts = {
        n: ssl.create_default_context(cafile=x.cert_file) for n, x in {"o": old, "n": new}.items()
    }
    async with make(listen=old) as world:
        async with world.session.post(world.url, data=BODY, ssl=trusts["o"]) as answer:
            assert answer.status == 200
        renew(old, new)
        async with (
            aiohttp.ClientSession() as fresh,
            fresh.post(world.url, data=BODY, ssl=trusts["n"]) as answer,
        ):
            assert answer.status == 200
        spoil(old.cert_file)
        async with (
            aiohttp.ClientSession() as fresh,
            fresh.post(world.url, data=BODY, ssl=trusts["n"]) as answer,
        ):
            assert answer.status == 200


async def test_a_certificate_that_is_no_use_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no certificate")
    listen = Listen("127.0.0.1", 0, str(tmp_path / "x"), str(tmp_path / "x"))

    async def answer(_: aiohttp.web.BaseRequest) -> aiohttp.web.Response:
        raise AssertionError

    with pytest.raises(OSError, match="PEM"):
        async with serve(answer, listen):
            pass
