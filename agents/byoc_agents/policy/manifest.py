"""Reads the documents of a manifest in YAML or JSON, and refuses a key that appears twice.

Of two equal keys every reader takes another one: `yaml` and `json` the last, others the first. A
policy with two would be judged by one and enforced by the other.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from byoc_agents.errors import ConfigError

MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`


class DuplicateKeyError(ValueError):
    """A mapping has a key twice; the text names it."""


def documents(text: str, name: str) -> list[object]:
    """Return the documents of a manifest. Raises ConfigError and DuplicateKeyError."""
    try:
        found: list[object] = [parse_json(text)]
    except json.JSONDecodeError:
        found = _parse_yaml(text, name)
    return [item for document in found for item in _items(document)]


def parse_json(text: str) -> object:
    """Return a JSON value. Raises json.JSONDecodeError and DuplicateKeyError."""
    return json.loads(text, object_pairs_hook=_unique)


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


def _parse_yaml(text: str, name: str) -> list[object]:
    try:
        found = yaml.load_all(text, Loader=_UniqueKeys)
        return [document for document in found if document is not None]
    except yaml.YAMLError as error:
        why = f"cannot be read ({str(error).splitlines()[0]})"
        wanted = "one JSON document, or YAML documents with `---` between them"
        raise ConfigError([f"--check {name}: {why}: expected {wanted}"]) from error


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
        seen: set[tuple[str, object]] = set()
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
