"""The fleet as one HTML page, for people without Grafana.

It has no script and loads nothing: its Content-Security-Policy allows its style sheet only. Every
text passes `_escape` on its way into the page, because the names in it are a customer's words.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.app.settings import name
from byoc_agents.report.html import format_minute, format_number, format_plural, make_policy
from byoc_agents.report.html import read_static as read_style
from byoc_control_plane import __version__
from byoc_control_plane.fleet import DAYS, MAX_ROWS, Fleet

STOPPED_SECONDS = 60.0  # without progress of a stream; as the rule ByocReceptionStopped
STEADY_SECONDS = 60.0  # as the rule ByocReceptionBehind
MINUTE, HOUR, DAY = 60, 3600, 86_400
AGE_NAMES = (
    *("below 15 minutes", "15 minutes to 1 hour", "1 to 6 hours", "6 to 24 hours"),
    *("more than a day", "never"),
)
OLD_AGES = frozenset({4, 5})  # of AGE_NAMES: they need a person
STREAM_NAMES = {"state": "state messages", "alerts": "alerts and heartbeats"}
# In addition to the style of the reports: what only this page has.
STYLE = """
main, header, nav, footer { max-width: 1440px; }
.tiles .bad b { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 0 20px; align-items: start; }
th, th.n { white-space: normal; vertical-align: bottom; } td.name { min-width: 80px; }
td.reasons { min-width: 150px; } td.reasons .badge { display: inline-block; margin: 0 4px 2px 0; }
meter { width: 100%; min-width: 90px; } .cards > .scroll { margin-bottom: 0; }
"""


def page_style() -> str:
    """Return the style sheet of the page."""
    return read_style("style.css") + STYLE


def page_policy() -> str:
    """Return the Content-Security-Policy of the page, as its header."""
    return f"{make_policy(page_style())}; frame-ancestors 'none'"


def render_fleet(fleet: Fleet) -> str:
    """Return the HTML."""
    (counts,) = fleet.counts
    parts = [
        _head(fleet),
        "<main>",
        _verdict(fleet),
        _tiles(fleet),
        _reception(fleet),
    ]
    if counts["replicas"]:
        parts += [_silent(fleet), _delayed(fleet)]
        parts += [] if fleet.organization else [_customers(fleet)]
        parts += [_replicas(fleet), _versions(fleet), _ages(fleet)]
        parts += [_completeness(fleet), _incomplete(fleet)]
    if fleet.grants:
        parts.append(_grants(fleet))
    parts.append("</main>")
    parts.append(
        f"<footer>byoc-control-plane {_escape(__version__)}, read {_escape(rfc3339(fleet.now_ms))}."
        " This page is read only; it loads nothing and sends nothing.</footer></body></html>"
    )
    return "\n".join(parts)


# Text.


def _escape(value: object) -> str:
    return escape(str(value), quote=True)


def format_age(seconds: float) -> str:
    """Return `45 s`, `12 min`, `3.5 h` or `2.0 d`."""
    seconds = max(0.0, seconds)
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h" if seconds < 2 * DAY else f"{seconds / DAY:,.1f} d"


def _age(now_ms: int, at_ms: float) -> str:
    """Return the age of a moment; ClickHouse has 0 for `never`."""
    return format_age((now_ms - at_ms) / 1000) if at_ms > 0 else "never"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.3f}".rstrip("0").rstrip(".") + " s"


def _percent(value: float | None) -> str:
    """Return a share, rounded down: 100 % only if nothing is missing."""
    return (
        ""
        if value is None
        else f"{int(value * 1_000_000) / 10_000:.4f}".rstrip("0").rstrip(".") + " %"
    )


# Parts of a page. `cell` and its kin take text and return HTML.


def _cell(text: object, kind: str = "name") -> str:
    return f'<td class="{kind}">{_escape(text)}</td>'


def _numbers(*values: object) -> str:
    return "".join(_cell(value, "n") for value in values)


def _count(value: float) -> str:
    return format_number(value)


def _badge(text: object, kind: str) -> str:
    return f'<span class="badge {kind}">{_escape(text)}</span>'


def _plural(noun: str, value: float) -> str:
    return noun if value == 1 or noun.startswith("not ") else f"{noun}s"


def _organization(text: str) -> str:
    """Return the cell of an organization, with a link to its own page."""
    try:
        name(text)
    except ValueError:  # no page can be asked for by this name
        return _cell(text)
    return f'<td class="name"><a href="?organization={quote(text)}">{_escape(text)}</a></td>'


def _table(heads: Sequence[str], rows: Iterable[str], *, tall: bool = False) -> str:
    """Return a table; a head that begins with # is a column of numbers."""
    cells = "".join(
        f'<th class="n">{_escape(head[1:])}</th>'
        if head.startswith("#")
        else f"<th>{_escape(head)}</th>"
        for head in heads
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    kind = "scroll tall" if tall else "scroll"
    return (
        f'<div class="{kind}" tabindex="0"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _section(anchor: str, title: str, note: str, *content: str) -> str:
    return (
        f'<section id="{anchor}"><h2>{_escape(title)}</h2>'
        f'<p class="soft">{_escape(note)}</p>{"".join(content)}</section>'
    )


def _empty(text: str) -> str:
    return f'<div class="card soft">{_escape(text)}</div>'


def _limited(rows: Sequence[Mapping[str, Any]], total: int) -> str:
    """Return a sentence if not all rows are shown."""
    return f" The first {len(rows)} of {format_number(total)}." if len(rows) < total else ""


# Sections.

SECTIONS = {
    "reception": "Reception",
    "silence": "Silence",
    "delayed": "Delayed messages",
    "customers": "Customers",
    "replicas": "Replicas",
    "versions": "Versions",
    "age": "Age of the usage",
    "completeness": "Completeness and delays",
    "incomplete": "Missing usage",
    "access": "Access",
}


def _head(fleet: Fleet) -> str:
    style = page_style()
    shown = dict(SECTIONS)
    if not fleet.counts[0]["replicas"]:
        shown = {"reception": SECTIONS["reception"]}
    elif fleet.organization:
        del shown["customers"]
    shown.pop("access", None)
    if fleet.grants:
        shown["access"] = SECTIONS["access"]
    links = "".join(f'<a href="#{anchor}">{_escape(title)}</a>' for anchor, title in shown.items())
    scope = (
        f'organization <strong>{_escape(fleet.organization)}</strong> &middot; <a href="?">all'
        " organizations</a>"
        if fleet.organization
        else "all organizations"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Fleet: byoc-control-plane</title><style>{style}</style></head>\n<body>"
        f'<header><h1>Fleet</h1><p class="soft">{scope} &middot; '
        f"{_escape(format_minute(rfc3339(fleet.now_ms)))} UTC, reload for newer figures"
        "</p></header>"
        f"<nav>{links}</nav>"
    )


def _problems(fleet: Fleet) -> list[str]:
    """Return what needs a person, the most urgent first."""
    (counts,) = fleet.counts
    found = [
        f"{STREAM_NAMES.get(row['stream'], row['stream'])}: nothing received for"
        f" {_age(fleet.now_ms, row['at_ms'])}; silence is not judged meanwhile"
        for row in fleet.progress
        if fleet.now_ms - row["at_ms"] > STOPPED_SECONDS * 1000
    ]
    if delayed := fleet.delayed_count[0]["delayed_organizations"]:
        found.append(
            f"messages of {format_plural(delayed, 'organization')} delayed; silence there is"
            " not judged meanwhile"
        )
    if silent := int(counts["silent"]):
        found.append(f"{format_plural(silent, 'daemon')} silent")
    if unhealthy := counts["replicas"] - counts["healthy"]:
        found.append(f"{format_plural(unhealthy, 'replica')} not healthy")
    if old := sum(row["replicas"] for row in fleet.ages if row["class"] in OLD_AGES):
        found.append(f"{format_plural(old, 'replica')} without usage of the last day")
    if letters := int(counts["dead_letters"]):
        found.append(f"{format_plural(letters, 'dead letter')} in the forwarders' spools")
    if missing := sum(row["missing"] for row in fleet.gaps):
        found.append(f"{format_plural(int(missing), 'usage record')} missing in {DAYS} days")
    if late := fleet.overdue_count[0]["overdue_grants"]:
        found.append(f"{format_plural(late, 'grant')} of access not reported as ended in time")
    rejected = fleet.rejected[0]["rejected"]
    if rejected and not fleet.organization:
        found.append(
            f"{format_plural(rejected, 'message')} rejected in {DAYS} days: see byoc_rejected"
        )
    return found


def _verdict(fleet: Fleet) -> str:
    (counts,) = fleet.counts
    if not counts["replicas"]:
        if fleet.organization:
            return _empty("No daemon of this organization has sent a message.")
        return _empty(
            "No daemon has sent a message yet. A daemon appears here with its first message."
        )
    problems = _problems(fleet)
    if not problems:
        return (
            '<div class="card verdict"><strong>✓ every daemon reports, every replica is healthy'
            "</strong></div>"
        )
    items = "".join(f"<li>{_escape(problem)}</li>" for problem in problems)
    title = format_plural(len(problems), "problem")
    return f'<div class="card verdict bad"><strong>✗ {title}</strong><ul>{items}</ul></div>'


def _tiles(fleet: Fleet) -> str:
    (counts,) = fleet.counts
    unhealthy = counts["replicas"] - counts["healthy"]
    tiles = [
        ("replica", counts["replicas"], False),
        ("not healthy", unhealthy, True),
        ("silent daemon", counts["silent"], True),
        ("unsent alert", counts["backlog_records"], False),
        ("dead letter", counts["dead_letters"], True),
    ]
    if not fleet.organization:
        tiles.insert(0, ("organization", counts["organizations"], False))
    cards = "".join(
        f'<div class="card{" bad" if urgent and value else ""}"><b>{_count(value)}</b>'
        f'<span class="soft">{_escape(_plural(title, value))}</span></div>'
        for title, value, urgent in tiles
    )
    return f'<div class="tiles">{cards}</div>'


def _reception(fleet: Fleet) -> str:
    note = (
        "Up to when this side has received, and for how long without a backlog or an interruption."
        " Silence is counted from these times."
    )
    rows = [
        _cell(STREAM_NAMES.get(row["stream"], row["stream"]))
        + _numbers(_age(fleet.now_ms, row["at_ms"]))
        + _numbers(format_age((row["at_ms"] - row["steady_ms"]) / 1000))
        + f"<td>{_reception_state(fleet.now_ms, row)}</td>"
        for row in fleet.progress
    ]
    heads = ("stream", "#received up to (ago)", "#without interruption", "status")
    empty = _empty("No receiver and no consumer has run against this ClickHouse.")
    return _section(
        "reception", SECTIONS["reception"], note, _table(heads, rows) if rows else empty
    )


def _reception_state(now_ms: int, row: Mapping[str, Any]) -> str:
    if now_ms - row["at_ms"] > STOPPED_SECONDS * 1000:
        return _badge("stopped", "failed")
    if row["at_ms"] - row["steady_ms"] < STEADY_SECONDS * 1000:
        return _badge("behind", "open")
    return _badge("current", "ok")


def _silent(fleet: Fleet) -> str:
    note = "Daemons that have sent nothing for three of their own heartbeats, the longest first."
    rows = [
        _organization(row["organization_id"])
        + _cell(row["service_id"])
        + _cell(row["replica"])
        + _cell(row["daemon"], "whole")
        + _numbers(format_age(row["silent_seconds"]), format_age(row["allowed_seconds"]))
        + _cell(format_minute(rfc3339(int(row["seen_ms"]))), "time")
        for row in fleet.silent
    ]
    heads = (
        *("organization", "service", "replica", "daemon", "#silent for", "#allowed"),
        "last message (UTC)",
    )
    note += _limited(fleet.silent, int(fleet.counts[0]["silent"]))
    table = _table(heads, rows, tall=True) if rows else _empty("No daemon is silent.")
    return _section("silence", SECTIONS["silence"], note, table)


def _delayed(fleet: Fleet) -> str:
    note = (
        "Organizations of the last day whose messages alone had waited, or were refused for their"
        f" number: those that wait now, then the newest, {MAX_ROWS} at most. Silence there is"
        " counted from that time."
    )
    rows = [
        _organization(row["organization_id"])
        + _cell(STREAM_NAMES.get(row["stream"], row["stream"]))
        + _numbers(_age(fleet.now_ms, row["until_ms"]))
        + _cell(_minute(row["until_ms"]), "time")
        + f"<td>{_delay_state(row)}</td>"
        for row in fleet.delayed
    ]
    heads = ("organization", "stream", "#delayed until (ago)", "delayed until (UTC)", "status")
    empty = _empty("No organization's messages were delayed.")
    table = _table(heads, rows, tall=True) if rows else empty
    return _section("delayed", SECTIONS["delayed"], note, table)


def _delay_state(row: Mapping[str, Any]) -> str:
    return _badge("delayed", "open") if row["delayed"] else _badge("ended", "ok")


def _customers(fleet: Fleet) -> str:
    note = "Those with silent daemons or replicas that are not healthy come first."
    note += _limited(fleet.customers, fleet.counts[0]["organizations"])
    rows = [
        _organization(row["organization_id"])
        + _numbers(_count(row["services"]), _count(row["replicas"]))
        + _problem_count(row["unhealthy"])
        + _problem_count(row["silent"])
        + _numbers(_count(row["backlog_records"]), _count(row["unbilled"]))
        + _numbers(_age(fleet.now_ms, row["billed_until_ms"]))
        for row in fleet.customers
    ]
    heads = (
        *("organization", "#services", "#replicas", "#not healthy", "#silent daemons"),
        *("#unsent alerts", "#replicas without usage", "#oldest usage (ago)"),
    )
    return _section("customers", SECTIONS["customers"], note, _table(heads, rows, tall=True))


def _problem_count(value: float) -> str:
    if not value:
        return _numbers("0")
    return f'<td class="n">{_badge(_count(value), "failed")}</td>'


def _replicas(fleet: Fleet) -> str:
    note = "Silent ones first, then those that are not healthy, then those with the oldest usage."
    note += _limited(fleet.replicas, fleet.counts[0]["replicas"])
    rows = [
        _organization(row["organization_id"])
        + _cell(row["service_id"])
        + _cell(row["replica"])
        + _cell(row["region"], "whole")
        + f'<td class="reasons">{_state(row)}</td>'
        + _cell(row["version"], "whole")
        + _numbers(_age(fleet.now_ms, row["state_exporter_seen_ms"]))
        + _numbers(_age(fleet.now_ms, row["alert_forwarder_seen_ms"]))
        + _numbers(_age(fleet.now_ms, row["billed_until_ms"]))
        + _numbers(_count(row["backlog_records"]))
        + _problem_count(row["dead_letters"])
        for row in fleet.replicas
    ]
    heads = (
        *("organization", "service", "replica", "region", "state", "ClickHouse"),
        *("#state exporter seen (ago)", "#alert forwarder seen (ago)", "#billed until (ago)"),
        *("#unsent alerts", "#dead letters"),
    )
    return _section("replicas", SECTIONS["replicas"], note, _table(heads, rows, tall=True))


def _state(row: Mapping[str, Any]) -> str:
    found = [_badge(f"{daemon} silent", "failed") for daemon in row["silent_daemons"]]
    state = row["state"] or "not reported"
    if "state-exporter" in row["silent_daemons"]:
        found.append(_badge(f"last: {state}", "open"))
    else:
        shown = (state, "ok") if row["healthy"] else (f"{state}, not healthy", "failed")
        found.append(_badge(*shown))
    return "".join([*found, *(_badge(reason, "open") for reason in row["reasons"])])


def _versions(fleet: Fleet) -> str:
    note = "Of the daemons that are supervised, and of ClickHouse."
    agents = [
        _cell(row["daemon"], "whole")
        + _cell(row["version"] or "0.1.0 or not stated", "whole")
        + _numbers(_count(row["daemons"]))
        for row in fleet.versions
    ]
    servers = [
        _cell(row["version"] or "not reported", "whole") + _numbers(_count(row["replicas"]))
        for row in fleet.servers
    ]
    both = _table(("daemon", "version", "#daemons"), agents, tall=True)
    both += _table(("ClickHouse", "#replicas"), servers, tall=True)
    return _section("versions", SECTIONS["versions"], note, f'<div class="cards">{both}</div>')


def _ages(fleet: Fleet) -> str:
    note = (
        "How long ago the newest loaded usage of a replica ends, by this side's clock. It grows"
        " with a scraper's backlog, but also if the scraper or the replica has stopped, or if"
        " nothing is compacted or loaded here."
    )
    total = sum(row["replicas"] for row in fleet.ages)
    counts = {row["class"]: row["replicas"] for row in fleet.ages}
    rows = [
        _cell(title, "whole")
        + _numbers(_count(counts.get(number, 0)))
        + f'<td class="wide">{_meter(counts.get(number, 0), total, bad=number in OLD_AGES)}</td>'
        for number, title in enumerate(AGE_NAMES)
    ]
    return _section("age", SECTIONS["age"], note, _table(("age", "#replicas", "share"), rows))


def _meter(value: float, total: float, *, bad: bool) -> str:
    """Return a bar. A bad one is best at 0, which browsers show in another color."""
    best = ' low="0" high="0" optimum="0"' if bad else ""
    return f'<meter max="{int(total)}" value="{int(value)}"{best}></meter>'


def _completeness(fleet: Fleet) -> str:
    note = (
        f"The last {DAYS} UTC days. Delays are the 99th percentile of the worst service, from the"
        " event in the customer's account to its arrival; the share is that of the worst service."
    )
    gaps = {row["date"]: row for row in fleet.gaps}
    slo = {row["date"]: row for row in fleet.slo}
    nothing: Mapping[str, Any] = {}
    rows = []
    for date in sorted({*gaps, *slo}, reverse=True):
        gap, day = gaps.get(date, nothing), slo.get(date, nothing)
        rows.append(
            _cell(date, "time")
            + _numbers(_count(gap.get("usage_records", 0)), _percent(day.get("complete")))
            + _problem_count(gap.get("missing", 0))
            + _numbers(_seconds(gap.get("uncovered", 0)), _seconds(gap.get("gaps", 0)))
            + _numbers(_count(day.get("messages", 0)))
            + _numbers(_seconds(day.get("state_delay")), _seconds(day.get("alert_delay")))
        )
    heads = (
        *("day (UTC)", "#usage records", "#arrived", "#missing records", "#time without records"),
        *("#stated gaps", "#state messages", "#state delay", "#alert delay"),
    )
    table = _table(heads, rows, tall=True) if rows else _empty("No usage and no state messages.")
    return _section("completeness", SECTIONS["completeness"], note, table)


def _incomplete(fleet: Fleet) -> str:
    note = (
        f"Services of the last {DAYS} days whose usage is not complete, {MAX_ROWS} at most."
        " The command byoc-agents verify names each record from their objects."
    )
    rows = [
        _organization(row["organization_id"])
        + _cell(row["service_id"])
        + _numbers(_count(row["usage_records"]))
        + _problem_count(row["missing"])
        + _numbers(_seconds(row["uncovered"]), _seconds(row["gaps"]))
        for row in fleet.incomplete
    ]
    heads = (
        *("organization", "service", "#usage records", "#missing records"),
        *("#time without records", "#stated gaps"),
    )
    table = _table(heads, rows, tall=True) if rows else _empty("All usage has arrived.")
    return _section("incomplete", SECTIONS["incomplete"], note, table)


# The state of a request -> the class of its badge; an end that is not listed is `failed`.
GRANT_BADGES = {"closed": "ok", "withdrawn": "ok"}


def _grants(fleet: Fleet) -> str:
    note = (
        "Access that is overdue, then requests that have not ended, then those that ended in"
        f" {DAYS} days, as the customers' brokers report them; {MAX_ROWS} at most."
    )
    rows = [
        _organization(row["organization_id"])
        + _cell(row["service_id"])
        + _cell(row["grant_id"], "whole")
        + _cell(row["engineer"])
        + _cell(row["ticket"], "whole")
        + _cell(row["role"], "whole")
        + f'<td class="reasons">{_grant_state(row)}</td>'
        + _cell(_minute(row["sent_ms"]), "time")
        + _cell(_minute(row["opened_ms"]), "time")
        + _cell(_minute(row["since_ms"] if row["ended"] else row["ends_ms"]), "time")
        + _numbers(_count(row["queries"]), _count(row["rows_read"]))
        + _cell(row["record"], "whole")
        for row in fleet.grants
    ]
    heads = (
        *("organization", "service", "request", "engineer", "ticket", "role", "state and reason"),
        *("sent (UTC)", "opened (UTC)", "ended or ends (UTC)", "#queries", "#rows", "record"),
    )
    return _section("access", SECTIONS["access"], note, _table(heads, rows, tall=True))


def _grant_state(row: Mapping[str, Any]) -> str:
    kind = GRANT_BADGES.get(row["state"], "failed") if row["ended"] else "open"
    if row["overdue"]:
        kind = "failed"
    found = [_badge(row["state"], kind)]
    if row["reason"] and row["reason"] != row["state"]:
        found.append(_badge(row["reason"], "open"))
    return "".join(found)


def _minute(at_ms: float) -> str:
    return format_minute(rfc3339(int(at_ms))) if at_ms > 0 else ""
