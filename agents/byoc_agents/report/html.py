"""Small pieces of the page. Whatever comes in is escaped here, but for what is said to be HTML."""

from collections.abc import Sequence
from html import escape

from byoc_agents.report.summary import outcome_class


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str, *, tall: bool = False
) -> str:
    """Return a table. A head that begins with # is of numbers; the cells are HTML."""
    if not rows:
        return f'<div class="card soft">{empty}</div>'
    titles = "".join(
        f'<th class="n">{head[1:]}</th>' if head.startswith("#") else f"<th>{head}</th>"
        for head in heads
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="scroll{" tall" if tall else ""}"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def cell(text: str, kind: str) -> str:
    """Return a cell of a class of ours."""
    return f'<td class="{kind}">{escape(text)}</td>'


def keyed(text: str, kind: str) -> str:
    """Return a cell that the filters look at."""
    return f'<td class="{kind}" data-key="{escape(text)}">{escape(text)}</td>'


def badge(reason: str, text: str) -> str:
    """Return a coloured word for an outcome."""
    return f'<span class="badge {outcome_class(reason)}">{escape(text)}</span>'


def minute(moment: str) -> str:
    """Return `2026-11-23 12:00` of an RFC 3339 time."""
    return escape(moment[:16].replace("T", " "))


def number(value: float) -> str:
    """Return `1,234`, with one digit behind the point where there is one."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def count(value: int, word: str) -> str:
    """Return `1 line` or `2 lines`."""
    return f"{number(value)} {word}{'' if value == 1 else 's'}"


def size(value: float) -> str:
    """Return `12.3 KiB` of bytes."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:  # noqa: PLR2004  of the next unit
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"  # noqa: PLR2004
        value /= 1024
    return f"{value:.1f} GiB"
