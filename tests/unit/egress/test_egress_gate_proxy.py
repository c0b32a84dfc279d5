"""The gate: the one proxy it uses, and whom it trusts over TLS."""

import datetime as dt
import ssl
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import NameOID

from byoc_agents import __version__
from byoc_agents.egress.destinations import Destination, https_destination
from byoc_agents.egress.gate import EgressRefusedError, Gate, Refusal
from byoc_agents.errors import ConfigError
from lab.fakes.http import FakeHttp, Reply, always, reply
from tests.unit.egress.gate_fakes import API, Counter, get


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeHttp() as proxy, FakeHttp() as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert await get(Gate([https_destination(server.url)]), server.url) == 200
    assert (proxy.connections, len(server.requests)) == (0, 1)


async def test_the_configured_proxy_carries_what_is_not_local() -> None:
    async with FakeHttp(apply=lambda _: Reply(200)) as proxy, FakeHttp() as local:
        remote = Destination("api.example.com", 80, "http")
        gate = Gate([remote, https_destination(local.url)], allow_insecure=True, proxy=proxy.url)
        assert await get(gate, "http://api.example.com/v1") == 200
        assert await get(gate, local.url) == 200
    assert [request.target for request in proxy.requests] == ["http://api.example.com/v1"]
    assert len(local.requests) == 1


async def test_https_goes_through_the_proxy_by_connect() -> None:
    async with FakeHttp(always(reply(403))) as proxy:
        with pytest.raises(aiohttp.ClientHttpProxyError):
            await get(Gate([API], proxy=proxy.url), "https://api.example.com/v1")
    (connect,) = proxy.requests
    assert (connect.method, connect.target) == ("CONNECT", "api.example.com:443")
    assert connect.headers["user-agent"] == f"byoc-agents/{__version__}"
    assert "aiohttp" not in str(connect.headers)


async def test_the_proxy_is_sent_its_password_and_nobody_else_is() -> None:
    async with FakeHttp(always(reply(407))) as proxy:
        url = proxy.url.replace("://", "://user:hush@")
        gate = Gate([API], proxy=url)
        with pytest.raises(aiohttp.ClientHttpProxyError) as caught:
            await get(gate, "https://api.example.com/v1")
    assert proxy.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpodXNo"
    assert "hush" not in f"{gate!r} {caught.value}"


async def test_a_proxy_reaches_destinations_only(counter: Counter) -> None:
    async with FakeHttp() as proxy:
        gate = Gate([API], proxy=proxy.url, on_refused=counter)
        with pytest.raises(EgressRefusedError):
            await get(gate, "https://evil.example.com/")
    assert (proxy.connections, counter.refused) == (0, [Refusal.HOST])


async def test_a_callers_own_proxy_is_refused(counter: Counter) -> None:
    async with FakeHttp() as proxy, FakeHttp() as server:
        gate = Gate([https_destination(server.url)], on_refused=counter)
        async with gate.session() as session:
            with pytest.raises(EgressRefusedError):
                await session.get(server.url, proxy=proxy.url)
    assert (proxy.connections, counter.refused) == (0, [Refusal.PROXY])


def test_tls_is_1_2_or_newer_and_checks_names() -> None:
    context = Gate([]).ssl_context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_a_certificate_is_trusted_only_with_its_ca_file(tmp_path: Path) -> None:
    ca_file, context = self_signed(tmp_path)
    async with FakeHttp(tls=context) as server:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await get(Gate([https_destination(server.url)]), server.url)
        assert server.requests == []
        gate = Gate([https_destination(server.url)], ca_file=ca_file)
        assert await get(gate, server.url) == 200


def self_signed(directory: Path) -> tuple[str, ssl.SSLContext]:
    """Return the file of a certificate for localhost, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, private = directory / "cert.pem", directory / "key.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    return str(pem), context


def test_a_ca_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    bad = tmp_path / "ca.pem"
    bad.write_text("no certificate")
    for path in (bad, tmp_path / "none.pem"):
        with pytest.raises(ConfigError, match="BYOC_CA_FILE"):
            Gate([], ca_file=str(path))
