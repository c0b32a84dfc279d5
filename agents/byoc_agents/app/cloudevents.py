"""CloudEvents 1.0 in JSON: the envelope of every message, and its exact encoding.

Decimals are written as JSON numbers with all their digits, so a receiver with a decimal column
reads exactly the measured value. No billed amount is ever a binary float.
"""

import datetime as dt
import hashlib
from functools import lru_cache
from typing import Annotated, Literal, TypeVar

import msgspec

_ENCODER = msgspec.json.Encoder(decimal_format="number", order="deterministic")
T = TypeVar("T")


def describe(meaning: str) -> msgspec.Meta:
    """Return the annotation of a field that is sent: its row of docs/contracts/fields.md."""
    return msgspec.Meta(description=meaning)


EventType = Annotated[T, describe("Event type and version.")]
OrganizationId = Annotated[str, describe("The customer's organization: BYOC_ORGANIZATION_ID.")]
ServiceId = Annotated[str, describe("The ClickHouse service: BYOC_SERVICE_ID.")]
PodName = Annotated[str, describe("The replica, which is the pod's name: BYOC_REPLICA.")]
RegionName = Annotated[str, describe("The cloud region: BYOC_REGION.")]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope. `source` + `id` is the receiver's deduplication key."""

    specversion: Annotated[
        Literal["1.0"], describe("Version of the CloudEvents specification.")
    ] = "1.0"
    id: Annotated[
        str,
        describe(
            "Identifies the fact, over retries and restarts. The receiver deduplicates by `source` "
            "and `id`."
        ),
    ]
    source: Annotated[
        str,
        describe(
            "The sender: `/organizations/ORG/services/SERVICE/replicas/REPLICA`, or a service or "
            "its alerts."
        ),
    ]
    type: EventType[str]
    subject: Annotated[
        str, describe("The object of the event: a container, replica, service or fingerprint.")
    ] = ""
    time: Annotated[str, describe("Time of the event, RFC 3339, UTC.")]
    datacontenttype: Annotated[Literal["application/json"], describe("Media type of `data`.")] = (
        "application/json"
    )


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """The sender of a message: what it runs, and how long its ledger is."""

    version: Annotated[str, describe("Version of byoc-agents.")]
    configuration_sha256: Annotated[
        str,
        msgspec.Meta(
            pattern="^[0-9a-f]{64}$",
            description="SHA-256 of the output of `byoc-agents check-config DAEMON...`, without "
            "secrets.",
        ),
    ]
    ledger_size: Annotated[
        int, describe("Durable lines in the daemon's ledger when the message was made.")
    ]
    ledger_root: Annotated[
        str,
        msgspec.Meta(
            pattern="^[0-9A-Za-z+/]{43}=$",
            description="Root of the tree over these lines, base64. docs/contracts/ledger.md has "
            "the rule.",
        ),
    ]


AgentOrNone = Annotated[Agent | None, describe("The sending process. Null in messages of 0.1.0.")]


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
