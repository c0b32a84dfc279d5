"""The webhook over TLS, and the renewal of its certificate."""

import os
import ssl
import threading
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from byoc_agents.app import files
from byoc_agents.app.certificate import Certificate
from byoc_agents.app.http_server import Listen, PortLimits, serve
from lab.fakes.certificate import certificate
from tests.unit.alerts.webhook_harness import BEARER, BODY, Harness, Make

HEADERS = {"Authorization": BEARER}


def listen(directory: Path, name: str) -> Listen:
    cert, key = certificate(directory, name)
    return Listen("127.0.0.1", 0, str(cert), str(key))


def renew(old: Listen, new: Listen) -> None:
    Path(new.cert_file).replace(old.cert_file)
    Path(new.key_file).replace(old.key_file)


def spoil(file: str) -> None:
    Path(file).write_text("not a certificate")


async def test_tls_and_a_renewed_listen(make: Make, tmp_path: Path) -> None:
    old, new = listen(tmp_path, "old"), listen(tmp_path, "new")
    trusts = {
        n: ssl.create_default_context(cafile=x.cert_file) for n, x in {"o": old, "n": new}.items()
    }
    async with make(listen=old) as harness:
        async with harness.session.post(
            harness.url, data=BODY, headers=HEADERS, ssl=trusts["o"]
        ) as response:
            assert response.status == 200
        renew(old, new)
        async with (
            aiohttp.ClientSession() as fresh,
            fresh.post(harness.url, data=BODY, headers=HEADERS, ssl=trusts["n"]) as response,
        ):
            assert response.status == 200
        spoil(old.cert_file)
        async with (
            aiohttp.ClientSession() as fresh,
            fresh.post(harness.url, data=BODY, headers=HEADERS, ssl=trusts["n"]) as response,
        ):
            assert response.status == 200


@pytest.mark.parametrize("file", ["cert_file", "key_file"])
async def test_a_file_replaced_by_a_fifo_blocks_nothing(
    make: Make, tmp_path: Path, file: str
) -> None:
    old, new = listen(tmp_path, "old"), listen(tmp_path, "new")
    trusts = [ssl.create_default_context(cafile=x.cert_file) for x in (old, new)]
    async with make(listen=old) as harness:
        become_fifo(getattr(old, file))
        for _ in range(2):
            assert await post_on_new_connection(harness, trusts[0]) == 200
        renew(old, new)
        assert await post_on_new_connection(harness, trusts[1]) == 200


async def post_on_new_connection(harness: Harness, trust: ssl.SSLContext) -> int:
    """Post over a new connection."""
    async with (
        aiohttp.ClientSession() as fresh,
        fresh.post(harness.url, data=BODY, headers=HEADERS, ssl=trust) as response,
    ):
        return response.status


def become_fifo(path: str) -> None:
    Path(path).unlink()
    os.mkfifo(path)


def test_a_hanging_mount_costs_one_short_wait_and_no_further_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, hang, reads = listen(tmp_path, "old"), threading.Event(), []
    certificate = Certificate(old.cert_file, old.key_file)

    def read(path: str, *_: object) -> None:
        reads.append(path)
        hang.wait(30)

    monkeypatch.setattr(files, "read_regular", read)
    try:
        for _ in range(20):
            certificate.renew()
        assert sorted(reads) == sorted([old.cert_file, old.key_file])
    finally:
        hang.set()


def test_the_files_are_checked_at_most_once_per_interval(tmp_path: Path) -> None:
    old, now = listen(tmp_path, "old"), [100.0]
    certificate = Certificate(
        old.cert_file, old.key_file, check_seconds=1.0, monotonic=lambda: now[0]
    )
    spoil(old.cert_file)
    with capture_logs() as logs:
        certificate.renew()
        assert not logs
        now[0] += 1.0
        certificate.renew()
    assert [line["event"] for line in logs] == ["webhook.tls_reload_failed"]


async def test_an_invalid_certificate_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("not a certificate")
    listen = Listen("127.0.0.1", 0, str(tmp_path / "x"), str(tmp_path / "x"))

    async def respond(_: aiohttp.web.BaseRequest) -> aiohttp.web.Response:
        raise AssertionError

    with pytest.raises(OSError, match="PEM"):
        async with serve(respond, listen, PortLimits(max_unauthenticated=5)):
            pass
