"""Write the bench's results: a table on the screen, `build/bench.json`, the page and the plot."""

import re
from collections.abc import Iterator, Sequence

import msgspec

from lab.bench import growth, plot
from lab.bench.figures import Row
from lab.bench.machine import measured
from lab.real.counts import gate
from lab.real.parts.install import ROOT

JSON = ROOT / "build" / "bench.json"
DETAIL = ROOT / "build" / "bench-detail.json"  # with the spread and the number of runs
DOCS = ROOT / "docs" / "internals" / "performance.md"
PLOT = ROOT / "docs" / "internals" / "performance.svg"
GROWTH = ROOT / "docs" / "internals" / "growth.svg"
PYTHON = "3.11"  # of the images: the figures on the page are its
BEGIN, END = "<!-- {group}: written by `python -m lab.bench --write-docs` -->", "<!-- end -->"
BLOCK = re.compile(rf"{BEGIN.format(group='([a-z_]+)')}\n(.*?){END}", re.DOTALL)
LINE = re.compile(r"\| (.+?) \| ([0-9.,]+) (.*?) \| (.*?) \| (\d+) \| (.*?) \| .*\|")


def write(rows: Sequence[Row]) -> None:
    """Write both files. Rows of groups that this run did not measure are kept."""
    JSON.parent.mkdir(exist_ok=True)
    groups, when = {row.group for row in rows}, measured()
    merged = [row for row in read() if row.group not in groups]
    merged += [msgspec.structs.replace(row, measured=when) for row in rows]
    DETAIL.write_bytes(msgspec.json.format(msgspec.json.encode(merged)))
    JSON.write_bytes(msgspec.json.format(msgspec.json.encode([r.public() for r in merged])))


def read() -> list[Row]:
    """Return the rows of the last runs; an empty list if there is no file."""
    return msgspec.json.decode(DETAIL.read_bytes(), type=list[Row]) if DETAIL.exists() else []


def show(rows: Sequence[Row], title: str) -> None:
    """Print a table."""
    print(f"\n{title}")
    for row in rows:
        verdict = {None: "", True: "holds", False: "MISSED"}[row.holds]
        verdict += " peer better" * row.peer_is_better
        spread = f"{number(row.low)} .. {number(row.high)} ({row.runs})" if row.runs > 1 else ""
        target = row.target or ""
        value = number(row.value)
        print(f"  {row.name:58} {value:>10} {row.unit:13} {spread:26} {target:9} {verdict}")
    print(flush=True)


def number(value: float) -> str:
    """Return a number with three significant digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def write_docs() -> None:
    """Write the last figures between the marks of the page, and draw the plots.

    Groups that were not measured keep their table, and their place in the plot of the page.
    """
    rows = read()
    text = DOCS.read_text()
    for group in dict.fromkeys(row.group for row in rows):
        shown = table([row for row in rows if row.group == group])
        text = replace_between(text, BEGIN.format(group=group), shown)
    text = replace_between(text, BEGIN.format(group="counts"), counts())
    DOCS.write_text(text)
    PLOT.write_text(plot.drawn([*parse(text)]))
    if any(row.group == "growth" for row in rows):
        GROWTH.write_text(plot.grown(growth.read()))


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| figure | median | spread | runs | target | |", "|---|---:|---|---:|---|---|"]
    for row in rows:
        verdict = {None: "", True: "holds", False: "**missed**"}[row.holds]
        verdict = "; ".join(
            [*[verdict] * bool(verdict), *["the peer is better"] * row.peer_is_better]
        )
        spread = f"{number(row.low)} to {number(row.high)}" if row.runs > 1 else ""
        target = (row.target or "").replace("<=", "≤").replace(">=", "≥")
        value = f"{number(row.value)} {row.unit}"
        lines.append(f"| {row.name} | {value} | {spread} | {row.runs} | {target} | {verdict} |")
    if rows[0].measured:
        lines += ["", f"Measured on {rows[0].measured}."]
    return "\n".join(lines)


def parse(page: str) -> Iterator[Row]:
    """Yield the rows of the page's tables, without their spread: `table`'s own form."""
    for group, block in BLOCK.findall(page):
        for name, value, unit, _, runs, target in LINE.findall(block):
            median = float(value.replace(",", ""))
            yield Row(
                group=group,
                name=name,
                value=median,
                unit=unit,
                target=target.replace("≤", "<=").replace("≥", ">=") or None,
                low=median,
                high=median,
                runs=int(runs),
            )


def counts() -> str:
    """Return the baseline of `lab.real.counts` as Markdown: one line per piece of work."""
    pieces = gate.baseline(PYTHON)
    names = ("instructions", "calls", "fsyncs", "peak_bytes", "bytes")
    head = f"| piece | {' | '.join(name.replace('_', ' ') for name in names)} |"
    lines = [head, "|---" + "|---:" * len(names) + "|"]
    for piece, values in pieces.items():
        cells = [f"{values[name]:,.0f}" if name in values else "" for name in names]
        lines.append(f"| {piece} | {' | '.join(cells)} |")
    return "\n".join(lines)


def replace_between(text: str, begin: str, content: str) -> str:
    """Return a page with new content after the mark `begin`, up to the next end mark."""
    before, found, rest = text.partition(begin)
    if not found:
        return text
    return f"{before}{begin}\n{content}\n{END}{rest.partition(END)[2]}"
