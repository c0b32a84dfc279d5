"""Reads the documents of a manifest in YAML or JSON, and refuses a key that appears twice.

Of two equal keys every reader takes another one: `yaml` and `json` the last, others the first. A
policy with two would be judged by one and enforced by the other.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from byoc_agents.errors import ConfigError

WANTED = "one JSON document, or YAML documents with `---` between them"
MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`


class DuplicateKeyError(ValueError):
    """A mapping has a key twice; the text names it."""


def documents(text: str, where: str, wanted: str = WANTED) -> list[object]:
    """Return the documents of a manifest; the items of a list take the list's place.

    Raises DuplicateKeyError, and ConfigError if the text is neither JSON nor YAML; it names
    the file by `where` and what is expected by `wanted`.
    """
    try:
        found: list[object] = [parse_json(text)]
    except json.JSONDecodeError:
        found = _parse_yaml(text, where, wanted)
    return [item for document in found for item in _items(document)]


def parse_json(text: str) -> object:
    """Return a JSON value. Raises json.JSONDecodeError and DuplicateKeyError."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", text, 0) from error
    except (json.JSONDecodeError, DuplicateKeyError):
        raise
    except ValueError as error:  # an integer of more than 4,300 digits
        raise json.JSONDecodeError("a number is too long", text, 0) from error


def parse_json_values(text: str) -> list[object]:
    """Return the JSON values that a text holds one after the other.

    Raises ValueError; DuplicateKeyError if an object has a key twice.
    """
    decoder, found, place = json.JSONDecoder(object_pairs_hook=_unique), [], 0
    while rest := text[place:].lstrip():
        value, place = decoder.raw_decode(text, len(text) - len(rest))
        found.append(value)
    return found


def _items(document: object) -> Iterator[object]:
    """Yield the items of a list, and of lists in it; a document that is not a list is yielded.

    The items of a typed list, as the API server returns them, have the list's kind without `List`.
    """
    if not isinstance(document, Mapping):
        yield document
        return
    kind, listed = str(document.get("kind", "")), document.get("items")
    if not kind.endswith("List") or not isinstance(listed, list):
        yield document
        return
    common = {"apiVersion": document.get("apiVersion"), "kind": kind.removesuffix("List")}
    for item in listed:
        missing = {}
        if isinstance(item, Mapping):
            missing = {key: value for key, value in common.items() if value and not item.get(key)}
        yield from _items({**item, **missing} if missing else item)


# PyYAML raises the last three for a value that does not fit its type, such as `!!int ""`.
_UNREADABLE = (yaml.YAMLError, RecursionError, ValueError, AttributeError, LookupError)


def _parse_yaml(text: str, where: str, wanted: str) -> list[object]:
    try:
        found = yaml.load_all(text, Loader=_UniqueKeys)
        return [document for document in found if document is not None]
    except DuplicateKeyError:
        raise
    except _UNREADABLE as error:
        why = f"cannot be read ({[*str(error).splitlines(), type(error).__name__][0]})"
        raise ConfigError([f"{where}: {why}: expected {wanted}"]) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateKeyError(f"the key {key!r} appears twice in one object")
        found[key] = value
    return found


class _UniqueKeys(yaml.SafeLoader):
    """YAML without repeated keys; a key after `<<` may override a merged one.

    A key before `<<` may not: PyYAML keeps it, and kubectl and Helm take the merged one.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check the keys as they are written, before `<<` adds others."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.tag == MERGE and seen:
                raise DuplicateKeyError(f"line {line}: the key '<<' follows other keys")
            if (key.tag, key.value) in seen:
                raise DuplicateKeyError(f"line {line}: the key {key.value!r} appears twice")
            seen.add((key.tag, key.value))
        super().flatten_mapping(node)
