"""Bar charts as inline SVG: how much was announced in each hour, confirmed or not."""

import datetime as dt
from collections.abc import Callable, Mapping
from typing import NamedTuple

from byoc_agents.report.summary import Bin

WIDTH, HEIGHT = 520, 150
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 24  # room for the scales
STEPS = ((1, 180, "minute"), (60, 170, "hour"), (360, 170, "6 hours"), (1440, 400, "day"))
DECIMAL = 10
WEEK = (10_080, 10_000, "week")  # minutes, bars at most, word

Number = Callable[[float], str]


class Span(NamedTuple):
    """Which minutes a chart shows, and how many make one bar."""

    first: int  # minutes since 1970, a multiple of `step`
    bars: int
    step: int
    word: str


class Series(NamedTuple):
    """One figure of each bar: confirmed below, the rest above it."""

    confirmed: list[int]
    other: list[int]


def span_of(minutes: Mapping[int, Bin]) -> Span:
    """Return a span over all of it with a readable number of bars."""
    first, last = min(minutes), max(minutes)
    for step, most, word in (*STEPS, WEEK):
        begin = first // step * step
        bars = (last - begin) // step + 1
        if bars <= most:
            return Span(begin, max(bars, 12), step, word)
    raise ValueError("a ledger of more than a hundred years")


def series_of(minutes: Mapping[int, Bin], span: Span) -> tuple[Series, Series]:
    """Return bytes and sends of each bar."""
    bins = [Bin() for _ in range(span.bars)]
    for minute, one in minutes.items():
        bins[(minute - span.first) // span.step].add(one)
    sizes = Series([b.confirmed_bytes for b in bins], [b.other_bytes for b in bins])
    return sizes, Series([b.confirmed for b in bins], [b.other for b in bins])


def bar_chart(title: str, series: Series, span: Span, number: Number) -> str:
    """Return an SVG element. `title` is trusted text of ours."""
    base = 1024 if title == "bytes" else DECIMAL
    top = _nice(max(a + b for a, b in zip(*series, strict=True)), base)
    bars = "".join(_bar(i, series, span, top, number) for i in range(span.bars))
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f"{_scale(top, number)}{bars}{_dates(span)}</svg>"
    )


def _nice(value: int, base: int) -> int:
    """Return a round number not below the value; of bytes, a round number of KiB, MiB, GiB."""
    power = 1
    while value > 1000 * power and base > DECIMAL:
        power *= base
    while value > 10 * power:
        power *= 10
    return next(n * power for n in (1, 2, 4, 6, 8, 10) if n * power >= value)


def _bar(index: int, series: Series, span: Span, top: int, number: Number) -> str:
    confirmed, other = series.confirmed[index], series.other[index]
    if not confirmed + other:
        return ""
    pitch = (WIDTH - LEFT - RIGHT) / span.bars
    x, width = LEFT + index * pitch, max(1.0, pitch - max(0.6, pitch * 0.18))
    low = _height(confirmed, top)
    high = _height(other, top)
    base = HEIGHT - BOTTOM
    told = f"{_clock(span, index)}: {number(confirmed)} confirmed"
    told += f", {number(other)} not" if other else ""
    return (
        f"<g><title>{told}</title>"
        f'<rect class="ok" x="{x:.1f}" y="{base - low:.1f}" width="{width:.1f}" '
        f'height="{low:.1f}"/>'
        f'<rect class="other" x="{x:.1f}" y="{base - low - high:.1f}" width="{width:.1f}" '
        f'height="{high:.1f}"/></g>'
    )


def _height(value: int, top: int) -> float:
    """Return pixels; what is there can be seen, however little it is."""
    return max(1.5, value / top * (HEIGHT - TOP - BOTTOM)) if value else 0.0


def _scale(top: int, number: Number) -> str:
    lines = []
    for part in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
        label = "" if top == 1 and part == 0.5 else number(top * part)  # noqa: PLR2004  half a send
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{label}</text>'
        )
    return "".join(lines)


def _dates(span: Span) -> str:
    last = span.bars
    middle = (LEFT + WIDTH - RIGHT) / 2
    places = ((0.0, LEFT, ""), (last / 2, middle, " mid"), (last, WIDTH - RIGHT, " end"))
    return "".join(
        f'<text class="tick{side}" x="{x:.0f}" y="{HEIGHT - 7}">{_clock(span, index)}</text>'
        for index, x, side in places
    )


def _clock(span: Span, index: float) -> str:
    moment = dt.datetime.fromtimestamp((span.first + int(index * span.step)) * 60, tz=dt.UTC)
    return f"{moment:%Y-%m-%d}" if span.step >= STEPS[-1][0] else f"{moment:%m-%d %H:%M}"
