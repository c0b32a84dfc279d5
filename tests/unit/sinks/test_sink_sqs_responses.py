"""Every answer SQS can give, through real aiobotocore and real sockets."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
from aiobotocore.session import AioSession

from byoc_agents.errors import Reason, SendError
from lab.fakes.http import Behavior, always, close, cut, garbage, hang, raw, reply, reset
from lab.fakes.sqs import FakeSqs, sqs_response
from tests.unit.sinks.sqs_sinks import Pair, message, reasons, said, sink_to

JSON = {"content-type": "application/json"}
AWS_JSON = {"content-type": "application/x-amz-json-1.0"}
OK = {"Id": "0", "MessageId": "m", "MD5OfMessageBody": "99914b932bd37a50b983c5e7c90ae93b"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(session: AioSession) -> AsyncIterator[Pair]:
    async with FakeSqs() as sqs, sink_to(sqs.queue_url, session) as sink:
        yield Pair(sqs, sink)


def entries(*failed: Mapping[str, Any], ok: tuple[Mapping[str, Any], ...] = ()) -> Behavior:
    return raw(sqs_response({"Successful": list(ok), "Failed": list(failed)}).encode())


def failed(code: str, text: str = "", fault: bool = True) -> Behavior:
    return entries({"Id": "0", "Code": code, "Message": text, "SenderFault": fault})


RESPONSES = [
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
    ("a 400 that nobody knows is held", said(400, "Surprise"), Reason.BAD_RESPONSE),
    ("413 of a proxy", reply(413), Reason.BAD_RESPONSE),
    ("key off", said(400, "KMS.DisabledException"), Reason.FORBIDDEN),
    ("no such key", said(400, "KMS.NotFoundException"), Reason.FORBIDDEN),
    ("key in a wrong state", said(400, "KMS.KMSInvalidStateException"), Reason.FORBIDDEN),
    ("key throttled", said(400, "KMS.ThrottlingException"), Reason.THROTTLED),
    ("404", reply(404), Reason.NOT_FOUND),
    ("301", reply(301, {"location": "http://127.0.0.1:1/"}), Reason.REDIRECT),
    ("418", reply(418), Reason.BAD_RESPONSE),
    ("expired, written so", said(403, "RequestExpired"), Reason.CREDENTIALS),
    ("one message too long", said(400, "BatchRequestTooLong"), Reason.TOO_LARGE),
    ("entry: contents", failed("InvalidMessageContents"), Reason.REJECTED),
    ("entry: too long", failed("InvalidParameterValue", "shorter than 1024"), Reason.TOO_LARGE),
    ("entry: no FIFO", failed("InvalidParameterValue", "for this queue type"), Reason.NOT_FOUND),
    ("entry: an unknown code is held", failed("Whatever"), Reason.FORBIDDEN),
    ("entry: group id", failed("InvalidParameterValue", "MessageGroupId"), Reason.FORBIDDEN),
    ("entry: key off", failed("KMS.DisabledException"), Reason.FORBIDDEN),
    ("entry: key busy", failed("KMS.ThrottlingException"), Reason.THROTTLED),
    ("entry: their fault", failed("InternalError", fault=False), Reason.SERVER_ERROR),
    ("entry: throttled", failed("ThrottlingException"), Reason.THROTTLED),
    ("entry: key", failed("KmsDisabled"), Reason.FORBIDDEN),
    ("entry: not a word", entries(), Reason.BAD_RESPONSE),
    ("entry: another id", entries(ok=({**OK, "Id": "7"},)), Reason.BAD_RESPONSE),
    ("entry: other MD5", entries(ok=({**OK, "MD5OfMessageBody": "00"},)), Reason.CHECKSUM),
    ("entry: no id", entries(ok=({**OK, "MessageId": ""},)), Reason.BAD_RESPONSE),
    ("entry: fine", entries(ok=(OK,)), Reason.OK),
    ("too long by another status", said(413, "BatchRequestTooLong"), Reason.BAD_RESPONSE),
    ("contents by another status", said(503, "InvalidMessageContents"), Reason.BAD_RESPONSE),
    ("200 of somebody else", reply(200, JSON, b'{"status":"ok"}'), Reason.BAD_RESPONSE),
    (
        "200 as plain JSON",
        reply(200, JSON, json.dumps({"Successful": [OK]}).encode()),
        Reason.BAD_RESPONSE,
    ),
    ("200 with a list", reply(200, AWS_JSON, b"[]"), Reason.BAD_RESPONSE),
    ("200 with other types", reply(200, AWS_JSON, b'{"Successful": "m"}'), Reason.BAD_RESPONSE),
    ("200 with numbers", reply(200, AWS_JSON, b'{"Successful": [1]}'), Reason.BAD_RESPONSE),
    ("200 that is not UTF-8", reply(200, AWS_JSON, b'{"a":"\xff"}'), Reason.BAD_RESPONSE),
    ("200 cut", reply(200, AWS_JSON, b'{"Successful": [{"Id": "0"'), Reason.BAD_RESPONSE),
    ("400 with a list", reply(400, AWS_JSON, b"[]"), Reason.BAD_RESPONSE),
    ("400 with a number as its type", reply(400, AWS_JSON, b'{"__type": 7}'), Reason.BAD_RESPONSE),
    (
        "400 as plain JSON",
        reply(400, JSON, b'{"__type": "x#InvalidMessageContents"}'),
        Reason.BAD_RESPONSE,
    ),
    ("closed", close, Reason.CONNECTION),
    ("reset", reset, Reason.CONNECTION),
    ("cut in the head", cut(20), Reason.CONNECTION),
    ("not HTTP", garbage(), Reason.BAD_RESPONSE),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("behavior", "reason"), [x[1:] for x in RESPONSES], ids=[x[0] for x in RESPONSES]
)
async def test_each_response_is_a_reason(pair: Pair, behavior: Behavior, reason: Reason) -> None:
    (outcome,) = await pair.send(message("a"), script=always(behavior))
    assert outcome.reason is reason
    assert len(pair.sqs.http.requests) == 1, "one attempt is one request"
    assert "secret-key-of-test" not in str(outcome)


async def test_a_silent_queue_is_a_time_out(session: AioSession) -> None:
    async with FakeSqs() as sqs, sink_to(sqs.queue_url, session, read_timeout=0.1) as sink:
        sqs.http.script = always(hang)
        assert reasons(list(await sink.send([message("a")]))) == [Reason.TIMEOUT]


LONG_AGO = {"date": "Sun, 06 Nov 1994 08:49:37 GMT"}
EXPIRED = {"__type": "x#InvalidSignatureException", "message": "Signature expired: 2026"}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("behavior", "hint"),
    [
        (reply(403, AWS_JSON, json.dumps(EXPIRED).encode()), "the clock is off"),
        (said(403, "RequestTimeTooSkewed"), "the clock is off"),
        (said(403, "RequestExpired"), "the clock is off"),
        (said(403, "InvalidSignatureException", LONG_AGO), "s ahead of the receiver's"),
        (said(403, "SignatureDoesNotMatch", LONG_AGO), "s ahead of the receiver's"),
        (said(403, "ExpiredToken", LONG_AGO), "s ahead of the receiver's"),
    ],
)
async def test_a_wrong_clock_is_named(pair: Pair, behavior: Behavior, hint: str) -> None:
    (outcome,) = await pair.send(message("a"), script=always(behavior))
    assert outcome.reason is Reason.CREDENTIALS
    assert hint in str(outcome)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:37 GMT", **LONG_AGO}, 60.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:37 +99999999999999"}, None),
    ],
    ids=str,
)
async def test_retry_after_is_seconds_or_a_date(
    pair: Pair, headers: dict[str, str], seconds: float | None
) -> None:
    script = always(said(503, "ServiceUnavailable", headers))
    (outcome,) = await pair.send(message("a"), script=script)
    assert isinstance(outcome, SendError)
    assert outcome.retry_after_seconds == seconds


@pytest.mark.asyncio(loop_scope="module")
async def test_an_unreadable_head_is_held_with_the_readers_own_reason(pair: Pair) -> None:
    script = always(garbage(b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n"))
    (outcome,) = await pair.send(message("a"), script=script)
    assert outcome.reason is Reason.BAD_RESPONSE
    assert "unreadable response: " in str(outcome)
    assert "Invalid header" in str(outcome)
