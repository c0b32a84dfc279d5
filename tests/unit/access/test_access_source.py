"""Polling and metrics of the broker, without a process."""

import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from byoc_agents.access.requests import MAX_RESPONSE_BYTES, RequestPoller
from byoc_agents.access.source import BrokerCollector
from byoc_agents.access.tailnet import Tailnet
from byoc_agents.errors import SendError
from lab.fakes.core import FakeClock
from lab.fakes.http import FakeHttp, Reply, always, close, garbage, hang, in_order, reply
from tests.unit.access.scripted_broker import Harness

JSON = {"content-type": "application/json"}
PAGE = Path(__file__).parents[3] / "docs" / "access.md"


@pytest.fixture
async def plane() -> AsyncIterator[FakeHttp]:
    fake = FakeHttp(apply=lambda _: Reply(200, JSON | {"etag": '"1"'}, b'{"envelopes":[{}]}'))
    async with fake:
        yield fake


@pytest.fixture
async def poller(plane: FakeHttp) -> AsyncIterator[RequestPoller]:
    async with aiohttp.ClientSession() as session:
        yield RequestPoller(
            f"{plane.url}/requests?secret",
            session,
            token=lambda: "t",
            clock=FakeClock(),
            poll_seconds=30,
            timeout_seconds=0.5,
            rng=random.Random(0),
        )


async def test_a_response_stays_until_it_is_settled_and_then_only_changes_are_asked(
    plane: FakeHttp, poller: RequestPoller
) -> None:
    await poller.poll()
    response = poller.take()
    assert response is not None
    assert (response.envelopes, poller.take()) == ((b"{}",), response)
    poller.settle(response)
    assert poller.take() is None
    plane.script = in_order(reply(304))
    await poller.poll()
    assert plane.requests[1].headers["if-none-match"] == '"1"'
    assert poller.take() is None
    poller.ask_for_all()
    await poller.poll()
    assert "if-none-match" not in plane.requests[2].headers


FAULTS: dict[str, Any] = {
    "a page": reply(200, {"content-type": "text/html"}, b"<html>"),
    "another form": reply(200, JSON, b"[]"),
    "no JSON": reply(200, JSON, b"{"),
    "too many envelopes": reply(200, JSON, b'{"envelopes":[%s1]}' % (b"1," * 64)),
    "too large": reply(200, JSON, b" " * (MAX_RESPONSE_BYTES + 1)),
    "unavailable": reply(503),
    "no login": reply(401),
    "a redirect": reply(307, {"location": "https://example.com/"}),
    "not modified, unasked": reply(304),
    "no HTTP": garbage(),
    "a closed connection": close,
    "no response in time": hang,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_failed_poll_gives_nothing_and_is_reported(
    plane: FakeHttp, poller: RequestPoller, fault: Any
) -> None:
    plane.script = always(fault)
    with pytest.raises(SendError):
        await poller.poll()
    assert poller.take() is None
    assert poller.last_error
    assert "secret" not in repr(poller) + poller.last_error


class OnePod:
    """A Deployment whose pod is there at once."""

    async def scale(self, _deployment: str, replicas: int) -> int:
        return replicas


async def test_the_metrics_are_those_of_the_page(tmp_path: Path, poller: RequestPoller) -> None:
    harness = Harness(tmp_path)
    harness.tailnet = Tailnet({"clickhouse": "db/t"}, OnePod(), harness.clock)
    async with harness.running() as broker:
        await harness.open_grant()
        families = list(BrokerCollector("access-broker", broker, poller).collect())
    found = {
        family.name + "_total" * (family.type == "counter"): {
            label for sample in family.samples for label in sample.labels if label != "daemon"
        }
        for family in families
    }
    rows = re.findall(
        r"^\| `(byoc_access_\w+)` \| (?:`(\w+)`)? ?\|", PAGE.read_text(), re.MULTILINE
    )
    assert found == {name: {label} - {""} for name, label in rows}
    values = {
        (sample.name, sample.labels.get("state")): sample.value
        for family in families
        for sample in family.samples
    }
    assert values["byoc_access_grants", "open"] == 1
