"""Events as rows: which table an event belongs to, and its columns.

An event of an unknown type is accepted as it is, so that newer daemons lose nothing: its names and
its whole text are stored. An event of a known type must have every field of its type. An object
with the same key twice is not an event: readers of its text may take another value.

ClickHouse takes an integer or a time that does not fit its column for another one, without an
error. So both are checked here, and times are written in one form.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from byoc_agents.access.documents import AccessRequest
from byoc_agents.access.events import TYPE as GRANT
from byoc_agents.access.events import GrantEvent
from byoc_agents.alerts.events import (
    ALERT,
    HEARTBEAT,
    WATCHDOG,
    AlertEvent,
    HeartbeatEvent,
    WatchdogEvent,
)
from byoc_agents.app.cloudevents import Event, parse_rfc3339, rfc3339, stable_id
from byoc_agents.state.message import STATE, SUMMARY, StateEvent, SummaryEvent

STATE_TABLE, ALERTS_TABLE, REJECTED_TABLE = "byoc_state", "byoc_alerts", "byoc_rejected"
GRANTS_TABLE = "byoc_grants"
KNOWN: dict[str, type[Event]] = {
    STATE: StateEvent,
    SUMMARY: SummaryEvent,
    ALERT: AlertEvent,
    WATCHDOG: WatchdogEvent,
    HEARTBEAT: HeartbeatEvent,
    GRANT: GrantEvent,
}
# Columns that are fields of `data` under the same name.
STATE_COLUMNS = (
    *("organization_id", "service_id", "replica", "region", "kind", "state", "state_since"),
    *("healthy", "version", "uptime_seconds", "heartbeat_seconds", "epoch", "sequence"),
    *("transition", "lost_transitions"),
)
ALERT_COLUMNS = (
    *("organization_id", "service_id", "replica", "region", "status", "notification"),
    *("fingerprint", "starts_at", "ends_at", "received_at", "labels", "annotations", "started_at"),
    *("sequence", "interval_seconds", "stopping", "backlog_records", "dead_letters"),
)
GRANT_COLUMNS = (
    *("organization_id", "service_id", "grant_id", "state", "since", "reason", "role"),
    *("duration_seconds", "ends_at", "counts", "record"),
)
SENT, PLANE_SOURCE = "sent", "/control-plane/access/requests"  # of the rows that this side makes
AGENT_COLUMNS = ("configuration_sha256", "ledger_size", "ledger_root")  # fields of `data.agent`
TIME_COLUMNS = frozenset(
    {"state_since", "starts_at", "ends_at", "received_at", "started_at", "since"}
)
MAX_TIME_MS = 4_102_444_800_000  # 2100-01-01: DateTime64 and its partitions hold it
MAX_UINT32, MAX_UINT64 = 2**32 - 1, 2**64 - 1
NARROW_COLUMNS = frozenset({"duration_seconds"})  # UInt32; every other integer is UInt64

_envelope = msgspec.json.Decoder(Event)
_any = msgspec.json.Decoder()
_known = {name: msgspec.json.Decoder(kind) for name, kind in KNOWN.items()}


class TableRow(NamedTuple):
    """One row. `key` is the event's source and id: two rows with one key are the same event."""

    table: str
    key: tuple[str, str]
    line: bytes  # JSON
    organization_id: str  # that the event names; empty if it names none


class InvalidEventError(ValueError):
    """The bytes are not an event of this contract. `str()` states why, without the bytes."""


def build_row(body: bytes, arrived_at_ms: int, *, imported: bool = False) -> TableRow:
    """Return the row of one event. Raises InvalidEventError.

    An imported one may be old: for silence, its daemon was seen when the event states, not now.
    """
    try:
        envelope = _envelope.decode(body)
        event: dict[str, Any] = _any.decode(body)
        text = body.decode()
        if msgspec.json.encode(event) != body:  # equal bytes have no key twice
            json.loads(text, object_pairs_hook=_refuse_duplicates)
        if not (envelope.id and envelope.source):
            raise InvalidEventError("an empty id or source")
        time_ms = _parse_time("time", envelope.time)
        data = event.get("data")
        known = KNOWN.get(envelope.type)
        if known:
            _known[envelope.type].decode(body)
            if missing := set(known.__struct_fields__) - event.keys():
                raise InvalidEventError(f"without the field {min(missing)}")
        head = {
            "source": envelope.source,
            "id": envelope.id,
            "type": envelope.type,
            "time": rfc3339(time_ms),
            "arrived_at": rfc3339(arrived_at_ms),
            "event": text,
        }
        if imported and envelope.type != GRANT:  # the table of grants has no such column
            head["seen_at"] = rfc3339(min(time_ms, arrived_at_ms))
        return _row(head, data if isinstance(data, dict) else {}, known=known is not None)
    except InvalidEventError:
        raise
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidEventError(f"not an event: {error}") from error


def _row(head: dict[str, Any], data: Mapping[str, Any], *, known: bool) -> TableRow:
    is_state = head["type"].startswith("byoc.service.")
    table = STATE_TABLE if is_state else ALERTS_TABLE
    if known:
        columns: tuple[str, ...] = STATE_COLUMNS if is_state else ALERT_COLUMNS
        if head["type"] == GRANT:
            table, columns = GRANTS_TABLE, GRANT_COLUMNS
        head |= {name: _value(name, data[name]) for name in columns if data.get(name) is not None}
        if agent := data.get("agent"):  # messages of 0.1.0 have none
            head["agent_version"] = agent["version"]
            head |= {name: _value(name, agent[name]) for name in AGENT_COLUMNS}
        if head["type"] == STATE:
            codes = [reason["code"] for reason in data["reasons"]]
            head["reasons"] = codes
            head["stopping"] = data["state"] == "stopping" or "AGENT_STOPPING" in codes
    else:  # only the names by which a customer's rows are found
        names = ("organization_id", "service_id", "replica", "region")
        head |= {name: data[name] for name in names if isinstance(data.get(name), str)}
    key = (head["source"], head["id"])
    return TableRow(table, key, msgspec.json.encode(head), head.get("organization_id", ""))


def _value(name: str, value: Any) -> Any:
    """Return the value of a column. Raises InvalidEventError if it does not fit."""
    if name in TIME_COLUMNS and isinstance(value, str):
        return rfc3339(_parse_time(name, value))
    if name == "counts":
        return {key: _value(key, count) for key, count in value.items()}
    if isinstance(value, int):
        most = MAX_UINT32 if name in NARROW_COLUMNS else MAX_UINT64
        if not 0 <= value <= most:
            raise InvalidEventError(f"{name} is not between 0 and {most}")
    return value


def _parse_time(name: str, text: str) -> int:
    """Return milliseconds since 1970. Raises ValueError, and InvalidEventError if out of range."""
    time_ms = parse_rfc3339(text)
    if not 0 <= time_ms < MAX_TIME_MS:
        raise InvalidEventError(f"{name} is not between 1970 and 2100")
    return time_ms


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) < len(pairs):
        raise InvalidEventError("the same key twice in one object")


def build_sent(request: AccessRequest, at_ms: int) -> TableRow:
    """Return the row that a broker has been sent a request. The first one of a request counts."""
    audience = request.audience
    key = (PLANE_SOURCE, stable_id(PLANE_SOURCE, audience.organization, request.id))
    line = {
        "source": key[0],
        "id": key[1],
        "type": GRANT,
        "time": request.issued_at,  # the same in each copy of the row
        "arrived_at": rfc3339(at_ms),
        "organization_id": audience.organization,
        "service_id": audience.service,
        "grant_id": request.id,
        "state": SENT,
        "since": rfc3339(at_ms),
        "role": request.role,
        "duration_seconds": request.duration_seconds,
        "engineer": request.engineer.id,
        "ticket": request.reason.ticket,
    }
    return TableRow(GRANTS_TABLE, key, msgspec.json.encode(line), audience.organization)


def build_rejected(
    stream: str, message_id: str, body: bytes, reason: str, arrived_at_ms: int
) -> TableRow:
    """Return the row that keeps a message that cannot become a row of its own table."""
    line = {
        "stream": stream,
        "id": message_id,
        "arrived_at": rfc3339(arrived_at_ms),
        "reason": reason[:1000],
        "body": body.decode(errors="replace"),
    }
    return TableRow(REJECTED_TABLE, (stream, message_id), msgspec.json.encode(line), "")
