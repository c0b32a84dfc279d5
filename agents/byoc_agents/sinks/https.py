"""Events to the control plane: HTTPS POST with a bearer token and a Standard Webhooks signature.

Permissions: only the token. One event goes as application/cloudevents+json with its own id as
`webhook-id`; several go as application/cloudevents-batch+json, whose `webhook-id` is computed from
the ids of its events. After a crash the same events may form another batch: the receiver's key is
the event's own `source` + `id`, never the `webhook-id` of a batch. Redirects are never followed.
A response stores or rejects an event only in a form that no proxy produces by accident:
`byoc_agents.sinks.control_plane` defines this proof.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence

import aiohttp

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import stable_id
from byoc_agents.delivery.sink import Transmit, transmit_unrecorded
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Outcome, Receipt
from byoc_agents.sinks.control_plane import proves_rejection, proves_storage
from byoc_agents.sinks.http_responses import (
    proxy_error,
    retry_after_seconds,
    skew_hint,
    tls_error,
    unreadable_response,
)

SINGLE = "application/cloudevents+json; charset=utf-8"
BATCH = "application/cloudevents-batch+json; charset=utf-8"
MAX_RESPONSE_BYTES = 64 * 1024  # read so that the connection can be used again
MAX_REFERENCE = 128  # characters of the receiver's request id that go into the ledger
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64  # the Standard Webhooks specification

# The reason of a status. 3xx is REDIRECT, 5xx SERVER_ERROR; any other status that is not listed is
# not part of the contract: BAD_RESPONSE. `byoc_agents.delivery.shipper.ACTIONS` decides what a
# reason leads to.
REASONS = {
    200: Reason.OK,
    201: Reason.OK,
    202: Reason.OK,
    204: Reason.OK,
    208: Reason.ALREADY_STORED,
    401: Reason.CREDENTIALS,
    402: Reason.FORBIDDEN,
    403: Reason.FORBIDDEN,
    404: Reason.NOT_FOUND,
    405: Reason.NOT_FOUND,  # a wrong URL
    407: Reason.CREDENTIALS,  # the proxy's
    408: Reason.TIMEOUT,
    409: Reason.CONFLICT,
    410: Reason.NOT_FOUND,  # the endpoint was removed: a person must act
    413: Reason.TOO_LARGE,
    415: Reason.REJECTED,
    422: Reason.REJECTED,
    421: Reason.CONNECTION,  # misdirected: the next connection may reach the right server
    425: Reason.THROTTLED,
    429: Reason.THROTTLED,
    451: Reason.FORBIDDEN,
}
FIRST_3XX, FIRST_4XX, FIRST_5XX, LAST = 300, 400, 500, 599
# The reasons that concern single events. In the response to a batch they do not name the event.
OF_ONE = frozenset({Reason.TOO_LARGE, Reason.REJECTED})


class HttpsSink:
    """Sends events to one URL of the control plane."""

    def __init__(  # noqa: PLR0913  the URL, the session, two secrets, the clock and the limits
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        token: Callable[[], str],
        signing_secret: Callable[[], str],
        clock: Clock,
        max_messages: int = 100,
        timeout_seconds: float = 30.0,
        proof: bool = True,
        setting: str = "BYOC_ALERTS_CONTRACT",
    ) -> None:
        """Send through `session`; both secrets are read again for each attempt.

        `setting` is the setting that the error about a response without proof names.

        Without `proof`, any 2xx, 413, 415 or 422 with an empty body or JSON counts, as in the
        contract of 0.1. Then any server behind the URL can store or reject events.
        """
        self.destination = url.split("?", maxsplit=1)[0]
        self.max_messages = max_messages
        self.max_bytes = 255 * 1024  # with brackets and commas below the common limit of 256 KiB
        self._url = url
        self._session = session
        self._token = token
        self._signing_secret = signing_secret
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._proof = proof
        self._setting = setting
        self._accepting = False  # the last response accepted something

    def __repr__(self) -> str:
        """Return the destination, without its query."""
        return f"HttpsSink({self.destination})"

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        """Post once. A batch that is rejected is sent one by one, so that the others arrive.

        A rejection counts only if the receiver accepts another event of the same batch, or (if it
        takes no batches) accepted the one before: a receiver that rejects everything, our own
        heartbeat included, has a fault that our events did not cause. Its rejections are held.
        """
        if len(batch) == 1:
            accepting = self._accepting and self.max_messages == 1
            outcomes: Sequence[Outcome] = [await self._post_one(batch[0], transmit)]
        else:
            accepting = False
            outcome, *_ = await transmit(batch, lambda: self._post_batch(batch))
            if not (isinstance(outcome, SendError) and outcome.reason in OF_ONE):
                return [outcome] * len(batch)
            outcomes = await self._one_by_one(batch, transmit)
        if accepting or any(isinstance(outcome, Receipt) for outcome in outcomes):
            return outcomes
        return [_hold_rejection(outcome) for outcome in outcomes]

    async def _one_by_one(self, batch: Sequence[Message], transmit: Transmit) -> Sequence[Outcome]:
        """Send each message alone, in order; stop at a failure of more than one message."""
        outcomes: list[Outcome] = []
        for message in batch:
            outcome = await self._post_one(message, transmit)
            if isinstance(outcome, SendError) and outcome.reason not in OF_ONE:
                return outcomes + [outcome] * (len(batch) - len(outcomes))
            outcomes.append(outcome)
        return outcomes

    async def _post_batch(self, batch: Sequence[Message]) -> Sequence[Outcome]:
        outcome = await self._post(batch_id(batch), join_bodies(batch), BATCH, len(batch))
        return [outcome] * len(batch)

    async def _post_one(self, message: Message, transmit: Transmit) -> Outcome:
        async def post() -> Sequence[Outcome]:
            return [await self._post(message.id, message.body, SINGLE, 1)]

        (outcome,) = await transmit([message], post)
        return outcome

    async def _post(self, delivery_id: str, body: bytes, content_type: str, events: int) -> Outcome:
        try:
            headers = self._headers(delivery_id, body) | {"Content-Type": content_type}
            async with self._session.post(
                self._url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=self._timeout,
            ) as response:
                try:
                    content, cut = await _read_body(response), None
                except (aiohttp.ClientError, OSError) as error:
                    content, cut = b"", self._failure(error)
                return self._outcome(response, content, delivery_id, events, cut)
        except SendError as error:
            return error
        except (aiohttp.ClientError, OSError) as error:  # OSError: TimeoutError too
            return self._failure(error)

    def _failure(self, error: Exception) -> SendError:
        """Return the error of an exchange that ended without a response."""
        match error:
            case TimeoutError():
                return SendError(Reason.TIMEOUT, f"no response in {self._timeout.total:g} s")
            case aiohttp.ClientHttpProxyError():
                return proxy_error(error)
            case aiohttp.ClientResponseError():  # a head that cannot be parsed
                return unreadable_response(error)
            case aiohttp.ClientSSLError():
                return tls_error(error)
        return SendError(Reason.CONNECTION, type(error).__name__)

    def _headers(self, delivery_id: str, body: bytes) -> dict[str, str]:
        timestamp = self._clock.wall_ns() // 1_000_000_000
        token = self._token()
        if not (token.isascii() and token.isprintable()):
            raise SendError(
                Reason.CREDENTIALS, "the token has characters that a header cannot contain"
            )
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

    def _outcome(
        self,
        response: aiohttp.ClientResponse,
        body: bytes,
        delivery_id: str,
        events: int,
        cut: SendError | None,
    ) -> Outcome:
        """Return the outcome of a response. `cut` is why its body did not arrive completely."""
        reason, now_ns = reason_of(response.status), self._clock.wall_ns()
        self._accepting = False
        if reason in ACCEPTED or reason in OF_ONE:
            if is_page(response.content_type, body):
                why = f"status {response.status} with a page, not the control plane's"
                return SendError(Reason.BAD_RESPONSE, why)
            if not self._has_proof(response, body, delivery_id, events):
                return cut or SendError(
                    Reason.BAD_RESPONSE, self._explain_missing_proof(response.status, reason)
                )
        if reason in ACCEPTED:
            self._accepting = True
            reference = response.headers.get("X-Request-Id", "")[:MAX_REFERENCE]
            return Receipt(reason, response.status, reference or delivery_id)
        date = response.headers.get("Date", "")
        wait = retry_after_seconds(response.headers.get("Retry-After", ""), now_ns, date)
        detail = f"status {response.status}"
        if response.status in {400, 401, 403} and (hint := skew_hint(date, now_ns)):
            detail += f"; {hint}, which refuses over 300 s"
        return SendError(reason, detail, retry_after_seconds=wait)

    def _explain_missing_proof(self, status: int, reason: Reason) -> str:
        form = "webhook_id and code" if reason in OF_ONE else "webhook-id, or stored and duplicates"
        return f"status {status} without the control plane's {form} ({self._setting})"

    def _has_proof(
        self, response: aiohttp.ClientResponse, body: bytes, delivery_id: str, events: int
    ) -> bool:
        if not self._proof:
            return True
        if reason_of(response.status) in OF_ONE:
            return proves_rejection(response.status, body, delivery_id)
        return proves_storage(response.headers, body, delivery_id, events)


ACCEPTED = frozenset({Reason.OK, Reason.ALREADY_STORED})


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body, or its first bytes if it has more than MAX_RESPONSE_BYTES."""
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            break
    return body


def is_page(content_type: str, body: bytes) -> bool:
    """Return whether a body is a page of a proxy: the control plane's is empty or JSON."""
    if not body and not content_type.startswith("text/html"):
        return False
    declared = content_type.startswith("text/") or "xhtml" in content_type
    return declared or body.lstrip()[:1] == b"<"


def _hold_rejection(outcome: Outcome) -> Outcome:
    if isinstance(outcome, SendError) and outcome.reason in OF_ONE:
        why = f"{outcome.detail}, and no other event was accepted: held until one is"
        return SendError(Reason.REJECTS_ALL, why)
    return outcome


def reason_of(status: int) -> Reason:
    """Return the reason of an HTTP status; a test holds docs/contracts/alerts.md to it."""
    if status in REASONS:
        return REASONS[status]
    if FIRST_3XX <= status < FIRST_4XX:
        return Reason.REDIRECT
    return Reason.SERVER_ERROR if FIRST_5XX <= status <= LAST else Reason.BAD_RESPONSE


def batch_id(batch: Sequence[Message]) -> str:
    """Return the same id for the same messages in the same order."""
    return stable_id("batch", *(message.id for message in batch))


def join_bodies(batch: Sequence[Message]) -> bytes:
    """Return a JSON array of the bodies, each exactly as stored in the spool."""
    return b"[" + b",".join(message.body for message in batch) + b"]"


def check_token(text: str) -> str:
    """Return a bearer token as given. Raises ValueError if it cannot be in a header."""
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("not printable ASCII without spaces")
    return text


def check_signing_secret(text: str) -> str:
    """Return signing secrets as given. Raises ValueError as `signing_keys`."""
    signing_keys(text)
    return text


def signing_keys(secrets: str) -> list[bytes]:
    """Return the keys of `whsec_BASE64`, several during a rotation. Raises ValueError."""
    keys = [_signing_key(secret) for secret in secrets.split()]
    if not keys:
        raise ValueError("expected whsec_ and base64")
    return keys


def _signing_key(secret: str) -> bytes:
    text = secret.removeprefix("whsec_").rstrip("=")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("expected whsec_ and base64") from None
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(f"expected {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in base64")
    return key


def signatures(keys: Sequence[bytes], delivery_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` header: one `v1,` HMAC-SHA256 per key, space-separated."""
    signed = b"%s.%d.%s" % (delivery_id.encode(), timestamp, body)
    digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
