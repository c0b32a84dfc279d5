"""The fields of an event's struct: path, type, unit, meaning.

The meaning is the field's `msgspec.Meta(description=...)` if there is one, else the entry of WORDS
for its name with the comment on its line in the code. The unit is in the name.
"""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Hashable, Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect as types

UNITS = (  # the end of a name -> unit; the first that fits
    ("cpu_core_seconds", "core seconds"),
    ("counter.start", "core seconds"),
    ("counter.end", "core seconds"),
    ("_byte_seconds", "byte seconds"),
    ("_millicores", "1/1000 core"),
    ("_millicores_start", "1/1000 core"),
    ("_millicores_end", "1/1000 core"),
    ("_bytes_start", "bytes"),
    ("_bytes_end", "bytes"),
    ("_cpus", "CPUs"),
    ("_milliseconds", "ms"),
    ("_seconds", "s"),
    ("_bytes", "bytes"),
    (".epoch", "ms since 1970"),
    (".ledger_size", "lines"),
)
WORDS = {  # full path or name -> what the code's own comment leaves open
    "specversion": "version of the CloudEvents specification",
    "id": "the same for the same fact, over retries and restarts; with `source` the receiver's key",
    "source": "the sender, as a path of ids",
    "type": "event type and version",
    "subject": "object of the event in the source: a container, replica, service or fingerprint",
    "time": "when it happened",
    "datacontenttype": "media type of `data`",
    "organization_id": "the customer's organization: BYOC_ORGANIZATION_ID",
    "service_id": "the ClickHouse service: BYOC_SERVICE_ID",
    "replica": "the replica, which is the pod's name: BYOC_REPLICA",
    "region": "the cloud region: BYOC_REGION",
    "k8s.pod.uid": "the pod's unique id; empty if unknown",
    "k8s.container.name": "name of the metered container in the pod: BYOC_CONTAINER_NAME",
    "container.id": "the metered container's id",
    "charge_period_start": "start of the metered period",
    "charge_period_end": "end of the metered period",
    "elapsed_milliseconds": "length of the period",
    "cpu_millicores": "CPU the container may use",
    "memory_bytes": "memory the container may use",
    "data.allocated.source": "source of both sizes",
    "data.allocated.memory_source": "source of `memory_bytes`",
    "cpu_millicores_start": "CPU size at the start of the period",
    "cpu_millicores_end": "CPU size at the end of the period",
    "memory_bytes_start": "memory size at the start of the period",
    "memory_bytes_end": "memory size at the end of the period",
    "machine_cpus": "number of CPUs",
    "counted_milliseconds": "for how long the size counts: allocated = size x this",
    "cpu_core_seconds": "CPU time used in the period",
    "memory_byte_seconds": (
        "memory in use, integrated over the period; page cache is included if the source is "
        "cgroup.v1 or cgroup.v2, and not if it is clickhouse or process"
    ),
    "memory_max_bytes": "most memory in use; page cache as in memory_byte_seconds",
    "start": "at the start of the period",
    "end": "at the end of the period",
    "data.source": "source of the values",
    "expected": "readings the period should have had",
    "observed": "readings it had",
    "quality": "measured: the readings are there; estimated: too few are; gap: none is",
    "gap_reason": "reason for a gap; empty if there is none",
    "code": "stable reason code",
    "value": "the observed value, in the unit of the code",
    "threshold": "the exceeded limit, in the same unit",
    "reasons": "why the state is not `running`; empty if it is",
    "kind": "a change of state, or a heartbeat of the sender",
    "state": "in the terms of ClickHouse Cloud",
    "state_since": "start of the state",
    "previous_state": "the state before",
    "healthy": "all is well",
    "version": "of the server",
    "uptime_seconds": "time since the server's start; null = unknown",
    "observed_at": "time of the observation",
    "heartbeat_seconds": "the next message comes within this; longer silence is an alarm",
    "epoch": "start of a numbering; a later epoch numbers from the beginning",
    "sequence": "number of the record or message",
    "transition": "number of the last change: 1, 2, 3 ... without a gap in an epoch",
    "lost_transitions": "changes of this epoch that could not be stored",
    "status": "status of the alert in Alertmanager",
    "fingerprint": "identifies the labels of an alert: 16 hex digits",
    "starts_at": "when the alert began",
    "ends_at": "when the alert ended",
    "received_at": "when the forwarder received it",
    "labels": "the configured names only: BYOC_ALERTS_LABELS",
    "annotations": "the configured names only: BYOC_ALERTS_ANNOTATIONS",
    "started_at": "when the sender started",
    "interval_seconds": "the next one comes within this",
    "last_watchdog_at": "when the Watchdog was last seen here; null = not yet",
    "backlog_records": "events that are not sent yet",
    "open_digest": "the first 32 hex digits of SHA-256",
    "dead_letters": "stored events that the receiver rejected permanently",
}


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One field, or one kind of element. `path` as in `data.reasons[].code`, `data.labels.*`."""

    path: str
    type: str
    unit: str
    meaning: str


def fields_of(struct: type[msgspec.Struct]) -> list[Field]:
    """Return every field that an event of this type can have, in the order it is written."""
    return list(_walk(types.type_info(struct), "", {}))


def stray_paths(struct: type[msgspec.Struct], event: Any) -> set[str]:
    """Return the paths in a decoded event that are not fields of the struct."""
    known = _known(struct)
    return {path for path in _paths(event, "", known) if path not in known}


@cache
def _known(struct: Hashable) -> frozenset[str]:
    return frozenset(field.path for field in _walk(types.type_info(struct), "", {}))


# Types.


def _walk(kind: Any, path: str, about: dict[str, str]) -> Iterator[Field]:
    inner, optional = _without_none(kind)
    if path:
        name = _type_name(inner) + (" or null" if optional else "")
        yield Field(path=path, type=name, unit=_unit(path, inner), meaning=about.get(path, ""))
    if isinstance(inner, types.StructType):
        comments = _comments(inner.cls)
        for field in inner.fields:
            below = f"{path}.{field.encode_name}" if path else field.encode_name
            meaning = _meaning(field, comments, below)
            yield from _walk(field.type, below, about | {below: meaning})
    elif isinstance(inner, types.DictType):
        value = {f"{path}.*": "one of them, by its name"}
        yield from _walk(inner.value_type, f"{path}.*", value)
    elif isinstance(inner, types.ListType | types.VarTupleType):
        element = _without_none(inner.item_type)[0]
        if isinstance(element, types.StructType):
            yield from _walk(element, f"{path}[]", {f"{path}[]": "one of them"})


def _without_none(kind: Any) -> tuple[Any, bool]:
    if isinstance(kind, types.Metadata):
        return _without_none(kind.type)
    if not isinstance(kind, types.UnionType):
        return kind, False
    others = [part for part in kind.types if not isinstance(part, types.NoneType)]
    literals = [part for part in others if isinstance(part, types.LiteralType)]
    if len(literals) == len(others):
        words = tuple(word for literal in literals for word in literal.values)
        return types.LiteralType(words), len(others) < len(kind.types)
    (only,) = others
    return only, True


def _type_name(kind: Any) -> str:
    if isinstance(kind, types.LiteralType):
        return "one of " + ", ".join(f"`{word}`" if word else '`""`' for word in _sorted(kind))
    if isinstance(kind, types.EnumType):
        return "one of " + ", ".join(f"`{word.value}`" for word in kind.cls)
    if isinstance(kind, types.ListType | types.VarTupleType):
        return f"list of {_type_name(_without_none(kind.item_type)[0])}"
    names: dict[Any, str] = {
        types.StrType: "text",
        types.IntType: "integer",
        types.FloatType: "number",
        types.DecimalType: "decimal number",
        types.BoolType: "true or false",
        types.StructType: "object",
        types.DictType: "object",
    }
    return names[type(kind)]


def _sorted(kind: types.LiteralType) -> list[str]:
    return sorted(str(word) for word in kind.values)


def _unit(path: str, kind: Any) -> str:
    if not isinstance(kind, types.IntType | types.FloatType | types.DecimalType):
        return ""
    return next((unit for end, unit in UNITS if f".{path}".endswith(end)), "")


# Meanings.


def _meaning(field: types.Field, comments: dict[str, str], path: str) -> str:
    """Return the description, or the entry of WORDS followed by the code's comment."""
    if isinstance(field.type, types.Metadata) and field.type.extra_json_schema:
        return str(field.type.extra_json_schema["description"])
    inner = _without_none(field.type)[0]
    word = WORDS.get(path) or WORDS.get(field.encode_name, "")
    if isinstance(inner, types.StructType):
        word = (inner.cls.__doc__ or "").splitlines()[0].rstrip(".")
    comment = comments.get(field.name, "")
    parts = [part for part in (word, comment) if part and (part is comment or part not in comment)]
    return re.sub(r"\bNone\b", "null", "; ".join(parts))


@cache
def _comments(struct: Hashable) -> dict[str, str]:
    """Return field name -> the comment on its line, of the struct and of what it extends."""
    found: dict[str, str] = {}
    for part in reversed(getattr(struct, "__mro__", ())):
        if part.__module__.startswith("byoc_agents."):
            found |= _comments_in(inspect.getsource(part))
    return found


def _comments_in(source: str) -> dict[str, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)  # noqa: S101  the source of a class
    return {
        node.target.id: by_line[node.end_lineno or 0]
        for node in body.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.end_lineno in by_line
    }


def _paths(value: Any, path: str, known: frozenset[str]) -> Iterator[str]:
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            below = f"{path}.{name}" if path else name
            below = f"{path}.*" if f"{path}.*" in known else below
            yield from _paths(inner, below, known)
    elif isinstance(value, list) and any(isinstance(element, dict) for element in value):
        for element in value:
            yield from _paths(element, f"{path}[]", known)
