"""The destinations table, for people and programs."""

from collections.abc import Sequence

from byoc_agents.policy.inputs import Facts, Options, Rendered

COLUMNS = ("host", "port", "protocol", "purpose", "daemon", "how often", "setting")


def destinations_table(facts: Facts, _options: Options) -> Rendered:
    """Return one row for each destination of each daemon, and the proxy's."""
    every = [*facts.destinations, *([facts.proxy] if facts.proxy else [])]
    rows = [
        dict(
            zip(
                COLUMNS,
                (d.host, d.port, d.scheme, d.purpose, d.daemon or "all", d.frequency, d.setting),
                strict=True,
            )
        )
        for d in every
    ]
    return Rendered(rows, (facts.proxied,) if facts.proxy else (), aligned(rows))


def aligned(rows: Sequence[dict[str, object]]) -> str:
    """Return rows of equal keys as columns of text."""
    lines = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (map(str.ljust, line, widths) for line in lines)
    return "".join("  ".join(cells).rstrip() + "\n" for cells in padded)


def markdown(rows: Sequence[dict[str, object]]) -> str:
    """Return rows of equal keys as a Markdown table."""
    head, *body = _cells(rows)
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _cells(rows: Sequence[dict[str, object]]) -> list[list[str]]:
    head = list(rows[0]) if rows else list(COLUMNS)
    return [head, *([str(value) for value in row.values()] for row in rows)]
