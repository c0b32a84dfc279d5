"""The HTML report: one self-contained page for a security reviewer.

The layout of the page is in `templates/`, its style sheet and script in `static/`.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from byoc_agents import __version__
from byoc_agents.app.cloudevents import Event, encode, rfc3339
from byoc_agents.ledger.query import Filter, Send, events
from byoc_agents.ledger.verify import LedgerVerdict
from byoc_agents.report.bodies import events_in, read_kept
from byoc_agents.report.html import (
    format_number,
    format_size,
    make_environment,
    make_policy,
    read_static,
)
from byoc_agents.report.summary import (
    Summary,
    Sums,
    series_of,
    span_of,
    summarize,
)
from byoc_agents.schema import EXAMPLES, fields_of, stray_paths
from byoc_agents.schema.document import decode_exactly, purpose, value_at

MAX_NOTES = 20  # the newest; `ledger verify` prints all
SECTIONS = {
    "verdict": "Can it be trusted?",
    "destinations": "Destinations",
    "volume": "Volume over time",
    "contents": "Contents",
    "refused": "Refused connections",
    "sends": "Every send",
    "check": "Check it yourself",
}
_ENCODER = msgspec.json.Encoder(decimal_format="number")


def render_page(
    ledgers: Mapping[str, Path],
    verdicts: Mapping[str, LedgerVerdict],
    wanted: Filter,
    now_ms: int = 0,
) -> str:
    """Return the HTML of the report.

    `ledgers` maps a daemon's name to its ledger's directory; `now_ms` is the time printed in the
    footer, milliseconds since 1970, 0 for now. Raises OSError if a ledger cannot be read, and
    ConfigError if Jinja2 is not installed.
    """
    environment = make_environment("ledger report")
    environment.globals["series_of"] = series_of
    summary = summarize(events(ledgers, wanted))
    style, script = read_static("style.css"), read_static("report.js")
    daemon, verdict = next(iter(verdicts.items()))
    span = span_of(summary.all.minutes) if summary.all.minutes else None
    names = [*EXAMPLES, *sorted(set(summary.types) - set(EXAMPLES))]
    return str(
        environment.get_template("report.html").render(
            sections=SECTIONS,
            policy=make_policy(style, script),
            style=style,
            script=script,
            verdicts=verdicts,
            max_notes=MAX_NOTES,
            first=wanted.since
            or summary.all.first
            or min(one.first_time for one in verdicts.values()),
            last=wanted.until or max(one.last_time for one in verdicts.values()),
            filters=[(k, v) for k, v in (("type", wanted.type), ("to", wanted.destination)) if v],
            summary=summary,
            tiles=_tiles(summary),
            span=span,
            types=[_type_section(name, summary.types.get(name)) for name in names],
            check_daemon=daemon,
            check_head=verdict.head,
            made=rfc3339(now_ms or time.time_ns() // 1_000_000),
            version=__version__,
        )
    )


def _tiles(summary: Summary) -> dict[str, str]:
    total = summary.all.total
    return {
        "destinations": format_number(len(summary.destinations)),
        "sends announced": format_number(total.sends),
        "confirmed by the receiver": format_number(total.confirmed),
        "bytes confirmed": format_size(total.confirmed_bytes),
        "bytes not confirmed": format_size(total.other_bytes),
        "connections refused": format_number(summary.refused),
    }


# One event type: its fields, an example, and the check of the kept bodies.


class TypeSection(msgspec.Struct, frozen=True, kw_only=True):
    """The section of the page about one event type."""

    name: str
    known: bool  # in the schemas of this version
    purpose: str
    sends: int
    bodies: int = 0  # kept bodies that were read
    events: int = 0  # events in them
    stray: frozenset[str] = frozenset()  # paths that are in no schema
    damaged: Sequence[str] = ()
    fields: Sequence[tuple[Any, str]] = ()  # field of the schema, its value in the example
    example: str = ""  # JSON, indented
    real: bool = False  # the example is a kept body


def _type_section(name: str, sums: Sums | None) -> TypeSection:
    event = EXAMPLES.get(name)
    bodies, count, newest, stray, damaged = _check_bodies(sums.bodies if sums else (), event)
    shown = newest if newest is not None else decode_exactly(encode(event)) if event else None
    return TypeSection(
        name=name,
        known=event is not None,
        purpose=purpose(event).replace("`", "")
        if event
        else "NOT a schema of this version of byoc-agents.",
        sends=sums.total.sends if sums else 0,
        bodies=bodies,
        events=count,
        stray=frozenset(stray),
        damaged=damaged,
        fields=[(field, value_at(shown, field.path)) for field in fields_of(type(event))]
        if event
        else (),
        example=""
        if shown is None
        else msgspec.json.format(_ENCODER.encode(shown), indent=2).decode(),
        real=newest is not None,
    )


def _check_bodies(
    sends: Iterable[Send], event: Event | None
) -> tuple[int, int, Any, set[str], list[str]]:
    """Return bodies read, events in them, the newest event, stray paths, damaged bodies."""
    bodies, count, newest = 0, 0, None
    stray: set[str] = set()
    damaged: list[str] = []
    for send in sends:
        body = read_kept(send)
        if body is None:
            continue
        bodies += 1
        try:
            found = events_in(body)
        except ValueError as error:
            damaged.append(f"{send.id}: {error}")
            continue
        count += len(found)
        newest = found[-1] if found else newest
        if event:
            stray.update(*(stray_paths(type(event), one) for one in found))
    return bodies, count, newest, stray, damaged
