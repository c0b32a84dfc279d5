"""The bench of the forwarder alone runs: short forms of the outage, of growth and of losses.

The peers that are Go modules take five minutes to build, so only `make bench` runs them.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.bench import growth, loss, outage
from lab.bench.image import ENVIRON, Image
from lab.bench.lab import FORWARDER, Lab
from lab.bench.receivers import receivers
from lab.real.parts import kernel


class Developers(Image):
    """The daemons with the packages of the tests."""

    @property
    def command(self) -> list[str]:
        return [str(self.python), "-m", "byoc_agents.app.cli"]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    image = Developers(Path(sys.executable), ENVIRON, "the packages of the tests")
    with receivers() as listening, kernel.cgroup_v1("cpuacct", "memory") as group:
        target = f"cgroup:{group['cpuacct']}"
        yield Lab(tmp_path, listening, image, target, quick=True, go_peers=False)


def test_an_outage_loses_and_repeats_nothing(lab: Lab) -> None:
    rows = {row.name: row.value for row in outage.measure(lab)}
    assert rows[f"{FORWARDER}: requests during the outage"] > 0
    assert rows[f"{FORWARDER}: files with 2,000 alerts waiting"] > 1
    assert rows[f"{FORWARDER}: alerts that came twice"] == 0


def test_every_kind_of_work_has_a_line(lab: Lab) -> None:
    lines = growth.measured_lines(lab)
    assert len({line.name for line in lines}) == len(lines) == 11
    for line in lines:
        assert all(cost > 0 for _, cost in line.points), line
        line.exponent()


def test_the_forwarder_loses_nothing_over_a_kill(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--only", loss.OURS, "--seeds", "1", "--count", "60", "--kills", "1"]
    assert loss.main([*options, "--most", "60"]) == 0
    assert "| alert-forwarder | 1 | 0 | 0 |" in capsys.readouterr().out
