"""Every answer S3 can give, through real aiobotocore and real sockets."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiobotocore.session import AioSession

from agents.core.errors import Reason, SendError
from agents.core.sink import Message, Outcome, Receipt
from agents.doubles.http import (
    Behaviour,
    HttpDouble,
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
)
from agents.doubles.s3 import FakeS3, s3_error
from agents.egress.aws import NO_CREDENTIALS, aws_session
from agents.egress.destinations import s3_destination
from agents.egress.gate import Gate
from agents.sinks.s3 import S3Sink

MESSAGE = Message(
    id="v1/org=o/date=2026-01-01/a-1.jsonl.zst",
    type="byoc.billing.usage.v1",
    body=b"\x28\xb5\x2f\xfd" + bytes(range(256)),
    created_at_ms=1,
    content_type="application/x-ndjson",
    content_encoding="zstd",
)
HERE = "eu-west-1"


@pytest.fixture(scope="module")
def session() -> AioSession:
    """One botocore session for all: its models are slow to load."""
    made = aws_session(Gate([]), HERE)
    made.set_credentials("AKIAEXAMPLE", "secret-key-of-test", "session-token-of-test")
    return made


@asynccontextmanager
async def sink_to(url: str, session: AioSession, **options: Any) -> AsyncIterator[S3Sink]:
    gate = Gate([s3_destination("bucket", HERE, url)])
    settings: dict[str, Any] = {"region": HERE, "endpoint_url": url} | options
    async with S3Sink(session, gate, "bucket", **settings) as sink:
        yield sink


class Pair:
    """One sink and the S3 that it talks to, kept for the whole file."""

    def __init__(self, s3: FakeS3, sink: S3Sink) -> None:
        self.s3 = s3
        self.sink = sink

    async def answer_to(self, behaviour: Behaviour) -> Outcome:
        before = len(self.s3.http.requests)
        self.s3.http.script = always(behaviour)
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
        await sink._open_client()  # which may take longer than an attempt here
        yield Pair(s3, sink)


def said(
    status: int, code: str, headers: dict[str, str] | None = None, more: str = ""
) -> Behaviour:
    return raw(s3_error(status, code, headers, more).encode())


THERE = {"x-amz-bucket-region": "us-west-2"}
ANSWERS = [
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
    ("413", reply(413), Reason.TOO_LARGE),
    ("other 400", said(400, "InvalidArgument"), Reason.REJECTED),
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
    # botocore reads a 200 with a body as the 500 that S3 may write into one
    ("200 of a login page", reply(200, {"etag": '"a"'}, b"<html><p>hi"), Reason.SERVER_ERROR),
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
    ("behaviour", "reason"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS]
)
async def test_an_answer_becomes_its_reason(
    behaviour: Behaviour, reason: Reason, pair: Pair
) -> None:
    outcome = await pair.answer_to(behaviour)
    assert outcome.reason is reason
    assert isinstance(outcome, Receipt) == (reason is Reason.ALREADY_STORED)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("behaviour", [hang, lose(hang)], ids=["before", "after it was done"])
async def test_silence_ends_with_the_read_time_out(behaviour: Behaviour, hasty: Pair) -> None:
    outcome = await hasty.answer_to(behaviour)
    assert outcome.reason is Reason.TIMEOUT


@pytest.mark.asyncio(loop_scope="module")
async def test_a_drip_that_never_ends_ends_with_the_attempt(hasty: Pair) -> None:
    outcome = await hasty.answer_to(drip())
    assert (outcome.reason, outcome.detail) == (Reason.TIMEOUT, "no answer within 1.5 s")  # type: ignore[union-attr]


async def test_a_port_that_nobody_listens_on_is_a_connection_error(session: AioSession) -> None:
    async with FakeS3() as gone:
        pass
    async with sink_to(gone.url, session) as sink:
        (outcome,) = await sink.send([MESSAGE])
    assert outcome.reason is Reason.CONNECTION


async def test_a_put_is_conditional_checked_and_typed(session: AioSession) -> None:
    async with (
        FakeS3(owner="123456789012") as s3,
        sink_to(s3.url, session, expected_bucket_owner="123456789012") as sink,
    ):
        (receipt,) = await sink.send([MESSAGE])
    (request,) = s3.http.requests
    wanted = {
        "if-none-match": "*",
        "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(MESSAGE.body).digest()).decode(),
        "x-amz-expected-bucket-owner": "123456789012",
        "x-amz-security-token": "session-token-of-test",
        "content-type": "application/x-ndjson",
        "content-encoding": "zstd",
        "content-length": str(len(MESSAGE.body)),
    }
    assert {name: request.headers.get(name) for name in wanted} == wanted
    assert (request.method, request.path) == ("PUT", f"/bucket/{MESSAGE.id}")
    assert s3.objects == {MESSAGE.id: MESSAGE.body}
    assert receipt == Receipt(Reason.OK, 200, hashlib.md5(MESSAGE.body).hexdigest())


async def test_another_owner_of_the_bucket_is_forbidden(session: AioSession) -> None:
    async with (
        FakeS3(owner="999999999999") as s3,
        sink_to(s3.url, session, expected_bucket_owner="123456789012") as sink,
    ):
        (outcome,) = await sink.send([MESSAGE])
    assert outcome.reason is Reason.FORBIDDEN
    assert s3.objects == {}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_wrong_region_is_named_with_ours(pair: Pair) -> None:
    outcome = await pair.answer_to(said(301, "PermanentRedirect", THERE))
    assert isinstance(outcome, SendError)
    assert outcome.detail == (
        "301 PermanentRedirect: the bucket is in us-west-2, we are in eu-west-1"
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_a_wrong_clock_is_named(pair: Pair) -> None:
    outcome = await pair.answer_to(said(403, "RequestTimeTooSkewed"))
    assert "clock" in str(outcome)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7.0), ("99999999", 86400.0), ("soon", None), ("-1", None)]
)
async def test_retry_after_is_handed_on(text: str, seconds: float | None, pair: Pair) -> None:
    outcome = await pair.answer_to(said(503, "SlowDown", {"retry-after": text}))
    assert isinstance(outcome, SendError)
    assert outcome.retry_after_seconds == seconds


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_sends_a_byte_to_the_other_port(status: int, session: AioSession) -> None:
    async with (
        HttpDouble() as stranger,
        FakeS3(always(redirect(stranger.url, status))) as s3,
        sink_to(s3.url, session) as sink,
    ):
        (outcome,) = await sink.send([MESSAGE])
    assert outcome.reason is Reason.REDIRECT
    assert (stranger.connections, stranger.bytes_received) == (0, 0)


@pytest.mark.asyncio(loop_scope="module")
async def test_no_redirect_is_followed_to_the_same_host(pair: Pair) -> None:
    outcome = await pair.answer_to(redirect("/bucket/elsewhere", 308))
    assert outcome.reason is Reason.REDIRECT


@pytest.mark.parametrize("headers", [{}, THERE], ids=["without a region", "with a region"])
async def test_the_region_redirector_asks_and_moves_nothing(
    headers: dict[str, str], session: AioSession
) -> None:
    async with (
        FakeS3(always(said(301, "PermanentRedirect", headers))) as s3,
        sink_to(s3.url, session) as sink,
    ):
        for _ in range(2):
            await sink.send([MESSAGE])
    assert [request.method for request in s3.http.requests] == ["PUT", "PUT"]


@pytest.mark.asyncio(loop_scope="module")
async def test_an_error_tells_no_secret(pair: Pair) -> None:
    odd = said(400, "Odd\nsecret-key-of-test?X-Amz-Signature=1" + "x" * 100)
    outcome = await pair.answer_to(odd)
    assert isinstance(outcome, SendError)
    assert "\n" not in outcome.detail
    assert len(outcome.detail) < 80
    for behaviour in (close, garbage(), said(403, "SignatureDoesNotMatch")):
        text = repr(await pair.answer_to(behaviour))
        assert "secret" not in text
        assert "token-of-test" not in text
        assert MESSAGE.id not in text


async def test_one_connection_serves_many_sends(session: AioSession) -> None:
    async with FakeS3() as s3, sink_to(s3.url, session) as sink:
        for _ in range(3):
            await sink.send([MESSAGE])
    assert s3.http.connections == 1


async def test_no_credentials_say_what_is_wanted_and_are_asked_for_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    bare = aws_session(Gate([]), HERE)
    async with FakeS3() as s3, sink_to(s3.url, bare) as sink:
        (first,) = await sink.send([MESSAGE])
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        (second,) = await sink.send([MESSAGE])
    assert isinstance(first, SendError)
    assert (first.reason, first.detail) == (Reason.CREDENTIALS, NO_CREDENTIALS)
    assert second.reason is Reason.OK


async def test_a_failing_credential_agent_is_credentials_and_recovers(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (
        b'{"AccessKeyId":"A","SecretAccessKey":"S","Token":"T","Expiration":"2099-01-01T00:00:00Z"}'
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    script = in_order(garbage(), then=reply(200, body=keys))
    async with HttpDouble(script) as agent, FakeS3() as s3:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.url)
        async with sink_to(s3.url, aws_session(Gate([]), HERE)) as sink:
            outcomes = [(await sink.send([MESSAGE]))[0] for _ in range(2)]
    assert [outcome.reason for outcome in outcomes] == [Reason.CREDENTIALS, Reason.OK]


async def test_a_host_that_is_no_destination_is_refused(session: AioSession) -> None:
    async with (
        FakeS3() as s3,
        S3Sink(session, Gate([]), "bucket", region=HERE, endpoint_url=s3.url) as sink,
    ):
        (outcome,) = await sink.send([MESSAGE])
    assert outcome.reason is Reason.EGRESS_REFUSED
    assert s3.http.connections == 0


@pytest.mark.parametrize("lost", [lose(close), lose(reset), cut(9)], ids=["closed", "reset", "cut"])
async def test_a_lost_answer_and_its_retry_have_one_effect(
    lost: Behaviour, session: AioSession
) -> None:
    async with FakeS3(in_order(lost)) as s3, sink_to(s3.url, session) as sink:
        outcomes = [(await sink.send([MESSAGE]))[0].reason for _ in range(2)]
    assert outcomes == [Reason.CONNECTION, Reason.ALREADY_STORED]
    assert s3.applied(MESSAGE.id) == 1


async def test_cancelling_closes_nothing_for_the_next_send(session: AioSession) -> None:
    there = asyncio.Event()
    s3 = FakeS3(in_order(lose(hang)), on_put=lambda _: there.set())
    async with s3, sink_to(s3.url, session) as sink:
        first = asyncio.ensure_future(sink.send([MESSAGE]))
        await there.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        (outcome,) = await sink.send([MESSAGE])
    assert outcome.reason is Reason.ALREADY_STORED
    assert s3.applied(MESSAGE.id) == 1
