"""Every answer SQS can give, through real aiobotocore and real sockets."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
from aiobotocore.session import AioSession

from byoc_agents.errors import Reason
from lab.fakes.http import Behaviour, always, close, cut, garbage, hang, raw, reply, reset
from lab.fakes.sqs import FakeSqs, sqs_answer
from tests.unit.sinks.sqs_sinks import Pair, message, reasons, said, sink_to

OK = {"Id": "0", "MessageId": "m", "MD5OfMessageBody": "99914b932bd37a50b983c5e7c90ae93b"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(session: AioSession) -> AsyncIterator[Pair]:
    async with FakeSqs() as sqs, sink_to(sqs.queue_url, session) as sink:
        yield Pair(sqs, sink)


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
    ("a 400 that nobody knows is held", said(400, "Surprise"), Reason.BAD_RESPONSE),
    ("413 of a proxy", reply(413), Reason.BAD_RESPONSE),
    ("key off", said(400, "KMS.DisabledException"), Reason.FORBIDDEN),
    ("no such key", said(400, "KMS.NotFoundException"), Reason.FORBIDDEN),
    ("key in a wrong state", said(400, "KMS.KMSInvalidStateException"), Reason.FORBIDDEN),
    ("key throttled", said(400, "KMS.ThrottlingException"), Reason.THROTTLED),
    ("404", reply(404), Reason.NOT_FOUND),
    ("301", reply(301, {"location": "http://127.0.0.1:1/"}), Reason.REDIRECT),
    ("418", reply(418), Reason.BAD_RESPONSE),
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
