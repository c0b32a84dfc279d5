"""The performance page and the bench that writes it: what can be held without measuring."""

import re
from xml.etree import ElementTree as ET

import msgspec
import pytest

from images.oci import ENVIRONMENT
from lab.bench import image, plot, report
from lab.bench.__main__ import NAMES
from lab.bench.figures import Row, ratios, row, within
from lab.real.counts import gate

PAGE = report.DOCS.read_text()


@pytest.mark.parametrize(
    ("value", "target", "holds"),
    [(0.8, "<= 0.8", True), (0.81, "<= 0.8", False), (1.2, ">= 1.2", True), (1, ">= 1.2", False)],
)
def test_a_target_is_held_or_missed(value: float, target: str, holds: bool) -> None:
    assert within(value, target) is holds


def test_a_target_in_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a target"):
        within(1, "< 2")


def test_a_row_is_the_median_with_its_spread() -> None:
    """The public file contains the requested figures and nothing else."""
    made = row("g", "n", ratios([1.0, 9.0, 4.0], [1.0, 1.0, 2.0]), "x", "<= 1.5")
    assert (made.value, made.low, made.high, made.runs) == (2.0, 1.0, 9.0, 3)
    expected = {"name": "n", "value": 2.0, "unit": "x", "target": "<= 1.5", "holds": False}
    assert made.public() == expected
    assert row("g", "n", [1], "x").public()["holds"] is None


def test_the_page_has_a_place_for_every_measurement() -> None:
    for name in (*NAMES, "counts"):
        assert PAGE.count(report.BEGIN.format(group=name)) == 1, name


def test_the_rows_of_a_table_can_be_read_from_the_page() -> None:
    """So the plot has the rows of tables that a run did not measure."""
    rows = [
        row("hop", "CPU: ours / theirs", [0.4], "x", "<= 0.8"),
        row("hop", "delivered", [3_242, 2_885, 4_179], "alerts/s"),
        row("hop", "connections", [565], ""),
    ]
    text = report.BEGIN.format(group="hop") + f"\n{report.table(rows)}\n{report.END}"
    keys = ("group", "name", "value", "unit", "target", "runs")
    read = [[getattr(one, key) for key in keys] for one in report.parse(text)]
    assert read == [[getattr(one, key) for key in keys] for one in rows]


def test_a_table_names_the_day_and_the_machine_of_its_runs() -> None:
    made = row("hop", "delivered", [3_242], "alerts/s")
    assert "Measured" not in report.table([made])
    shown = report.table([msgspec.structs.replace(made, measured="24 November 2026: 2 cores")])
    assert shown.endswith("\n\nMeasured on 24 November 2026: 2 cores.")


def test_a_peers_better_ratio_is_marked() -> None:
    made = row("hop", "CPU: ours / theirs", [1.2], "x", better="lower")
    assert report.table([made]).endswith("| the peer is better |")


def test_the_page_shows_the_baseline_of_the_gate() -> None:
    """`python -m lab.bench --write-docs` after `python -m lab.real.counts --write`."""
    assert report.counts() in PAGE


def test_the_bench_runs_in_the_environment_of_the_image() -> None:
    assert {f"{name}={value}" for name, value in image.ENVIRON.items()} <= {*ENVIRONMENT}


def test_every_target_is_answered_on_the_page() -> None:
    """No figure with a target appears without its verdict."""
    lines = [line for line in PAGE.splitlines() if re.search(r"\| [≤≥] [0-9.]+ \|", line)]
    assert len(lines) >= 15
    verdict = re.compile(r"\| (holds|\*\*missed\*\*)(; the peer is better)? \|$")
    assert all(verdict.search(line) for line in lines)


def test_the_gate_has_a_margin_for_every_count() -> None:
    for values in gate.baseline(report.PYTHON).values():
        assert set(values) - {"kept_blocks"} <= set(gate.MARGINS)


def test_a_bar_shows_the_share_of_the_budget() -> None:
    """The plot is an XML that names each figure; a longer bar is a worse figure."""
    rows: list[Row] = [
        row("hop", "CPU", [0.4], "x", "<= 0.8"),
        row("hop", "delivered & stored", [2.4], "x", ">= 1.2"),
        row("memory", "a bare aiohttp server", [36], "MiB"),
    ]
    assert [plot.budget(one) for one in rows[:2]] == [0.5, 0.5]
    drawn = ET.fromstring(plot.drawn(rows))
    texts = ["".join(node.itertext()) for node in drawn.iter() if node.tag.endswith("text")]
    assert "delivered & stored" in texts
