"""`POST /v1/events`: what the daemons deliver over HTTPS. 2xx only after the insert.

`GET /v1/access/requests` answers the access brokers, if there is a directory of requests.

The contract is docs/contracts/control-plane.openapi.yaml. A 2xx and a rejection have the form by
which the forwarder knows that this receiver answered, and no device on the path.
"""

import asyncio
import hashlib
import hmac
from collections import Counter, OrderedDict
from collections.abc import Mapping

import msgspec
import structlog
from aiohttp import web

from byoc_agents.app.clock import Clock
from byoc_agents.app.http_server import SERVER_HEADER, ClientConnection, PortLimits
from byoc_agents.sinks.control_plane import CODES, Rejected, Stored
from byoc_agents.sinks.https import signatures
from byoc_control_plane.credentials import Credential, Keyring
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import INTERVAL_SECONDS, Progress
from byoc_control_plane.requests import REQUESTS_PATH, RequestFolder
from byoc_control_plane.rows import InvalidEventError, TableRow, build_row, build_sent
from byoc_control_plane.store import RowsRefusedError, StoreError

PATH = "/v1/events"
TOLERANCE_SECONDS = 300  # Standard Webhooks: an older signature is a replay
LIMITS = PortLimits(max_unauthenticated=64, max_authenticated=512)  # as the forwarder's webhook
MAX_BODY_BYTES = 1024**2  # four times the forwarder's largest batch
MAX_EVENTS = 500  # the largest BYOC_ALERTS_MAX_BATCH
MAX_BODIES = 64  # in memory at once: 64 MiB, and as much again as rows
CUSTOMER_SHARE = 4  # the bodies of one organization are at most this part of all
BODY_SECONDS = 10.0  # from the headers to the end of the body
REMEMBERED = 100_000  # deliveries that were stored; a repeat is answered without an insert
RETRY_SECONDS = "2"
SINGLE, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
STREAM = "alerts"
BUSY, NOT_STORED = "busy", "not stored"  # reasons of a 503 for which this side is the cause
TOO_MANY = "too many at a time"  # the reason of a 503 to one organization alone
TOO_SLOW = "too slow"  # the sender is the cause

Decision = tuple[int, str | Stored]  # the status; the reason of a refusal


class Receiver:
    """Checks, stores and answers deliveries."""

    def __init__(  # noqa: PLR0913  the store, the metrics and the credentials
        self,
        inserter: Inserter,
        progress: Progress,
        metrics: PlaneMetrics,
        clock: Clock,
        *,
        keyring: Keyring,
        body_seconds: float = BODY_SECONDS,
        max_bodies: int = MAX_BODIES,
        requests: RequestFolder | None = None,
    ) -> None:
        """Accept a token of an organization with its keys and for its events only.

        Without `requests`, the path of the access requests is not found.
        """
        self._inserter = inserter
        self._progress = progress
        self._metrics = metrics
        self._clock = clock
        self._keyring = keyring
        self._body_seconds = body_seconds
        self._free = max_bodies
        self._max_customer_bodies = max(1, max_bodies // CUSTOMER_SHARE)
        self._bodies: Counter[str] = Counter()  # in memory, by organization
        self._stored: OrderedDict[bytes, int] = OrderedDict()  # delivery -> its events
        self._requests = requests
        self._sent: OrderedDict[str, None] = OrderedDict()  # ids of requests with a row `sent`
        self._log = structlog.get_logger().bind(stream=STREAM)

    async def run(self) -> None:
        """Report once per second, until cancelled, that deliveries are accepted."""
        while True:
            self._progress.observe(self._progress.now_ms, caught_up=True)
            await self._clock.sleep(INTERVAL_SECONDS)

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Handle one request."""
        if self._requests is not None and request.path == REQUESTS_PATH:
            return await self._handle_poll(request, self._requests)
        status, content = await self._decide(request)
        self._metrics.requests.labels(str(status)).inc()
        if content in {BUSY, NOT_STORED}:  # a sender that is refused may look silent
            self._progress.observe(self._progress.now_ms, caught_up=False)
        if status != 200:  # noqa: PLR2004  the only success
            self._log.warning("delivery.refused", status=status, why=content, peer=request.remote)
        response = web.json_response(
            body=msgspec.json.encode(_make_body(request, status, content)),
            status=status,
            headers=SERVER_HEADER,
        )
        if status == 503:  # noqa: PLR2004
            response.headers["Retry-After"] = RETRY_SECONDS
        if status == 401:  # noqa: PLR2004  RFC 9110
            response.headers["WWW-Authenticate"] = "Bearer"
            response.force_close()  # an unknown client keeps no connection
        if not request.content.is_eof():
            response.force_close()  # the rest of the body is not read
        return response

    async def _handle_poll(self, request: web.BaseRequest, folder: RequestFolder) -> web.Response:
        """Answer a broker with the envelopes for its organization, or with 304."""
        owners = self._keyring.find_owners(request.headers.get("Authorization", ""))
        headers = dict(SERVER_HEADER)
        status, body = (401, b"") if not owners else (405, b"")
        if owners and request.method == "GET":
            try:
                status, body, etag = await self._list_requests(request, owners, folder)
                headers["ETag"] = etag
            except (OSError, StoreError) as error:
                self._log.error("requests.not_listed", error=str(error)[:300])
                status, headers["Retry-After"] = 503, RETRY_SECONDS
        self._metrics.requests.labels(str(status)).inc()
        response = web.Response(
            status=status, body=body or None, content_type="application/json", headers=headers
        )
        if status == 401:  # noqa: PLR2004  RFC 9110
            response.headers["WWW-Authenticate"] = "Bearer"
            response.force_close()
        if not request.content.is_eof():
            response.force_close()
        return response

    async def _list_requests(
        self, request: web.BaseRequest, owners: Mapping[str, bool], folder: RequestFolder
    ) -> tuple[int, bytes, str]:
        """Return status, body and ETag. Raises OSError, StoreError: the broker asks again.

        The row `sent` of each request is stored before the first response with it.
        """
        service, now_ms = request.query.get("service", ""), self._progress.now_ms
        found = await asyncio.to_thread(folder.list_for, owners, service, now_ms)
        if request.headers.get("If-None-Match") == found.etag:
            return 304, b"", found.etag
        new = [one for one in found.requests if one.id not in self._sent]
        try:
            await self._inserter.insert([build_sent(one, now_ms) for one in new])
        except RowsRefusedError as error:  # it must not keep the others back
            self._log.error("requests.not_recorded", error=str(error)[:300])
        for one in new:
            self._sent[one.id] = None
            if len(self._sent) > REMEMBERED:
                self._sent.popitem(last=False)
        return 200, found.body, found.etag

    async def _decide(self, request: web.BaseRequest) -> Decision:
        """Return the status, and the numbers stored or the reason of the refusal."""
        owners = self._keyring.find_owners(request.headers.get("Authorization", ""))
        if refused := self._refuse_head(request, owners):
            return refused
        customers = [owner for owner in owners if owner]
        if any(self._bodies[owner] >= self._max_customer_bodies for owner in customers):
            for owner in customers:
                self._progress.delay(owner)
            return 503, TOO_MANY
        self._free -= 1
        self._bodies.update(customers)
        try:
            return await self._read_and_store(request, owners)
        finally:
            self._free += 1
            self._bodies.subtract(customers)
            self._bodies = +self._bodies

    async def _read_and_store(
        self, request: web.BaseRequest, owners: Mapping[str, bool]
    ) -> Decision:
        try:
            async with asyncio.timeout(self._body_seconds):
                body = await _read_body(request)
        except TimeoutError:
            return 503, TOO_SLOW
        except (web.RequestPayloadError, ConnectionError):
            return 400, "broken body"
        if body is None:
            return 413, "too large"
        used = self._find_signing_keys(request, body, owners)
        if not used:
            return 401, "unauthorized"
        newest = all(owners.values()) and any(key.newest for key in used)
        return await self._store(request, body, owners, newest=newest)

    def _refuse_head(
        self, request: web.BaseRequest, owners: Mapping[str, bool]
    ) -> tuple[int, str] | None:
        """Return the response to a request whose body is not read, or None."""
        checks = (
            (request.path == PATH, 404, "not found"),
            (request.method == "POST", 405, "expected POST"),
            (owners, 401, "unauthorized"),
            (request.content_type in {SINGLE, BATCH}, 415, "expected CloudEvents in JSON"),
            ("Content-Encoding" not in request.headers, 415, "expected no Content-Encoding"),
            (self._free > 0, 503, BUSY),
        )
        refusals = ((status, word) for holds, status, word in checks if not holds)
        if refused := next(refusals, None):
            return refused
        protocol = request.protocol
        if isinstance(protocol, ClientConnection) and not protocol.authenticate():
            return 503, BUSY
        return None

    async def _store(
        self, request: web.BaseRequest, body: bytes, owners: Mapping[str, bool], *, newest: bool
    ) -> Decision:
        """Store a delivery of these organizations; `newest`: by no credential that is replaced."""
        for owner in () if newest else owners:
            self._metrics.old_credentials.labels(owner).inc()
        delivery_id = request.headers["webhook-id"]
        sender = request.headers["Authorization"]
        digest = hashlib.sha256(f"{sender}\n{delivery_id}\n".encode() + body).digest()
        if known := self._stored.get(digest):
            return 200, Stored(stored=0, duplicates=known)
        try:
            rows = _rows(request.content_type, body, self._progress.now_ms)
            if not ("" in owners or {row.organization_id for row in rows} <= set(owners)):
                return 403, "another organization"
            await self._inserter.insert(rows)
        except (InvalidEventError, RowsRefusedError) as error:
            self._metrics.messages.labels(STREAM, "rejected").inc()
            self._log.error("delivery.invalid", error=str(error)[:300])
            return 422, "not a valid event"
        except StoreError:
            return 503, NOT_STORED
        self._metrics.messages.labels(STREAM, "stored").inc(len(rows))
        self._stored[digest] = len(rows)
        if len(self._stored) > REMEMBERED:
            self._stored.popitem(last=False)
        return 200, Stored(stored=len(rows), duplicates=0)

    def _find_signing_keys(
        self, request: web.BaseRequest, body: bytes, owners: Mapping[str, bool]
    ) -> list[Credential]:
        """Return the keys of the sender by which the delivery is signed, and not too long ago."""
        delivery_id = request.headers.get("webhook-id", "")
        timestamp = request.headers.get("webhook-timestamp", "")
        if not (delivery_id.isascii() and 0 < len(delivery_id) <= 64):  # noqa: PLR2004  the contract
            return []
        if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):  # noqa: PLR2004
            return []
        age_seconds = self._clock.wall_ns() / 1e9 - int(timestamp)
        if abs(age_seconds) > TOLERANCE_SECONDS:
            return []
        keys = self._keyring.find_keys(owners)
        ours = signatures([key.secret for key in keys], delivery_id, int(timestamp), body).split()
        theirs = request.headers.get("webhook-signature", "").split()[:10]
        # The sum compares with each, so that the time does not depend on which one is equal.
        return [
            key
            for key, a in zip(keys, ours, strict=True)
            if sum(
                hmac.compare_digest(a.encode(), b.encode("utf-8", "surrogateescape"))
                for b in theirs
            )
        ]


def _make_body(
    request: web.BaseRequest, status: int, content: str | Stored
) -> Stored | Rejected | dict[str, str]:
    """Return the body of a response. A rejection names the delivery that it is about."""
    if isinstance(content, Stored):
        return content
    if status in CODES:
        delivery_id = request.headers.get("webhook-id", "")  # not checked yet: any bytes
        return Rejected(delivery_id if delivery_id.isascii() else "", CODES[status])
    return {"status": content}


async def _read_body(request: web.BaseRequest) -> bytes | None:
    """Return the body, or None if it is larger than MAX_BODY_BYTES."""
    if (request.content_length or 0) > MAX_BODY_BYTES:
        return None
    parts, size = [], 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _rows(content_type: str, body: bytes, arrived_at_ms: int) -> list[TableRow]:
    """Return the rows of a delivery, of all its events. Raises InvalidEventError."""
    if content_type == SINGLE:
        return [build_row(body, arrived_at_ms)]
    try:
        events = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEventError(f"not an array: {error}") from error
    if not 0 < len(events) <= MAX_EVENTS:
        raise InvalidEventError(f"{len(events)} events: expected 1 to {MAX_EVENTS}")
    return [build_row(bytes(event), arrived_at_ms) for event in events]
