"""What Alertmanager sends (webhook version 4), read with tolerance for whatever else stands there.

Each alert is decoded on its own, so that one odd alert never takes its group with it. Nothing of
what is read here leaves as it is: `event.py` builds what leaves from the fields it names.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from byoc_agents.app.cloudevents import parse_rfc3339, stable_id

Status = Literal["firing", "resolved"]
FINGERPRINT = re.compile(r"[0-9a-f]{16}")  # prometheus/common model.Fingerprint
MAX_TRUNCATED = 1_000_000_000


class NotAWebhookError(ValueError):
    """The body is no JSON object with a list of alerts."""


class Received(msgspec.Struct, frozen=True):
    """One alert, as far as we look at it."""

    status: Status
    labels: dict[str, str]
    annotations: dict[str, str]
    starts_at_ms: int  # milliseconds since 1970
    ends_at_ms: int | None  # None while it fires
    fingerprint: str  # 16 hex digits


class Group(msgspec.Struct, frozen=True):
    """One notification."""

    receiver: str
    alerts: Sequence[Received]
    invalid: int  # alerts that could not be read
    truncated: int  # alerts that Alertmanager left out (`max_alerts`)


class _Group(msgspec.Struct):
    alerts: list[msgspec.Raw]
    receiver: msgspec.Raw = msgspec.Raw(b'""')
    truncated: msgspec.Raw = msgspec.field(name="truncatedAlerts", default=msgspec.Raw(b"0"))


class _AlertBody(msgspec.Struct):
    status: Status
    labels: dict[str, Any]
    starts_at: str = msgspec.field(name="startsAt")
    ends_at: Any = msgspec.field(name="endsAt", default=None)
    annotations: Any = None
    fingerprint: Any = None


_GROUP = msgspec.json.Decoder(_Group)
_ALERT = msgspec.json.Decoder(_AlertBody)


def read(body: bytes | bytearray) -> Group:
    """Return the notification. Raises NotAWebhookError when it is none at all."""
    group = _group(body)
    read_alerts = [_received(raw) for raw in group.alerts]
    alerts = [alert for alert in read_alerts if alert]
    receiver, truncated = _value(group.receiver), _value(group.truncated)
    return Group(
        receiver=receiver if isinstance(receiver, str) else "",
        alerts=alerts,
        invalid=len(read_alerts) - len(alerts),
        truncated=_count(truncated),
    )


def _group(body: bytes | bytearray) -> _Group:
    try:
        return _GROUP.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _second_look(body)
    except RecursionError:
        raise NotAWebhookError("nested too deeply") from None


def _second_look(body: bytes | bytearray) -> _Group:
    """Read what RFC 8259 allows and msgspec refuses, such as half a surrogate pair in one alert."""
    try:
        value = json.loads(body)
        alerts = value["alerts"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise NotAWebhookError("no JSON object with alerts") from None
    if not isinstance(alerts, list):
        raise NotAWebhookError("alerts is no list")
    return _Group(
        alerts=[_raw(alert) for alert in alerts],
        receiver=_raw(value.get("receiver")),
        truncated=_raw(value.get("truncatedAlerts")),
    )


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return None


def _count(value: object) -> int:
    return min(value, MAX_TRUNCATED) if isinstance(value, int) and value > 0 else 0


def _received(raw: msgspec.Raw) -> Received | None:
    """Return the alert, or None when it has no status, no labels or no start."""
    try:
        alert = _ALERT.decode(raw)
        starts_at_ms = parse_rfc3339(alert.starts_at)
    except (ValueError, RecursionError, OverflowError):
        return None
    if starts_at_ms <= 0:  # Go's zero time: an alert without a start cannot be told from others
        return None
    labels = _texts(alert.labels)
    return Received(
        status=alert.status,
        labels=labels,
        annotations=_texts(alert.annotations),
        starts_at_ms=starts_at_ms,
        ends_at_ms=_ends_at_ms(alert),
        fingerprint=_fingerprint(alert.fingerprint, labels),
    )


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(text, str)}


def _ends_at_ms(alert: _AlertBody) -> int | None:
    """Return when it ended. A firing alert's `endsAt` is 0001-01-01 or a guess: not told."""
    if alert.status == "firing" or not isinstance(alert.ends_at, str):
        return None
    try:
        milliseconds = parse_rfc3339(alert.ends_at)
    except (ValueError, OverflowError):
        return None
    return milliseconds if milliseconds > 0 else None


def _fingerprint(given: object, labels: dict[str, str]) -> str:
    """Return Alertmanager's fingerprint, or one of our own where it has another form."""
    if isinstance(given, str) and FINGERPRINT.fullmatch(given):
        return given
    return stable_id("fingerprint", *(f"{k!r}={v!r}" for k, v in sorted(labels.items())))[:16]
