import datetime as dt
import socket
import ssl
from pathlib import Path

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import NameOID
from yarl import URL

from agents.core.errors import ConfigError, Reason
from agents.doubles.http import HttpDouble, Reply, always, close, redirect, reply
from agents.egress.destinations import Destination, https_destination
from agents.egress.gate import EgressRefusedError, Gate, Refusal

API = Destination("api.example.com", 443, "https")


class FakeNames(AbstractResolver):
    """Answers every name with the same addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        return [
            ResolveResult(hostname=host, host=a, port=port, family=family, proto=0, flags=0)
            for a in self.addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Counter:
    """What the gate reported."""

    def __init__(self) -> None:
        self.refused: list[Refusal] = []

    def __call__(self, refusal: Refusal, detail: str) -> None:
        assert detail
        self.refused.append(refusal)


@pytest.fixture
def counter() -> Counter:
    return Counter()


async def get(gate: Gate, url: str) -> int:
    async with gate.session() as session, session.get(url) as response:
        return response.status


# Requests.


async def test_a_destination_answers() -> None:
    async with HttpDouble() as server:
        assert await get(Gate([https_destination(server.url)]), server.url) == 200


@pytest.mark.parametrize(
    ("url", "refusal"),
    [
        ("https://evil.example.com/", Refusal.HOST),
        ("https://api.example.com.evil.com/", Refusal.HOST),
        ("https://api.example.com:8443/", Refusal.PORT),
        ("http://api.example.com:443/", Refusal.SCHEME),
        ("http://api.example.com/", Refusal.PORT),
        ("https://93.184.216.34/", Refusal.HOST),
        ("http://169.254.169.254/latest/meta-data/", Refusal.IMDS),
        ("http://[fd00:ec2::254]/", Refusal.IMDS),
        ("http://127.0.0.1:1/", Refusal.HOST),
        ("https://api.example.com@evil.com/", Refusal.HOST),
    ],
)
async def test_what_is_no_destination_is_refused_counted_and_not_looked_up(
    url: str, refusal: Refusal, counter: Counter
) -> None:
    names = FakeNames("93.184.216.34")
    with pytest.raises(EgressRefusedError) as caught:
        await get(Gate([API], on_refused=counter, names=names), url)
    assert (caught.value.refusal, caught.value.reason) == (refusal, Reason.EGRESS_REFUSED)
    assert (counter.refused, names.asked) == ([refusal], [])


def test_a_name_in_other_letters_is_the_same_name() -> None:
    gate = Gate([https_destination("https://bücher.example/")])
    assert gate.check_url(URL("https://xn--bcher-kva.example/")).host == "xn--bcher-kva.example"


def test_a_name_is_the_same_in_capitals_and_with_a_trailing_dot() -> None:
    assert Gate([API]).check_url(URL("https://API.Example.com./x")) == API


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_sends_a_byte_to_another_port(status: int, counter: Counter) -> None:
    async with HttpDouble() as other, HttpDouble(always(redirect(other.url, status))) as server:
        gate = Gate([https_destination(server.url)], on_refused=counter)
        async with gate.session() as session:
            with pytest.raises(EgressRefusedError) as caught:
                await session.put(server.url, data=b"secret")
    assert caught.value.reason is Reason.REDIRECT
    assert (other.connections, other.bytes_received) == (0, 0)
    assert counter.refused == [Refusal.REDIRECT]


async def test_no_redirect_is_followed_between_destinations(counter: Counter) -> None:
    async with HttpDouble() as other, HttpDouble(always(redirect(other.url))) as server:
        table = [https_destination(server.url), https_destination(other.url)]
        with pytest.raises(EgressRefusedError):
            await get(Gate(table, on_refused=counter), server.url)
    assert other.connections == 0


async def test_a_caller_that_follows_none_sees_the_redirect() -> None:
    async with HttpDouble(always(redirect("http://127.0.0.1:1/"))) as server:
        session = Gate([https_destination(server.url)]).session()
        async with session:
            response = await session.get(server.url, allow_redirects=False)
            assert response.status == 307
            response.close()


async def test_a_lost_answer_is_not_asked_for_again_behind_our_back() -> None:
    async with HttpDouble(always(close)) as server:
        with pytest.raises(aiohttp.ClientConnectionError):
            await get(Gate([https_destination(server.url)]), server.url)
        assert len(server.requests) == 1


async def test_cookies_are_not_kept() -> None:
    async with HttpDouble(always(reply(200, {"set-cookie": "a=b"}))) as server:
        async with Gate([https_destination(server.url)]).session() as session:
            for _ in range(2):
                (await session.get(server.url)).close()
        assert all("cookie" not in request.headers for request in server.requests)


# Names.


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "169.254.1.1",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "0.0.0.0",
        "::",
        "fd00:ec2::23",
    ],
)
async def test_a_public_name_leads_to_no_inner_address(address: str, counter: Counter) -> None:
    gate = Gate([API], on_refused=counter, names=FakeNames(address))
    with pytest.raises(EgressRefusedError):
        await gate.resolver.resolve("api.example.com", 443)
    assert counter.refused == [Refusal.ADDRESS]


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"])
async def test_no_name_leads_to_the_metadata_service(address: str, counter: Counter) -> None:
    gate = Gate([API], on_refused=counter, names=FakeNames(address))
    with pytest.raises(EgressRefusedError):
        await gate.resolver.resolve("api.example.com", 443)
    assert counter.refused == [Refusal.IMDS]


@pytest.mark.parametrize("address", ["93.184.216.34", "10.1.2.3", "2600:1f00::1", "fd12::1"])
async def test_a_public_name_leads_to_public_and_private_addresses(address: str) -> None:
    gate = Gate([API], names=FakeNames(address))
    (result,) = await gate.resolver.resolve("api.example.com", 443)
    assert result["host"] == address
    gate.check_address(socket.AF_INET, (address, 443))


async def test_a_bad_address_among_good_ones_is_left_out() -> None:
    gate = Gate([API], names=FakeNames("127.0.0.1", "93.184.216.34"))
    results = await gate.resolver.resolve("api.example.com", 443)
    assert [result["host"] for result in results] == ["93.184.216.34"]


async def test_localhost_leads_to_loopback_only(counter: Counter) -> None:
    table = [Destination("localhost", 8123, "http")]
    gate = Gate(table, on_refused=counter, names=FakeNames("93.184.216.34"))
    with pytest.raises(EgressRefusedError):
        await gate.resolver.resolve("localhost", 8123)
    gate.check_address(socket.AF_INET, ("127.0.0.1", 8123))


async def test_another_name_is_not_looked_up(counter: Counter) -> None:
    names = FakeNames("93.184.216.34")
    gate = Gate([API], on_refused=counter, names=names)
    with pytest.raises(EgressRefusedError):
        await gate.resolver.resolve("exfil.example.com", 443)
    assert (names.asked, counter.refused) == ([], [Refusal.HOST])


# Sockets.


@pytest.mark.parametrize(
    ("address", "refusal"),
    [
        (("93.184.216.34", 80), Refusal.PORT),
        (("93.184.216.35", 443), Refusal.ADDRESS),
        (("127.0.0.1", 443), Refusal.ADDRESS),
        (("169.254.169.254", 443), Refusal.IMDS),
    ],
)
async def test_a_socket_reaches_only_what_a_destination_resolved_to(
    address: tuple[str, int], refusal: Refusal, counter: Counter
) -> None:
    gate = Gate([API], on_refused=counter, names=FakeNames("93.184.216.34"))
    await gate.resolver.resolve("api.example.com", 443)
    with pytest.raises(EgressRefusedError):
        gate.socket_factory((socket.AF_INET, socket.SOCK_STREAM, 6, "", address))
    assert counter.refused == [refusal]


async def test_a_stock_aiohttp_session_on_our_connector_is_held_by_the_socket(
    counter: Counter,
) -> None:
    async with HttpDouble() as server, HttpDouble() as other:
        gate = Gate([https_destination(server.url)], on_refused=counter)
        async with aiohttp.ClientSession(connector=gate.connector()) as session:
            assert (await session.get(server.url)).status == 200
            with pytest.raises(EgressRefusedError):
                await session.get(other.url)
    assert (other.connections, counter.refused) == (0, [Refusal.PORT])


async def test_remembered_addresses_are_bounded_and_the_newest_stay() -> None:
    gate = Gate([API], names=FakeNames())
    for number in range(5000):
        gate.admit(API, [f"20.0.{number // 250}.{number % 250}"])
    gate.check_address(socket.AF_INET, ("20.0.19.249", 443))
    with pytest.raises(EgressRefusedError):
        gate.check_address(socket.AF_INET, ("20.0.0.0", 443))


# Proxies and TLS.


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with HttpDouble() as proxy, HttpDouble() as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert await get(Gate([https_destination(server.url)]), server.url) == 200
    assert (proxy.connections, len(server.requests)) == (0, 1)


async def test_the_configured_proxy_carries_what_is_not_local() -> None:
    async with HttpDouble(apply=lambda _: Reply(200)) as proxy, HttpDouble() as local:
        remote = Destination("api.example.com", 80, "http")
        gate = Gate([remote, https_destination(local.url)], allow_insecure=True, proxy=proxy.url)
        assert await get(gate, "http://api.example.com/v1") == 200
        assert await get(gate, local.url) == 200
    assert [request.target for request in proxy.requests] == ["http://api.example.com/v1"]
    assert len(local.requests) == 1


async def test_https_goes_through_the_proxy_by_connect() -> None:
    async with HttpDouble(always(reply(403))) as proxy:
        with pytest.raises(aiohttp.ClientHttpProxyError):
            await get(Gate([API], proxy=proxy.url), "https://api.example.com/v1")
    assert [(r.method, r.target) for r in proxy.requests] == [("CONNECT", "api.example.com:443")]


async def test_the_proxy_is_told_its_password_and_nobody_else_is() -> None:
    async with HttpDouble(always(reply(407))) as proxy:
        url = proxy.url.replace("://", "://user:hush@")
        gate = Gate([API], proxy=url)
        with pytest.raises(aiohttp.ClientHttpProxyError) as caught:
            await get(gate, "https://api.example.com/v1")
    assert proxy.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpodXNo"
    assert "hush" not in f"{gate!r} {caught.value}"


async def test_a_proxy_reaches_destinations_only(counter: Counter) -> None:
    async with HttpDouble() as proxy:
        gate = Gate([API], proxy=proxy.url, on_refused=counter)
        with pytest.raises(EgressRefusedError):
            await get(gate, "https://evil.example.com/")
    assert (proxy.connections, counter.refused) == (0, [Refusal.HOST])


async def test_a_callers_own_proxy_is_refused(counter: Counter) -> None:
    async with HttpDouble() as proxy, HttpDouble() as server:
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
    async with HttpDouble(tls=context) as server:
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


def test_it_prints_its_table() -> None:
    assert repr(Gate([API])) == "Gate(https://api.example.com:443)"
