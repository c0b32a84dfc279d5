"""The signed documents: a request of the vendor, its withdrawal, and the customer's approval.

Nothing of a document becomes SQL or a path except its id, which is 32 hexadecimal digits. Unknown
fields are refused, so that no sender relies on a limit that is not read.
"""

import datetime as dt
import hashlib
import json
import re
from typing import Annotated, Literal

import msgspec

from byoc_agents.access.errors import DocumentError
from byoc_agents.app.cloudevents import parse_rfc3339

REQUEST = "application/vnd.byoc.access-request.v1+json"
WITHDRAWAL = "application/vnd.byoc.access-withdrawal.v1+json"
APPROVAL = "application/vnd.byoc.access-approval.v1+json"

MAX_SECONDS = 8 * 3600  # of a grant, whatever the policy allows
MAX_PENDING_SECONDS = 4 * 86400  # Azure's Customer Lockbox: a request lapses after four days
MAX_CSR_CHARACTERS = 4096

# RFC 9562, version 7: the time of its creation is part of it.
UUID7 = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
GrantId = Annotated[str, msgspec.Meta(pattern=rf"^{UUID7}\Z")]
Identifier = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:-]{0,63}\Z")]
Ticket = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z")]
BREAK_GLASS = "break_glass"  # the kind of a request that needs no approval, if the policy allows it
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Seconds = Annotated[int, msgspec.Meta(ge=60, le=MAX_SECONDS)]
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,3})?Z", re.ASCII)


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of the documents."""


class Audience(Document, frozen=True, kw_only=True):
    """The service that the document is for."""

    organization: Identifier
    service: Identifier


class Engineer(Document, frozen=True, kw_only=True):
    """The person who will connect, as the vendor names them."""

    id: Identifier
    name: Annotated[str, msgspec.Meta(max_length=100)]


class Justification(Document, frozen=True, kw_only=True):
    """Why access is requested."""

    kind: Literal["incident", "maintenance", "question", "break_glass"]
    ticket: Ticket
    text: Annotated[str, msgspec.Meta(max_length=500)] = ""


class VendorApproval(Document, frozen=True, kw_only=True):
    """Who at the vendor has approved the request, and when."""

    by: Identifier
    at: str


class AccessRequest(Document, frozen=True, kw_only=True):
    """The vendor asks for access."""

    id: GrantId
    audience: Audience
    issued_at: str
    expires_at: str  # after this nothing is opened
    not_before: str
    duration_seconds: Seconds
    role: Identifier  # a name of the customer's policy, never SQL
    endpoints: Annotated[tuple[Identifier, ...], msgspec.Meta(min_length=1, max_length=8)]
    engineer: Engineer
    reason: Justification
    vendor_approval: VendorApproval
    csr: Annotated[str, msgspec.Meta(max_length=MAX_CSR_CHARACTERS)]  # PEM

    @property
    def issued_ms(self) -> int:
        """When it was made, milliseconds since 1970."""
        return parse_time(self.issued_at)

    @property
    def expires_ms(self) -> int:
        """After which it opens nothing, milliseconds since 1970."""
        return parse_time(self.expires_at)

    @property
    def not_before_ms(self) -> int:
        """Before which it opens nothing, milliseconds since 1970."""
        return parse_time(self.not_before)

    def __post_init__(self) -> None:
        """Check times and texts. Raises ValueError."""
        parse_time(self.vendor_approval.at)
        if not self.issued_ms <= self.expires_ms <= self.issued_ms + MAX_PENDING_SECONDS * 1000:
            reason = f"expected at most {MAX_PENDING_SECONDS} s after `issued_at`"
            raise ValueError(f"expires_at: {reason}")
        if self.not_before_ms > self.expires_ms:
            raise ValueError("not_before: expected a time that is not after `expires_at`")
        if len(set(self.endpoints)) != len(self.endpoints):
            raise ValueError("endpoints: expected each name once")
        for field, text in (("engineer.name", self.engineer.name), ("text", self.reason.text)):
            if not text.isprintable():  # no control, line or direction characters
                raise ValueError(f"{field}: expected printable characters")


class Withdrawal(Document, frozen=True, kw_only=True):
    """The vendor withdraws a request, or ends the access that it opened."""

    id: GrantId
    audience: Audience
    issued_at: str

    def __post_init__(self) -> None:
        """Check the time. Raises ValueError."""
        parse_time(self.issued_at)


class Approval(Document, frozen=True, kw_only=True):
    """The customer's decision about one request, bound to its exact bytes."""

    id: GrantId
    request_sha256: Digest  # of the payload of the request's envelope
    decision: Literal["approve", "deny"]
    by: Identifier
    at: str
    duration_seconds: Seconds | None = None  # None = as requested; never more than that
    role: Identifier | None = None  # None = as requested; else an earlier one of the policy
    comment: Annotated[str, msgspec.Meta(max_length=500)] = ""

    def __post_init__(self) -> None:
        """Check time and text. Raises ValueError."""
        parse_time(self.at)
        if not self.comment.isprintable():
            raise ValueError("comment: expected printable characters")
        if self.decision == "deny" and not self.comment:
            raise ValueError("comment: expected a reason for the denial")


CLICKHOUSE, KUBERNETES, METRICS = "clickhouse", "kubernetes", "metrics"
ENDPOINTS = (CLICKHOUSE, KUBERNETES, METRICS)
"""What a role may name: the parts of the cluster that an engineer can reach."""

TYPES: dict[str, type[AccessRequest | Withdrawal | Approval]] = {
    REQUEST: AccessRequest,
    WITHDRAWAL: Withdrawal,
    APPROVAL: Approval,
}


def parse_document(payload_type: str, payload: bytes) -> AccessRequest | Withdrawal | Approval:
    """Return the document of a verified payload. Raises DocumentError, naming the field.

    A field that is given twice is refused: two readers could take different values of it.
    """
    document = parse_stored_document(payload_type, payload)
    json.loads(payload.decode(), object_pairs_hook=_refuse_repeated)
    return document


def parse_stored_document(
    payload_type: str, payload: bytes
) -> AccessRequest | Withdrawal | Approval:
    """Return a document that was accepted before, also by an earlier version.

    Earlier versions accepted a field that is given twice. Raises DocumentError.
    """
    try:
        return msgspec.json.decode(payload, type=TYPES[payload_type])
    except msgspec.ValidationError as error:
        raise DocumentError(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DocumentError("expected JSON") from None


def _refuse_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise DocumentError(f"{name}: given twice")
        found[name] = value
    return found


def parse_time(text: str) -> int:
    """Return milliseconds since 1970 of `2026-11-27T08:00:00Z`. Raises ValueError."""
    expected = "expected a time such as 2026-11-27T08:00:00Z"
    if not UTC_TIME.fullmatch(text):
        raise ValueError(expected)
    try:
        return parse_rfc3339(text.replace("Z", "+00:00"))
    except (ValueError, OverflowError):
        raise ValueError(expected) from None


def sha256(content: bytes) -> str:
    """Return the SHA-256 in 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def utc_text(milliseconds: int) -> str:
    """Return `2026-11-27T08:00:00Z`: certificates and ClickHouse know whole seconds only."""
    moment = dt.datetime.fromtimestamp(milliseconds // 1000, tz=dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
