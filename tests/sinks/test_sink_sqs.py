"""Every answer SQS can give, through real aiobotocore and real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiobotocore.session import AioSession
from moto.server import ThreadedMotoServer

from agents.core.errors import Reason, SendError
from agents.core.ship import FATES, Fate
from agents.core.sink import Message, Outcome, Receipt
from agents.doubles.http import (
    Behaviour,
    Exchange,
    Script,
    always,
    close,
    cut,
    drip,
    garbage,
    hang,
    in_order,
    lose,
    raw,
    redirect,
    reply,
    reset,
    serving,
)
from agents.doubles.sqs import Entry, FakeSqs, sqs_answer, sqs_error
from agents.egress.aws import NO_CREDENTIALS, aws_config, aws_session
from agents.egress.destinations import sqs_destination
from agents.egress.gate import Gate
from agents.sinks.sqs import MAX_BYTES, OWN_ERRORS, SqsSink, queue_region

HERE = "eu-west-1"
OK = {"Id": "0", "MessageId": "m", "MD5OfMessageBody": "99914b932bd37a50b983c5e7c90ae93b"}


def message(name: str, group: str = "g", body: str = "{}") -> Message:
    return Message(id=name, type="t", body=body.encode(), created_at_ms=0, group=group)


@pytest.fixture(scope="module")
def session() -> AioSession:
    """One botocore session for all: its models are slow to load."""
    made = aws_session(Gate([]), HERE)
    made.set_credentials("AKIAEXAMPLE", "secret-key-of-test", "session-token-of-test")
    return made


@asynccontextmanager
async def sink_to(queue_url: str, session: AioSession, **options: Any) -> AsyncIterator[SqsSink]:
    gate = Gate([sqs_destination(queue_url)])
    async with SqsSink(session, gate, queue_url, region=HERE, **options) as sink:
        yield sink


class Pair:
    """One sink and the queue that it talks to."""

    def __init__(self, sqs: FakeSqs, sink: SqsSink) -> None:
        self.sqs = sqs
        self.sink = sink

    def requests(self) -> list[list[str]]:
        """Return the de-duplication ids of each request, in order."""
        bodies = [json.loads(request.body)["Entries"] for request in self.sqs.http.requests]
        return [[entry["MessageDeduplicationId"] for entry in entries] for entries in bodies]

    async def send(self, *messages: Message, script: Script = serving) -> list[Outcome]:
        self.sqs.http.script = script
        self.sqs.http.requests.clear()
        return list(await self.sink.send(messages))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(session: AioSession) -> AsyncIterator[Pair]:
    async with FakeSqs() as sqs, sink_to(sqs.queue_url, session) as sink:
        yield Pair(sqs, sink)


@pytest_asyncio.fixture
async def fresh(session: AioSession) -> AsyncIterator[Pair]:
    """Give a queue that has seen nothing."""
    async with FakeSqs() as sqs, sink_to(sqs.queue_url, session) as sink:
        yield Pair(sqs, sink)


def reasons(outcomes: list[Outcome]) -> list[Reason]:
    return [outcome.reason for outcome in outcomes]


def said(status: int, code: str, headers: dict[str, str] | None = None) -> Behaviour:
    return raw(sqs_error(status, code, headers).encode())


def entries(*failed: Mapping[str, Any], ok: tuple[Mapping[str, Any], ...] = ()) -> Behaviour:
    return raw(sqs_answer({"Successful": list(ok), "Failed": list(failed)}).encode())


def failed(code: str, text: str = "", fault: bool = True) -> Behaviour:
    return entries({"Id": "0", "Code": code, "Message": text, "SenderFault": fault})


ANSWERS = [
    ("no queue", said(400, "QueueDoesNotExist"), Reason.NOT_FOUND),
    ("no queue, old", said(400, "AWS.SimpleQueueService.NonExistentQueue"), Reason.NOT_FOUND),
    ("no permission", said(403, "AccessDeniedException"), Reason.FORBIDDEN),
    ("403 of a proxy", reply(403, body=b"<html>blocked</html>"), Reason.FORBIDDEN),
    ("no key", said(400, "KmsAccessDenied"), Reason.FORBIDDEN),
    ("expired token", said(403, "ExpiredToken"), Reason.CREDENTIALS),
    ("unknown key", said(403, "InvalidClientTokenId"), Reason.CREDENTIALS),
    ("unknown key, new", said(400, "UnrecognizedClientException"), Reason.CREDENTIALS),
    ("signature", said(403, "SignatureDoesNotMatch"), Reason.CREDENTIALS),
    ("401", reply(401), Reason.CREDENTIALS),
    ("throttled", said(403, "RequestThrottled"), Reason.THROTTLED),
    ("throttled, 400", said(400, "ThrottlingException"), Reason.THROTTLED),
    ("429", reply(429), Reason.THROTTLED),
    ("500", said(500, "InternalFailure"), Reason.SERVER_ERROR),
    ("503", reply(503), Reason.SERVER_ERROR),
    ("a 400 that nobody knows is held", said(400, "Surprise"), Reason.INTERNAL),
    ("404", reply(404), Reason.NOT_FOUND),
    ("301", reply(301, {"location": "http://127.0.0.1:1/"}), Reason.REDIRECT),
    ("418", reply(418), Reason.BAD_RESPONSE),
    ("one message too long", said(400, "BatchRequestTooLong"), Reason.TOO_LARGE),
    ("entry: contents", failed("InvalidMessageContents"), Reason.REJECTED),
    ("entry: too long", failed("InvalidParameterValue", "shorter than 1024"), Reason.TOO_LARGE),
    ("entry: no FIFO", failed("InvalidParameterValue", "for this queue type"), Reason.NOT_FOUND),
    ("entry: our fault", failed("Whatever"), Reason.REJECTED),
    ("entry: their fault", failed("InternalError", fault=False), Reason.SERVER_ERROR),
    ("entry: throttled", failed("ThrottlingException"), Reason.THROTTLED),
    ("entry: key", failed("KmsDisabled"), Reason.FORBIDDEN),
    ("entry: not a word", entries(), Reason.BAD_RESPONSE),
    ("entry: another id", entries(ok=({**OK, "Id": "7"},)), Reason.BAD_RESPONSE),
    ("entry: other MD5", entries(ok=({**OK, "MD5OfMessageBody": "00"},)), Reason.CHECKSUM),
    ("entry: no id", entries(ok=({**OK, "MessageId": ""},)), Reason.BAD_RESPONSE),
    ("entry: fine", entries(ok=(OK,)), Reason.OK),
    ("closed", close, Reason.CONNECTION),
    ("reset", reset, Reason.CONNECTION),
    ("cut in the head", cut(20), Reason.CONNECTION),
    ("not HTTP", garbage(), Reason.BAD_RESPONSE),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("behaviour", "reason"), [x[1:] for x in ANSWERS], ids=[x[0] for x in ANSWERS]
)
async def test_every_answer_has_one_meaning(
    pair: Pair, behaviour: Behaviour, reason: Reason
) -> None:
    (outcome,) = await pair.send(message("a"), script=always(behaviour))
    assert outcome.reason is reason
    assert len(pair.sqs.http.requests) == 1, "one attempt is one request"
    assert "secret-key-of-test" not in str(outcome)


async def test_a_silent_queue_is_a_time_out(session: AioSession) -> None:
    async with FakeSqs() as sqs, sink_to(sqs.queue_url, session, read_timeout=0.1) as sink:
        sqs.http.script = always(hang)
        assert reasons(list(await sink.send([message("a")]))) == [Reason.TIMEOUT]


async def test_an_attempt_ends_however_slowly_the_answer_drips(fresh: Pair) -> None:
    assert reasons(await fresh.send(message("a"))) == [Reason.OK]
    fresh.sink._attempt_seconds = 0.1
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


def test_what_does_not_hold_up_a_group_is_what_the_shipper_buries() -> None:
    assert {reason for reason, fate in FATES.items() if fate is Fate.BURY} == OWN_ERRORS


async def test_a_lost_answer_and_a_second_try_store_once(fresh: Pair) -> None:
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
        ("http://127.0.0.1:4566/queue/us-east-1/1/q.fifo", None),
    ],
)
def test_the_region_of_a_queue_is_in_its_host(url: str, region: str | None) -> None:
    assert queue_region(url) == region


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
