"""docs/contracts/fields.md: every field of every event, from the code that sends them."""

from decimal import Decimal
from typing import Any

import msgspec

from byoc_agents.app.cloudevents import Event, encode
from byoc_agents.schema import transport
from byoc_agents.schema.examples import EXAMPLES
from byoc_agents.schema.fields import Field, fields_of

HEAD = """# Everything that may leave, field by field

This page is generated from the structs that are sent, by `python -m byoc_agents.schema`; a test
fails if it differs from the code. The last section lists headers, object keys and queue attributes.
Other fields cannot be sent: the sinks accept only bytes that were encoded from these structs, and
`byoc-agents ledger report` checks kept bodies against the same tables. The examples are made up;
the report shows real ones.
"""


_DECODER = msgspec.json.Decoder(float_hook=Decimal)  # a decimal number keeps its digits
_ENCODER = msgspec.json.Encoder(decimal_format="number")


def document() -> str:
    """Return the page."""
    sections = (_section(name, event) for name, event in EXAMPLES.items())
    return "\n".join([HEAD, *sections, *transport.section()])


def purpose(event: Event) -> str:
    """Return the description of an event, from the docstrings of its struct and its data."""
    data: Any = event.data  # type: ignore[attr-defined]  # every event of ours has one
    return f"{_first_line(type(event))} {_first_line(type(data))}"


def example_value(event: Event, path: str) -> str:
    """Return the event's value at a field's path as JSON; empty for objects."""
    return value_at(decode_exactly(encode(event)), path)


def decode_exactly(text: bytes) -> Any:
    """Return decoded JSON in which numbers keep their digits. Raises ValueError."""
    return _DECODER.decode(text)


def value_at(event: Any, path: str) -> str:
    """Return the first value at a field's path of a decoded event, as JSON; empty for objects."""
    values = [event]
    for part in _parts(path):
        values = [inner for value in values for inner in _step(value, part)]
    if not values or isinstance(values[0], dict):
        return ""
    if isinstance(values[0], list) and any(isinstance(v, dict) for v in values[0]):
        return ""
    return _ENCODER.encode(values[0]).decode()


def _section(name: str, event: Event) -> str:
    rows = [_row(field, event) for field in fields_of(type(event))]
    table = ["| field | type | unit | meaning | example |", "|---|---|---|---|---|", *rows]
    return "\n".join([f"## `{name}`", "", purpose(event), "", *table, ""])


def _row(field: Field, event: Event) -> str:
    example = example_value(event, field.path)
    shown = f"`{example}`" if example else ""
    cells = (f"`{field.path}`", field.type, field.unit, field.meaning, shown)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _first_line(struct: type) -> str:
    return (struct.__doc__ or "").strip().splitlines()[0]


def _parts(path: str) -> list[str]:
    """Split a path; names of OpenTelemetry have dots of their own, below `data`."""
    if path.startswith("data.") and path.removeprefix("data.") in OTEL_NAMES:
        return ["data", path.removeprefix("data.")]
    return path.replace("[]", ".[]").split(".")


OTEL_NAMES = frozenset({"k8s.pod.uid", "k8s.container.name", "container.id"})


def _step(value: Any, part: str) -> list[Any]:
    if part == "[]":
        return list(value) if isinstance(value, list) else []
    if not isinstance(value, dict):
        return []
    return list(value.values()) if part == "*" else [value[part]] if part in value else []
