"""Draw a soak: one small line chart per figure, in SVG."""

from collections.abc import Sequence
from html import escape

from lab.chaos.slopes import Slope

WIDTH, HEIGHT = 400, 130  # of one chart
LEFT, TOP, RIGHT, BOTTOM = 52, 26, 12, 20
COLUMNS = 2
MOST_POINTS = 360
STYLE = (
    "text{font:11px sans-serif;fill:#333}.t{font-weight:bold}.v{text-anchor:end}"
    "path{fill:none;stroke:#1a6fb0;stroke-width:1.3}line{stroke:#ccc}"
)


def plot(slopes: Sequence[Slope], title: str) -> str:
    """Return the SVG."""
    rows = -(-len(slopes) // COLUMNS)
    size = f"{COLUMNS * WIDTH} {rows * HEIGHT + TOP}"
    charts = [
        f'<g transform="translate({n % COLUMNS * WIDTH} {TOP + n // COLUMNS * HEIGHT})">'
        f"{_chart(slope)}</g>"
        for n, slope in enumerate(slopes)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}"><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="t" x="8" y="17">{escape(title)}</text>{"".join(charts)}</svg>\n'
    )


def _chart(slope: Slope) -> str:
    points = slope.points[:: max(1, len(slope.points) // MOST_POINTS)]
    highest = max(y for _, y in points) * 1.15 or 1.0
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    end = points[-1][0]
    at = [(LEFT + wide * x / end, TOP + high * (1 - y / highest)) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    bound = slope.bound
    label = f"{bound.title}: {slope.an_hour:+.2f} {bound.unit} an hour (bound {bound.an_hour:g})"
    return (
        f'<text class="t" x="{LEFT}" y="{TOP - 8}">{escape(label)}</text>'
        f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{TOP + high}" y2="{TOP + high}"/>'
        f'<line x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{TOP + high}"/>'
        f'<text class="v" x="{LEFT - 5}" y="{TOP + 9}">{highest:.3g}</text>'
        f'<text class="v" x="{LEFT - 5}" y="{TOP + high}">0</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">0</text>'
        f'<text class="v" x="{LEFT + wide}" y="{HEIGHT - 6}">{end / 60:.0f} min</text>'
        f'<path d="M{line}"/>'
    )
