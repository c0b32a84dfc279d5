"""One table of responses that do not come from the receiver, run over every sink.

A captive portal, a firewall, a proxy or another server answers in the receiver's place. No such
response may count as stored, and none may make a dead letter: the message stays in the spool.
"""

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiobotocore.session import AioSession

from byoc_agents.app.clock import SystemClock
from byoc_agents.delivery.shipper import ACTIONS, Action
from byoc_agents.delivery.sink import Sink
from byoc_agents.egress.aws import aws_session
from byoc_agents.egress.destinations import s3_destination, sqs_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import Reason
from byoc_agents.message import Message, Outcome
from byoc_agents.sinks.directory import DirectorySink
from byoc_agents.sinks.https import HttpsSink
from byoc_agents.sinks.s3 import S3Sink
from byoc_agents.sinks.sqs import SqsSink
from lab.fakes.http import (
    Behavior,
    FakeHttp,
    Reply,
    Request,
    always,
    close,
    garbage,
    in_order,
    reply,
    reset,
)
from lab.fakes.s3 import FakeS3, s3_error
from lab.fakes.sqs import FakeSqs, sqs_error, sqs_response

REGION = "eu-west-1"
SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()
EVENT = Message(id="event", type="t", body=b'{"id":"event"}', created_at_ms=0, group="g")
OTHER = Message(id="other", type="t", body=b'{"id":"other"}', created_at_ms=0, group="h")

HTML = {"content-type": "text/html"}
JSON = {"content-type": "application/json"}
XML = {"content-type": "application/xml"}
AWS_JSON = {"content-type": "application/x-amz-json-1.0"}
PAGE = b"<!doctype html><html><body>Log in to the network</body></html>"
ETAG = {"etag": '"5d41402abc4b2a76b9719d911017c592"'}  # of other bytes

BAD, SERVER, CONNECTION = Reason.BAD_RESPONSE, Reason.SERVER_ERROR, Reason.CONNECTION
FORBIDDEN, CREDENTIALS, NOT_FOUND = Reason.FORBIDDEN, Reason.CREDENTIALS, Reason.NOT_FOUND
THROTTLED, REDIRECT, CONFLICT = Reason.THROTTLED, Reason.REDIRECT, Reason.CONFLICT


def cut_short(status: int, headers: dict[str, str], body: bytes) -> Behavior:
    """Announce more bytes than are sent, and close."""
    return garbage(Reply(status, {**headers, "content-length": "999"}, body).encode())


# name -> (behavior, (the reason at S3, at SQS, at the control plane))
FOREIGN: dict[str, tuple[Behavior, tuple[Reason, Reason, Reason]]] = {
    "200 page of a captive portal": (reply(200, HTML, PAGE), (BAD, BAD, BAD)),
    "200 page without a content type": (reply(200, {}, PAGE), (BAD, BAD, BAD)),
    "200 page with an ETag": (reply(200, HTML | ETAG, PAGE), (BAD, BAD, BAD)),
    "200 JSON of another server": (reply(200, JSON, b'{"status":"ok"}'), (BAD, BAD, BAD)),
    "200 JSON in SQS's type": (reply(200, AWS_JSON, b'{"status":"ok"}'), (BAD, BAD, BAD)),
    "200 JSON list": (reply(200, JSON, b"[]"), (BAD, BAD, BAD)),
    "200 deeply nested JSON": (reply(200, AWS_JSON, b'{"a":' + b"[" * 9999), (BAD, BAD, BAD)),
    "200 text": (reply(200, {"content-type": "text/plain"}, b"OK"), (BAD, BAD, BAD)),
    "200 XML of another server": (reply(200, XML, b"<ok/>"), (BAD, BAD, BAD)),
    "200 truncated XML": (reply(200, XML, b"<PutObjectRes"), (BAD, BAD, BAD)),
    "200 bytes of an image": (reply(200, {"content-type": "image/png"}, b"\x89"), (BAD,) * 3),
    "200 empty": (reply(200), (BAD, BAD, BAD)),
    "200 with another ETag": (reply(200, ETAG), (BAD, BAD, BAD)),
    "200 cut short": (cut_short(200, JSON, b'{"stored":1,"dup'), (CONNECTION,) * 3),
    "201 empty": (reply(201), (BAD, BAD, BAD)),
    "202 empty": (reply(202), (BAD, BAD, BAD)),
    "203 changed by a proxy": (reply(203, JSON, b"{}"), (BAD, BAD, BAD)),
    "204": (reply(204), (BAD, BAD, BAD)),
    "206": (reply(206, JSON, b"{}"), (BAD, BAD, BAD)),
    "208": (reply(208), (BAD, BAD, BAD)),
    "301": (reply(301, {"location": "http://127.0.0.1:1/"}), (REDIRECT,) * 3),
    "302 to a portal": (reply(302, {"location": "http://127.0.0.1:1/"}, PAGE), (REDIRECT,) * 3),
    "304 of a cache": (reply(304, ETAG), (BAD, BAD, REDIRECT)),
    "307": (reply(307, {"location": "http://127.0.0.1:1/"}), (REDIRECT,) * 3),
    "308 without a location": (reply(308), (REDIRECT,) * 3),
    "400 page": (reply(400, HTML, PAGE), (BAD, BAD, BAD)),
    "400 empty": (reply(400), (BAD, BAD, BAD)),
    "400 XML of another root": (
        reply(400, XML, b"<Oops><Code>KeyTooLongError</Code></Oops>"),
        (BAD, BAD, BAD),
    ),
    "400 JSON of another server": (
        reply(400, JSON, b'{"__type":"a#InvalidMessageContents"}'),
        (BAD, BAD, BAD),
    ),
    "401 page": (reply(401, HTML, PAGE), (CREDENTIALS,) * 3),
    "403 page of a firewall": (reply(403, HTML, PAGE), (FORBIDDEN,) * 3),
    "404 page": (reply(404, HTML, PAGE), (NOT_FOUND,) * 3),
    "405 empty": (reply(405), (FORBIDDEN, FORBIDDEN, NOT_FOUND)),
    "406 page": (reply(406, HTML, PAGE), (BAD, BAD, BAD)),
    "407 of a proxy": (reply(407, {"proxy-authenticate": "Basic"}, PAGE), (CREDENTIALS,) * 3),
    "409 page": (reply(409, HTML, PAGE), (CONFLICT,) * 3),
    "412 page": (reply(412, HTML, PAGE), (BAD, BAD, BAD)),
    "412 empty": (reply(412), (BAD, BAD, BAD)),
    "412 XML of another root": (
        reply(412, XML, b"<x><Error><Code>PreconditionFailed</Code></Error></x>"),
        (BAD, BAD, BAD),
    ),
    "412 truncated XML": (
        reply(412, XML, b"<Error><Code>PreconditionFailed</Code>"),
        (BAD, BAD, BAD),
    ),
    "413 page of a proxy": (reply(413, HTML, PAGE), (BAD, BAD, BAD)),
    "413 empty": (reply(413), (BAD, BAD, BAD)),
    "413 JSON of another server": (reply(413, JSON, b'{"error":"too large"}'), (BAD, BAD, BAD)),
    "415 JSON of another server": (reply(415, JSON, b'{"error":"type"}'), (BAD, BAD, BAD)),
    "415 empty": (reply(415), (BAD, BAD, BAD)),
    "417 empty": (reply(417), (BAD, BAD, BAD)),
    "422 JSON of another server": (reply(422, JSON, b'{"detail":"blocked"}'), (BAD, BAD, BAD)),
    "422 empty": (reply(422), (BAD, BAD, BAD)),
    "422 cut short": (cut_short(422, JSON, b'{"webhook_id":"event"'), (CONNECTION,) * 3),
    "429 page": (reply(429, HTML, PAGE), (THROTTLED,) * 3),
    "431 empty": (reply(431), (BAD, BAD, BAD)),
    "451 page": (reply(451, HTML, PAGE), (BAD, BAD, FORBIDDEN)),
    "500 page": (reply(500, HTML, PAGE), (SERVER,) * 3),
    "502 page of a gateway": (reply(502, HTML, PAGE), (SERVER,) * 3),
    "503 empty": (reply(503), (SERVER,) * 3),
    "504 in another type": (reply(504, {"content-type": "image/png"}, b"\x89"), (SERVER,) * 3),
    "511 of a portal": (reply(511, HTML, PAGE), (SERVER,) * 3),
    "an unreadable head": (garbage(b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n"), (BAD, BAD, BAD)),
    "not HTTP": (garbage(), (BAD, BAD, BAD)),
    "closed": (close, (CONNECTION,) * 3),
    "reset": (reset, (CONNECTION,) * 3),
}  # fmt: skip


@asynccontextmanager
async def s3(fake: FakeHttp, session: AioSession) -> AsyncIterator[Sink]:
    gate = Gate([s3_destination("bucket", REGION, fake.url)])
    async with S3Sink(session, gate, "bucket", region=REGION, endpoint_url=fake.url) as sink:
        yield sink


@asynccontextmanager
async def sqs(fake: FakeHttp, session: AioSession) -> AsyncIterator[Sink]:
    queue = f"{fake.url}/000000000000/state.fifo"
    async with SqsSink(session, Gate([sqs_destination(queue)]), queue, region=REGION) as sink:
        yield sink


@asynccontextmanager
async def https(fake: FakeHttp, _: AioSession) -> AsyncIterator[Sink]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield HttpsSink(
            f"{fake.url}/v1/events",
            session,
            token=lambda: "token",
            signing_secret=lambda: SECRET,
            clock=SystemClock(),
        )


def stored(request: Request) -> Reply:
    """Answer in the form of the control plane's contract."""
    return Reply(204, {"webhook-id": request.headers["webhook-id"]})


SINKS = {
    "s3": (s3, FakeS3().apply),
    "sqs": (sqs, FakeSqs().apply),
    "https": (https, stored),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(SINKS))
async def far(request: pytest.FixtureRequest) -> AsyncIterator[tuple[FakeHttp, Sink, int]]:
    """Give a receiver, a sink that leads to it, and the sink's place in the table."""
    session = aws_session(Gate([]), REGION)
    session.set_credentials("AKIAEXAMPLE", "secret")
    opened, apply = SINKS[request.param]
    async with FakeHttp(apply=apply) as fake, opened(fake, session) as sink:
        yield fake, sink, list(SINKS).index(request.param)


def kept(outcome: Outcome) -> bool:
    return ACTIONS[outcome.reason] in {Action.RETRY, Action.HOLD}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("behavior", "expected"), FOREIGN.values(), ids=FOREIGN)
async def test_a_foreign_response_neither_stores_nor_rejects(
    far: tuple[FakeHttp, Sink, int], behavior: Behavior, expected: tuple[Reason, ...]
) -> None:
    fake, sink, place = far
    fake.script = always(behavior)
    fake.requests.clear()
    (outcome,) = await sink.send([EVENT])
    assert kept(outcome)
    assert outcome.reason is expected[place]
    assert len(fake.requests) == 1, "one attempt is one request"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("behavior", "expected"), FOREIGN.values(), ids=FOREIGN)
async def test_a_foreign_response_after_an_accepted_message_makes_no_dead_letter(
    far: tuple[FakeHttp, Sink, int], behavior: Behavior, expected: tuple[Reason, ...]
) -> None:
    """What the receiver accepted shortly before makes a foreign rejection no more credible."""
    fake, sink, place = far
    fake.script = in_order()
    (first,) = await sink.send([Message("first", "t", b'{"id":"first"}', 0, group="g")])
    assert ACTIONS[first.reason] is Action.DONE
    fake.script = always(behavior)
    outcomes = list(await sink.send([EVENT, OTHER][: sink.max_messages]))
    assert all(kept(outcome) for outcome in outcomes)
    assert outcomes[0].reason is expected[place]


# The receiver's own form of the same statuses, so that the table above proves something.
OWN: dict[str, tuple[int, Callable[[Request], Reply], Reason]] = {
    "S3: stored": (0, FakeS3().apply, Reason.OK),
    "S3: stored before": (0, lambda _: s3_error(412, "PreconditionFailed"), Reason.ALREADY_STORED),
    "S3: rejected": (0, lambda _: s3_error(400, "KeyTooLongError"), Reason.REJECTED),
    "S3: too large": (0, lambda _: s3_error(400, "EntityTooLarge"), Reason.TOO_LARGE),
    "SQS: stored": (1, FakeSqs().apply, Reason.OK),
    "SQS: rejected": (1, lambda _: sqs_error(400, "InvalidMessageContents"), Reason.REJECTED),
    "SQS: an entry is rejected": (
        1,
        lambda _: sqs_response({"Failed": [{"Id": "0", "Code": "InvalidMessageContents"}]}),
        Reason.REJECTED,
    ),
    "control plane: stored": (2, stored, Reason.OK),
    "control plane: counted": (
        2,
        lambda _: Reply(200, JSON, b'{"stored":1,"duplicates":0}'),
        Reason.OK,
    ),
    "control plane: stored before": (
        2,
        lambda request: Reply(208, stored(request).headers),
        Reason.ALREADY_STORED,
    ),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("place", "response", "reason"), OWN.values(), ids=OWN)
async def test_the_receivers_own_form_counts(
    far: tuple[FakeHttp, Sink, int],
    place: int,
    response: Callable[[Request], Reply],
    reason: Reason,
) -> None:
    fake, sink, at = far
    if at != place:
        return
    fake.script = lambda request: reply_with(response(request))
    (outcome,) = await sink.send([EVENT])
    assert outcome.reason is reason


def reply_with(response: Reply) -> Behavior:
    return reply(response.status, response.headers, response.body)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_control_planes_own_rejection_of_one_event_counts(
    far: tuple[FakeHttp, Sink, int],
) -> None:
    fake, sink, at = far
    if at != list(SINKS).index("https"):
        return

    def respond(request: Request) -> Behavior:
        delivery = request.headers["webhook-id"]
        if b'"event"' not in request.body:
            return reply_with(stored(request))
        body = {"webhook_id": delivery, "code": "invalid_event"}
        return reply(422, JSON, json.dumps(body).encode())

    fake.script = respond
    outcomes = await sink.send([EVENT, OTHER])
    assert [outcome.reason for outcome in outcomes] == [Reason.REJECTED, Reason.OK]


# What another program left in the place of a file, instead of a response.


def a_directory(root: Path) -> None:
    (root / EVENT.id).mkdir()


def a_link_to_nothing(root: Path) -> None:
    (root / EVENT.id).symlink_to(root / "missing")


def a_link_out(root: Path) -> None:
    (root / EVENT.id).symlink_to("/etc/hostname")


def no_root(root: Path) -> None:
    root.rmdir()


def a_file_as_root(root: Path) -> None:
    root.rmdir()
    root.write_bytes(b"")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (a_directory, Reason.FORBIDDEN),
        (a_link_to_nothing, Reason.FORBIDDEN),
        (a_link_out, Reason.FORBIDDEN),
        (no_root, Reason.NOT_FOUND),
        (a_file_as_root, Reason.NOT_FOUND),
    ],
)
async def test_what_is_not_our_file_neither_stores_nor_rejects(
    tmp_path: Path, place: Callable[[Path], None], reason: Reason
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    place(root)
    (outcome,) = await DirectorySink(root).send([EVENT])
    assert kept(outcome)
    assert outcome.reason is reason
