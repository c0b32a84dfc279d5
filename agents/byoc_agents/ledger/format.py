"""The format of a ledger line. This file defines formats 1 and 2.

Format 2 adds the lines `fact`, which only the access broker and the commands `export` and
`import-receipts` write. The ledgers of the other daemons are in format 1.

A line is one JSON object and a line end. `previous` is the SHA-256 of the line before it, in hex,
over its bytes without the line end; so a line's own hash can be computed by anyone with sha256sum.
Sequence numbers run without a gap through all files. The first line of all has 64 zeros. Whatever
the format, the first line of a file has `"kind":"segment"` and its number in `format`, and another
format begins in a new file. So every version detects files that it must not change.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from byoc_agents.errors import SendError
from byoc_agents.ledger.tree import TreeHead
from byoc_agents.message import Message, Outcome

FORMAT = 1
FORMAT_WITH_FACTS = 2
FORMATS = (FORMAT, FORMAT_WITH_FACTS)  # that this version reads and writes
GENESIS = "0" * 64
MAX_TEXT = 300  # characters of a text from others: a detail, a reference
SUPPRESSED = "suppressed"  # reason of a line that only counts refusals
DURABLE = (
    "segment",
    "intent",
    "unknown",
    "removed",
    "recovered",
    "fact",
)  # kinds followed by an fsync

UnknownWhy = Literal[
    "crash",  # found without an outcome at a start
    "stopped",  # in flight when the daemon ended
    "receipt_lost",  # the receipt could not be written
]
RecoveredWhy = Literal[
    "torn",  # the end of a write that a crash cut off; kept in the file `aside`
    "damaged",  # whole lines have changed; they stay unchanged, for `ledger verify`
    "gone",  # the file was removed while the daemon ran
    "lost",  # the spool knows lines that are in no file: the ledger was deleted or replaced
    "older",  # the spool knows lines after the last one: the end was cut, or a copy restored
]


class LinePosition(NamedTuple):
    """A place in the chain: a line's number and the hash of its bytes."""

    sequence: int
    sha256: str

    def __str__(self) -> str:
        """Return `41:9f86...`, as /status shows it and `ledger verify --anchor` takes it."""
        return f"{self.sequence}:{self.sha256}"


START = LinePosition(-1, GENESIS)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of every line. Sequence and hash are set when it is written."""

    sequence: int = 0
    time: str = ""  # RFC 3339 UTC, wall clock when it was written; may step back
    previous: str = GENESIS


class SegmentLine(Line, frozen=True, kw_only=True, tag_field="kind", tag="segment"):
    """The first line of a file. Files of 0.1.0 do not have the last three fields."""

    format: int
    version: str  # of byoc-agents
    segment: int  # number of the file
    open: tuple[int, ...]  # intents of earlier files without an outcome yet
    tree: TreeHead | None = None  # over all lines before this one since the first such field
    max_bytes: int = 0  # the bound while this file is written
    previous_bytes: int = 0  # of the lines and bodies of the file before this one; 0 = unknown


class LedgerMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message. Bytes and hash are of the body, before framing and TLS."""

    id: str
    type: str
    bytes: int
    sha256: str
    events: int = msgspec.field(name="records")  # inside the body
    content_type: str
    content_encoding: str = ""
    kept: bool = False  # the exact body is stored in bodies/<segment>/<sha256>
    stream: str = ""  # of `Message`; these three are not in the lines of 0.1.0
    epoch: int = 0
    sequence: int = 0


class IntentLine(Line, frozen=True, kw_only=True, tag_field="kind", tag="intent"):
    """The messages of a request that is about to be made. Durable before its first byte leaves."""

    destination: str
    messages: tuple[LedgerMessage, ...]


class LedgerOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of one message."""

    id: str
    reason: str  # byoc_agents.errors.Reason
    status: int = 0  # HTTP status; 0 if there is none
    reference: str = ""  # the receiver's: ETag, MessageId, delivery id
    detail: str = ""  # of an error


class ReceiptLine(Line, frozen=True, kw_only=True, tag_field="kind", tag="receipt"):
    """The results of the messages of an intent, in its order."""

    intent: int  # its sequence number
    outcomes: tuple[LedgerOutcome, ...]


class UnknownLine(Line, frozen=True, kw_only=True, tag_field="kind", tag="unknown"):
    """The outcome of this intent is unknown: it may have been sent."""

    intent: int
    why: UnknownWhy


class RefusedLine(Line, frozen=True, kw_only=True, tag_field="kind", tag="refused"):
    """The egress gate refused the connection: nothing was sent."""

    reason: str
    detail: str
    suppressed: int  # earlier refusals without a line

    def count(self) -> int:
        """Return the number of refusals that this line counts."""
        return self.suppressed + (self.reason != SUPPRESSED)


class RemovedLine(Line, frozen=True, kw_only=True, tag_field="kind", tag="removed"):
    """The oldest file goes now, to stay within the bound. Durable before it is deleted."""

    segment: int
    first_sequence: int
    last_sequence: int
    last_sha256: str  # hash of its last line: the chain's anchor from here on
    bytes: int  # of its lines and bodies


class RecoveredLine(Line, frozen=True, kw_only=True, tag_field="kind", tag="recovered"):
    """Damage that was found when the ledger was opened."""

    segment: int  # number of the file concerned
    why: RecoveredWhy
    bytes: int  # how many are not part of the chain
    sha256: str  # over them; "" where there are none to be read
    aside: str  # the file that holds them now; "" = they were not moved
    expected: str = ""  # `lost`, `older`: size and root that the spool knows


class FactLine(Line, frozen=True, kw_only=True, tag_field="kind", tag="fact"):
    """A step of the access broker, or a receipt for an export. Durable before it takes effect."""

    fact: str  # what happens: a state of a grant, or another step
    subject: str  # the id of the grant or of the export, or "" if the line is about neither
    reason: str = ""
    detail: dict[str, str] = {}  # further values, bounded by the writer
    sha256: dict[str, str] = {}  # name -> digest of each document that belongs to it


LedgerLine = (
    SegmentLine
    | IntentLine
    | ReceiptLine
    | UnknownLine
    | RefusedLine
    | RemovedLine
    | RecoveredLine
    | FactLine
)

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[LedgerLine] = msgspec.json.Decoder(LedgerLine)


def encode(line: Line) -> bytes:
    """Return the line's bytes without the line end."""
    return _ENCODER.encode(line)


def decode(raw: bytes) -> LedgerLine | None:
    """Return the line, or None if the bytes are not a ledger line."""
    try:
        return _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def kind_of(line: Line | None) -> str:
    """Return the line's `kind`, or "" for None."""
    return "" if line is None else str(line.__struct_config__.tag)


class _First(msgspec.Struct):
    kind: str
    format: int


def format_of(first_line: bytes) -> int:
    """Return the format that a file's first line states, or 0 if it states none."""
    try:
        first = msgspec.json.decode(first_line, type=_First)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    return first.format if first.kind == "segment" else 0


def sha256_hex(raw: bytes) -> str:
    """Return the SHA-256 in 64 hex digits: of a line without its line end, or of a body."""
    return hashlib.sha256(raw).hexdigest()


def intent_of(destination: str, batch: Sequence[Message], max_kept_bytes: int | None) -> IntentLine:
    """Return the line for a batch. Marks bodies as kept while their sum is within the bound.

    No body is kept if the bound is None.
    """
    sent: list[LedgerMessage] = []
    total = 0
    for message in batch:
        total += len(message.body)
        kept = max_kept_bytes is not None and total <= max_kept_bytes
        sent.append(_describe_message(message, kept=kept))
    return IntentLine(destination=destination, messages=tuple(sent))


def _describe_message(message: Message, *, kept: bool) -> LedgerMessage:
    return LedgerMessage(
        id=message.id,
        type=message.type,
        bytes=len(message.body),
        sha256=sha256_hex(message.body),
        events=message.events,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        kept=kept,
        stream=message.stream,
        epoch=message.epoch,
        sequence=message.sequence,
    )


def receipt_of(intent: int, batch: Sequence[Message], outcomes: Sequence[Outcome]) -> ReceiptLine:
    """Return the line for the outcomes of a sink."""
    pairs = zip(batch, outcomes, strict=True)
    return ReceiptLine(intent=intent, outcomes=tuple(_describe_outcome(m.id, o) for m, o in pairs))


def _describe_outcome(message_id: str, outcome: Outcome) -> LedgerOutcome:
    reason = outcome.reason.value
    if isinstance(outcome, SendError):
        return LedgerOutcome(id=message_id, reason=reason, detail=clean(outcome.detail))
    reference = clean(outcome.reference)
    return LedgerOutcome(id=message_id, reason=reason, status=outcome.status, reference=reference)


def clean(text: str) -> str:
    """Return a text from others as valid UTF-8 of at most MAX_TEXT characters."""
    return text[:MAX_TEXT].encode(errors="replace").decode()
