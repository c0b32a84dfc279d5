"""Write VALUES.md from values.schema.json (descriptions) and values.yaml (defaults)."""

import json
from collections.abc import Iterator
from typing import Any

import yaml

from lab.real.chart.render import CHART

FILE = CHART / "VALUES.md"
HEAD = """# Values of the chart

Made from `values.schema.json` and `values.yaml` by `make chart`; a test holds it to them.

| value | default | meaning |
|---|---|---|
"""
LEAVES = frozenset({"resources"})  # objects that are one value


def schema() -> dict[str, Any]:
    """Return the schema."""
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return found


def defaults() -> dict[str, Any]:
    """Return values.yaml."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def described() -> Iterator[tuple[str, Any, str]]:
    """Yield (path, default, description) of each value, in the schema's order."""
    yield from _described("", schema(), defaults())


def markdown() -> str:
    """Return the whole file."""
    rows = (
        f"| {_code(path)} | {_default(value)} | {_cell(text)} |\n"
        for path, value, text in described()
    )
    return HEAD + "".join(rows)


def _described(start: str, node: dict[str, Any], given: Any) -> Iterator[tuple[str, Any, str]]:
    for key, child in node["properties"].items():
        if key == "global":
            continue
        path, value = f"{start}{key}", given[key]
        closed = "properties" in child and key not in LEAVES
        yield path, None if closed else value, _meaning(child)
        if closed:
            yield from _described(f"{path}.", child, value)


def _meaning(node: dict[str, Any]) -> str:
    words = ", ".join(f"`{word}`" for word in node.get("enum", ()))
    names = node.get("propertyNames", {}).get("enum", ())
    known = ", ".join(f"`{name}`" for name in names)
    tail = f" One of {words}." if words else f" Known: {known}." if known else ""
    return f"{node['description']}{tail}"


def _default(value: Any) -> str:
    return "" if value in (None, "", {}, []) else _code(json.dumps(value))


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
