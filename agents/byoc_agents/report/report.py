"""One self-contained HTML page: what left, to whom, how much, when.

It loads nothing, by its own Content-Security-Policy; style and script are allowed by their hash
only. Every text that comes from a ledger is escaped.
"""

import base64
import hashlib
import time
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from byoc_agents import __version__
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.ledger.query import Filter, Send, events
from byoc_agents.ledger.verify import Verdict
from byoc_agents.report.charts import bar_chart, series_of, span_of
from byoc_agents.report.html import badge, cell, count, keyed, minute, number, size, table
from byoc_agents.report.schema_section import schema_card
from byoc_agents.report.style import SCRIPT, STYLE
from byoc_agents.report.summary import MAX_ROWS, Picture, Sum, draw
from byoc_agents.schema import EXAMPLES

MAX_NOTES = 20  # the newest; `ledger verify` prints all
SECTIONS = {
    "verdict": "Can it be trusted?",
    "whom": "To whom",
    "when": "How much, when",
    "inside": "What is inside",
    "refused": "What was refused",
    "sends": "Every send",
    "check": "Check it yourself",
}


def page(
    ledgers: Mapping[str, Path], verdicts: Mapping[str, Verdict], wanted: Filter, now_ms: int = 0
) -> str:
    """Return the page. Raises OSError where a ledger cannot be read."""
    picture = draw(events(ledgers, wanted))
    made = rfc3339(now_ms or time.time_ns() // 1_000_000)
    sections = [
        _verdicts(verdicts),
        _tiles(picture),
        _whom(picture),
        _when(picture),
        _inside(picture),
        _refused(picture),
        _sends(picture),
        _check(verdicts),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>What left: byoc-agents</title><style>{STYLE}</style></head><body>",
            _header(picture, verdicts, wanted),
            "<main>",
            *sections,
            "</main>",
            _footer(made, ledgers),
            f"<script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


def _footer(made: str, ledgers: Iterable[str]) -> str:
    return (
        f"<footer>Made {made} by byoc-agents {escape(__version__)} from the ledgers of "
        f"{escape(', '.join(ledgers))}. This page loads nothing and sends nothing.</footer>"
    )


def _policy() -> str:
    rules = ("default-src 'none'", f"style-src '{_hash(STYLE)}'", f"script-src '{_hash(SCRIPT)}'")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _header(picture: Picture, verdicts: Mapping[str, Verdict], wanted: Filter) -> str:
    first = wanted.since or picture.all.first or min(v.first_time for v in verdicts.values())
    last = wanted.until or max(v.last_time for v in verdicts.values())
    chosen = [f"{k} {v}" for k, v in (("type", wanted.type), ("to", wanted.destination)) if v]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in SECTIONS.items())
    return (
        "<header><h1>What left this machine</h1>"
        f'<p class="soft">{escape(", ".join(verdicts))} &middot; {minute(first)} to '
        f"{minute(last)} UTC{escape(''.join(f' · only {c}' for c in chosen))}</p></header>"
        f"<nav>{links}</nav>"
    )


# Sections.


def _section(name: str, lead: str, content: str) -> str:
    return (
        f'<section id="{name}"><h2>{SECTIONS[name]}</h2><p class="soft">{lead}</p>'
        f"{content}</section>"
    )


def _verdicts(verdicts: Mapping[str, Verdict]) -> str:
    lead = (
        "Each line of a ledger holds the hash of the line before it, and is on disk before the "
        "send it announces. A changed, missing or re-ordered line breaks the chain."
    )
    cards = "".join(_verdict(name, verdict) for name, verdict in verdicts.items())
    return _section("verdict", lead, cards)


def _verdict(name: str, verdict: Verdict) -> str:
    word = "the chain is unbroken" if verdict.well else "the chain is NOT what was written"
    bodies = f", {number(verdict.bodies)} kept bodies match" if verdict.bodies else ""
    told = [*verdict.problems]
    told += [f"and {verdict.more_problems} more"] if verdict.more_problems else []
    problems = "".join(f"<li>{escape(problem)}</li>" for problem in told)
    return (
        f'<div class="card verdict{"" if verdict.well else " bad"}">'
        f"<strong>{'✓' if verdict.well else '✗'} {escape(name)}: {word}</strong>"
        f"<ul>{problems}</ul>"
        f"<p>{count(verdict.lines, 'line')} in {count(verdict.files, 'file')}, "
        f"{minute(verdict.first_time)} to {minute(verdict.last_time)}{bodies}.</p>"
        f"<p><small>Head <code>{escape(verdict.head)}</code></small></p>{_notes(verdict)}</div>"
    )


def _notes(verdict: Verdict) -> str:
    if not verdict.notes:
        return ""
    newest = "".join(f"<li>{escape(note)}</li>" for note in verdict.notes[-MAX_NOTES:])
    title = count(len(verdict.notes), "note")
    return f"<details><summary>{title}</summary><ul>{newest}</ul></details>"


def _tiles(picture: Picture) -> str:
    total = picture.all.total
    tiles = {
        "destinations": number(len(picture.destinations)),
        "sends announced": number(total.confirmed + total.other),
        "confirmed by the receiver": number(total.confirmed),
        "bytes confirmed": size(total.confirmed_bytes),
        "bytes not confirmed": size(total.other_bytes),
        "connections refused": number(picture.refused),
    }
    cards = "".join(
        f'<div class="card"><b>{value}</b><span class="soft">{name}</span></div>'
        for name, value in tiles.items()
    )
    return f'<div class="tiles">{cards}</div>'


def _whom(picture: Picture) -> str:
    rows = [
        [
            cell(destination, "dest"),
            cell(", ".join(sorted(one.agents)), "whole"),
            cell(", ".join(sorted(one.names)), "wide"),
            cell(number(one.total.confirmed + one.total.other), "n"),
            cell(number(one.records), "n"),
            cell(size(one.total.confirmed_bytes), "n"),
            f"<td>{_reasons(one)}</td>",
            cell(minute(one.last), "time"),
        ]
        for destination, one in sorted(picture.destinations.items())
    ]
    heads = ("destination", "agent", "types", "#sends", "#records", "#bytes", "outcomes", "last")
    lead = "Every destination that the ledgers name in this time."
    return _section("whom", lead, table(heads, rows, "Nothing left in this time."))


def _reasons(one: Sum) -> str:
    return " ".join(
        badge(reason, f"{reason} {number(n)}") for reason, n in one.reasons.most_common()
    )


def _when(picture: Picture) -> str:
    if not picture.all.minutes:
        return _section("when", "Nothing left in this time.", "")
    span = span_of(picture.all.minutes)
    cards = []
    for destination, one in sorted(picture.destinations.items()):
        sizes, counts = series_of(one.minutes, span)
        cards.append(
            f'<div class="card"><h3>{escape(destination)}</h3><div class="pair">'
            f"<figure>{bar_chart('bytes', sizes, span, size)}"
            f"<figcaption>bytes per {span.word}</figcaption></figure>"
            f"<figure>{bar_chart('sends', counts, span, number)}"
            f"<figcaption>sends per {span.word}</figcaption></figure></div></div>"
        )
    lead = (
        'Sizes are of the bodies, before framing and TLS. Times are UTC.</p><p class="soft">'
        '<span class="key ok"></span>confirmed by the receiver '
        '<span class="key other"></span>failed or without an answer: it may have left'
    )
    return _section("when", lead, "".join(cards))


def _inside(picture: Picture) -> str:
    types = [*EXAMPLES, *sorted(set(picture.types) - set(EXAMPLES))]
    cards = "".join(schema_card(name, picture.types.get(name)) for name in types)
    lead = (
        "These are all the events that byoc-agents can send, from the code that encodes them. "
        "Where bodies are kept, a real event is shown and all of them are held to the schema."
    )
    return _section("inside", lead, f'<div class="card">{cards}</div>')


def _refused(picture: Picture) -> str:
    rows = [
        [
            cell(agent, "name"),
            cell(reason, "name"),
            cell(detail, "wide"),
            cell(number(one.count), "n"),
            cell(minute(one.first), "time"),
            cell(minute(one.last), "time"),
        ]
        for (agent, reason, detail), one in picture.refusals.items()
    ]
    lead = "Connections that the egress gate stopped before a byte left."
    heads = ("agent", "why", "detail", "#times", "first", "last")
    return _section("refused", lead, table(heads, rows, "Nothing was refused in this time."))


def _sends(picture: Picture) -> str:
    total = picture.all.total.confirmed + picture.all.total.other
    lead = f"The newest {number(min(total, MAX_ROWS))} of {number(total)}, newest first. "
    lead += "<code>byoc-agents ledger show</code> prints all of them." if total > MAX_ROWS else ""
    heads = ("time (UTC)", "agent", "destination", "type", "outcome", "#bytes", "#records")
    rows = [_send_row(send) for send in reversed(picture.rows)]
    listed = table((*heads, "id and receipt"), rows, "Nothing left in this time.", tall=True)
    return _section("sends", lead, _filters(picture.rows) + listed)


def _send_row(send: Send) -> list[str]:
    outcome = f"{send.reason} {send.status}" if send.status else send.reason
    said = send.reference or send.detail
    receipt = f"<br><small>{escape(said)}</small>" if said else ""
    return [
        cell(send.time[:19].replace("T", " "), "time"),
        keyed(send.agent, "whole"),
        keyed(send.destination, "dest"),
        keyed(send.type, "whole"),
        f'<td data-key="{escape(send.reason)}">{badge(send.reason, outcome)}</td>',
        cell(number(send.bytes), "n"),
        cell(number(send.records), "n"),
        f'<td class="id"><span class="mono">{escape(send.id)}</span>{receipt}</td>',
    ]


def _filters(rows: Iterable[Send]) -> str:
    columns = {
        "agent": (1, {s.agent for s in rows}),
        "destination": (2, {s.destination for s in rows}),
        "type": (3, {s.type for s in rows}),
        "outcome": (4, {s.reason for s in rows}),
    }
    selects = "".join(
        f'<select data-column="{column}" aria-label="{name}"><option value="">every {name}</option>'
        + "".join(f'<option value="{escape(v)}">{escape(v)}</option>' for v in sorted(values))
        + "</select>"
        for name, (column, values) in columns.items()
    )
    return (
        '<div class="filters" hidden><input id="find" type="search" aria-label="filter" '
        f'placeholder="filter by any words: an id, a date, a receipt">{selects}'
        '<span class="soft" id="shown" aria-live="polite"></span></div>'
    )


def _check(verdicts: Mapping[str, Verdict]) -> str:
    agent, verdict = next(iter(verdicts.items()))
    commands = (
        "byoc-agents ledger verify                       # the chain, and kept bodies against it\n"
        f"byoc-agents ledger verify --agent {agent} --anchor {verdict.head}\n"
        "byoc-agents ledger show --since 2026-11-23 --destination 's3://*' --json\n"
        "byoc-agents ledger show --id ID --body          # exactly what left, unpacked\n"
        "sed -n 5p ledger-000001.jsonl | tr -d '\\n' | sha256sum   # is `previous` of line 6"
    )
    return _section(
        "check",
        "What this page proves, and what it does not.",
        f"<pre>{escape(commands)}</pre><p>The ledger is written by the agents themselves. It shows "
        "what they announced, and that nobody changed it since; the network policy and a capture "
        "show that nothing else leaves. Who can write to the state directory can make a whole "
        "ledger anew: note the head from <code>/status</code> or from the log event "
        "<code>ledger.segment</code> in a place of your own, and give it as the anchor.</p>",
    )
