"""One event type on the page: its fields, a real event where bodies are kept, and the check."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

import msgspec

from byoc_agents.app.cloudevents import Event, encode
from byoc_agents.ledger.query import Send
from byoc_agents.report.bodies import events_in, kept
from byoc_agents.report.summary import Sum
from byoc_agents.schema import EXAMPLES, fields_of, stray_paths
from byoc_agents.schema.document import decode_exactly, purpose, value_at

_ENCODER = msgspec.json.Encoder(decimal_format="number")


class Checked(NamedTuple):
    """What the newest kept bodies of a type hold."""

    bodies: int
    events: int
    newest: Any  # a decoded event, or None
    stray: set[str]  # fields that are in no schema
    damaged: Sequence[str]


def schema_card(name: str, sent: Sum | None) -> str:
    """Return one entry of the list. `sent` is None where none was sent in this time."""
    event = EXAMPLES.get(name)
    checked = _check(sent.bodies if sent else (), event)
    count = f"{sent.total.confirmed + sent.total.other:,} sends" if sent else "not sent"
    about = (
        purpose(event).replace("`", "") if event else "NOT a schema of this version of byoc-agents."
    )
    content = (
        f"<p>{escape(about)}</p>{_verdict(checked)}"
        f"{_fields(event, checked) if event else ''}{_example(event, checked)}"
    )
    opened = " open" if checked.stray or not event else ""
    return (
        f"<details{opened}><summary><h3>{escape(name)}</h3> "
        f'<span class="soft">{count}</span></summary>{content}</details>'
    )


def _check(sends: Iterable[Send], event: Event | None) -> Checked:
    bodies, count, newest = 0, 0, None
    stray: set[str] = set()
    damaged: list[str] = []
    for send in sends:
        body = kept(send)
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
    return Checked(bodies, count, newest, stray, damaged)


def _verdict(checked: Checked) -> str:
    if not checked.bodies:
        return '<p class="soft">No bodies of it are kept, so the example is made up.</p>'
    wrong = [f"not in the schema: {path}" for path in sorted(checked.stray)] + [*checked.damaged]
    if wrong:
        items = "".join(f"<li>{escape(text)}</li>" for text in wrong)
        return (
            f'<div class="card verdict bad"><strong>✗ look at this</strong><ul>{items}</ul></div>'
        )
    return (
        f'<p><span class="badge ok">✓ {checked.events:,} events in the newest {checked.bodies:,} '
        "kept bodies: no field outside the schema</span></p>"
    )


def _fields(event: Event, checked: Checked) -> str:
    shown = _shown(event, checked)
    rows = "".join(
        f'<tr><td class="whole"><code>{escape(field.path)}</code></td>'
        f'<td class="name">{escape(field.type.replace("`", ""))}</td><td>{escape(field.unit)}</td>'
        f'<td class="wide">{escape(field.meaning.replace("`", ""))}</td>'
        f'<td class="name mono">{escape(value_at(shown, field.path))}</td></tr>'
        for field in fields_of(type(event))
    )
    heads = "".join(f"<th>{h}</th>" for h in ("field", "type", "unit", "meaning", "example"))
    return (
        f'<div class="scroll tall"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _example(event: Event | None, checked: Checked) -> str:
    shown = _shown(event, checked)
    if shown is None:
        return ""
    word = "A real one, the newest that was kept" if checked.newest else "A made-up one"
    text = msgspec.json.format(_ENCODER.encode(shown), indent=2).decode()
    return f"<p>{word}:</p><pre>{escape(text)}</pre>"


def _shown(event: Event | None, checked: Checked) -> Any:
    if checked.newest is not None:
        return checked.newest
    return decode_exactly(encode(event)) if event else None
