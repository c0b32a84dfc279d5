"""The short form of `python -m lab.chaos`: one fixed seed, and the oracle's negative controls."""

from pathlib import Path

from lab.chaos.controls import controls, unnoticed
from lab.chaos.oracle import checked, judged
from lab.chaos.plan import planned
from lab.chaos.run import run
from lab.real.parts.process import RealProcess

SEED = 82
SECONDS = 18.0
RARE = ("dead letters", "outages")  # one needs an alert at the right time, the other more of it


def test_a_short_chaos_loses_nothing_and_the_oracle_would_have_seen_it(
    tmp_path: Path, localstack: RealProcess
) -> None:
    plan = planned(SEED, SECONDS)
    print(plan)
    assert len({fault.lane for fault in plan.faults}) == 10, "every lane has a fault"
    assert "rejected" in {fault.kind for fault in plan.faults}
    assert plan.tight
    found = run(plan, tmp_path / "chaos", localstack)
    print("checked:", checked(found))
    assert judged(found) == []
    compared = checked(found)
    assert all(compared[what] >= 1 for what in compared if what not in RARE), compared
    assert len(controls(found)) == 23
    assert unnoticed(found) == []
