"""Draw the plot: each target's share of its budget, and the memory of the peers."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from lab.bench.figures import TARGET, Row

WIDTH, LEFT, RIGHT, LINE, TOP = 860, 400, 110, 24, 46
BAR, PAPER, INK = 15, "#ffffff", "#1f2933"
WITHIN, OVER, OURS, OTHERS = "#2f855a", "#c05621", "#2b6cb0", "#a0aec0"
HALO = f'<text paint-order="stroke" stroke="{PAPER}" stroke-width="4"'
FULL = 1.5  # budgets at the right edge; longer bars are cut there
MEMORY = {  # row -> what the plot calls it
    "all three in one process": "byoc-agents, all three daemons",
    "alert-forwarder alone": "alert-forwarder",
    "a bare aiohttp server": "a bare aiohttp server",
    "Alertmanager after 500 alerts": "Alertmanager",
    "node_exporter after 20 scrapes": "node_exporter",
    "collectd, cgroups and write_http": "collectd",
}


def drawn(rows: Sequence[Row]) -> str:
    """Return an SVG of the rows that have a target, and of memory."""
    budgets = [row for row in rows if row.target]
    memory = [row for row in rows if row.group == "memory" and row.name in MEMORY]
    middle = TOP + LINE * len(budgets) + 60
    height = middle + LINE * len(memory) + 20
    parts = [
        _text(16, 26, "Share of its budget that each target takes (shorter is better)", bold=True),
        _limit(TOP, TOP + LINE * len(budgets)),
        *[_budget(row, TOP + LINE * number) for number, row in enumerate(budgets)],
        _text(16, middle - 20, "Resident memory after work, MiB", bold=True),
        *[_memory(row, middle + LINE * number, memory) for number, row in enumerate(memory)],
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12.5">\n'
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="{PAPER}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def budget(row: Row) -> float:
    """Return the row's share of its target; more than 1 misses it."""
    found = TARGET.fullmatch(row.target or "")
    if not found:
        raise ValueError(f"{row.name} has no target")
    share = row.value / float(found[2])
    return share if found[1] == "<=" else 1 / share


def _budget(row: Row, y: int) -> str:
    share = budget(row)
    color = WITHIN if row.holds else OVER
    target = (row.target or "").replace("<=", "≤").replace(">=", "≥")
    label = f"{row.value:.3g} {row.unit} ({target})"
    name = f"memory: {row.name}" if row.group == "memory" else row.name
    return _bar(name, share / FULL, label, color, y)


def _limit(top: int, bottom: int) -> str:
    x = LEFT + (WIDTH - LEFT - RIGHT) / FULL
    line = f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{top - 6}" y2="{bottom}" stroke="{INK}"'
    return f'{line} stroke-dasharray="3 3"/>' + _text(x + 4, top - 8, "the target")


def _memory(row: Row, y: int, rows: Sequence[Row]) -> str:
    most = max(one.value for one in rows)
    ours = row.name in {"all three in one process", "alert-forwarder alone"}
    color = OURS if ours else OTHERS
    return _bar(MEMORY[row.name], row.value / most / 1.05, f"{row.value:.0f}", color, y)


def _bar(name: str, share: float, label: str, color: str, y: int) -> str:
    room = WIDTH - LEFT - RIGHT
    length = max(1.0, min(1.0, share) * room)
    return (
        _text(LEFT - 8, y + 12, name, anchor="end")
        + f'<rect x="{LEFT}" y="{y}" width="{length:.0f}" height="{BAR}" fill="{color}"/>'
        + _text(LEFT + length + 6, y + 12, label).replace("<text", HALO)
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{INK}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )
