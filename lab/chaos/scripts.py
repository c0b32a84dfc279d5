"""Scripts of faulty paths: behaviors of `lab.fakes.http` and the services' own errors."""

import asyncio
import json
import random
from collections.abc import Callable

import msgspec

from byoc_agents.sinks.control_plane import CODES, Rejected
from lab.fakes.http import (
    Behavior,
    Exchange,
    Request,
    Script,
    close,
    cut,
    drip,
    garbage,
    hang,
    lose,
    redirect,
    reply,
    reset,
    serve,
)
from lab.fakes.s3 import s3_error

AFTER = {"retry-after": "1"}
ELSEWHERE = "http://127.0.0.1:9/elsewhere"  # nobody listens there, and nobody may ask

# (status, code) for S3 and SQS; the control plane and ClickHouse get the status alone.
S3_ERRORS = {
    "server_error": (500, "InternalError"),
    "throttled": (503, "SlowDown"),
    "forbidden": (403, "AccessDenied"),
    "credentials": (403, "InvalidAccessKeyId"),
    "not_found": (404, "NoSuchBucket"),
    "conflict": (409, "ConditionalRequestConflict"),
}
SQS_ERRORS = {
    "server_error": (503, "ServiceUnavailable"),
    "throttled": (400, "RequestThrottled"),
    "forbidden": (403, "AccessDeniedException"),
    "credentials": (403, "InvalidClientTokenId"),
    "not_found": (400, "AWS.SimpleQueueService.NonExistentQueue"),
}
REFUSALS = (413, 422)  # of one message, if another one is accepted
HTTP_ERRORS = {
    "server_error": 503, "throttled": 429, "forbidden": 403, "credentials": 401, "not_found": 404,
}  # fmt: skip
MIXED = ("reset", "close", "lost_response", "half_response", "server_error", "throttled", "slow")


def slow(seconds: float) -> Behavior:
    """Return a behavior that serves the request after a delay."""

    async def behave(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await serve(exchange)

    return behave


def refuse(status: int) -> Behavior:
    """Reject the delivery in the form of the control plane's contract."""

    async def behave(exchange: Exchange) -> None:
        body = Rejected(exchange.request.headers["webhook-id"], CODES[status])
        await reply(status, None, msgspec.json.encode(body))(exchange)

    return behave


def behavior(lane: str, kind: str, rng: random.Random) -> Behavior:
    """Return the behavior for one request."""
    simple: dict[str, Callable[[], Behavior]] = {
        "rejected": lambda: refuse(rng.choice(REFUSALS)),
        "slow": lambda: slow(rng.uniform(0.1, 1.5)),
        "reset": lambda: reset,
        "close": lambda: close,
        "lost_response": lambda: lose(rng.choice((close, reset))),
        "half_response": lambda: cut(rng.randrange(1, 60)),
        "drip": drip,
        "hang": lambda: hang,
        "garbage": garbage,
        "redirect": lambda: redirect(ELSEWHERE, rng.choice((301, 302, 307, 308))),
    }
    return simple[kind]() if kind in simple else error(lane, kind)


def error(lane: str, kind: str) -> Behavior:
    """Return the response of that service to a failure."""
    if lane == "s3":
        reported = s3_error(*S3_ERRORS[kind], headers=AFTER if kind == "throttled" else None)
        return reply(reported.status, reported.headers, reported.body)
    if lane == "sqs":
        status, code = SQS_ERRORS[kind]
        body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": "-"}).encode()
        return reply(status, {"content-type": "application/x-amz-json-1.0"}, body)
    return reply(HTTP_ERRORS[kind], AFTER if kind == "throttled" else None, b"-")


def script(lane: str, kind: str, rng: random.Random) -> Script:
    """Return the script of a fault. A mixed one serves some requests well."""
    mildly = rng.random() < 0.3  # some requests go through

    def choose(_: Request) -> Behavior:
        if (mildly or kind in {"mixed", "rejected"}) and rng.random() < 0.3:
            return serve
        return behavior(lane, rng.choice(MIXED) if kind == "mixed" else kind, rng)

    return choose
