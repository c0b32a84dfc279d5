"""CloudEvents 1.0 in JSON: the envelope of every message, and its exact encoding.

Decimals are written as JSON numbers with all their digits, so a receiver with a decimal column
reads exactly the measured value. No billed amount is ever a binary float.
"""

import datetime as dt
import hashlib
from functools import lru_cache
from typing import Annotated, Literal

import msgspec

_ENCODER = msgspec.json.Encoder(decimal_format="number", order="deterministic")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope. `source` + `id` is the receiver's de-duplication key."""

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str  # /organizations/ORG/services/SERVICE/replicas/REPLICA
    type: str
    subject: str = ""
    time: str  # RFC 3339, UTC
    datacontenttype: Literal["application/json"] = "application/json"


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """The sender of a message: what it runs, and how long its ledger is."""

    version: str  # of byoc-agents
    configuration_sha256: Annotated[
        str, msgspec.Meta(pattern="^[0-9a-f]{64}$")
    ]  # of the output of `byoc-agents check-config DAEMON...`; secrets are *** there
    ledger_size: int  # durable lines in the ledger of this daemon when the message was made
    ledger_root: Annotated[
        str, msgspec.Meta(pattern="^[0-9A-Za-z+/]{43}=$")
    ]  # root of the tree over these lines, base64; docs/ledger.md has the rule


def encode(event: msgspec.Struct) -> bytes:
    """Return one line of JSON without a line end. The same event gives the same bytes."""
    return _ENCODER.encode(event)


def rfc3339(milliseconds: int) -> str:
    """Return `2026-11-23T12:00:00.000Z` for milliseconds since 1970."""
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=64)  # an event contains the same one or two seconds several times
def _second(seconds: int) -> str:
    moment = dt.datetime.fromtimestamp(seconds, tz=dt.UTC)
    return moment.isoformat()[:-6]  # strftime takes five times as long


def parse_rfc3339(text: str) -> int:
    """Return milliseconds since 1970. Raises ValueError without a date or a time zone."""
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return round(moment.timestamp() * 1000)


def stable_id(*parts: str) -> str:
    """Return 128 bits of SHA-256 over the parts, as 32 hex digits: equal for equal parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def source_uri(organization_id: str, service_id: str, replica: str) -> str:
    """Return the CloudEvents source of one replica."""
    return f"/organizations/{organization_id}/services/{service_id}/replicas/{replica}"
