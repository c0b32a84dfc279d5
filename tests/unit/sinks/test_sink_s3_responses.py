"""Every answer S3 can give, through real aiobotocore and real sockets."""

import email.utils
import hashlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiobotocore.session import AioSession

from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Outcome, Receipt
from byoc_agents.sinks.s3 import S3Sink
from lab.fakes.http import (
    Behavior,
    always,
    close,
    cut,
    drip,
    garbage,
    hang,
    lose,
    redirect,
    reply,
    reset,
)
from lab.fakes.s3 import FakeS3
from tests.unit.sinks.s3_sinks import MESSAGE, THERE, said, sink_to


class Pair:
    """One sink and the S3 that it talks to, kept for the whole file."""

    def __init__(self, s3: FakeS3, sink: S3Sink) -> None:
        self.s3 = s3
        self.sink = sink

    async def respond_to(self, behavior: Behavior) -> Outcome:
        before = len(self.s3.http.requests)
        self.s3.http.script = always(behavior)
        (outcome,) = await self.sink.send([MESSAGE])
        assert len(self.s3.http.requests) == before + 1, "one attempt is one request"
        return outcome


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(session: AioSession) -> AsyncIterator[Pair]:
    async with FakeS3() as s3, sink_to(s3.url, session) as sink:
        yield Pair(s3, sink)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(session: AioSession) -> AsyncIterator[Pair]:
    """Give a sink with short time-outs."""
    options = {"read_timeout": 0.5, "attempt_seconds": 1.5}
    async with FakeS3() as s3, sink_to(s3.url, session, **options) as sink:
        await sink.open_client()  # which may take longer than an attempt here
        yield Pair(s3, sink)


OUR_ETAG = f'"{hashlib.md5(MESSAGE.body, usedforsecurity=False).hexdigest()}"'
SEALED = {"etag": f'"{"0" * 32}"', "x-amz-request-id": "1"}
XML = {"content-type": "application/xml"}
PAGE = {"content-type": "text/html"}
RESPONSES = [
    ("412", said(412, "PreconditionFailed"), Reason.ALREADY_STORED),
    ("409", said(409, "ConditionalRequestConflict"), Reason.CONFLICT),
    ("403", said(403, "AccessDenied"), Reason.FORBIDDEN),
    ("403 of a proxy", reply(403, body=b"<html>blocked</html>"), Reason.FORBIDDEN),
    ("403 of another region", said(403, "AccessDenied", THERE), Reason.WRONG_REGION),
    ("expired token", said(400, "ExpiredToken"), Reason.CREDENTIALS),
    ("unknown key", said(403, "InvalidAccessKeyId"), Reason.CREDENTIALS),
    ("signature", said(403, "SignatureDoesNotMatch"), Reason.CREDENTIALS),
    ("skew", said(403, "RequestTimeTooSkewed"), Reason.CREDENTIALS),
    ("401", reply(401), Reason.CREDENTIALS),
    ("404", said(404, "NoSuchBucket"), Reason.NOT_FOUND),
    ("301", said(301, "PermanentRedirect", THERE), Reason.WRONG_REGION),
    ("301 without a region", said(301, "PermanentRedirect"), Reason.WRONG_REGION),
    ("307 temporary", said(307, "TemporaryRedirect"), Reason.WRONG_REGION),
    ("307 of nobody", reply(307, {"location": "http://127.0.0.1:1/"}), Reason.REDIRECT),
    (
        "malformed authorization of another region",
        said(400, "AuthorizationHeaderMalformed", more="<Region>us-west-2</Region>"),
        Reason.WRONG_REGION,
    ),
    ("malformed authorization", said(400, "AuthorizationHeaderMalformed"), Reason.CREDENTIALS),
    ("location", said(400, "IllegalLocationConstraintException"), Reason.WRONG_REGION),
    ("digest", said(400, "BadDigest"), Reason.CHECKSUM),
    ("payload hash", said(400, "XAmzContentSHA256Mismatch"), Reason.CHECKSUM),
    ("too large", said(400, "EntityTooLarge"), Reason.TOO_LARGE),
    ("too large by another status", said(413, "EntityTooLarge"), Reason.BAD_RESPONSE),
    ("key too long by another status", said(500, "KeyTooLongError"), Reason.BAD_RESPONSE),
    (
        "no error document",
        reply(400, XML, b"<Oops><Code>KeyTooLongError</Code></Oops>"),
        Reason.BAD_RESPONSE,
    ),
    (
        "an error inside another document",
        reply(412, XML, b"<x><Error><Code>PreconditionFailed</Code></Error></x>"),
        Reason.BAD_RESPONSE,
    ),
    (
        "half an error document",
        reply(412, XML, b"<Error><Code>PreconditionFailed</Code>"),
        Reason.BAD_RESPONSE,
    ),
    ("413 of a proxy", reply(413), Reason.BAD_RESPONSE),
    ("413 page of a proxy", reply(413, PAGE, b"<html>"), Reason.BAD_RESPONSE),
    ("key too long", said(400, "KeyTooLongError"), Reason.REJECTED),
    ("412 page of a firewall", reply(412, PAGE, b"<html>blocked</html>"), Reason.BAD_RESPONSE),
    ("412 without a body", reply(412), Reason.BAD_RESPONSE),
    ("412 with another code", said(412, "InvalidRange"), Reason.BAD_RESPONSE),
    (
        "412 of another condition",
        said(412, "PreconditionFailed", more="<Condition>Bucket POST must be ...</Condition>"),
        Reason.BAD_RESPONSE,
    ),
    (
        "412 of our condition",
        said(412, "PreconditionFailed", more="<Condition>If-None-Match</Condition>"),
        Reason.ALREADY_STORED,
    ),
    ("409 that says 412's code", said(409, "PreconditionFailed"), Reason.BAD_RESPONSE),
    ("304 of old MinIO", reply(304, {"etag": OUR_ETAG}), Reason.ALREADY_STORED),
    (
        "304 of MinIO",
        reply(304, {"etag": '"x"', "server": "MinIO", "x-amz-request-id": "1"}),
        Reason.ALREADY_STORED,
    ),
    (
        "304 of a cache in front of MinIO",
        reply(304, {"etag": '"x"', "server": "MinIO"}),
        Reason.BAD_RESPONSE,
    ),
    ("304 of a cache", reply(304, {"etag": '"cached"'}), Reason.BAD_RESPONSE),
    ("304 without an ETag", reply(304), Reason.BAD_RESPONSE),
    ("400 page of a load balancer", reply(400, PAGE, b"<html>"), Reason.BAD_RESPONSE),
    ("400 without a body", reply(400), Reason.BAD_RESPONSE),
    ("400 with an unknown code", said(400, "Surprise"), Reason.BAD_RESPONSE),
    ("417", reply(417), Reason.BAD_RESPONSE),
    ("setting: argument", said(400, "InvalidArgument"), Reason.FORBIDDEN),
    ("setting: request", said(400, "InvalidRequest"), Reason.FORBIDDEN),
    ("setting: storage class", said(400, "InvalidStorageClass"), Reason.FORBIDDEN),
    ("setting: encryption", said(400, "InvalidEncryptionAlgorithmError"), Reason.FORBIDDEN),
    ("setting: header", said(400, "MissingSecurityHeader"), Reason.FORBIDDEN),
    ("setting: endpoint", said(400, "IncorrectEndpoint"), Reason.NOT_FOUND),
    ("200 with only an ETag", reply(200, {"etag": '"a"'}), Reason.BAD_RESPONSE),
    ("slow upload", said(400, "RequestTimeout"), Reason.TIMEOUT),
    ("customer key off", said(400, "KMS.DisabledException"), Reason.FORBIDDEN),
    ("501", said(501, "NotImplemented"), Reason.FORBIDDEN),
    ("429", reply(429), Reason.THROTTLED),
    ("503 slow down", said(503, "SlowDown"), Reason.THROTTLED),
    ("503", reply(503), Reason.SERVER_ERROR),
    ("500", said(500, "InternalError"), Reason.SERVER_ERROR),
    ("500 garbage", reply(500, body=b"<<<"), Reason.SERVER_ERROR),
    ("418", reply(418), Reason.BAD_RESPONSE),
    ("200 without an ETag", reply(200), Reason.BAD_RESPONSE),
    ("200 of a login page", reply(200, {"etag": '"a"'}, b"<html><p>hi"), Reason.BAD_RESPONSE),
    ("200 with a body and our ETag", reply(200, {"etag": OUR_ETAG}, b"stored"), Reason.OK),
    ("200 with our ETag", reply(200, {"etag": OUR_ETAG}), Reason.OK),
    ("200 of an encrypting store", reply(200, SEALED), Reason.OK),
    (
        "200 with a request id and an ETag that S3 does not make",
        reply(200, SEALED | {"etag": '"latest"'}),
        Reason.BAD_RESPONSE,
    ),
    ("200 with an error", said(200, "InternalError"), Reason.SERVER_ERROR),
    (
        "200 with another checksum",
        reply(200, {"etag": '"a"', "x-amz-checksum-sha256": "AAAA"}),
        Reason.CHECKSUM,
    ),
    ("closed", close, Reason.CONNECTION),
    ("reset", reset, Reason.CONNECTION),
    ("cut in the head", cut(20), Reason.CONNECTION),
    (
        "cut in the body",
        garbage(b"HTTP/1.1 500 -\r\ncontent-length: 99\r\n\r\n<Err"),
        Reason.CONNECTION,
    ),
    ("no HTTP", garbage(), Reason.BAD_RESPONSE),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("behavior", "reason"), [row[1:] for row in RESPONSES], ids=[row[0] for row in RESPONSES]
)
async def test_each_response_is_a_reason(behavior: Behavior, reason: Reason, pair: Pair) -> None:
    outcome = await pair.respond_to(behavior)
    assert outcome.reason is reason
    assert isinstance(outcome, Receipt) == (reason in {Reason.OK, Reason.ALREADY_STORED})


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("behavior", [hang, lose(hang)], ids=["before", "after it was done"])
async def test_silence_ends_with_the_read_time_out(behavior: Behavior, hasty: Pair) -> None:
    outcome = await hasty.respond_to(behavior)
    assert outcome.reason is Reason.TIMEOUT


@pytest.mark.asyncio(loop_scope="module")
async def test_a_drip_that_never_ends_ends_with_the_attempt(hasty: Pair) -> None:
    outcome = await hasty.respond_to(drip())
    assert (outcome.reason, outcome.detail) == (Reason.TIMEOUT, "no response within 1.5 s")  # type: ignore[union-attr]


async def test_a_port_that_nobody_listens_on_is_a_connection_error(session: AioSession) -> None:
    async with FakeS3() as gone:
        pass
    async with sink_to(gone.url, session) as sink:
        (outcome,) = await sink.send([MESSAGE])
    assert outcome.reason is Reason.CONNECTION


@pytest.mark.asyncio(loop_scope="module")
async def test_the_wrong_region_is_named_with_ours(pair: Pair) -> None:
    outcome = await pair.respond_to(said(301, "PermanentRedirect", THERE))
    assert isinstance(outcome, SendError)
    assert outcome.detail == (
        "301 PermanentRedirect: the bucket is in us-west-2, we are in eu-west-1"
    )


LONG_AGO = {"date": "Sun, 06 Nov 1994 08:49:37 GMT"}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("behavior", "hint"),
    [
        (said(403, "RequestTimeTooSkewed"), "the clock is off: AWS refuses a skew"),
        (said(400, "RequestExpired"), "the clock is off"),
        (said(403, "RequestTimeTooSkewed", LONG_AGO), "s ahead of the receiver's"),
        (said(403, "SignatureDoesNotMatch", LONG_AGO), "s ahead of the receiver's"),
        (said(400, "ExpiredToken", LONG_AGO), "s ahead of the receiver's"),
        (said(403, "AccessDenied", LONG_AGO), "s ahead of the receiver's"),
    ],
)
async def test_a_wrong_clock_is_named(pair: Pair, behavior: Behavior, hint: str) -> None:
    assert hint in str(await pair.respond_to(behavior))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_right_clock_is_not_blamed(pair: Pair) -> None:
    now = {"date": email.utils.formatdate(usegmt=True)}
    for behavior in (said(403, "SignatureDoesNotMatch", now), said(403, "SignatureDoesNotMatch")):
        assert "clock" not in str(await pair.respond_to(behavior))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "99999999"}, 99999999.0),  # the shipper waits an hour at most
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:37 GMT", **LONG_AGO}, 60.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:37 GMT"}, 0.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:37 +99999999999999"}, None),
        ({"retry-after": "Sun, 99 Nov 1994 08:50:37 GMT"}, None),
    ],
    ids=str,
)
async def test_retry_after_is_handed_on(
    headers: dict[str, str], seconds: float | None, pair: Pair
) -> None:
    outcome = await pair.respond_to(said(503, "SlowDown", headers))
    assert isinstance(outcome, SendError)
    assert outcome.retry_after_seconds == seconds


@pytest.mark.asyncio(loop_scope="module")
async def test_an_unreadable_head_is_held_with_the_readers_own_reason(pair: Pair) -> None:
    outcome = await pair.respond_to(garbage(b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n"))
    assert outcome.reason is Reason.BAD_RESPONSE
    assert "unreadable response: " in str(outcome)
    assert "Invalid header" in str(outcome)


@pytest.mark.asyncio(loop_scope="module")
async def test_no_redirect_is_followed_to_the_same_host(pair: Pair) -> None:
    outcome = await pair.respond_to(redirect("/bucket/elsewhere", 308))
    assert outcome.reason is Reason.REDIRECT


@pytest.mark.asyncio(loop_scope="module")
async def test_an_error_tells_no_secret(pair: Pair) -> None:
    odd = said(400, "Odd\nsecret-key-of-test?X-Amz-Signature=1" + "x" * 100)
    outcome = await pair.respond_to(odd)
    assert isinstance(outcome, SendError)
    assert "\n" not in outcome.detail
    assert len(outcome.detail) < 80
    for behavior in (close, garbage(), said(403, "SignatureDoesNotMatch")):
        text = repr(await pair.respond_to(behavior))
        assert "secret" not in text
        assert "token-of-test" not in text
        assert MESSAGE.id not in text
