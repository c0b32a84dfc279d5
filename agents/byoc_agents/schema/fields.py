"""The fields of an event's struct: path, type, unit, meaning.

The meaning is the field's `msgspec.Meta(description=...)`: see `cloudevents.describe`. The unit is
in the name.
"""

import re
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


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One field, or one kind of element. `path` as in `data.reasons[].code`, `data.labels.*`."""

    path: str
    type: str
    unit: str
    meaning: str


def fields_of(struct: type[msgspec.Struct]) -> list[Field]:
    """Return every field that an event of this type can have, in the order it is written."""
    return list(_walk(types.type_info(struct), "", ""))


def stray_paths(struct: type[msgspec.Struct], event: Any) -> set[str]:
    """Return the paths in a decoded event that are not fields of the struct."""
    known = _known(struct)
    return {path for path in _paths(event, "", known) if path not in known}


@cache
def _known(struct: Hashable) -> frozenset[str]:
    return frozenset(field.path for field in _walk(types.type_info(struct), "", ""))


def _walk(kind: Any, path: str, meaning: str) -> Iterator[Field]:
    inner, optional = _without_none(kind)
    if path:
        name = _type_name(inner) + (" or null" if optional else "")
        yield Field(path=path, type=name, unit=_unit(path, inner), meaning=meaning)
    if isinstance(inner, types.StructType):
        for field in inner.fields:
            below = f"{path}.{field.encode_name}" if path else field.encode_name
            yield from _walk(field.type, below, _meaning(field))
    elif isinstance(inner, types.DictType):
        yield from _walk(inner.value_type, f"{path}.*", "One of them, by its name.")
    elif isinstance(inner, types.ListType | types.VarTupleType):
        element = _without_none(inner.item_type)[0]
        if isinstance(element, types.StructType):
            yield from _walk(element, f"{path}[]", "One of them.")


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
        return "one of " + ", ".join(f"`{word}`" if word else '`""`' for word in _sort_values(kind))
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


def _sort_values(kind: types.LiteralType) -> list[str]:
    return sorted(str(word) for word in kind.values)


def _unit(path: str, kind: Any) -> str:
    if not isinstance(kind, types.IntType | types.FloatType | types.DecimalType):
        return ""
    return next((unit for end, unit in UNITS if f".{path}".endswith(end)), "")


def _meaning(field: types.Field) -> str:
    """Return the description, or the first line of the docstring of the field's struct."""
    if isinstance(field.type, types.Metadata) and field.type.extra_json_schema:
        return str(field.type.extra_json_schema["description"])
    inner = _without_none(field.type)[0]
    if isinstance(inner, types.StructType):
        return re.sub(r"\bNone\b", "null", (inner.cls.__doc__ or "").splitlines()[0])
    return ""


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
