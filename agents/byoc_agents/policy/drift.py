"""Compares a manifest with the table, by meaning and not by spelling.

Ignored: order, comments, labels, annotations and what a cluster adds to metadata, status; a list of
one is the same as the one; numbers and booleans are the same as their text; an expression `key In
[value]` is the same as the label. `iam` compares the documents of AWS.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

NOISE = frozenset({"metadata", "status"})  # at the top of a manifest


@dataclass(frozen=True, slots=True)
class PolicyFinding:
    """One difference: its place in the given document, the problem, and what is expected there."""

    where: str
    problem: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}: expected {self.expected}"


def differences(wanted: Any, given: Any) -> list[PolicyFinding]:
    """Return one finding for each entry that is missing or additional in `given`."""
    return _compare("", _bare(wanted), _bare(given))


def canonical(value: Any) -> Any:
    """Return the value in its canonical spelling."""
    if isinstance(value, Mapping):
        spelled = _name_labels(value)
        known = {str(k): canonical(v) for k, v in spelled.items() if v is not None}
        if isinstance(value.get("port"), int):  # Kubernetes uses TCP if there is no protocol
            known.setdefault("protocol", "TCP")
        return {key: known[key] for key in sorted(known)}
    if isinstance(value, list | tuple):
        found = sorted((canonical(item) for item in value), key=_text)
        return found[0] if len(found) == 1 and isinstance(found[0], str) else found
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _name_labels(selector: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a selector with each `key In [value]` of its expressions as a label."""
    expressions, labels = selector.get("matchExpressions"), selector.get("matchLabels")
    labels = {} if labels is None else labels
    if not isinstance(expressions, list) or not isinstance(labels, Mapping):
        return selector
    named, rest = dict(labels), []
    for one in expressions:
        match one:
            case {"key": str(key), "operator": "In", "values": [str(value)], **more} if (
                not more and named.get(key, value) == value
            ):
                named[key] = value
            case _:
                rest.append(one)
    others = {k: v for k, v in selector.items() if k not in {"matchExpressions", "matchLabels"}}
    found = {"matchLabels": named, "matchExpressions": rest}
    return others | {name: one for name, one in found.items() if one}


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
    here = [d for d in named if _name(d, "namespace") == _name(wanted, "namespace")]
    candidates = here or named or same
    return candidates[0] if len(candidates) == 1 else None


def _name(document: Mapping[str, Any], key: str = "name") -> Any:
    metadata = document.get("metadata")
    return metadata.get(key) if isinstance(metadata, Mapping) else None


def _compare(where: str, wanted: Any, given: Any) -> list[PolicyFinding]:
    if canonical(wanted) == canonical(given):
        return []
    if isinstance(wanted, Mapping) and isinstance(given, Mapping):
        found = []
        for key in sorted({*map(str, wanted), *map(str, given)}):
            found += _member(f"{where}.{key}".lstrip("."), wanted.get(key), given.get(key))
        return found
    if isinstance(wanted, list | tuple) or isinstance(given, list | tuple):
        return _members(where, _list(wanted), _list(given))
    return [PolicyFinding(where, f"has {_text(given)}", _text(wanted))]


def _member(where: str, wanted: Any, given: Any) -> list[PolicyFinding]:
    """Compare the values of one key; a key that is null or empty is one that is not there."""
    if given is None:
        return [] if wanted in (None, [], "") else [PolicyFinding(where, "missing", _text(wanted))]
    if wanted is None:
        return [] if given in ([], "") else [_extra(where, given)]
    return _compare(where, wanted, given)


def _members(where: str, wanted: list[Any], given: list[Any]) -> list[PolicyFinding]:
    """Compare lists without their order; an entry that has changed is compared with its like."""
    extra, missing = dict(enumerate(given)), []
    for item in wanted:
        same = (n for n, other in extra.items() if canonical(other) == canonical(item))
        if (number := next(same, None)) is None:
            missing.append(item)
        else:
            del extra[number]
    found = []
    for item in missing:
        likeness = {number: len(_leaves(item) & _leaves(other)) for number, other in extra.items()}
        number = max(likeness, key=lambda n: likeness[n], default=None)
        if number is None or not likeness[number]:
            found.append(PolicyFinding(where, "missing", _text(item)))
        else:
            place, other = f"{where}[{number}]", extra.pop(number)
            found += _compare(place, item, other) or [_extra(place, other)]
    return found + [_extra(f"{where}[{number}]", item) for number, item in extra.items()]


def _leaves(value: Any, path: str = "") -> frozenset[str]:
    """Return every text of a value with the keys that lead to it."""
    if isinstance(value, Mapping):
        parts = [_leaves(inner, f"{path}.{key}") for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        parts = [_leaves(inner, path) for inner in value]
    else:
        return frozenset({f"{path}={canonical(value)}"})
    return frozenset().union(*parts)


def _extra(where: str, value: Any) -> PolicyFinding:
    return PolicyFinding(where, f"not in the table: {_text(value)}", "no such entry")


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
