"""Which state may come late: a heartbeat that no response called stored, and nothing else."""

from typing import Any

import pytest

from lab.chaos.order import ordered


def body(sequence: int, kind: str = "heartbeat") -> dict[str, Any]:
    return {"id": f"id-{sequence}", "data": {"kind": kind, "sequence": sequence}}


def sent(sequence: int, *reasons: str) -> list[dict[str, Any]]:
    return [{"id": f"id-{sequence}", "reason": reason} for reason in reasons]


REFUSED = {"refused": "not_listed", "detail": "10.0.0.1:1", "count": 1}  # by the gate: no send
OTHERS = [*sent(35, "ok"), REFUSED, *sent(36, "timeout", "ok")]


@pytest.mark.parametrize(
    ("late", "ledger", "judged"),
    [
        (body(34), sent(34, "timeout", "unknown"), [35, 36]),
        (body(34), [], [35, 36]),
        (body(34), sent(34, "ok"), [35, 36, 34]),
        (body(34), sent(34, "timeout", "already_stored"), [35, 36, 34]),
        (body(34, "transition"), sent(34, "timeout"), [35, 36, 34]),
    ],
)
def test_only_a_heartbeat_that_no_response_called_stored_may_be_late(
    late: dict[str, Any], ledger: list[dict[str, Any]], judged: list[int]
) -> None:
    bodies = [body(35, "transition"), body(36), late]
    strict = ordered(bodies, [*OTHERS, *ledger], damaged=False)
    assert [one["data"]["sequence"] for one in strict] == judged


def test_where_files_were_damaged_only_transitions_are_judged() -> None:
    bodies = [body(35, "transition"), body(36)]
    assert ordered(bodies, OTHERS, damaged=True) == bodies[:1]
