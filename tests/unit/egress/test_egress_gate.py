"""The gate: which requests it lets through, and what it never sends."""

import aiohttp
import pytest
from yarl import URL

from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.gate import EgressRefusedError, Gate, Refusal
from byoc_agents.errors import Reason
from lab.fakes.http import FakeHttp, always, close, redirect, reply
from tests.unit.egress.gate_fakes import API, Counter, FakeNames, get


async def test_a_destination_answers() -> None:
    async with FakeHttp() as server:
        assert await get(Gate([https_destination(server.url)]), server.url) == 200


async def test_a_response_with_a_header_of_20_kb_is_read() -> None:
    """Proxies and security policies write such headers; aiohttp's own bound is 8190 bytes."""
    long = reply(202, {"content-security-policy": "x" * 20_000})
    async with FakeHttp(always(long)) as server:
        assert await get(Gate([https_destination(server.url)]), server.url) == 202


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
    async with FakeHttp() as other, FakeHttp(always(redirect(other.url, status))) as server:
        gate = Gate([https_destination(server.url)], on_refused=counter)
        async with gate.session() as session:
            with pytest.raises(EgressRefusedError) as caught:
                await session.put(server.url, data=b"secret")
    assert caught.value.reason is Reason.REDIRECT
    assert (other.connections, other.bytes_received) == (0, 0)
    assert counter.refused == [Refusal.REDIRECT]


async def test_no_redirect_is_followed_between_destinations(counter: Counter) -> None:
    async with FakeHttp() as other, FakeHttp(always(redirect(other.url))) as server:
        table = [https_destination(server.url), https_destination(other.url)]
        with pytest.raises(EgressRefusedError):
            await get(Gate(table, on_refused=counter), server.url)
    assert other.connections == 0


async def test_a_caller_that_follows_none_sees_the_redirect() -> None:
    async with FakeHttp(always(redirect("http://127.0.0.1:1/"))) as server:
        session = Gate([https_destination(server.url)]).session()
        async with session:
            response = await session.get(server.url, allow_redirects=False)
            assert response.status == 307
            response.close()


async def test_a_lost_response_is_not_asked_for_again_behind_our_back() -> None:
    async with FakeHttp(always(close)) as server:
        with pytest.raises(aiohttp.ClientConnectionError):
            await get(Gate([https_destination(server.url)]), server.url)
        assert len(server.requests) == 1


async def test_cookies_are_not_kept() -> None:
    async with FakeHttp(always(reply(200, {"set-cookie": "a=b"}))) as server:
        async with Gate([https_destination(server.url)]).session() as session:
            for _ in range(2):
                (await session.get(server.url)).close()
        assert all("cookie" not in request.headers for request in server.requests)


def test_it_prints_its_table() -> None:
    assert repr(Gate([API])) == "Gate(https://api.example.com:443)"


@pytest.mark.parametrize("path", ["/v2/events", "/v1/events-2", "/", "/v1/events/%2e%2e/x"])
async def test_a_request_outside_the_destinations_path_sends_nothing(
    path: str, counter: Counter
) -> None:
    async with FakeHttp() as server:
        gate = Gate([https_destination(f"{server.url}/v1/events")], on_refused=counter)
        with pytest.raises(EgressRefusedError):
            async with gate.session() as session:
                await session.get(URL(f"{server.url}{path}", encoded=True))
    assert (server.connections, counter.refused) == (0, [Refusal.PATH])


async def test_two_destinations_at_one_address_are_two_paths() -> None:
    async with FakeHttp() as server:
        table = [https_destination(f"{server.url}/{name}") for name in ("one", "two")]
        gate = Gate(table)
        assert await get(gate, f"{server.url}/one/x") == 200
        assert await get(gate, f"{server.url}/two") == 200


async def test_a_host_header_of_another_host_sends_nothing(counter: Counter) -> None:
    async with FakeHttp() as server:
        gate = Gate([https_destination(server.url)], on_refused=counter)
        async with gate.session() as session:
            for host in ("other.example.com", "127.0.0.1:1"):
                with pytest.raises(EgressRefusedError):
                    await session.get(server.url, headers={"Host": host})
            own = URL(server.url).authority
            assert (await session.get(server.url, headers={"host": own})).status == 200
    assert (len(server.requests), counter.refused) == (1, [Refusal.PATH] * 2)
