"""Tests of the oracle of alerts after damage to a spool file, on evidence made by hand."""

import json
from collections import Counter
from typing import Any

from lab.chaos import oracle
from lab.chaos.evidence import ALERT, Evidence
from lab.chaos.facts import Fact, fact

START = "2026-11-25T00:00:00.000Z"


def event(status: str) -> dict[str, Any]:
    data = {"fingerprint": "f", "starts_at": START, "status": status, "notification": "transition"}
    return {"id": f"id-{status}", "type": ALERT, "data": data}


def accepted() -> set[Fact]:
    return {fact("f", START, status) for status in ("firing", "resolved")}


def evidence(*arrived: str, at_risk: str = "") -> Evidence:
    """Return what a run left in which both facts were accepted and these arrived."""
    risk = {f"id-{at_risk}": json.dumps(event(at_risk)).encode()} if at_risk else {}
    return Evidence(
        objects={},
        writes=Counter(),
        before=[],
        incarnations=[],
        states=[],
        reported=[],
        offered=accepted(),
        accepted=accepted(),
        events=[event(status) for status in arrived],
        ledger=[],
        ledger_verdict="",
        ends={},
        last_ends={},
        backlogs={},
        dead=set(),
        logged_dead=set(),
        dead_left=0,
        defects=[],
        figures={},
        at_risk=risk,
    )


def said(*arrived: str, at_risk: str = "") -> list[str]:
    return list(oracle.alerts(evidence(*arrived, at_risk=at_risk)))


def test_an_end_without_its_beginning_is_let_pass_only_where_that_lay_in_a_damaged_file() -> None:
    assert said("firing", "resolved") == []
    assert said("resolved", at_risk="firing") == []
    assert len(said("resolved")) == 2
    assert len(said("resolved", at_risk="resolved")) == 2


def test_what_lay_in_a_damaged_file_and_came_all_the_same_is_judged() -> None:
    assert said("firing", "resolved", at_risk="firing") == []
    assert len(said("resolved", "firing", at_risk="firing")) == 1
