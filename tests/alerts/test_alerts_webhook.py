"""The webhook over real sockets: who may, what is answered when, and what nobody can hold up."""

import asyncio
import io
import ssl
import subprocess
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import structlog
from prometheus_client import CollectorRegistry

from agents.alerts.counts import Counts
from agents.alerts.door import MAX_BODY_BYTES, MAX_CONNECTIONS, Listen, serve
from agents.alerts.payload import NotAWebhookError, read
from agents.alerts.secret import Secret
from agents.alerts.webhook import Webhook
from agents.core.errors import SpoolFullError, SpoolUnavailableError
from agents.core.metrics import Metrics

BODY = b'{"version":"4","alerts":[]}'


class Relay:
    """Stands for the relay: reads, then does as told."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.bodies: list[bytes] = []
        self.may_commit = asyncio.Event()
        self.may_commit.set()

    async def accept(self, body: bytes) -> int:
        read(body)
        await self.may_commit.wait()
        if self.error:
            raise self.error
        self.bodies.append(body)
        return 0


@dataclass
class World:
    relay: Relay
    url: str
    port: int
    registry: CollectorRegistry
    session: aiohttp.ClientSession

    async def post(
        self, body: bytes | io.BytesIO = BODY, **headers: str
    ) -> tuple[int, str, aiohttp.ClientResponse]:
        async with self.session.post(self.url, data=body, headers=headers) as answer:
            return answer.status, await answer.text(), answer


Make = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def make() -> Make:
    @asynccontextmanager
    async def make(
        token: Secret | None = None, listen: Listen | None = None, **seconds: float
    ) -> AsyncIterator[World]:
        relay, metrics = Relay(), Metrics()
        webhook = Webhook(
            relay,  # type: ignore[arg-type]
            token or Secret(""),
            Counts(metrics, "a"),
            body_seconds=seconds.get("body", 5),
        )
        where = listen or Listen("127.0.0.1", 0)
        async with (
            serve(webhook.answer, where, header_seconds=seconds.get("header", 5)) as (host, port),
            aiohttp.ClientSession() as session,
        ):
            scheme = "https" if where.cert_file else "http"
            yield World(
                relay, f"{scheme}://{host}:{port}/v1/alerts", port, metrics.registry, session
            )

    return make


async def test_a_notification_is_answered_after_it_is_stored(make: Make) -> None:
    async with make() as world:
        world.relay.may_commit.clear()
        asked = asyncio.create_task(world.post())
        done, _ = await asyncio.wait([asked], timeout=0.05)
        assert not done
        world.relay.may_commit.set()
        status, text, answer = await asked
    assert (status, text) == (200, '{"status": "stored"}')
    assert answer.headers["Server"] == "byoc-agents"
    assert world.relay.bodies == [BODY]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SpoolFullError("12 bytes are over 10"), 503),
        (SpoolUnavailableError("/secret/path: read-only"), 503),
        (NotAWebhookError("x"), 400),
    ],
)
async def test_what_is_not_stored_is_answered_so_that_alertmanager_tries_again(
    make: Make, error: Exception, status: int
) -> None:
    async with make() as world:
        world.relay.error = error
        got, text, _ = await world.post()
        assert got == status
        assert str(error) not in text
        requests = {"agent": "a", "status": str(status)}
        assert world.registry.get_sample_value("byoc_alerts_requests_total", requests) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"<html>"])
async def test_what_is_no_webhook_is_400(make: Make, body: bytes) -> None:
    async with make() as world:
        assert (await world.post(body))[0] == 400


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer right", 200),
        ("bearer right", 200),
        ("Bearer  right ", 200),
        ("Bearer new", 200),
        ("Bearer wrong", 401),
        ("Bearer right new", 401),
        ("Bearer righ", 401),
        ("Bearer ", 401),
        ("Basic right", 401),
        ("right", 401),
        ("", 401),
        ("Bearer r\u00efght", 401),
    ],
)
async def test_only_a_bearer_of_a_token_may(make: Make, header: str, status: int) -> None:
    async with make(Secret("right\nnew\n")) as world:
        got, text, answer = await world.post(Authorization=header)
        assert got == status
        assert "right" not in text
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)
        assert len(world.relay.bodies) == (status == 200)


async def test_a_stranger_is_refused_before_his_body_is_read(make: Make) -> None:
    async with make(Secret("right")) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def test_a_rotated_token_counts_at_once_and_an_emptied_file_changes_nothing(
    make: Make, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    async with make(Secret("first", str(file))) as world:
        file.write_text("second\n")
        assert (await world.post(Authorization="Bearer first"))[0] == 401
        assert (await world.post(Authorization="Bearer second"))[0] == 200
        with structlog.testing.capture_logs() as logs:
            file.write_text("")
            assert (await world.post(Authorization="Bearer second"))[0] == 200
            file.unlink()
            assert (await world.post(Authorization="Bearer second"))[0] == 200
    assert [(line["event"], line["reason"]) for line in logs[:1]] == [("secret.kept", "empty")]
    assert "second" not in repr(logs)


async def test_a_sender_that_waits_for_100_continue_is_answered(make: Make) -> None:
    async with (
        make() as world,
        world.session.post(world.url, data=BODY, expect100=True) as answer,
    ):
        assert answer.status == 200
        assert world.relay.bodies == [BODY]


async def test_a_body_over_the_limit_is_413(make: Make) -> None:
    async with make() as world:
        fits = BODY.rjust(MAX_BODY_BYTES)
        assert (await world.post(io.BytesIO(fits)))[0] == 200
        assert (await world.post(io.BytesIO(fits + b" ")))[0] == 413


async def test_a_compressed_bomb_is_bounded(make: Make) -> None:
    bomb = zlib.compress(BODY.rjust(4 * MAX_BODY_BYTES))
    async with make() as world:
        assert (await world.post(bomb, **{"Content-Encoding": "deflate"}))[0] == 413
        assert (await world.post(b"no zlib", **{"Content-Encoding": "deflate"}))[0] == 400


async def test_a_body_that_drips_is_given_up(make: Make) -> None:
    async with make(body=0.05) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        assert (await world.post())[0] == 200


@pytest.mark.parametrize("head", [b"", b"POST /v1/al", b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_without_a_request_is_closed(make: Make, head: bytes) -> None:
    async with make(header=0.05) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(head)
        assert await reader.read() == b""
        writer.close()


async def test_a_connection_in_use_outlives_the_time_for_its_headers(make: Make) -> None:
    async with make(header=0.05) as world:
        world.relay.may_commit.clear()
        asked = asyncio.create_task(world.post())
        await asyncio.wait([asked], timeout=0.15)
        world.relay.may_commit.set()
        assert (await asked)[0] == 200


async def test_a_client_that_cuts_its_body_does_no_harm(make: Make) -> None:
    async with make() as world:
        _, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        await writer.drain()
        writer.transport.abort()
        assert (await world.post())[0] == 200
    assert world.relay.bodies == [BODY]


async def test_connections_are_bounded_and_free_again_when_they_end(make: Make) -> None:
    async with make(header=60) as world:
        pairs = [
            await asyncio.open_connection("127.0.0.1", world.port) for _ in range(MAX_CONNECTIONS)
        ]
        with structlog.testing.capture_logs() as logs:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            assert await reader.read() == b""
            writer.close()
        assert [line["event"] for line in logs] == ["alerts.too_many_connections"]
        for _, writer in pairs:
            writer.close()
            await writer.wait_closed()
        assert (await world.post())[0] == 200


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


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/alerts", 405), ("POST", "/", 404), ("POST", "/v1/alerts/", 404)],
)
async def test_nothing_else_is_served_and_no_version_is_told(
    make: Make, method: str, path: str, status: int
) -> None:
    async with make() as world:
        url = f"http://127.0.0.1:{world.port}{path}"
        async with world.session.request(method, url, data=BODY) as answer:
            assert answer.status == status
            assert answer.headers["Server"] == "byoc-agents"
            assert answer.headers.get("Allow") == ("POST" if status == 405 else None)
        assert world.relay.bodies == []
