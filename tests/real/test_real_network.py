"""Outbound-only, shown on the wire: a pod, a router, S3 behind the gateway route, the internet.

The three daemons run in the pod; the router enforces what `byoc-agents policy networkpolicy`
prints for them, counts and captures. See `lab/real/netlab/__init__.py` for the picture.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import partial

import pytest
import pytest_asyncio

from lab.real.netlab import far, namespaces, pod, policy, rules
from lab.real.netlab.escapes import BEHIND_THE_GATE, PAST_THE_GATE
from lab.real.netlab.far import within
from lab.real.netlab.lab import (
    CONFIGURED,
    PATIENCE_SECONDS,
    STRANGER_HOST,
    Birth,
    Lab,
    built,
    entered,
    eventually,
)
from lab.real.netlab.namespaces import (
    DNS_ADDRESS,
    INTERNET,
    PLANE_ADDRESS,
    POD,
    POD_ADDRESS,
    ROUTER,
    S3,
    S3_ADDRESS,
    SQS_ADDRESS,
    STRANGER_ADDRESS,
)
from lab.real.netlab.wire import ETH_P_ARP, ETH_P_IP, ends, https

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab_and_birth(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Lab, Birth]]:
    async with built(tmp_path_factory.mktemp("netlab")) as found:
        yield found


@pytest.fixture(scope="module")
def lab(lab_and_birth: tuple[Lab, Birth]) -> Lab:
    return lab_and_birth[0]


@pytest.fixture(scope="module")
def birth(lab_and_birth: tuple[Lab, Birth]) -> Birth:
    return lab_and_birth[1]


@pytest.fixture
def fresh(lab: Lab) -> Iterator[Lab]:
    """Give the lab with all counters at 0; the route and the rules are put back."""
    lab.load()
    yield lab
    lab.far.send_away_to = ""
    namespaces.gateway_route(present=True)
    lab.load()


async def test_s3_leaves_by_the_gateway_route_only(birth: Birth) -> None:
    """Nothing else takes that route, and no packet for the S3 prefix takes another."""
    assert ends(birth.packets, "gateway0", leaving=True) == https(S3_ADDRESS)
    assert birth.counts["s3_by_gateway"] > 0
    assert birth.counts["s3_by_internet"] == 0
    assert birth.counts["off_the_endpoint"] == 0


async def test_sqs_and_the_control_plane_leave_by_443_only(birth: Birth) -> None:
    """The internet's wire carries TLS to these two addresses; counters and capture agree."""
    assert ends(birth.packets, "internet0", leaving=True) == https(SQS_ADDRESS, PLANE_ADDRESS)
    assert birth.counts["https_by_internet"] > 0
    assert birth.counts["other"] == 0
    assert birth.counts["refused_out"] == 0  # they did not even try


async def test_the_pod_sends_nothing_else(birth: Birth) -> None:
    """All that comes out of the pod goes to three addresses by 443, and to the DNS."""
    sent = ends(birth.packets, "pod0", leaving=False)
    assert sent == https(S3_ADDRESS, SQS_ADDRESS, PLANE_ADDRESS) | {(DNS_ADDRESS, "udp", 53)}
    assert {p.kind for p in birth.packets} <= {ETH_P_IP, ETH_P_ARP}


async def test_only_the_configured_names_are_asked_for(birth: Birth) -> None:
    """Of the DNS, and of the servers in the TLS handshake."""
    assert birth.asked == set(CONFIGURED)
    assert birth.greeted == set(CONFIGURED)


async def test_nothing_new_comes_in(fresh: Lab, birth: Birth) -> None:
    """The daemons' ports are open inside the pod and shut to the internet and to S3's side."""
    ports = (pod.PAGES_PORT, pod.WEBHOOK_PORT)
    mark = fresh.wire.catch_up()
    for port in ports:
        assert await far.reachable(fresh.spaces[POD], POD_ADDRESS, port)
        came = await asyncio.gather(
            far.reachable(fresh.spaces[INTERNET], POD_ADDRESS, port),
            far.reachable(fresh.spaces[S3], POD_ADDRESS, port),
        )
        assert not any(came)
    fresh.wire.catch_up()
    knocks = [p for p in fresh.wire.packets[mark:] if p.opens and p.target == POD_ADDRESS]
    assert {p.interface for p in knocks} == {"internet0", "gateway0"}  # they did knock
    assert fresh.counts()["refused_in"] == len(knocks) >= 2 * len(ports)
    opened = [p for p in birth.packets if p.opens]
    assert {p.source for p in opened} == {POD_ADDRESS}


async def test_without_the_gateway_route_s3_fails_and_goes_nowhere_else(fresh: Lab) -> None:
    """Billing is held and nothing of it lost; no packet goes round by the internet."""
    mark = fresh.wire.catch_up()
    namespaces.gateway_route(present=False)
    await eventually(fresh.last_error, {"timeout", "connection"})
    held = len(fresh.far.s3.objects)
    await fresh.delivered(s3=False)
    counts = fresh.counts()
    assert counts["off_the_endpoint"] > 0
    assert counts["s3_by_internet"] == 0
    fresh.wire.catch_up()
    by_internet = ends(fresh.wire.packets[mark:], "internet0", leaving=True)
    assert by_internet == https(SQS_ADDRESS, PLANE_ADDRESS)
    assert len(fresh.far.s3.objects) == held
    await fresh.back_to_normal()


async def test_s3_asked_from_the_internet_refuses_by_the_bucket_policy(fresh: Lab) -> None:
    """Where no rule stops the way round, the rendered bucket policy does: held, nothing lost."""
    fresh.load(endpoint_only=False)
    refused = len(fresh.far.refused_by_policy)
    namespaces.gateway_route(present=False)
    await eventually(fresh.last_error, {"forbidden"})
    held = len(fresh.far.s3.objects)
    await fresh.delivered(s3=False)
    assert fresh.counts()["s3_by_internet"] > 0  # the counter that must stay 0 can count
    assert {*fresh.far.refused_by_policy[refused:]} == {""}  # by no endpoint
    assert len(fresh.far.s3.objects) == held
    await fresh.back_to_normal()


async def test_daemons_that_are_sent_to_another_host_do_not_go(fresh: Lab) -> None:
    """All three receivers redirect to a stranger: refused and counted, not one packet or name."""
    mark, asked = fresh.wire.catch_up(), len(fresh.names.asked)
    fresh.far.send_away_to = f"https://{STRANGER_HOST}/"
    for daemon in pod.DAEMONS:
        await eventually(partial(fresh.last_error, daemon), {"redirect"})
    assert set(await fresh.pod.counted("byoc_send_attempts_total", result="redirect")) == set(
        pod.DAEMONS
    )
    refused = await fresh.pod.counted("byoc_egress_refused_total", reason="redirect")
    assert refused["+".join(pod.DAEMONS)] >= len(pod.DAEMONS)  # one a receiver
    fresh.far.send_away_to = ""
    await fresh.back_to_normal()
    assert fresh.sent_to_the_stranger(mark) == []
    assert {*fresh.names.asked[asked:]} <= set(CONFIGURED)


async def test_another_host_is_refused_by_the_gate(fresh: Lab) -> None:
    """Each way is refused and counted, and not one packet or DNS question comes out."""
    mark, asked = fresh.wire.catch_up(), len(fresh.names.asked)
    assert await fresh.script(BEHIND_THE_GATE) == [
        f"egress_refused: {STRANGER_HOST}:443 is not a destination",
        f"egress_refused: {STRANGER_ADDRESS} port 443 is not a destination",
        f"egress_refused: {STRANGER_HOST} is not a destination",
        "host 2.0",
        "address 1.0",
    ]
    assert fresh.sent_to_the_stranger(mark) == []
    assert STRANGER_HOST not in fresh.names.asked[asked:]
    assert fresh.counts()["refused_out"] == 0


async def test_another_host_is_refused_by_the_rules_past_the_gate(fresh: Lab) -> None:
    """Code without the gate sends its SYNs; the rules made from the NetworkPolicy drop them."""
    mark = fresh.wire.catch_up()
    assert await fresh.script(PAST_THE_GATE) == ["TimeoutError"]
    assert_stopped_by_the_rules(fresh, mark)


async def test_a_network_policy_without_addresses_stops_no_stranger(fresh: Lab) -> None:
    """What the command says of itself: it knows no names, so any host on port 443 is let out."""
    wide = policy.network_policies(fresh.pod.environment)
    rules.load(fresh.spaces[ROUTER], rules.allowed(wide))
    assert await fresh.script(PAST_THE_GATE) == ["went through"]
    assert fresh.counts()["refused_out"] == 0


async def test_a_daemon_set_to_another_host_is_refused_by_the_rules(fresh: Lab) -> None:
    """Its own settings open the gate; the policy that the customer applied does not."""
    mark = fresh.wire.catch_up()
    others = {
        "BYOC_ALERTS_URL": f"https://{STRANGER_HOST}/v1/events",
        "BYOC_ALERTS_LISTEN": "127.0.0.1:9096",
        "BYOC_STATE_DIR": str(fresh.pod.directory / "other"),
    }
    async with AsyncExitStack() as stack:
        await entered(stack, fresh.pod.daemons(["alert-forwarder"], 9465, **others))
        await within(PATIENCE_SECONDS, lambda: fresh.counts()["refused_out"] > 0, "a SYN")
        status = await fresh.pod.status("alert-forwarder", 9465)
    assert status["backlog"]["events"] > 0
    assert_stopped_by_the_rules(fresh, mark)


def assert_stopped_by_the_rules(lab: Lab, mark: int) -> None:
    tries = lab.sent_to_the_stranger(mark)
    assert {p.interface for p in tries} == {"pod0"}
    assert lab.counts()["refused_out"] == len(tries) > 0
    assert lab.far.stranger == []
