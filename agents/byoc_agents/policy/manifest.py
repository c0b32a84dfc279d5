"""Reads the documents of a manifest in YAML or JSON, and refuses a key that appears twice.

Of two equal keys every reader takes another one: `yaml` and `json` the last, others the first. A
policy with two would be judged by one and enforced by the other.
"""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from byoc_agents.errors import ConfigError


class DuplicateKeyError(ValueError):
    """A mapping has a key twice; the text names it."""


def documents(text: str, name: str) -> list[object]:
    """Return the documents of a manifest. Raises ConfigError and DuplicateKeyError."""
    try:
        found: list[object] = [parse_json(text)]
    except json.JSONDecodeError:
        found = _parse_yaml(text, name)
    items: list[object] = []
    for document in found:
        listed = isinstance(document, Mapping) and str(document.get("kind", "")).endswith("List")
        inner = document.get("items") if listed and isinstance(document, Mapping) else None
        items += inner if isinstance(inner, list) else [document]
    return items


def parse_json(text: str) -> object:
    """Return a JSON value. Raises json.JSONDecodeError and DuplicateKeyError."""
    return json.loads(text, object_pairs_hook=_unique)


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
    """YAML without repeated keys; a key that overrides a merged one (`<<`) is none."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check the keys as they are written, before `<<` adds others."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise DuplicateKeyError(f"line {line}: the key {key.value!r} appears twice")
            seen.add((key.tag, key.value))
        super().flatten_mapping(node)
