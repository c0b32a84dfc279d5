"""Pings over real sockets: every response, nobody listening, the gate, a private CA."""

import datetime as dt
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from byoc_agents.clickhouse import ClickHouse
from byoc_agents.egress.destinations import clickhouse_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.state.observation import Ping
from byoc_agents.state.probes import PollBounds, Prober
from lab.fakes.core import FakeClock, settle
from lab.fakes.http import FakeHttp, Script, always, close, garbage, hang, reply, reset

PINGS: list[tuple[str, Script, Ping]] = [
    ("ok", always(reply(200, body=b"Ok.\n")), Ping.OK),
    ("503", always(reply(503)), Ping.HTTP_ERROR),
    ("another server", always(reply(200, body=b"<html>")), Ping.HTTP_ERROR),
    ("redirect", always(reply(302, {"location": "/x"})), Ping.HTTP_ERROR),
    ("not HTTP", always(garbage()), Ping.HTTP_ERROR),
    ("closed", always(close), Ping.RESET),
    ("reset", always(reset), Ping.RESET),
    ("hangs", always(hang), Ping.TIMEOUT),
]


@pytest.mark.parametrize(
    ("script", "ping"), [x[1:] for x in PINGS], ids=[name for name, *_ in PINGS]
)
async def test_every_response_to_a_ping(script: Script, ping: Ping) -> None:
    async with FakeHttp(script) as fake, ClickHouse(fake.url) as server:
        bounds = PollBounds(ping_seconds=0.2 if ping is Ping.TIMEOUT else 30)
        assert (await Prober(server, clock=FakeClock(), bounds=bounds).observe()).ping is ping
    await settle()  # the fake's connections let go of their sockets


async def test_nobody_listens() -> None:
    async with FakeHttp() as fake:
        url = fake.url
    async with ClickHouse(url) as server:
        assert (await Prober(server, clock=FakeClock()).observe()).ping is Ping.REFUSED


async def test_a_destination_unknown_to_the_gate_is_unreachable() -> None:
    async with FakeHttp() as fake:
        gate = Gate([])
        async with ClickHouse(fake.url, session=gate.session) as server:
            assert (await Prober(server, clock=FakeClock()).observe()).ping is Ping.UNREACHABLE
        assert fake.connections == 0


@dataclass(frozen=True)
class Authority:
    """A CA of our own and a certificate of it for localhost."""

    ca_file: Path
    server: ssl.SSLContext


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    place = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(tz=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = place / "ca.pem", place / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    return Authority(pem, context)


@asynccontextmanager
async def over_tls(authority: Authority) -> AsyncIterator[str]:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    app = web.Application()
    app.router.add_get("/ping", respond)
    server = TestServer(app, host="localhost", scheme="https")
    await server.start_server(ssl=authority.server)
    try:
        yield f"https://localhost:{server.port}"
    finally:
        await server.close()


def trusting(url: str, ca_file: Path | None) -> Callable[..., Any]:
    return Gate([clickhouse_destination(url)], ca_file=str(ca_file) if ca_file else None).session


async def test_a_server_with_its_own_ca_is_seen_if_the_ca_is_given(authority: Authority) -> None:
    async with over_tls(authority) as url:
        async with ClickHouse(url, session=trusting(url, authority.ca_file)) as server:
            assert (await Prober(server, clock=FakeClock()).observe()).ping is Ping.OK
        async with ClickHouse(url, session=trusting(url, None)) as server:
            assert (await Prober(server, clock=FakeClock()).observe()).ping is Ping.TLS
