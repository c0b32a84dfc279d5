"""Events to the control plane: HTTPS POST with a bearer token and a Standard Webhooks signature.

Permissions: none but the token. One event goes as application/cloudevents+json with its own id as
`webhook-id`; several go as application/cloudevents-batch+json, whose `webhook-id` is computed from
the ids inside. After a crash the same events may form another batch: the receiver's key is the
event's own `source` + `id`, never the `webhook-id` of a batch. Redirects are never followed.
"""

import base64
import binascii
import contextlib
import email.utils
import hashlib
import hmac
from collections.abc import Callable, Sequence

import aiohttp

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import stable_id
from byoc_agents.delivery.sink import Message, Outcome, Receipt
from byoc_agents.errors import Reason, SendError

SINGLE = "application/cloudevents+json; charset=utf-8"
BATCH = "application/cloudevents-batch+json; charset=utf-8"
MAX_ANSWER_BYTES = 64 * 1024  # read so that the connection can be used again; never looked at
MAX_REFERENCE = 128  # characters of the receiver's request id that go into the ledger
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64  # the Standard Webhooks specification

# What an answer means. 2xx is OK and 3xx is REDIRECT; what else is missing here is REJECTED (4xx)
# or SERVER_ERROR (5xx). What a reason leads to stands in `byoc_agents.delivery.shipper.FATES`.
REASONS = {
    208: Reason.ALREADY_STORED,
    401: Reason.CREDENTIALS,
    402: Reason.FORBIDDEN,
    403: Reason.FORBIDDEN,
    404: Reason.NOT_FOUND,
    405: Reason.NOT_FOUND,  # the path is there, but not this one: a wrong URL
    407: Reason.CREDENTIALS,  # the proxy's
    408: Reason.TIMEOUT,
    409: Reason.CONFLICT,
    410: Reason.NOT_FOUND,  # an endpoint that was taken away: a person must act
    413: Reason.TOO_LARGE,
    421: Reason.CONNECTION,  # misdirected: the next connection may reach the right server
    425: Reason.THROTTLED,
    429: Reason.THROTTLED,
    451: Reason.FORBIDDEN,
}
FIRST_3XX, FIRST_4XX, FIRST_5XX, LAST = 300, 400, 500, 599
OF_ONE = frozenset({Reason.TOO_LARGE, Reason.REJECTED})  # a batch's refusal says not whose it is


class HttpsSink:
    """One URL of the control plane."""

    def __init__(  # noqa: PLR0913  the URL, the door, two secrets, the clock and the bounds
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        token: Callable[[], str],
        signing_secret: Callable[[], str],
        clock: Clock,
        max_messages: int = 100,
        timeout_seconds: float = 30.0,
    ) -> None:
        """Send through `session`; ask for both secrets anew at each attempt."""
        self.destination = url.split("?", maxsplit=1)[0]
        self.max_messages = max_messages
        self.max_bytes = 255 * 1024  # with brackets and commas under 256 KiB, which all take
        self._url = url
        self._session = session
        self._token = token
        self._signing_secret = signing_secret
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)

    def __repr__(self) -> str:
        """Return where it sends, without a query."""
        return f"HttpsSink({self.destination})"

    async def send(self, batch: Sequence[Message]) -> Sequence[Outcome]:
        """Post once. A batch that is refused for good is sent one by one: the others are well."""
        if len(batch) == 1:
            return [await self._post(batch[0].id, batch[0].body, SINGLE)]
        outcome = await self._post(batch_id(batch), joined(batch), BATCH)
        if isinstance(outcome, SendError) and outcome.reason in OF_ONE:
            return await self._one_by_one(batch)
        return [outcome] * len(batch)

    async def _one_by_one(self, batch: Sequence[Message]) -> Sequence[Outcome]:
        """Send each alone, in order; stop at the first trouble that is not one message's own."""
        outcomes: list[Outcome] = []
        for message in batch:
            outcome = await self._post(message.id, message.body, SINGLE)
            if isinstance(outcome, SendError) and outcome.reason not in OF_ONE:
                return outcomes + [outcome] * (len(batch) - len(outcomes))
            outcomes.append(outcome)
        return outcomes

    async def _post(self, delivery_id: str, body: bytes, content_type: str) -> Outcome:
        try:
            headers = self._headers(delivery_id, body) | {"Content-Type": content_type}
            async with self._session.post(
                self._url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=self._timeout,
            ) as answer:
                outcome = self._outcome(answer, delivery_id)
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    await answer.content.read(MAX_ANSWER_BYTES)
                return outcome
        except SendError as error:
            return error
        except TimeoutError:
            return SendError(Reason.TIMEOUT, f"no answer in {self._timeout.total:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return SendError(Reason.CONNECTION, type(error).__name__)

    def _headers(self, delivery_id: str, body: bytes) -> dict[str, str]:
        timestamp = self._clock.wall_ns() // 1_000_000_000
        token = self._token()
        if not (token.isascii() and token.isprintable()):
            raise SendError(Reason.CREDENTIALS, "the token has characters no header can carry")
        try:
            keys = signing_keys(self._signing_secret())
        except ValueError as error:
            raise SendError(Reason.CREDENTIALS, f"signing secret: {error}") from None
        return {
            "Authorization": f"Bearer {token}",
            "webhook-id": delivery_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures(keys, delivery_id, timestamp, body),
        }

    def _outcome(self, answer: aiohttp.ClientResponse, delivery_id: str) -> Outcome:
        reason = reason_of(answer.status)
        if reason in {Reason.OK, Reason.ALREADY_STORED}:
            reference = answer.headers.get("X-Request-Id", "")[:MAX_REFERENCE]
            return Receipt(reason, answer.status, reference or delivery_id)
        wait = retry_after_seconds(answer.headers.get("Retry-After", ""), self._clock.wall_ns())
        return SendError(reason, f"status {answer.status}", retry_after_seconds=wait)


def reason_of(status: int) -> Reason:
    """Return what an HTTP status means; the table in docs/alerts.md is tested against this."""
    if status in REASONS:
        return REASONS[status]
    if 200 <= status < FIRST_3XX:  # noqa: PLR2004  success
        return Reason.OK
    if FIRST_3XX <= status < FIRST_4XX:
        return Reason.REDIRECT
    if FIRST_4XX <= status < FIRST_5XX:
        return Reason.REJECTED
    return Reason.SERVER_ERROR if FIRST_5XX <= status <= LAST else Reason.BAD_RESPONSE


def retry_after_seconds(header: str, wall_ns: int) -> float | None:
    """Return seconds from now for `120` or an HTTP date; None for nothing or nonsense."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - wall_ns / 1e9)


def batch_id(batch: Sequence[Message]) -> str:
    """Return the same id for the same messages in the same order."""
    return stable_id("batch", *(message.id for message in batch))


def joined(batch: Sequence[Message]) -> bytes:
    """Return a JSON array of the bodies, each as it lies in the spool."""
    return b"[" + b",".join(message.body for message in batch) + b"]"


def signing_keys(secrets: str) -> list[bytes]:
    """Return the keys of `whsec_BASE64`, several during a rotation. Raises ValueError."""
    keys = [_signing_key(secret) for secret in secrets.split()]
    if not keys:
        raise ValueError("wants whsec_ and base64")
    return keys


def _signing_key(secret: str) -> bytes:
    text = secret.removeprefix("whsec_").rstrip("=")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("wants whsec_ and base64") from None
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(f"wants {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in base64")
    return key


def signatures(keys: Sequence[bytes], delivery_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` header: one `v1,` HMAC-SHA256 a key, with spaces between."""
    signed = b"%s.%d.%s" % (delivery_id.encode(), timestamp, body)
    digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
