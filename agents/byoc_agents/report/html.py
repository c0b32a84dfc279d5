"""What the HTML pages of the commands share: Jinja2, the style sheet, the policy, the bar chart.

A page loads nothing: its own Content-Security-Policy allows only its style sheet and its script,
both by hash. Jinja2 escapes every value (autoescape is on for all templates).
"""

import base64
import datetime as dt
import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Any

from byoc_agents.errors import ConfigError
from byoc_agents.report.summary import DAY_MINUTES, ChartSpan, Series, outcome_class

# The chart, in units of its SVG view box.
WIDTH, HEIGHT = 520, 150
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 24  # room for the scales


def make_environment(command: str, package: str = __package__) -> Any:
    """Return the Jinja2 environment of the templates of a package and of this one.

    Raises ConfigError, which names the command, if Jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415  an extra: only the pages need it
    except ModuleNotFoundError as error:
        raise ConfigError(
            [f"byoc-agents {command} needs Jinja2: pip install 'byoc-agents[report]'"]
        ) from error

    def load(name: str) -> str:
        own = resources.files(package) / "templates" / name
        return own.read_text(encoding="utf-8") if own.is_file() else _resource("templates", name)

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
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
    environment.globals |= {"layout_chart": layout_chart}
    return environment


def read_static(name: str) -> str:
    """Return a style sheet or a script."""
    return _resource("static", name)


def _resource(folder: str, name: str) -> str:
    return (resources.files(__package__) / folder / name).read_text(encoding="utf-8")


def make_policy(style: str, script: str = "") -> str:
    """Return the Content-Security-Policy of a page with this style sheet and this script."""
    rules = ["default-src 'none'", f"style-src '{_hash(style)}'"]
    rules += [f"script-src '{_hash(script)}'"] if script else []
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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


def format_hours(milli: float) -> str:
    """Return `1,234.5` of thousandths."""
    return f"{milli / 1000:,.3f}".rstrip("0").rstrip(".")


# Unit of a chart -> how its figures are printed.
FIGURES: dict[str, Callable[[float], str]] = {
    "number": format_number,
    "size": format_size,
    "hours": format_hours,
}

# The bar chart.


def layout_chart(series: Series, span: ChartSpan, base: int) -> dict[str, Any]:
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
    last = span.bars - (span.step >= DAY_MINUTES)  # a date names its whole bar, a time its start
    places = ((0.0, LEFT, ""), (span.bars / 2, middle, "mid"), (last, WIDTH - RIGHT, "end"))
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


def _layout_bar(
    index: int, confirmed: int, other: int, span: ChartSpan, top: int
) -> dict[str, Any]:
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


def _time_of(span: ChartSpan, index: float) -> str:
    moment = dt.datetime.fromtimestamp((span.first + int(index * span.step)) * 60, tz=dt.UTC)
    return f"{moment:%Y-%m-%d}" if span.step >= DAY_MINUTES else f"{moment:%m-%d %H:%M}"
