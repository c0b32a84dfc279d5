"""The bench of the billing path runs: a short form of its kills, without the peer."""

import random
import sys
from pathlib import Path

from lab.bench.billing_path import KILLED, KILLS, OURS, OURS_GROUP, OURS_MINUTE, count_trial
from lab.bench.image import ENVIRON, Image
from lab.bench.lab import Lab
from lab.bench.receivers import receivers

TICKS = 4 * 0.01  # by which the figures of one process may differ from the kernel's


class Developers(Image):
    """The daemons with the packages of the tests."""

    @property
    def command(self) -> list[str]:
        return [str(self.python), "-m", "byoc_agents.app.cli"]


def test_every_meter_counts_all_cpu_over_kills(tmp_path: Path) -> None:
    image = Developers(Path(sys.executable), ENVIRON, "the packages of the tests")
    with receivers() as listening:
        lab = Lab(tmp_path, listening, image, "", quick=True, go_peers=False)
        truth, counted = count_trial(lab, KILLED, random.Random(1))
    print(f"{KILLS} kills: {truth} core seconds, {counted}")
    assert truth > 1
    assert counted[OURS_GROUP] == truth
    assert abs(counted[OURS] - truth) < TICKS
    assert abs(counted[OURS_MINUTE] - truth) < TICKS
