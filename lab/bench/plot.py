"""Draw the plots: each target's share of its budget, the peers' memory, and the lines of growth."""

from collections.abc import Sequence
from math import log10
from xml.sax.saxutils import escape

from lab.bench.figures import TARGET, Line, Row

WIDTH, LEFT, RIGHT, LINE, TOP = 860, 400, 110, 24, 46
BAR, PAPER, INK = 15, "#ffffff", "#1f2933"
WITHIN, OVER, OURS, OTHERS = "#2f855a", "#c05621", "#2b6cb0", "#a0aec0"
HALO = f'<text paint-order="stroke" stroke="{PAPER}" stroke-width="4"'
FULL = 1.5  # budgets at the right edge; longer bars are cut there
COLUMNS, PANEL, TALL = 3, 300, 190  # of the lines: panels in a row, and their size
AXIS_LEFT, AXIS_TOP, AXIS_WIDTH, AXIS_HEIGHT = 58, 40, 220, 112  # inside a panel
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
    return _page(WIDTH, height, parts)


def grown(lines: Sequence[Line]) -> str:
    """Return an SVG with a panel per line, both axes logarithmic.

    A dashed line through the last point shows a cost proportional to the work.
    """
    rows = -(-len(lines) // COLUMNS)
    return _page(
        PANEL * COLUMNS,
        TALL * rows,
        [
            f'<g transform="translate({PANEL * (n % COLUMNS)} {TALL * (n // COLUMNS)})">'
            f"{_panel(line)}</g>"
            for n, line in enumerate(lines)
        ],
    )


def _panel(line: Line) -> str:
    amounts = [log10(amount) for amount, _ in line.points]
    costs = [log10(cost) for _, cost in line.points]
    wide = max(amounts) - min(amounts) or 1.0
    low, high = min(costs), max(*costs, min(costs) + wide)  # a flat line stays flat

    def place(amount: float, cost: float) -> tuple[float, float]:
        return (
            AXIS_LEFT + AXIS_WIDTH * (amount - min(amounts)) / wide,
            AXIS_TOP + AXIS_HEIGHT * (high - cost) / (high - low),
        )

    dots = [place(a, c) for a, c in zip(amounts, costs, strict=True)]
    back = min(wide, costs[-1] - low)  # where the dashed line leaves the panel
    linear = [place(amounts[-1] - back, costs[-1] - back), dots[-1]]
    bottom = AXIS_TOP + AXIS_HEIGHT
    first, last = f"{line.points[0][0]:,.0f}", f"{line.points[-1][0]:,.0f} {line.work}"
    return "".join([
        _text(12, 18, line.name, bold=True, size=11),
        _text(12, 32, f"exponent {line.exponent():.2f}", size=11),
        _path(linear, INK, ' stroke-dasharray="3 3"'),
        _path(dots, OURS),
        *[f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="{OURS}"/>' for x, y in dots],
        _text(AXIS_LEFT, bottom + 18, first, anchor="middle", size=11),
        _text(AXIS_LEFT + AXIS_WIDTH, bottom + 18, last, anchor="end", size=11),
        _text(AXIS_LEFT - 6, dots[0][1] + 4, _milliseconds(line.points[0][1]), anchor="end",
              size=11),
        _text(AXIS_LEFT + AXIS_WIDTH + 4, dots[-1][1] - 6, _milliseconds(line.points[-1][1]),
              anchor="end", size=11),
    ])  # fmt: skip


def _milliseconds(cost: float) -> str:
    value = cost / 1e3
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.2g} ms"


def _path(points: Sequence[tuple[float, float]], color: str, more: str = "") -> str:
    corners = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
    return f'<polyline points="{corners}" fill="none" stroke="{color}"{more}/>'


def _page(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="sans-serif" font-size="12.5">\n'
        f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>\n'
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


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False, size: int = 0
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    weight += f' font-size="{size}"' if size else ""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{INK}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )
