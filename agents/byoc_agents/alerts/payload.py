"""Decode Alertmanager's notifications (webhook version 4). Unknown fields are ignored.

Each alert is decoded on its own, so an invalid alert does not affect the others of its group. A
small body is decoded at once. A large body is split first, so only one slice of its alerts is
decoded at a time, which bounds the memory for any content. No decoded value is sent unchecked:
`events.py` builds the events from the fields that it names.
"""

import re
from array import array
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal

import msgspec

from byoc_agents.app.cloudevents import parse_rfc3339, stable_id

Status = Literal["firing", "resolved"]
FINGERPRINT = re.compile(r"[0-9a-f]{16}")  # prometheus/common model.Fingerprint
MAX_TRUNCATED = 1_000_000_000
SMALL_BODY_BYTES = 32 * 1024  # decoded at once: at most 16,000 values, 1 MiB of objects
SLICE_ALERTS = 250  # of a large body in memory at a time
SLICE_BYTES = 1024**2
MIN_ALERT_BYTES = 40  # a status, a start and labels; a shorter alert is invalid and not decoded
MAX_ALERT_BYTES = 256 * 1024  # a larger alert is invalid: decoded, it could be 30 times as large
MAX_INVALID = 1000  # values in one list; with more, the body is not a notification
MAX_DEPTH = 64  # of nested values outside the alerts
TOKENS_PER_TURN = 5000  # about 2 ms of scanning, after which other tasks may run
SPACE = re.compile(rb"[ \t\n\r]*+")
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
NESTING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{}]', re.DOTALL)
SCALAR = re.compile(rb"[-+.0-9A-Za-z]++")


class NotAWebhookError(ValueError):
    """The body is not a JSON object with a list of alerts."""


class Received(msgspec.Struct, frozen=True):
    """The fields of an alert that the forwarder uses."""

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
    invalid: int  # alerts that could not be decoded
    truncated: int  # alerts that Alertmanager left out (`max_alerts`)
    first: bool = True  # the first slice of a notification, or all of it


class _Body(msgspec.Struct):
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


class _UsualAlert(msgspec.Struct):
    """An alert as Alertmanager writes it, without values of other types."""

    status: Status
    labels: dict[str, str]
    annotations: dict[str, str]
    starts_at: str = msgspec.field(name="startsAt")
    ends_at: str = msgspec.field(name="endsAt")
    fingerprint: str


class _UsualBody(msgspec.Struct):
    alerts: list[_UsualAlert]
    receiver: str
    truncated: int = msgspec.field(name="truncatedAlerts", default=0)


_USUAL = msgspec.json.Decoder(_UsualBody)
_BODY = msgspec.json.Decoder(_Body)
_ALERT = msgspec.json.Decoder(_AlertBody)


def read(body: bytes | bytearray) -> Group:
    """Return the notification. Raises NotAWebhookError if it is not one."""
    try:
        usual = _USUAL.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_unusual(body)
    found = [_check_alert(alert, alert.labels, alert.annotations) for alert in usual.alerts]
    return _group(found, usual.receiver, usual.truncated)


def _read_unusual(body: bytes | bytearray) -> Group:
    """Return a notification of which a value has an unexpected type or form."""
    try:
        group = _BODY.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # RFC 8259 allows texts that msgspec refuses, such as half a surrogate pair in an alert
        slices = [group for group in _slices(body) if group]
        alerts = [alert for group in slices for alert in group.alerts]
        return msgspec.structs.replace(slices[0], alerts=alerts)
    found = [_parse_alert(raw) for raw in group.alerts]
    return _group(found, _value(group.receiver), _value(group.truncated))


def read_slices(body: bytes | bytearray) -> Iterator[Group | None]:
    """Yield the notification in slices of bounded size. None = other tasks may run now.

    Raises NotAWebhookError, always before the first slice.
    """
    if len(body) <= SMALL_BODY_BYTES:
        yield read(body)
    else:
        yield from _slices(body)


def _slices(body: bytes | bytearray) -> Iterator[Group | None]:
    splitter = _Splitter(body)
    yield from splitter.split()
    view, first, invalid = memoryview(body), True, splitter.invalid
    at, bounds = 0, splitter.bounds
    while first or at < len(bounds):
        begin = at
        alerts: list[Received | None] = []
        while at < len(bounds) and at - begin < 2 * SLICE_ALERTS:
            if alerts and bounds[at + 1] - bounds[begin] > SLICE_BYTES:
                break
            alerts.append(_parse_alert(view[bounds[at] : bounds[at + 1]]))
            at += 2
        group = _group(alerts, _value(splitter.receiver), _value(splitter.truncated))
        yield msgspec.structs.replace(group, invalid=group.invalid + invalid, first=first)
        first, invalid = False, 0


def _group(found: Sequence[Received | None], receiver: object, truncated: object) -> Group:
    alerts = [alert for alert in found if alert is not None]
    return Group(
        receiver=receiver if isinstance(receiver, str) else "",
        alerts=alerts,
        invalid=len(found) - len(alerts),
        truncated=_count(truncated),
    )


class _Splitter:
    """Finds the alerts of a body without creating an object for each value."""

    def __init__(self, body: bytes | bytearray) -> None:
        self.bounds = array("I")  # start and end of each alert; a body is smaller than 4 GiB
        self.invalid = 0
        self.receiver = self.truncated = b"null"
        self._body = body
        self._at = 0
        self._tokens = 0
        self._found = False

    def split(self) -> Generator[None, None, None]:
        """Read the outer object. The generator yields when other tasks may run.

        Values other than the alerts and the two fields are skipped without validation. Raises
        NotAWebhookError.
        """
        self._expect(b"{")
        while True:
            key = self._key()
            self._expect(b":")
            self._skip_space()
            start = self._at
            if key == "alerts":
                yield from self._alerts()
            else:
                yield from self._skip()
            value = (
                bytes(self._body[start : self._at])
                if key in {"receiver", "truncatedAlerts"}
                else b""
            )
            if key == "receiver":
                self.receiver = value
            elif key == "truncatedAlerts":
                self.truncated = value
            if self._next(b"}"):
                break
        self._skip_space()
        if self._at < len(self._body) or not self._found:
            raise NotAWebhookError("expected a JSON object with alerts")

    def _alerts(self) -> Generator[None, None, None]:
        self._found, self.bounds, self.invalid = True, array("I"), 0  # the last list counts
        self._expect(b"[")
        self._skip_space()
        if self._body[self._at : self._at + 1] == b"]":
            self._at += 1
            return
        while True:
            self._skip_space()
            start = self._at
            yield from self._skip()
            size = self._at - start
            if self._body[start] == ord("{") and MIN_ALERT_BYTES <= size <= MAX_ALERT_BYTES:
                self.bounds.extend((start, self._at))
            else:
                self.invalid += 1
                if self.invalid > MAX_INVALID:
                    raise NotAWebhookError("too many values that are not alerts")
            if self._next(b"]"):
                return

    def _skip(self) -> Generator[None, None, None]:
        """Move past the next value."""
        opening = bytes(self._body[self._at : self._at + 1])
        if opening not in (b"{", b"["):
            found = (STRING if opening == b'"' else SCALAR).match(self._body, self._at)
            if not found:
                raise NotAWebhookError("expected a JSON value")
            self._at = found.end()
            if self._count_token():
                yield
            return
        depth = 0
        for found in NESTING.finditer(self._body, self._at):
            token = found[0]
            if token in (b"{", b"["):
                depth += 1
            elif token in (b"}", b"]"):
                depth -= 1
            if depth > MAX_DEPTH:
                raise NotAWebhookError("nested too deeply")
            if depth == 0:
                self._at = found.end()
                return
            if self._count_token():
                yield
        raise NotAWebhookError("the body ends inside a value")

    def _count_token(self) -> bool:
        """Return whether other tasks should run now."""
        self._tokens += 1
        return self._tokens % TOKENS_PER_TURN == 0

    def _key(self) -> Any:
        self._skip_space()
        found = STRING.match(self._body, self._at)
        if not found:
            raise NotAWebhookError("expected a field name")
        self._at = found.end()
        return _value(found[0]) if len(found[0]) < 100 else ""  # noqa: PLR2004  an unknown name

    def _skip_space(self) -> None:
        found = SPACE.match(self._body, self._at)
        self._at = found.end() if found else self._at

    def _expect(self, character: bytes) -> None:
        self._skip_space()
        if self._body[self._at : self._at + 1] != character:
            raise NotAWebhookError(f"expected {character.decode()}")
        self._at += 1

    def _next(self, closing: bytes) -> bool:
        """Move past a comma or `closing`. Return whether it was `closing`."""
        self._skip_space()
        found = self._body[self._at : self._at + 1]
        if found not in (b",", closing):
            raise NotAWebhookError(f"expected a comma or {closing.decode()}")
        self._at += 1
        return found == closing


def _value(raw: bytes | msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return None


def _count(value: object) -> int:
    return min(value, MAX_TRUNCATED) if isinstance(value, int) and value > 0 else 0


def _parse_alert(raw: msgspec.Raw | memoryview) -> Received | None:
    """Return the alert, or None if it has no status, no labels or no start."""
    try:
        alert = _ALERT.decode(raw)
    except (ValueError, RecursionError):
        return None
    return _check_alert(alert, _texts(alert.labels), _texts(alert.annotations))


def _check_alert(
    alert: _AlertBody | _UsualAlert, labels: dict[str, str], annotations: dict[str, str]
) -> Received | None:
    """Return the alert, or None if it has no valid start."""
    try:
        starts_at_ms = parse_rfc3339(alert.starts_at)
    except (ValueError, OverflowError):
        return None
    if starts_at_ms <= 0:  # Go's zero time: the start is part of the identity of an episode
        return None
    return Received(
        status=alert.status,
        labels=labels,
        annotations=annotations,
        starts_at_ms=starts_at_ms,
        ends_at_ms=_ends_at_ms(alert),
        fingerprint=_fingerprint(alert.fingerprint, labels),
    )


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(text, str)}


def _ends_at_ms(alert: _AlertBody | _UsualAlert) -> int | None:
    """Return the end. The `endsAt` of a firing alert is 0001-01-01 or an estimate: ignored."""
    if alert.status == "firing" or not isinstance(alert.ends_at, str):
        return None
    try:
        milliseconds = parse_rfc3339(alert.ends_at)
    except (ValueError, OverflowError):
        return None
    return milliseconds if milliseconds > 0 else None


def _fingerprint(given: object, labels: dict[str, str]) -> str:
    """Return Alertmanager's fingerprint, or a hash of the labels if it is malformed."""
    if isinstance(given, str) and FINGERPRINT.fullmatch(given):
        return given
    return stable_id("fingerprint", *(f"{k!r}={v!r}" for k, v in sorted(labels.items())))[:16]
