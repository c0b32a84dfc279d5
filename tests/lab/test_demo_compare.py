"""Tests of the demo's conclusions and of its output: pure functions."""

import io
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from rich.console import Console

from byoc_agents.alerts.payload import Received
from byoc_agents.alerts.payload import read as read_notification
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.audit import Audit, Report
from byoc_agents.billing.record import Usage
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.window import Period, Window
from lab.demo.alert_scenes import alert_faults
from lab.demo.alertmanager import PRIVATE, notification
from lab.demo.compare import Compared, compare, usage_faults
from lab.demo.process import forget_accounts, tail, whole_lines
from lab.demo.screen import Screen
from lab.demo.snapshot import Backlog, Snapshot, count
from lab.demo.state_scenes import STATES, in_order, state_faults
from lab.demo.tables import remark, row
from lab.demo.verdict import conclude
from lab.demo.workload_process import Rusage

NOON_MS = 1_795_435_200_000  # 2026-11-23T12:00:00Z
READING = Reading(
    source="process",
    incarnation="8a6f3c2e-417-99",
    container_id="",
    cpu_usec=7_250_000,
    memory_bytes=100_000_000,
    born_boot_ns=None,
)
WINDOW = Window(
    start_ms=NOON_MS,
    end_ms=NOON_MS + 5000,
    cpu_start_usec=4_000_000,
    reading=READING,
    cpu_limit_millicores=None,
    memory_limit_bytes=None,
    sized_by="process",
    memory_max_bytes=READING.memory_bytes,
    memory_byte_ns=500_000_000 * 10**9,
    elapsed_ns=5 * 10**9,
    samples=10,
)
RECORDER = Recorder(
    identity=UsageIdentity(
        organization_id="o",
        service_id="s",
        replica="r",
        region="us-east-1",
        pod_uid="",
        container_name="c",
    ),
    sample_ms=500,
)


def usage(**changed: Any) -> Usage:
    period = Period(start_ms=NOON_MS, end_ms=NOON_MS + 5000, window=replace(WINDOW, **changed))
    return RECORDER.record(period, 1, 0).data


GAP = RECORDER.record(
    Period(start_ms=NOON_MS, end_ms=NOON_MS + 2000, gap_reason="target_absent"), 1, 1
).data


def run(pid: int, used: float) -> Any:
    incarnation = f"process:8a6f3c2e-{pid}-99"
    return SimpleNamespace(pid=pid, incarnation=incarnation, rusage=Rusage(used - 1, 1))


def test_each_incarnation_is_compared_with_its_own_account() -> None:
    other = usage(reading=replace(READING, incarnation="8a6f3c2e-418-99", cpu_usec=5_000_000))
    found = compare([usage(), usage(), GAP, other], [run(417, 6.5), run(418, 1.25)])
    assert [(one.billed_core_seconds, one.used_core_seconds) for one in found] == [
        (6.5, 6.5),
        (1.0, 1.25),
    ]
    assert [one.agrees for one in found] == [True, False]


def test_what_is_billed_of_an_unknown_incarnation_never_agrees() -> None:
    *_, stranger = compare([usage()], [run(4170, 3.0)])
    assert stranger.billed_core_seconds == 3.25
    assert not stranger.agrees


def test_an_incarnation_that_is_not_billed_never_agrees() -> None:
    assert [one.agrees for one in compare([GAP], [run(417, 3.0)])] == [False]


@pytest.mark.parametrize(
    ("billed", "agrees"),
    [(9.79, False), (9.8, True), (10.0, True), (10.199, True), (10.21, False)],
)
def test_two_percent(billed: float, agrees: bool) -> None:
    assert Compared("run", billed, 10.0).agrees is agrees


def test_faults_name_the_incarnation_and_count_what_the_verifier_found() -> None:
    audit = Audit()
    audit.add("no/billing/object", b"")
    report = audit.report("s3://b")
    assert usage_faults([Compared("run 1", 3.0, 4.0)], report) == [
        "run 1: billed 3.000 core s, used 4.000",
        "the verifier found 1 things wrong",
    ]
    assert usage_faults([Compared("run 1", 4.0, 4.0)], Audit().report("s3://b")) == []


class Stood:
    """A stage after the last scene: what arrived, and the truth."""

    def __init__(self, *, used: float, reported: Sequence[str], arrived: int) -> None:
        self.out = io.StringIO()
        self.screen = Screen(Console(file=self.out, width=110))
        self.runs = [run(417, used)]
        self.storage = SimpleNamespace(records=[usage()], audit=self.audit)
        transitions = [SimpleNamespace(transition=number) for number in range(1, len(reported) + 1)]
        self.queue = SimpleNamespace(states=list(reported), transitions=transitions)
        self.alertmanager = SimpleNamespace(accepted=[("A", "firing")])
        self.plane = SimpleNamespace(alerts=[ALERT] * arrived, bodies=[b"{}"])

    async def audit(self) -> Report:
        return Audit().report("s3://b")


ALERT = SimpleNamespace(labels={"alertname": "A"}, status="firing")


@pytest.mark.parametrize(
    ("used", "reported", "arrived", "faults"),
    [
        (3.25, STATES, 1, 0),
        (4.0, STATES, 1, 1),
        (3.25, STATES[:-1], 1, 1),
        (3.25, STATES, 0, 1),
        (3.25, STATES, 2, 1),
        (4.0, STATES[1:], 0, 3),
    ],
)
async def test_the_verdict(used: float, reported: Sequence[str], arrived: int, faults: int) -> None:
    stage: Any = Stood(used=used, reported=reported, arrived=arrived)
    assert conclude(stage, compare([usage()], stage.runs), await stage.audit()) == int(faults > 0)
    assert stage.out.getvalue().count("\n") >= 1 + faults
    assert ("FAILED" in stage.out.getvalue()) == (faults > 0)


def test_an_order_of_transitions_that_has_a_hole_is_a_fault() -> None:
    stage: Any = Stood(used=3.25, reported=STATES, arrived=1)
    del stage.queue.transitions[1]
    assert len(state_faults(stage)) == 1


def test_a_private_field_on_the_wire_is_a_fault() -> None:
    stage: Any = Stood(used=3.25, reported=STATES, arrived=1)
    stage.plane.bodies.append(PRIVATE.encode())
    assert len(alert_faults(stage)) == 1


def test_a_record_is_shown_with_its_figures() -> None:
    assert row(usage()) == (
        "12:00:00.0 - 12:00:05.0",
        "measured",
        "process",
        "3.25",
        "0.500",
        "10/10",
        "",
    )
    assert row(GAP)[1:] == ("gap", "none", "", "", "", "nothing ran")
    assert usage().used.cpu_core_seconds == Decimal("3.25")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"restart_observed": True}, "a new run of the target"),
        ({"source_changed": True}, "another source took over"),
        ({"clock_step_ms": -5}, "the clock was set"),
        ({"estimated": True, "samples": 4}, "samples missed, no CPU lost"),
    ],
)
def test_what_is_out_of_the_ordinary_is_said(changed: dict[str, Any], said: str) -> None:
    assert remark(usage(**changed)) == said


def test_the_states_may_have_others_between_them_but_no_other_order() -> None:
    assert in_order(STATES, STATES)
    assert in_order(STATES, ["running", "degraded", "running", "degraded", "failed", *STATES[3:]])
    assert not in_order(STATES, ["running", "failed", "degraded", "running", "stopping"])
    assert not in_order(STATES, STATES[:-1])


def status(events: int, reason: str = "", oldest_ms: int | None = None) -> dict[str, Any]:
    oldest = None if oldest_ms is None else rfc3339(oldest_ms)
    trouble = {"reason": reason, "detail": "", "action": "retry"} if reason else None
    return {"last_error": trouble, "backlog": {"events": events, "oldest": oldest}}


def now(**agents: Any) -> Snapshot:
    return Snapshot({name.replace("_", "-"): s for name, s in agents.items()}, 0, [], [], [])


def test_what_waits_is_shown_with_the_reason() -> None:
    backlog = Backlog.of(status(12, "throttled", 0))
    said = backlog.sentence("S3")
    assert said.startswith("S3 refuses (throttled): 12 events on disk, oldest ")
    assert Backlog.of(status(1, "", 0)).sentence("S3").startswith("on the way: 1 event on disk")
    assert Backlog.of(status(0)).sentence("S3") == "nothing is held up"


def test_an_agent_that_does_not_run_has_neither_sent_nor_held_anything() -> None:
    assert not now().has_sent_all("billing-scraper")
    assert now().held_up("billing-scraper") == 0
    assert all("does not run" in sentence for sentence in now().sentences())


def test_events_count_as_held_up_when_there_is_a_reason() -> None:
    looked = now(billing_scraper=status(2, "throttled", 0), state_exporter=status(1, "", 0))
    assert looked.held_up("billing-scraper") == 2
    assert looked.held_up("state-exporter") == 0
    assert not looked.has_sent_all("state-exporter")


def test_one_record_and_two_records() -> None:
    assert [count(n, "record") for n in (0, 1, 2)] == ["0 records", "1 record", "2 records"]


def test_a_persons_own_account_is_forgotten() -> None:
    environ = {"PATH": "/bin", "AWS_PROFILE": "me", "BYOC_REGION": "x", "https_proxy": "http://p"}
    forget_accounts(environ)
    assert environ == {"PATH": "/bin"}


def test_the_notification_is_one_that_the_forwarder_reads() -> None:
    body = msgspec.json.encode(notification("A", NOON_MS, None))
    alerts = read_notification(body).alerts
    assert all(isinstance(alert, Received) for alert in alerts)
    assert body.count(PRIVATE.encode()) >= 3, "there is something that must not leave"


def test_a_line_without_an_end_is_not_read_yet(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\nthr")
    assert whole_lines(log) == ["one", "two"]
    assert tail(log, 2) == "two\nthr"
