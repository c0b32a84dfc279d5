"""docs/contracts/fields.md is what the code sends, all of it."""

import re
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from byoc_agents.access.events import GrantState
from byoc_agents.alerts.schema import EVENTS
from byoc_agents.app.cloudevents import Event, describe, encode
from byoc_agents.schema import EXAMPLES, fields_of, stray_paths
from byoc_agents.schema.document import document, example_value
from byoc_agents.state import message

PAGE = Path(__file__).parents[2] / "docs" / "contracts" / "fields.md"
ACCESS = PAGE.parents[1] / "access.md"
each_event = pytest.mark.parametrize("event", EXAMPLES.values(), ids=list(EXAMPLES))


def test_the_page_is_what_the_code_gives() -> None:
    """Run `python -m byoc_agents.schema` after a change of an event."""
    assert PAGE.read_text() == document()


def test_no_event_of_the_daemons_is_left_out() -> None:
    structs = {type(event) for event in EXAMPLES.values()}
    assert structs >= {*EVENTS, message.StateEvent, message.SummaryEvent}
    sent = {cls for cls in Event.__subclasses__() if cls.__module__.startswith("byoc_agents.")}
    optional = {cls for cls in sent if cls.__module__.startswith("byoc_agents.access.")}
    assert structs == sent - optional


def test_the_page_about_access_has_every_field_that_is_sent_about_a_grant() -> None:
    section = ACCESS.read_text().partition("## What the vendor is sent")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    listed = {name for cell in cells for name in cell.split(", ")}
    assert listed == {f"`{name}`" for name in GrantState.__struct_fields__}


@each_event
def test_every_field_has_a_meaning(event: Event) -> None:
    assert [field.path for field in fields_of(type(event)) if not field.meaning] == []


@each_event
def test_every_number_has_a_unit_or_counts_something(event: Event) -> None:
    counts = r"sequence|expected|observed|transitions?|records|letters|alerts|episodes|\*"
    free = re.compile(rf"(.*(?:{counts})|.*\.(?:value|threshold))$")
    numbers = [
        field for field in fields_of(type(event)) if re.match(r"integer|number|dec", field.type)
    ]
    assert [f.path for f in numbers if not f.unit and not free.match(f.path)] == []


@each_event
def test_the_example_is_a_valid_event_with_every_field(event: Event) -> None:
    raw = encode(event)
    assert msgspec.json.decode(raw, type=type(event)) == event
    plain = msgspec.json.decode(raw)
    assert stray_paths(type(event), plain) == set()
    for field in fields_of(type(event)):
        leaf = "object" not in field.type
        assert bool(example_value(event, field.path)) == leaf, field.path


@pytest.mark.parametrize(
    ("place", "stray"),
    [
        ((), "query_text"),
        (("data",), "data.table"),
        (("data", "used"), "data.used.host"),
    ],
)
def test_a_field_that_is_not_in_the_struct_is_seen(place: tuple[str, ...], stray: str) -> None:
    event = EXAMPLES["byoc.billing.usage.v1"]
    plain = msgspec.json.decode(encode(event))
    inner = plain
    for name in place:
        inner = inner[name]
    inner[stray.rsplit(".", 1)[-1]] = {"deep": 1}
    found = stray_paths(type(event), plain)
    assert stray in found
    assert found <= {stray, f"{stray}.deep"}


class Inner(msgspec.Struct):
    """A struct. None = unknown."""


class Described(msgspec.Struct):
    """A struct."""

    a: Annotated[int, describe("From the annotation.")]  # not from the comment
    b: Inner
    c: int


def test_the_meaning_is_the_description_or_the_docstring_of_the_inner_struct() -> None:
    meanings = [field.meaning for field in fields_of(Described)]
    assert meanings == ["From the annotation.", "A struct. null = unknown.", ""]


def test_the_descriptions_are_in_the_json_schemas() -> None:
    properties = msgspec.json.schema(type(EXAMPLES["byoc.billing.usage.v1"]))["$defs"]["Usage"]
    assert "description" in properties["properties"]["elapsed_milliseconds"]
