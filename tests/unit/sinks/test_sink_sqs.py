"""The SQS sink's requests, their order, and those it never makes; real aiobotocore and sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from aiobotocore.session import AioSession
from moto.server import ThreadedMotoServer

from byoc_agents.delivery.shipper import ACTIONS, Action
from byoc_agents.egress.aws import NO_CREDENTIALS, aws_config, aws_session
from byoc_agents.egress.destinations import sqs_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Receipt
from byoc_agents.sinks.sqs import MAX_BYTES, OWN_ERRORS, SqsSink
from lab.fakes.http import Exchange, always, drip, hang, in_order, lose, redirect
from lab.fakes.sqs import Entry, FakeSqs
from tests.unit.sinks.sqs_sinks import HERE, Pair, message, reasons, said, sink_to


@pytest_asyncio.fixture
async def fresh(session: AioSession) -> AsyncIterator[Pair]:
    """Give a queue that has seen nothing."""
    async with FakeSqs() as sqs, sink_to(sqs.queue_url, session) as sink:
        yield Pair(sqs, sink)


async def test_an_attempt_ends_however_slowly_the_response_drips(fresh: Pair) -> None:
    assert reasons(await fresh.send(message("a"))) == [Reason.OK]
    fresh.sink.attempt_seconds = 0.1
    assert reasons(await fresh.send(message("b"), script=always(drip()))) == [Reason.TIMEOUT]


async def test_a_redirect_is_not_followed(fresh: Pair) -> None:
    async with FakeSqs() as stranger:
        script = always(redirect(stranger.queue_url))
        assert reasons(await fresh.send(message("a"), script=script)) == [Reason.REDIRECT]
        assert stranger.http.bytes_received == 0


async def test_a_message_arrives_with_its_group_and_its_id(fresh: Pair) -> None:
    (outcome,) = await fresh.send(message("a", "service/replica", '{"x":"\\u0001 é"}'))
    assert outcome == Receipt(Reason.OK, 200, "m-0")
    (sent,) = fresh.sqs.messages
    assert (sent.group, sent.deduplication_id) == ("service/replica", "a")
    assert sent.body == '{"x":"\\u0001 é"}'


async def test_ten_groups_share_one_request(fresh: Pair) -> None:
    outcomes = await fresh.send(*(message(f"m{i}", f"g{i}") for i in range(10)))
    assert reasons(outcomes) == [Reason.OK] * 10
    assert fresh.requests() == [[f"m{i}" for i in range(10)]]


async def test_a_group_goes_one_request_after_the_other(fresh: Pair) -> None:
    batch = [message("a1", "a"), message("a2", "a"), message("b1", "b"), message("a3", "a")]
    outcomes = await fresh.send(*batch)
    assert reasons(outcomes) == [Reason.OK] * 4
    assert fresh.requests() == [["a1", "b1"], ["a2"], ["a3"]]


@pytest.mark.parametrize("fault", [True, False])
async def test_nothing_of_a_group_passes_a_failure_and_other_groups_go_on(
    fresh: Pair, fault: bool
) -> None:
    def refuse(entry: Entry) -> dict[str, Any] | None:
        broken = entry["MessageDeduplicationId"] == "a1"
        code = "ThrottlingException" if fault else "InternalError"
        return {"Code": code, "SenderFault": fault} if broken else None

    fresh.sqs.refuse = refuse
    batch = [message("a1", "a"), message("b1", "b"), message("a2", "a"), message("b2", "b")]
    outcomes = await fresh.send(*batch)
    why = Reason.THROTTLED if fault else Reason.SERVER_ERROR
    assert reasons(outcomes) == [why, Reason.OK, why, Reason.OK]
    assert [sent.deduplication_id for sent in fresh.sqs.messages] == ["b1", "b2"]


async def test_a_message_that_is_refused_for_good_does_not_hold_up_its_group(fresh: Pair) -> None:
    fresh.sqs.refuse = lambda entry: (
        {"Code": "InvalidMessageContents", "SenderFault": True}
        if entry["MessageDeduplicationId"] == "a1"
        else None
    )
    outcomes = await fresh.send(message("a1"), message("a2"))
    assert reasons(outcomes) == [Reason.REJECTED, Reason.OK]


def test_what_does_not_hold_up_a_group_is_what_becomes_a_dead_letter() -> None:
    assert {
        reason for reason, action in ACTIONS.items() if action is Action.DEAD_LETTER
    } == OWN_ERRORS


async def test_a_lost_response_and_a_second_try_store_once(fresh: Pair) -> None:
    first = await fresh.send(message("a"), message("b"), script=in_order(lose()))
    assert reasons(first) == [Reason.CONNECTION] * 2
    assert reasons(await fresh.send(message("a"), message("b"))) == [Reason.OK] * 2
    assert [sent.deduplication_id for sent in fresh.sqs.messages] == ["a", "b"]


async def test_a_request_that_is_too_long_as_a_whole_is_tried_message_by_message(
    fresh: Pair,
) -> None:
    script = in_order(said(400, "BatchRequestTooLong"), said(400, "BatchRequestTooLong"))
    outcomes = await fresh.send(message("a", "a"), message("b", "b"), script=script)
    assert reasons(outcomes) == [Reason.TOO_LARGE, Reason.OK]
    assert fresh.requests() == [["a", "b"], ["a"], ["b"]]


async def test_a_request_stays_within_the_bytes_of_one_batch(fresh: Pair) -> None:
    big = json.dumps("x" * (MAX_BYTES // 2))
    await fresh.send(message("a", "a", big), message("b", "b", big), message("c", "c", "{}"))
    assert fresh.requests() == [["a"], ["b", "c"]]


@pytest.mark.parametrize("body", [b"\x00", b'"\x1f"', '"\ufffe"'.encode(), b"\xff", b""])
async def test_what_is_no_xml_is_refused_here_and_the_rest_goes(fresh: Pair, body: bytes) -> None:
    bad = Message(id="bad", type="t", body=body, created_at_ms=0, group="g")
    outcomes = await fresh.send(bad, message("good"))
    assert reasons(outcomes) == [Reason.REJECTED, Reason.OK]
    assert fresh.requests() == [["good"]]


async def test_without_credentials_nothing_is_sent_and_later_ones_are_found() -> None:
    async with FakeSqs() as sqs:
        gate = Gate([sqs_destination(sqs.queue_url)])
        session = aws_session(gate, HERE)
        for provider in list(session.get_component("credential_provider").providers):
            session.get_component("credential_provider").remove(provider.METHOD)
        async with SqsSink(session, gate, sqs.queue_url, region=HERE) as sink:
            (outcome,) = await sink.send([message("a")])
            assert isinstance(outcome, SendError)
            assert (outcome.reason, outcome.detail) == (Reason.CREDENTIALS, NO_CREDENTIALS)
            assert sqs.http.requests == []
            session.set_credentials("AKIAEXAMPLE", "secret")
            assert isinstance((await sink.send([message("a")]))[0], Receipt)


async def test_the_gate_refuses_another_queue(session: AioSession) -> None:
    async with FakeSqs() as sqs, FakeSqs() as other:
        gate = Gate([sqs_destination(other.queue_url)])
        async with SqsSink(session, gate, sqs.queue_url, region=HERE) as sink:
            (outcome,) = await sink.send([message("a")])
        assert outcome.reason is Reason.EGRESS_REFUSED
        assert sqs.http.connections == 0


async def test_cancelling_a_send_leaves_a_sink_that_still_works(fresh: Pair) -> None:
    arrived = asyncio.Event()

    async def hang_and_tell(exchange: Exchange) -> None:
        arrived.set()
        await hang(exchange)

    fresh.sqs.http.script = always(hang_and_tell)
    task = asyncio.create_task(fresh.sink.send([message("a")]))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reasons(await fresh.send(message("a"))) == [Reason.OK]


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.us-east-1.amazonaws.com/1/q.fifo", "us-east-1"),
        ("https://vpce-1-a.sqs.eu-west-3.vpce.amazonaws.com/1/q.fifo", "eu-west-3"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q.fifo", "cn-north-1"),
        ("https://sqs.eu-central-1.api.aws/1/q.fifo", "eu-central-1"),
        ("https://us-west-2.queue.amazonaws.com/1/q.fifo", "us-west-2"),
        ("http://127.0.0.1:4566/queue/us-east-1/1/q.fifo", HERE),
    ],
)
def test_a_request_is_signed_for_the_region_of_the_queues_host(
    session: AioSession, url: str, region: str
) -> None:
    assert repr(SqsSink(session, Gate([]), url, region=HERE)).endswith(f" in {region})")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


async def test_a_fifo_queue_of_moto_gives_back_what_was_sent_in_order(
    moto: str, session: AioSession
) -> None:
    gate = Gate([sqs_destination(moto)])
    view = session.create_client("sqs", endpoint_url=moto, config=aws_config(gate))
    async with view as client:
        attributes = {"FifoQueue": "true"}
        made = await client.create_queue(QueueName="state.fifo", Attributes=attributes)
        batch = [message(f"m{i}", f"g{i % 2}", json.dumps({"n": i})) for i in range(6)]
        async with sink_to(made["QueueUrl"], session, endpoint_url=moto) as sink:
            assert reasons(list(await sink.send(batch))) == [Reason.OK] * 6
            assert reasons(list(await sink.send(batch))) == [Reason.OK] * 6
        got = await client.receive_message(
            QueueUrl=made["QueueUrl"], MaxNumberOfMessages=10, AttributeNames=["All"]
        )
        found: dict[str, list[int]] = {}
        for item in got["Messages"]:
            group = item["Attributes"]["MessageGroupId"]
            found.setdefault(group, []).append(json.loads(item["Body"])["n"])
    assert found == {"g0": [0, 2, 4], "g1": [1, 3, 5]}
