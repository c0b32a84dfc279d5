"""The gate: which addresses a name may lead to, and which a socket may reach."""

import socket

import aiohttp
import pytest

from byoc_agents.egress.destinations import Destination, https_destination
from byoc_agents.egress.gate import ADDRESS_SECONDS, EgressRefusedError, Gate, Refusal
from lab.fakes.http import FakeHttp
from tests.unit.egress.gate_fakes import API, Counter, FakeNames


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
        "2002:a9fe:a9fe::1",
        "2001:0:5ef5:79fb::1",
        "::127.0.0.2",
        "0.1.2.3",
        "64:ff9b:1::a00:1",
        "64:ff9b:1:7f00:0:100::",
        "::ffff:0:10.0.0.1",
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


@pytest.mark.parametrize("address", ["93.184.216.34", "2600:1f00::1"])
async def test_a_public_name_leads_to_public_addresses(address: str) -> None:
    gate = Gate([API], names=FakeNames(address))
    (result,) = await gate.resolver.resolve("api.example.com", 443)
    assert result["host"] == address
    gate.check_address(socket.AF_INET, (address, 443))


PRIVATE = [
    *("10.96.0.1", "172.16.1.1", "192.168.1.1", "100.64.1.1", "fd12::1", "::ffff:10.1.2.3"),
    *("192.0.0.8", "198.18.0.1", "198.19.255.1", "240.0.0.1", "255.255.255.255", "fec0::1"),
    *("::ffff:240.0.0.1", "64:ff9b::f000:1"),
]


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_public_name_leads_to_a_private_address_only_if_it_may(
    address: str, counter: Counter
) -> None:
    gate = Gate([API], on_refused=counter, names=FakeNames(address))
    with pytest.raises(EgressRefusedError, match="expected its name in BYOC_PRIVATE_HOSTS"):
        await gate.resolver.resolve("api.example.com", 443)
    assert counter.refused == [Refusal.ADDRESS]
    may = Destination("api.example.com", 443, "https", private=True)
    assert await Gate([may], names=FakeNames(address)).resolver.resolve("api.example.com", 443)


async def test_an_address_expires_after_its_last_answer(counter: Counter) -> None:
    now = [0.0]
    gate = Gate(
        [API], on_refused=counter, names=FakeNames("93.184.216.34"), monotonic=lambda: now[0]
    )
    await gate.resolver.resolve("api.example.com", 443)
    now[0] = 200.0
    await gate.resolver.resolve("api.example.com", 443)
    now[0] = 200.0 + ADDRESS_SECONDS - 1
    gate.check_address(socket.AF_INET, ("93.184.216.34", 443))
    now[0] += 1
    with pytest.raises(EgressRefusedError):
        gate.check_address(socket.AF_INET, ("93.184.216.34", 443))
    assert counter.refused == [Refusal.ADDRESS]


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
    async with FakeHttp() as server, FakeHttp() as other:
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
