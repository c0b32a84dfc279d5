"""The HTML report: one self-contained page for a security reviewer.

The page loads nothing: its own Content-Security-Policy allows only its style sheet and its script,
both by hash. Jinja2 escapes every value that comes from a ledger (autoescape is on for all
templates). The layout of the page is in `templates/`, its style sheet and script in `static/`.
"""

import base64
import datetime as dt
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from byoc_agents import __version__
from byoc_agents.app.cloudevents import Event, encode, rfc3339
from byoc_agents.errors import ConfigError
from byoc_agents.ledger.query import Filter, Send, events
from byoc_agents.ledger.verify import LedgerVerdict
from byoc_agents.report.bodies import events_in, read_kept
from byoc_agents.report.summary import (
    DAY_MINUTES,
    Series,
    Span,
    Summary,
    Sums,
    outcome_class,
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
# The chart, in units of its SVG view box.
WIDTH, HEIGHT = 520, 150
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 24  # room for the scales
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
    environment = _environment()
    summary = summarize(events(ledgers, wanted))
    style, script = _static("style.css"), _static("report.js")
    daemon, verdict = next(iter(verdicts.items()))
    span = span_of(summary.all.minutes) if summary.all.minutes else None
    names = [*EXAMPLES, *sorted(set(summary.types) - set(EXAMPLES))]
    return str(
        environment.get_template("report.html").render(
            sections=SECTIONS,
            policy=_policy(style, script),
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


def _environment() -> Any:
    try:
        import jinja2  # noqa: PLC0415  an extra: only this command needs it
    except ModuleNotFoundError as error:
        raise ConfigError(
            ["byoc-agents ledger report needs Jinja2: pip install 'byoc-agents[report]'"]
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _resource("templates", name)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": lambda value, unit: FIGURES[unit](value),
        "minute": format_minute,
        "number": format_number,
        "outcome": outcome_class,
        "plain": lambda text: text.replace("`", ""),
        "plural": format_plural,
        "size": format_size,
    }
    environment.globals |= {"layout_chart": layout_chart, "series_of": series_of}
    return environment


def _resource(folder: str, name: str) -> str:
    return (resources.files(__package__) / folder / name).read_text(encoding="utf-8")


def _static(name: str) -> str:
    return _resource("static", name)


def _policy(style: str, script: str) -> str:
    rules = ("default-src 'none'", f"style-src '{_hash(style)}'", f"script-src '{_hash(script)}'")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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


# Text.


def format_minute(moment: str) -> str:
    """Return `2026-11-23 12:00` of an RFC 3339 time."""
    return moment[:16].replace("T", " ")


def format_number(value: float) -> str:
    """Return `1,234`, with one decimal if there is a fraction."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def format_plural(value: int, noun: str) -> str:
    """Return `1 line` or `2 lines`."""
    return f"{format_number(value)} {noun}{'' if value == 1 else 's'}"


def format_size(value: float) -> str:
    """Return `12.3 KiB` of bytes."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:  # noqa: PLR2004  of the next unit
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"  # noqa: PLR2004
        value /= 1024
    return f"{value:.1f} GiB"


FIGURES = {"number": format_number, "size": format_size}

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


# The bar chart.


def layout_chart(series: Series, span: Span, base: int) -> dict[str, Any]:
    """Return the coordinates of a bar chart, in units of its view box.

    `base` is 1024 for bytes, so that the scale ends at a round number of KiB or MiB, else 10.
    """
    top = _round_up(max(a + b for a, b in zip(*series, strict=True)), base)
    floor = HEIGHT - BOTTOM
    plot = HEIGHT - TOP - BOTTOM
    scale = [
        {
            "y": round(floor - part * plot, 1),
            "value": None if top == 1 and part == 0.5 else top * part,  # noqa: PLR2004  half a send
        }
        for part in (0.0, 0.5, 1.0)
    ]
    middle = round((LEFT + WIDTH - RIGHT) / 2)
    places = ((0.0, LEFT, ""), (span.bars / 2, middle, "mid"), (span.bars, WIDTH - RIGHT, "end"))
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "scale": scale,
        "bars": [
            _layout_bar(index, confirmed, other, span, top)
            for index, (confirmed, other) in enumerate(zip(*series, strict=True))
            if confirmed + other
        ],
        "ticks": [
            {"x": x, "anchor": anchor, "text": _time_of(span, index)} for index, x, anchor in places
        ],
    }


def _layout_bar(index: int, confirmed: int, other: int, span: Span, top: int) -> dict[str, Any]:
    pitch = (WIDTH - LEFT - RIGHT) / span.bars
    low, high = _bar_height(confirmed, top), _bar_height(other, top)
    floor = HEIGHT - BOTTOM
    return {
        "time": _time_of(span, index),
        "confirmed": confirmed,
        "other": other,
        "x": round(LEFT + index * pitch, 1),
        "width": round(max(1.0, pitch - max(0.6, pitch * 0.18)), 1),
        "confirmed_y": round(floor - low, 1),
        "confirmed_height": round(low, 1),
        "other_y": round(floor - low - high, 1),
        "other_height": round(high, 1),
    }


def _bar_height(value: int, top: int) -> float:
    """Return the height; a value above 0 is always visible."""
    return max(1.5, value / top * (HEIGHT - TOP - BOTTOM)) if value else 0.0


def _round_up(value: int, base: int) -> int:
    """Return a round number that is not below the value; for bytes, of KiB, MiB or GiB."""
    power = 1
    while value > 1000 * power and base != 10:  # noqa: PLR2004  decimal
        power *= base
    while value > 10 * power:
        power *= 10
    return next(n * power for n in (1, 2, 4, 6, 8, 10) if n * power >= value)


def _time_of(span: Span, index: float) -> str:
    moment = dt.datetime.fromtimestamp((span.first + int(index * span.step)) * 60, tz=dt.UTC)
    return f"{moment:%Y-%m-%d}" if span.step >= DAY_MINUTES else f"{moment:%m-%d %H:%M}"
