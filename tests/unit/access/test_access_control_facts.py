"""The lines about the kill switch and the policy: when they are due, and how many there may be."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.access.control_facts import BURST_FACTS, REFILL_SECONDS
from byoc_agents.access.documents import sha256
from byoc_agents.access.machine import State
from byoc_agents.access.orders import Approve, Submit
from tests.unit.access.access_documents import GRANT_ID, policy_text, request_envelope
from tests.unit.access.scripted_broker import Harness, touch

NOBODY: dict[str, list[str]] = {"r0": [], "r1": []}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path)
    mounted = tmp_path / "mounted"
    mounted.write_text("off")
    harness.mounted = str(mounted)
    async with harness.running() as broker:
        await broker.run_pass()
        yield harness
    assert harness.ledger_problems() == []


def set_mounted(harness: Harness, content: str | None) -> None:
    path = Path(harness.mounted)
    path.unlink() if content is None else path.write_text(content)


def policy_hash(**changes: Any) -> str:
    return sha256(policy_text(**changes).encode())


def lines(harness: Harness) -> list[tuple[str, str, dict[str, str]]]:
    return [(one.fact, one.reason, one.detail) for one in harness.controls()]


async def test_the_first_lines_are_about_the_switch_and_the_policy(harness: Harness) -> None:
    assert lines(harness) == [
        ("kill_switch", "off", {"state": "off"}),
        ("policy_changed", "", {"after": policy_hash()}),
    ]
    assert {fact.subject for fact in harness.controls()} == {""}


async def test_a_restart_states_nothing_again(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    for _ in range(3):
        async with harness.running():
            await harness.passes(1, 3)
    assert len(harness.controls()) == 2


async def test_a_change_while_no_broker_runs_is_stated_by_the_next_one(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    async with harness.running():
        await harness.passes(1, 2)
    harness.write_policy(max_duration="30m")
    touch(harness.kill_file)
    async with harness.running():
        await harness.passes(1, 2)
    assert lines(harness)[2:] == [
        ("kill_switch", "on: kill-switch", {"state": "on", "because": "file"}),
        (
            "policy_changed",
            "",
            {"before": policy_hash(), "after": policy_hash(max_duration="30m")},
        ),
    ]


CAUSES: dict[str, tuple[Callable[[Harness], Any], str, str]] = {
    "file": (lambda h: touch(h.kill_file), "kill-switch", "file"),
    "mounted": (lambda h: set_mounted(h, "on"), "the mounted switch", "mounted"),
    "mounted, unreadable": (
        lambda h: set_mounted(h, None),
        "the mounted switch cannot be read",
        "unreadable",
    ),
    "policy": (lambda h: h.write_policy(enabled=False), "the policy is disabled", "policy"),
    "policy, unreadable": (
        lambda h: h.policy_file.write_text("["),
        "the policy cannot be read",
        "unreadable",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
async def test_a_switch_is_stated_with_what_has_set_it(harness: Harness, cause: str) -> None:
    set_switch, reason, kind = CAUSES[cause]
    await harness.open_grant()
    set_switch(harness)
    await harness.passes(1, 3)
    on = [one for one in lines(harness)[2:] if one[0] == "kill_switch"]
    assert on == [("kill_switch", f"on: {reason}", {"state": "on", "because": kind})]
    assert harness.users == NOBODY
    harness.kill_file.unlink(missing_ok=True)
    set_mounted(harness, "off")
    harness.write_policy()
    await harness.passes(1, 3)
    off = [one for one in lines(harness)[3:] if one[0] == "kill_switch"]
    assert off == [("kill_switch", "off", {"state": "off", "before": reason})]
    assert harness.broker.kill_switch == ""


async def test_another_reason_is_stated_too(harness: Harness) -> None:
    touch(harness.kill_file)
    await harness.passes(1)
    set_mounted(harness, None)
    harness.kill_file.unlink()
    await harness.passes(1)
    kinds = [one.detail.get("because", "off") for one in harness.controls()]
    assert kinds == ["off", "off", "file", "unreadable"]


@pytest.mark.parametrize("error", ["disk full", "hangs"])
async def test_an_end_by_the_switch_waits_for_no_line(harness: Harness, error: str) -> None:
    await harness.open_grant()
    harness.ledger_error = error
    touch(harness.kill_file)
    await harness.passes(1)
    assert harness.users == NOBODY
    assert len(harness.controls()) == 2
    harness.ledger_error = ""
    await harness.passes(1, 2)
    assert lines(harness)[2:][0][1] == "on: kill-switch"


@pytest.mark.parametrize("error", ["disk full", "hangs"])
async def test_the_switch_is_off_only_after_its_line(harness: Harness, error: str) -> None:
    touch(harness.kill_file)
    await harness.order(Submit(envelope=request_envelope()))
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    harness.kill_file.unlink()
    harness.ledger_error = error
    for _ in range(40):  # also in the passes that try to write it
        await harness.passes(1)
        assert harness.broker.kill_switch == "it is off, and the line about that is not written"
    assert (harness.grant().state, harness.users) == (State.APPROVED, NOBODY)
    assert not harness.broker.controls_unreadable
    del harness.steps[:]
    harness.ledger_error = ""
    await harness.passes(31, 2)
    assert (harness.broker.kill_switch, harness.grant().state) == ("", State.OPEN)
    assert harness.steps.index("fact.kill_switch") < harness.steps.index("fact.opening")


async def test_a_policy_opens_nothing_before_its_line(tmp_path: Path) -> None:
    """It is used at once, for ends too, and the ledger refuses every later line meanwhile."""
    harness = Harness(tmp_path)
    async with harness.running():
        await harness.passes(1, 2)
        harness.write_policy(approval="transparency")
        harness.ledger_error = "disk full"
        assert await harness.order(Submit(envelope=request_envelope())) == ""
        assert harness.broker.grants == []
        del harness.steps[:]
        harness.ledger_error = ""
        await harness.passes(31, 2)
        assert harness.grant().state is State.OPEN
        facts = [step for step in harness.steps if step.startswith("fact.")]
        assert facts[:2] == ["fact.policy_changed", "fact.approved"]


async def test_a_switch_that_flaps_does_not_fill_the_ledger(harness: Harness) -> None:
    """Without budget the switch stays on: nobody gets access by it."""
    await harness.order(Submit(envelope=request_envelope()))
    for _ in range(200):
        touch(harness.kill_file)
        await harness.passes(0.1)
        harness.kill_file.unlink()
        await harness.passes(0.1)
    written = len(harness.controls())
    assert written <= 2 * BURST_FACTS + 2
    assert harness.broker.kill_switch == "it is off, and has changed too often to be recorded now"
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    assert harness.grant().state is State.APPROVED
    await harness.passes(REFILL_SECONDS)
    assert (harness.broker.kill_switch, harness.grant().state) == ("", State.OPEN)
    assert len(harness.controls()) == written + 1
    last = harness.controls()[-1].detail
    assert (last["state"], int(last["not_stated"])) == ("off", 400 - written + 1)


async def test_reasons_that_alternate_do_not_fill_the_ledger(harness: Harness) -> None:
    """Such as a mount that can be read now and then. The switch is on all the time."""
    set_mounted(harness, "on")
    for _ in range(100):
        for content in ("on", None):
            set_mounted(harness, content)
            await harness.passes(0.1)
    assert len(harness.controls()) <= BURST_FACTS + 3
    assert harness.broker.kill_switch == "the mounted switch cannot be read"
    set_mounted(harness, "off on")
    await harness.passes(REFILL_SECONDS)
    assert int(harness.controls()[-1].detail["not_stated"]) > 100


async def test_a_policy_that_flaps_does_not_fill_the_ledger(harness: Harness) -> None:
    """Access goes on: each line of a grant has the SHA-256 of its policy."""
    await harness.open_grant()
    for _ in range(100):
        for approvals in (1, None):
            harness.write_policy(approvals_needed=approvals)
            await harness.passes(0.1)
    written = [one for one in harness.controls() if one.fact == "policy_changed"]
    assert len(written) == BURST_FACTS
    assert harness.grant().state is State.OPEN
    harness.write_policy(max_open=7)
    await harness.passes(REFILL_SECONDS)
    last = harness.controls()[-1]
    assert last.detail["after"] == policy_hash(max_open=7)
    assert last.detail["before"] == written[-1].detail["after"]
    assert int(last.detail["not_stated"]) == 200 - BURST_FACTS + 1


async def test_an_unreadable_switch_writes_one_line_however_long_it_stays(
    harness: Harness,
) -> None:
    set_mounted(harness, None)
    await harness.passes(31, 100)
    assert len(harness.controls()) == 3
