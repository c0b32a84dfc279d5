"""One line of the ledger before each request, and one after it, whatever sends it."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest
from aiobotocore.session import AioSession
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import BotoCoreError

from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.delivery.sink import Sink
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.aws import AwsHttpSession
from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import Reason
from byoc_agents.ledger.format import IntentLine, ReceiptLine
from byoc_agents.message import Message
from byoc_agents.sinks.directory import DirectorySink
from byoc_agents.sinks.https import HttpsSink
from lab.fakes.core import FakeClock
from lab.fakes.http import (
    Behavior,
    FakeHttp,
    Request,
    Script,
    close,
    in_order,
    lose,
    reply,
    reset,
    serve,
)
from lab.fakes.s3 import FakeS3
from lab.fakes.sqs import FakeSqs
from tests.unit.ledger.ledger_fakes import checked, ledger, lines
from tests.unit.sinks import s3_sinks, sqs_sinks

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cyBvZiB0aGUgbGVkZ2Vy"
Sent = list[tuple[list[str], list[Reason]]]


class Deliveries:
    """A shipper with a real ledger in front of a sink."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def attempt(self, sink: Sink, messages: Sequence[Message], attempts: int = 1) -> Sent:
        """Try to deliver; return the messages and the outcomes of each line pair of the ledger."""
        clock = FakeClock()
        async with (
            Spool(self._directory / "spool", max_bytes=1 << 20, clock=clock) as spool,
            ledger(self._directory / "ledger") as made,
        ):
            await spool.put(*messages)
            shipper = Shipper(
                "d", spool=spool, sink=sink, ledger=made, clock=clock, metrics=Metrics()
            )
            for _ in range(attempts):
                await shipper.attempt()
        assert checked(self._directory / "ledger").ok
        found = lines(self._directory / "ledger")
        receipts = {one.intent: one for one in found if isinstance(one, ReceiptLine)}
        return [
            (
                [sent.id for sent in one.messages],
                [Reason(ended.reason) for ended in receipts[one.sequence].outcomes],
            )
            for one in found
            if isinstance(one, IntentLine)
        ]


@pytest.fixture
def deliveries(tmp_path: Path) -> Deliveries:
    return Deliveries(tmp_path)


def alert(number: int) -> Message:
    return Message(f"id-{number}", "byoc.alert.v1", b'{"id":%d}' % number, created_at_ms=0)


async def posted(script: Script, deliveries: Deliveries, number: int) -> tuple[Sent, list[Request]]:
    async with (
        FakeHttp(script) as plane,
        aiohttp.ClientSession() as session,
    ):
        sink = HttpsSink(
            f"{plane.url}/v1/events",
            session,
            token=lambda: "token",
            signing_secret=lambda: SECRET,
            clock=FakeClock(),
            proof=False,
        )
        sent = await deliveries.attempt(sink, [alert(n) for n in range(number)])
        return sent, list(plane.requests)


async def test_a_rejected_batch_and_each_of_its_events_have_their_lines(
    deliveries: Deliveries,
) -> None:
    def no_batches(request: Request) -> Behavior:
        return reply(422) if "batch" in request.headers["content-type"] else serve

    sent, requests = await posted(no_batches, deliveries, 5)
    assert len(requests) == len(sent) == 6
    everything = [f"id-{n}" for n in range(5)]
    assert sent[0] == (everything, [Reason.REJECTED] * 5)
    assert sent[1:] == [([one], [Reason.OK]) for one in everything]


async def test_an_attempt_without_a_response_has_its_lines(deliveries: Deliveries) -> None:
    sent, requests = await posted(in_order(reset), deliveries, 2)
    assert len(requests) == 1
    assert sent == [(["id-0", "id-1"], [Reason.CONNECTION] * 2)]


async def test_each_request_of_a_fifo_queue_has_its_lines(
    deliveries: Deliveries, session: AioSession
) -> None:
    """The messages of a group never share a request."""
    messages = [sqs_sinks.message(f"{group}{n}", group) for n in range(3) for group in "ab"]
    async with FakeSqs() as sqs, sqs_sinks.sink_to(sqs.queue_url, session) as sink:
        sent = await deliveries.attempt(sink, messages, attempts=3)
        pair = sqs_sinks.Pair(sqs, sink)
        assert [ids for ids, _ in sent] == pair.requests()
    assert len(sent) >= 3
    assert sorted(one for ids, _ in sent for one in ids) == ["a0", "a1", "a2", "b0", "b1", "b2"]


async def test_a_queue_that_refuses_a_whole_request_has_lines_for_each_part(
    deliveries: Deliveries, session: AioSession
) -> None:
    refusing = sqs_sinks.said(400, "InvalidMessageContents")
    messages = [sqs_sinks.message(name, name) for name in "abc"]
    async with FakeSqs() as sqs, sqs_sinks.sink_to(sqs.queue_url, session) as sink:
        sqs.http.script = in_order(refusing)
        sent = await deliveries.attempt(sink, messages)
        assert [ids for ids, _ in sent] == sqs_sinks.Pair(sqs, sink).requests()
    assert sent[0] == (["a", "b", "c"], [Reason.REJECTED] * 3)
    assert sent[1:] == [([one], [Reason.OK]) for one in "abc"]


@pytest.mark.parametrize("ending", [close, reset, lose()])
async def test_an_object_is_not_put_twice_behind_the_ledgers_back(
    ending: Behavior, deliveries: Deliveries, session: AioSession
) -> None:
    """The HTTP library repeats a PUT whose connection was closed, unless it cannot."""
    async with FakeS3() as s3, s3_sinks.sink_to(s3.url, session) as sink:
        s3.http.script = in_order(serve, ending)
        objects = [Message(f"v1/{n}", "t", b"body %d" % n, created_at_ms=n) for n in range(2)]
        sent = await deliveries.attempt(sink, objects, attempts=3)
        keys = [request.path.removeprefix("/bucket/") for request in s3.http.requests]
    assert keys == [one for ids, _ in sent for one in ids] == ["v1/0", "v1/1", "v1/1"]
    assert [reasons for _, reasons in sent][:2] == [[Reason.OK], [Reason.CONNECTION]]


@pytest.mark.parametrize("body", [b"body", io.BytesIO(b"body")], ids=["bytes", "stream"])
async def test_the_aws_session_sends_a_put_once(body: object) -> None:
    async with FakeHttp(in_order(serve, close, close)) as server:
        session = AwsHttpSession(Gate([https_destination(server.url)]), (5, 5))
        request = AWSPreparedRequest("PUT", f"{server.url}/key", {}, body, stream_output=False)
        async with session:
            assert (await session.send(request)).status_code == 200
            with pytest.raises(BotoCoreError):
                await session.send(request)
        assert [(one.method, one.body) for one in server.requests] == [("PUT", b"body")] * 2


async def test_a_file_has_its_lines(deliveries: Deliveries, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    sent = await deliveries.attempt(DirectorySink(tmp_path / "root"), [alert(0)])
    assert sent == [(["id-0"], [Reason.OK])]


async def test_nothing_is_sent_while_the_ledger_cannot_be_written(tmp_path: Path) -> None:
    """Not the second request of a send either."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "ledger").write_text(json.dumps("a file in place of the directory"))
    clock = FakeClock()
    async with (
        Spool(tmp_path / "spool", max_bytes=1 << 20, clock=clock) as spool,
        ledger(tmp_path / "ledger") as made,
    ):
        await spool.put(alert(0))
        sink = DirectorySink(root)
        shipper = Shipper("d", spool=spool, sink=sink, ledger=made, clock=clock, metrics=Metrics())
        error = await shipper.attempt()
        assert error
        assert error.reason is Reason.LEDGER
        assert list(root.iterdir()) == []
        assert spool.totals.events == 1
