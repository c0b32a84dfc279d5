"""The control plane's responses: what proves that it answered, and not a device on the path.

A captive portal, a firewall or another server behind the same name may answer any status. So a 2xx
and a rejection count only in the form of docs/contracts/control-plane.openapi.yaml, which no other
server produces by accident. Receivers of the 0.1 contract had no such form:
BYOC_ALERTS_CONTRACT=0.1.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

WEBHOOK_ID = "webhook-id"  # of the request; repeated in the response it proves the response

Code = Literal["too_large", "unsupported_media_type", "invalid_event"]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Stored(msgspec.Struct, frozen=True):
    """The body of a 2xx. `stored` + `duplicates` is the number of events in the request."""

    stored: Annotated[Count, msgspec.Meta(description="Events that are new.")]
    duplicates: Annotated[Count, msgspec.Meta(description="Events that were stored before.")]


class Rejected(msgspec.Struct, frozen=True):
    """The body of a 413, 415 or 422: this delivery can never be accepted as it is."""

    webhook_id: Annotated[str, msgspec.Meta(description="The header webhook-id of the request.")]
    code: Annotated[
        Code,
        msgspec.Meta(description="too_large with 413, unsupported_media_type with 415, else 422."),
    ]


CODES: Mapping[int, Code] = {
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_event",
}


def proves_storage(headers: Mapping[str, str], body: bytes, delivery_id: str, events: int) -> bool:
    """Return whether a 2xx repeats the `webhook-id`, or counts the events that were sent.

    `headers` is case-insensitive. `delivery_id` is the `webhook-id` of the request.
    """
    if delivery_id and headers.get(WEBHOOK_ID, "") == delivery_id:
        return True
    try:
        found = msgspec.json.decode(body, type=Stored)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return found.stored + found.duplicates == events


def proves_rejection(status: int, body: bytes, delivery_id: str) -> bool:
    """Return whether a 413, 415 or 422 names this delivery and the code of the status."""
    try:
        found = msgspec.json.decode(body, type=Rejected)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return (found.webhook_id, found.code) == (delivery_id, CODES.get(status))
