"""The usage as one self-contained HTML page, with the style of the ledger's report."""

import time
from collections.abc import Sequence
from decimal import Decimal
from itertools import groupby
from typing import NamedTuple

from byoc_agents import __version__
from byoc_agents.app.cloudevents import parse_rfc3339, rfc3339
from byoc_agents.audit.render import problem_text
from byoc_agents.audit.replica import DAY_MS
from byoc_agents.audit.report import Report
from byoc_agents.report.html import make_environment, make_policy, read_static
from byoc_agents.report.summary import DAY_MINUTES, ChartSpan, Series
from byoc_agents.usage.report import Amounts, UsageReport, dates_of
from byoc_agents.usage.text import notes

MAX_GAPS = 200  # the newest; `verify --json` has all
MAX_BARS = 170  # days of a chart; beyond that a bar is a week
MIN_BARS = 14
WEEK = 7
SMALL_HOURS = 10
# Reason of a gap -> what it means, for people who do not know the records.
GAP_MEANINGS = {
    "no_checkpoint": "the scraper started without a state of its own: earlier usage is unknown",
    "spool_corrupt": "the scraper's file was damaged: unsent records may be lost",
    "target_absent": "ClickHouse did not run",
    "target_unreadable": "ClickHouse may have run, but its counters could not be read",
    "target_restarted": "ClickHouse restarted",
    "counter_fell": "the CPU counter was set back",
    "counter_impossible": "the CPU counter rose by more than the machine could do",
    "source_changed": "another source of the counters, without a common reading",
    "clock_step": "the machine's clock was set forward",
    "target_removed": "the server was taken from the list of metered servers",
    "suspended": "the machine was suspended",
}


class Page:
    """The page. Raises ConfigError if Jinja2 is not installed."""

    def __init__(self) -> None:
        self._environment = make_environment("usage --html", __package__)
        self._environment.filters |= {
            "hours": format_hours,
            "rounded": format_rounded,
            "seconds": format_seconds,
            "usage_notes": notes,
        }
        self._environment.globals |= {"chart_of": chart_of}

    def render(self, usage: UsageReport, audited: Report, now_ms: int = 0) -> str:
        """Return the HTML. `now_ms` is the time in the footer, since 1970; 0 for now."""
        style = read_static("style.css")
        days = {
            name: list(found)
            for name, found in groupby(
                usage.days, lambda day: (day.organization_id, day.service_id)
            )
        }
        gaps = sorted(audited.gaps, key=lambda gap: gap.start)
        text = self._environment.get_template("usage.html").render(
            policy=make_policy(style),
            style=style,
            usage=usage,
            dates=dates_of(usage.days) if usage.days else None,
            problems=[line for line in problem_text(audited) if line],
            services=[
                (total, days[total.organization_id, total.service_id]) for total in usage.services
            ],
            gaps=gaps[-MAX_GAPS:],
            gap_count=len(gaps),
            meanings=GAP_MEANINGS,
            made=rfc3339(now_ms or time.time_ns() // 1_000_000),
            version=__version__,
        )
        return str(text)


class Chart(NamedTuple):
    """The bars of one figure, in thousandths of an hour."""

    span: ChartSpan
    series: Series  # used, and allocated but not used
    unit: str  # of time, of one bar


def chart_of(days: Sequence[Amounts], used: str, allocated: str) -> Chart:
    """Return the chart of two figures of `Amounts` by day, or by week if there are many days."""
    numbers = [parse_rfc3339(f"{day.date}T00:00Z") // DAY_MS for day in days]
    length = 1 if numbers[-1] - numbers[0] < MAX_BARS else WEEK
    bars = max((numbers[-1] - numbers[0]) // length + 1, MIN_BARS)
    series = Series([0] * bars, [0] * bars)
    for number, day in zip(numbers, days, strict=True):
        bar = (number - numbers[0]) // length
        low, high = round(getattr(day, used) * 1000), round(getattr(day, allocated) * 1000)
        series.confirmed[bar] += low
        series.other[bar] += max(0, high - low)
    span = ChartSpan(numbers[0] * DAY_MINUTES, bars, length * DAY_MINUTES, "")
    return Chart(span, series, "day" if length == 1 else "week")


def format_hours(hours: Decimal) -> str:
    """Return `1,234.567`."""
    return f"{hours:,.3f}"


def format_rounded(hours: Decimal) -> str:
    """Return `1,234.6`, or `1.235` of a small figure."""
    return f"{hours:,.3f}" if hours < SMALL_HOURS else f"{hours:,.1f}"


def format_seconds(seconds: Decimal) -> str:
    """Return `1,234.5`: exact, without zeros at the end."""
    return f"{seconds:,f}".rstrip("0").rstrip(".")
