"""Scenes of the state exporter: a fake ClickHouse misbehaves, and the queue has the states."""

from collections.abc import Iterable

from lab.demo.snapshot import EXPORTER
from lab.demo.stage import Stage
from lab.fakes.http import always, reset, serving
from lab.fakes.state import HEALTHY

SETTINGS = {"BYOC_STATE_POLL_SECONDS": "0.5", "BYOC_STATE_HEARTBEAT_SECONDS": "10"}
READONLY = "system.metrics.ReadonlyReplica"
STATES = ("running", "degraded", "failed", "running", "stopping")  # what the queue must tell


async def clickhouse_misbehaves(stage: Stage) -> None:
    """Make it degraded, silent, and healthy again."""
    server = stage.clickhouse.server
    await _until_reported(stage, 1)
    server.rows = HEALTHY | {READONLY: "2"}
    stage.screen.say("two tables of ClickHouse become read-only")
    await _until_reported(stage, 2)
    stage.clickhouse.http.script = always(reset)
    stage.screen.say("ClickHouse resets every connection")
    await _until_reported(stage, 3)
    server.rows, stage.clickhouse.http.script = HEALTHY, serving
    stage.screen.say("ClickHouse is well again")
    await _until_reported(stage, 4)


async def _until_reported(stage: Stage, states: int) -> None:
    wanted = STATES[:states]
    await stage.until(f"the queue tells {wanted[-1]}", lambda now: in_order(wanted, now.states))
    last = stage.queue.transitions[-1]
    codes = ", ".join(reason.code for reason in last.reasons)
    stage.screen.say(f"the queue tells: {last.state}{f' ({codes})' if codes else ''}")


def in_order(wanted: Iterable[str], reported: Iterable[str]) -> bool:
    """Return whether all expected states were reported, in this order.

    Other states may occur between them: on a busy machine a late probe is reported as well.
    """
    left = iter(reported)
    return all(state in left for state in wanted)


def state_faults(stage: Stage) -> list[str]:
    """Return the problems with the messages, empty if there are none."""
    states, reported = stage.queue.states, stage.queue.transitions
    wrong = [] if in_order(STATES, states) else [f"{EXPORTER}: reported {states}, not {STATES}"]
    numbers = [message.transition for message in reported]
    if numbers != list(range(1, len(reported) + 1)):
        wrong.append(f"{EXPORTER}: transitions out of order or missing: {numbers}")
    return wrong
