"""The HTTPS sink: its requests, the outcome of each response, and requests it never sends."""

import asyncio
import base64
import datetime as dt
import email.utils
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from byoc_agents.app.clock import SystemClock
from byoc_agents.delivery.shipper import ACTIONS, Action
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Receipt
from byoc_agents.sinks.control_plane import proves_storage
from byoc_agents.sinks.http_responses import retry_after_seconds, skew_seconds
from byoc_agents.sinks.https import (
    HttpsSink,
    batch_id,
    reason_of,
    signing_keys,
)

OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()
NOW_NS = 1_795_000_000_000_000_000


@dataclass
class Request:
    headers: dict[str, str]
    body: bytes


Respond = Callable[[Request], web.Response]


def stored(request: Request, status: int = 202, **headers: str) -> web.Response:
    """Answer as the contract demands of a 2xx without a body."""
    return web.Response(
        status=status, headers={"webhook-id": request.headers["webhook-id"], **headers}
    )


CODES = {413: "too_large", 415: "unsupported_media_type", 422: "invalid_event"}


def rejected(request: Request, status: int = 422, **changes: str) -> web.Response:
    """Answer as the contract demands of a rejection."""
    body = {"webhook_id": request.headers["webhook-id"], "code": CODES[status]} | changes
    return web.json_response(body, status=status)


def respond_with(request: Request, status: int) -> web.Response:
    return rejected(request, status) if status in CODES else stored(request, status)


@dataclass
class Far:
    """The receiver: keeps every request and responds with `respond`."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    respond: Respond = stored

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(Request(dict(request.headers), await request.read()))
        return self.respond(self.requests[-1])


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    far = Far()
    app = web.Application()
    app.router.add_post("/events", far.handle)
    app.router.add_route("*", "/elsewhere", far.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    far.url = f"http://127.0.0.1:{runner.addresses[0][1]}/events"
    yield far
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


Make = Callable[..., HttpsSink]


@pytest.fixture
def make(far: Far, session: aiohttp.ClientSession) -> Make:
    def make(url: str = "", token: str = "tok", secret: str = NEW, **options: float) -> HttpsSink:
        return HttpsSink(
            url or far.url,
            session,
            token=lambda: token,
            signing_secret=lambda: secret,
            clock=SystemClock(),
            **options,  # type: ignore[arg-type]
        )

    return make


def message(number: int) -> Message:
    return Message(f"id-{number}", "byoc.alert.v1", b'{"id":"id-%d"}' % number, 0)


def reasons(outcomes: Sequence[Receipt | SendError]) -> list[Reason]:
    return [outcome.reason for outcome in outcomes]


async def test_one_event_goes_alone_and_the_reference_library_takes_its_signature(
    far: Far, make: Make
) -> None:
    outcomes = await make().send([message(1)])
    assert outcomes == [Receipt(Reason.OK, 202, "id-1")]
    (request,) = far.requests
    assert request.headers["Content-Type"] == "application/cloudevents+json; charset=utf-8"
    assert request.headers["Authorization"] == "Bearer tok"
    assert request.headers["webhook-id"] == "id-1"
    assert Webhook(NEW).verify(request.body, request.headers) == {"id": "id-1"}
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(request.body + b" ", request.headers)


async def test_several_go_as_a_batch_of_the_very_same_bytes(far: Far, make: Make) -> None:
    batch = [message(1), message(2)]
    outcomes = await make().send(batch)
    assert reasons(outcomes) == [Reason.OK] * 2
    (request,) = far.requests
    assert request.body == b'[{"id":"id-1"},{"id":"id-2"}]'
    assert request.headers["Content-Type"].startswith("application/cloudevents-batch+json")
    assert request.headers["webhook-id"] == batch_id(batch)
    assert len(Webhook(NEW).verify(request.body, request.headers)) == 2


def test_a_batch_has_the_same_id_in_another_process_and_another_one_for_other_events() -> None:
    assert batch_id([message(1), message(2)]) == "2fe980da37c8f7aeedd038b6c6935bb5"
    assert batch_id([message(1)]) != batch_id([message(2)])


async def test_during_a_rotation_both_secrets_sign(far: Far, make: Make) -> None:
    await make(secret=f"{NEW} {OLD}").send([message(1)])
    for secret in (OLD, NEW):
        assert Webhook(secret).verify(far.requests[0].body, far.requests[0].headers)


TABLE = [
    ("200 201 202 204", Reason.OK, Action.DONE),
    ("208", Reason.ALREADY_STORED, Action.DONE),
    ("300 301 302 303 304 307 308", Reason.REDIRECT, Action.HOLD),
    ("401 407", Reason.CREDENTIALS, Action.HOLD),
    ("402 403 451", Reason.FORBIDDEN, Action.HOLD),
    ("404 405 410", Reason.NOT_FOUND, Action.HOLD),
    ("408", Reason.TIMEOUT, Action.RETRY),
    ("409", Reason.CONFLICT, Action.RETRY),
    ("421", Reason.CONNECTION, Action.RETRY),
    ("425 429", Reason.THROTTLED, Action.RETRY),
    ("500 501 502 503 504 599", Reason.SERVER_ERROR, Action.RETRY),
    ("413", Reason.TOO_LARGE, Action.DEAD_LETTER),
    ("415 422", Reason.REJECTED, Action.DEAD_LETTER),
    (
        "203 205 206 207 226 400 406 411 412 414 418 428 431 600 999",
        Reason.BAD_RESPONSE,
        Action.HOLD,
    ),
]


@pytest.mark.parametrize(("statuses", "reason", "action"), TABLE)
def test_a_status_has_an_action(statuses: str, reason: Reason, action: Action) -> None:
    assert {reason_of(int(status)) for status in statuses.split()} == {reason}
    assert ACTIONS[reason] is action


@pytest.mark.parametrize("status", [200, 204, 207, 208, 301, 400, 401, 403, 404, 429, 500, 503])
async def test_the_status_on_the_wire_is_the_outcome(far: Far, make: Make, status: int) -> None:
    far.respond = lambda request: stored(request, status)
    assert reasons(await make().send([message(1)])) == [reason_of(status)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(far: Far, make: Make, status: int) -> None:
    far.respond = lambda _: web.Response(status=status, headers={"Location": "/elsewhere"})
    assert reasons(await make().send([message(1)])) == [Reason.REDIRECT]
    assert len(far.requests) == 1


async def test_one_bad_event_does_not_take_its_batch_to_the_dead_letters(
    far: Far, make: Make
) -> None:
    far.respond = lambda request: respond_with(request, 422 if b"id-2" in request.body else 204)
    outcomes = await make().send([message(1), message(2), message(3)])
    assert reasons(outcomes) == [Reason.OK, Reason.REJECTED, Reason.OK]
    assert [r.headers["webhook-id"] for r in far.requests[1:]] == ["id-1", "id-2", "id-3"]


@pytest.mark.parametrize("status", [413, 415, 422])
@pytest.mark.parametrize("events", [1, 3])
async def test_a_receiver_that_rejects_everything_is_held(
    far: Far, make: Make, status: int, events: int
) -> None:
    """Nothing becomes a dead letter before the receiver accepts another event."""
    far.respond = lambda request: rejected(request, status)
    outcomes = await make().send([message(n) for n in range(events)])
    assert set(reasons(outcomes)) == {Reason.REJECTS_ALL}
    assert "no other event was accepted" in str(outcomes[0])


async def test_without_batches_the_event_before_proves_that_others_are_accepted(
    far: Far, make: Make
) -> None:
    statuses = iter([204, 422, 422])
    far.respond = lambda request: respond_with(request, next(statuses))
    sink = make(max_messages=1)
    found = [reasons(await sink.send([message(n)])) for n in range(3)]
    assert found == [[Reason.OK], [Reason.REJECTED], [Reason.REJECTS_ALL]]


@pytest.mark.parametrize("status", [200, 202, 208, 413, 422])
async def test_a_page_is_not_the_control_planes_response(far: Far, make: Make, status: int) -> None:
    """A captive portal says 200, a web firewall any status: nothing is stored, nothing rejected."""
    pages = [
        web.Response(status=status, text="<html>", content_type="text/html"),
        web.Response(status=status, text="Blocked by policy", content_type="text/plain"),
        web.Response(status=status, body=b" <!doctype html>"),
    ]
    for page in pages:
        far.respond = lambda _, page=page: page  # type: ignore[misc]
        outcomes = await make().send([message(1), message(2)])
        assert set(reasons(outcomes)) == {Reason.BAD_RESPONSE}


@pytest.mark.parametrize("status", [200, 201, 202, 204, 208])
async def test_a_2xx_without_the_contracts_proof_is_held(far: Far, make: Make, status: int) -> None:
    """Another server behind the same name answers 2xx too: nothing is stored by it."""
    far.respond = lambda _: web.Response(status=status)
    (outcome,) = await make().send([message(1)])
    assert outcome.reason is Reason.BAD_RESPONSE
    assert ACTIONS[outcome.reason] is Action.HOLD
    assert "BYOC_ALERTS_CONTRACT" in str(outcome)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"stored": 2, "duplicates": 0}, Reason.OK),
        ({"stored": 0, "duplicates": 2}, Reason.OK),
        ({"stored": 1, "duplicates": 1, "later": "field"}, Reason.OK),
        ({"stored": 1, "duplicates": 0}, Reason.BAD_RESPONSE),
        ({"stored": 3, "duplicates": -1}, Reason.BAD_RESPONSE),
        ({"stored": True, "duplicates": 1}, Reason.BAD_RESPONSE),
        ({"stored": 2}, Reason.BAD_RESPONSE),
        ({"status": "ok"}, Reason.BAD_RESPONSE),
        ([{"stored": 2, "duplicates": 0}], Reason.BAD_RESPONSE),
        ({}, Reason.BAD_RESPONSE),
    ],
    ids=str,
)
async def test_a_2xx_proves_itself_by_the_number_of_events(
    far: Far, make: Make, body: object, reason: Reason
) -> None:
    far.respond = lambda _: web.json_response(body)
    outcomes = await make().send([message(1), message(2)])
    assert reasons(outcomes) == [reason] * 2


def test_an_absent_header_is_no_proof_for_an_empty_id() -> None:
    assert not proves_storage({}, b"", "", 1)


async def test_a_proof_in_several_pieces_is_read_to_its_end(make: Make) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b'"}')
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b'{"stored":1,', b'"duplicates"', b":0}"):
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert reasons(await make(url).send([message(1)])) == [Reason.OK]


async def test_the_webhook_id_of_another_request_proves_nothing(far: Far, make: Make) -> None:
    far.respond = lambda _: web.Response(status=204, headers={"webhook-id": "id-2"})
    assert reasons(await make().send([message(1)])) == [Reason.BAD_RESPONSE]


@pytest.mark.parametrize("status", [413, 415, 422])
@pytest.mark.parametrize(
    "respond",
    [
        lambda _, status: web.Response(status=status),
        lambda _, status: web.json_response({"error": "blocked"}, status=status),
        lambda request, status: rejected(request, status, webhook_id="id-7"),
        lambda request, status: rejected(request, status, code="policy"),
        lambda request, status: rejected(
            request, status, code="too_large" if status != 413 else "invalid_event"
        ),
        stored,
    ],
    ids=["empty", "another's JSON", "another delivery", "another code", "code of another status",
         "only the header"],
)  # fmt: skip
async def test_a_rejection_without_the_contracts_body_is_held(
    far: Far, make: Make, status: int, respond: Callable[[Request, int], web.Response]
) -> None:
    """A firewall that refuses one event among accepted ones makes no dead letter."""
    far.respond = lambda request: (
        respond(request, status) if b"id-2" in request.body else stored(request)
    )
    sink = make()
    assert reasons(await sink.send([message(1)])) == [Reason.OK]
    outcomes = await sink.send([message(1), message(2), message(3)])
    assert set(reasons(outcomes)) == {Reason.BAD_RESPONSE}
    single = make(max_messages=1)
    found = [reasons(await single.send([message(n)])) for n in (1, 2)]
    assert found == [[Reason.OK], [Reason.BAD_RESPONSE]]


async def test_an_unproven_rejection_stops_a_batch_that_is_sent_one_by_one(
    far: Far, make: Make
) -> None:
    def respond(request: Request) -> web.Response:
        if request.headers["webhook-id"] == "id-2":
            return web.json_response({"error": "blocked"}, status=422)
        return respond_with(request, 422 if b"id-2" in request.body else 204)

    far.respond = respond
    outcomes = await make().send([message(1), message(2), message(3)])
    assert reasons(outcomes) == [Reason.OK, Reason.BAD_RESPONSE, Reason.BAD_RESPONSE]


@pytest.mark.parametrize("events", [1, 2])
async def test_a_400_is_held_and_a_batch_is_not_split_whatever_it_says(
    far: Far, make: Make, events: int
) -> None:
    far.respond = lambda request: web.json_response(
        {"webhook_id": request.headers["webhook-id"], "code": "invalid_event"}, status=400
    )
    outcomes = await make().send([message(n) for n in range(events)])
    assert reasons(outcomes) == [Reason.BAD_RESPONSE] * events
    assert len(far.requests) == 1


@pytest.mark.parametrize("body", [None, {"stored": 1}, {"status": "ok"}], ids=str)
async def test_the_contract_of_0_1_takes_any_2xx_with_an_empty_body_or_json(
    far: Far, make: Make, body: object
) -> None:
    far.respond = lambda _: (
        web.Response(status=202) if body is None else web.json_response(body, status=202)
    )
    assert reasons(await make(proof=False).send([message(1)])) == [Reason.OK]
    far.respond = lambda _: web.Response(status=202, text="<html>", content_type="text/html")
    assert reasons(await make(proof=False).send([message(1)])) == [Reason.BAD_RESPONSE]


async def test_the_contract_of_0_1_takes_a_rejection_beside_an_accepted_event(
    far: Far, make: Make
) -> None:
    far.respond = lambda request: web.Response(status=422 if b"id-2" in request.body else 204)
    outcomes = await make(proof=False).send([message(1), message(2)])
    assert reasons(outcomes) == [Reason.OK, Reason.REJECTED]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"HTTP/1.1 202 Accepted\r\nX: " + b"x" * 90_000, Reason.BAD_RESPONSE),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 2",
            Reason.BAD_RESPONSE,
        ),
        (b"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0", Reason.BAD_RESPONSE),
    ],
    ids=["endless header", "two lengths", "space before the colon"],
)
async def test_an_unreadable_head_is_held_with_the_readers_own_reason(
    make: Make, head: bytes, reason: Reason
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b'"}')
        writer.write(head + b"\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        (outcome,) = await make(url).send([message(1)])
    assert outcome.reason is reason
    assert reason is Reason.OK or "unreadable response: " in str(outcome)


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_clock_that_is_off_is_named_by_the_responses_date(
    far: Far, make: Make, status: int
) -> None:
    far.respond = lambda _: web.Response(
        status=status, headers={"Date": "Sun, 06 Nov 1994 08:49:37 GMT"}
    )
    (outcome,) = await make().send([message(1)])
    assert re.search(r"our clock is \d+ s ahead of the receiver's", str(outcome))


@pytest.mark.parametrize(
    ("seconds", "skew"), [(0, 0), (300, 0), (-300, 0), (660, -660), (-660, 660), (None, 0)]
)
def test_a_skew_counts_from_five_minutes(seconds: int | None, skew: int) -> None:
    then = dt.datetime.fromtimestamp(NOW_NS / 1e9 + (seconds or 0), dt.UTC)
    date = "soon" if seconds is None else email.utils.format_datetime(then, usegmt=True)
    assert skew_seconds(date, NOW_NS) == skew


async def test_one_by_one_stops_when_the_receiver_fails_so_that_order_is_kept(
    far: Far, make: Make
) -> None:
    statuses = iter([413, 204, 503])
    far.respond = lambda request: respond_with(request, next(statuses))
    outcomes = await make().send([message(1), message(2), message(3)])
    assert reasons(outcomes) == [Reason.OK, Reason.SERVER_ERROR, Reason.SERVER_ERROR]


async def test_a_batch_that_failed_is_not_split(far: Far, make: Make) -> None:
    far.respond = lambda _: web.Response(status=503, headers={"Retry-After": "7"})
    outcomes = await make().send([message(1), message(2)])
    assert reasons(outcomes) == [Reason.SERVER_ERROR] * 2
    assert isinstance(outcomes[0], SendError)
    assert outcomes[0].retry_after_seconds == 7
    assert len(far.requests) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("9" * 30, 999_999_999),
        (email.utils.format_datetime(dt.datetime.fromtimestamp(NOW_NS / 1e9 + 90, dt.UTC)), 90),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
    ],
)
def test_retry_after(header: str, seconds: float | None) -> None:
    assert retry_after_seconds(header, NOW_NS) == seconds


@pytest.mark.parametrize(
    "header",
    [
        "Sun, 06 Nov 1994 08:49:37 +99999999999999",
        "Sun, 99 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 999999 08:49:37 GMT",
        "\x00",
        "--",
    ],
)
def test_an_unusable_retry_after_never_raises(header: str) -> None:
    assert retry_after_seconds(header, NOW_NS) in {None, 0.0}
    assert retry_after_seconds(header, NOW_NS, header) in {None, 0.0}


def test_a_retry_after_date_counts_from_the_responses_own_date() -> None:
    date, then = "Mon, 23 Nov 2026 12:00:00 GMT", "Mon, 23 Nov 2026 12:00:20 GMT"
    assert retry_after_seconds(then, NOW_NS - 7200 * 10**9, date) == 20


async def test_the_receipt_keeps_the_receivers_own_request_id(far: Far, make: Make) -> None:
    far.respond = lambda request: stored(request, 200, **{"X-Request-Id": "r" * 500})
    (outcome,) = await make().send([message(1)])
    assert outcome == Receipt(Reason.OK, 200, "r" * 128)


async def test_nobody_listens(make: Make) -> None:
    closed = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    (outcome,) = await make(f"http://127.0.0.1:{port}/?secret=1").send([message(1)])
    assert isinstance(outcome, SendError)
    assert outcome.reason is Reason.CONNECTION
    assert "secret" not in outcome.detail


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"", Reason.CONNECTION),
        (b"HTTP/1.1 20", Reason.CONNECTION),
        (b"SSH-2.0-OpenSSH\r\n", Reason.BAD_RESPONSE),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 99\r\n\r\ncut", Reason.SERVER_ERROR),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut", Reason.CONNECTION),
        (b"HTTP/1.1 200 OK\r\nwebhook-id: id-1\r\nContent-Length: 99\r\n\r\n", Reason.OK),
        (b"HTTP/1.1 422 No\r\nContent-Length: 99\r\n\r\n{", Reason.CONNECTION),
    ],
    ids=["closed", "cut in the status", "not HTTP", "cut in a refusal", "cut after a yes",
         "cut after the proof", "cut in a rejection"],
)  # fmt: skip
async def test_a_broken_response(make: Make, response: bytes, reason: Reason) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b'"}')
        writer.write(response)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert reasons(await make(url).send([message(1)])) == [reason]


async def test_a_silent_receiver_is_given_up(make: Make) -> None:
    done = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        outcomes = await make(url, timeout_seconds=0.05).send([message(1)])
        done.set()
    assert reasons(outcomes) == [Reason.TIMEOUT]


@pytest.mark.parametrize(
    ("token", "secret"),
    [("a\nb", NEW), ("tök", NEW), ("tok", ""), ("tok", "whsec_!"), ("tok", "whsec_c2hvcnQ=")],
)
async def test_an_unusable_secret_is_held_and_never_sent_nor_said(
    far: Far, make: Make, token: str, secret: str
) -> None:
    (outcome,) = await make(token=token, secret=secret).send([message(1)])
    assert isinstance(outcome, SendError)
    assert outcome.reason is Reason.CREDENTIALS
    assert not far.requests
    assert token == "tok" or token not in str(outcome)
    assert not secret or secret not in str(outcome)


def test_base64_without_padding_is_the_same_key() -> None:
    assert signing_keys(OLD.rstrip("=")) == signing_keys(OLD) == [b"o" * 24]


async def test_no_secret_stands_in_its_repr(make: Make) -> None:
    sink = make("https://host.example/p?key=hidden", token="tok-secret")
    assert repr(sink) == "HttpsSink(https://host.example/p)"
    assert sink.destination == "https://host.example/p"
