"""Compares a manifest with the table, by meaning and not by spelling.

Ignored: order, comments, Sids and Ids, labels, annotations and what a cluster adds to metadata,
status; a list of one is the same as the one; numbers and booleans are the same as their text.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

NOISE = frozenset({"metadata", "status"})  # at the top of a manifest
NAMES = frozenset({"Sid", "Id"})  # of a statement and of a policy


def differences(wanted: Any, given: Any) -> list[str]:
    """Return one line for each entry that is missing or additional in `given`."""
    return _compare("", canonical(_bare(wanted)), canonical(_bare(given)))


def canonical(value: Any) -> Any:
    """Return the value in its canonical spelling."""
    if isinstance(value, Mapping):
        policy = value.keys() & {"Effect", "Statement"}
        known = {str(k): canonical(v) for k, v in value.items() if not (policy and k in NAMES)}
        if isinstance(value.get("port"), int):  # Kubernetes uses TCP if there is no protocol
            known.setdefault("protocol", "TCP")
        return {key: known[key] for key in sorted(known)}
    if isinstance(value, list | tuple):
        found = sorted((canonical(item) for item in value), key=_text)
        return found[0] if len(found) == 1 and isinstance(found[0], str) else found
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _bare(document: Any) -> Any:
    if not isinstance(document, Mapping):
        return document
    return {key: value for key, value in document.items() if key not in NOISE}


def matching(wanted: Any, documents: list[Any]) -> Any | None:
    """Return the document of the same kind, by its name if there are several; else None."""
    if not isinstance(wanted, Mapping) or "kind" not in wanted:
        return documents[0] if len(documents) == 1 else None
    same = [d for d in documents if isinstance(d, Mapping) and d.get("kind") == wanted["kind"]]
    named = [d for d in same if _name(d) == _name(wanted)]
    candidates = named or same
    return candidates[0] if len(candidates) == 1 else None


def others_of_kind(document: Any, documents: list[Any]) -> list[str]:
    """Return the other documents of its kind, which may allow additional flows."""
    kind = document.get("kind") if isinstance(document, Mapping) else None
    others = (d for d in documents if isinstance(d, Mapping) and d is not document)
    return [f"{kind} {_name(d)}" for d in others if kind and d.get("kind") == kind]


def _name(document: Mapping[str, Any]) -> Any:
    return (document.get("metadata") or {}).get("name")


def _compare(where: str, wanted: Any, given: Any) -> list[str]:
    if wanted == given:
        return []
    if isinstance(wanted, dict) and isinstance(given, dict):
        lines = []
        for key in sorted(wanted.keys() | given.keys()):
            lines += _member(f"{where}.{key}".lstrip("."), key, wanted, given)
        return lines
    if isinstance(wanted, list) or isinstance(given, list):
        return _members(where, _list(wanted), _list(given))
    return [f"{where}: has {_text(given)}, the table has {_text(wanted)}"]


def _member(where: str, key: str, wanted: dict[str, Any], given: dict[str, Any]) -> list[str]:
    if key not in given:
        return [] if wanted[key] in ([], "") else [f"{where}: missing {_text(wanted[key])}"]
    if key not in wanted:
        return [] if given[key] in ([], "") else [f"{where}: not in the table: {_text(given[key])}"]
    return _compare(where, wanted[key], given[key])


def _members(where: str, wanted: list[Any], given: list[Any]) -> list[str]:
    extra, missing = list(given), []
    for item in wanted:
        if item in extra:
            extra.remove(item)
        else:
            missing.append(item)
    lines = [f"{where}: missing {_text(item)}" for item in missing]
    return lines + [f"{where}: not in the table: {_text(item)}" for item in extra]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
