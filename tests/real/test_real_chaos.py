"""The short form of `python -m tests.chaos`: one fixed seed, and the oracle's negative controls."""

from pathlib import Path

from tests.chaos.controls import controls, unnoticed
from tests.chaos.oracle import checked, judged
from tests.chaos.plan import planned
from tests.chaos.run import run
from tests.real.parts.process import RealProcess

SEED = 40
SECONDS = 18.0


def test_a_short_chaos_loses_nothing_and_the_oracle_would_have_seen_it(
    tmp_path: Path, localstack: RealProcess
) -> None:
    plan = planned(SEED, SECONDS)
    print(plan)
    assert len({fault.lane for fault in plan.faults}) == 10, "every lane has a fault"
    found = run(plan, tmp_path / "chaos", localstack)
    print("checked:", checked(found))
    assert judged(found) == []
    assert min(checked(found).values()) >= 1
    assert len(controls(found)) == 14
    assert unnoticed(found) == []
