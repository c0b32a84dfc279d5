"""Kills at every step, lost and bad responses, hours offline: transitions arrive once, in order.

The oracle is the queue's fake (the messages a consumer gets), a journal of accepted ones, and
the truth about the watched server.
"""

import asyncio
import json
import multiprocessing
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lab.fakes.http import Behavior, Request, always, close, hang, lose, reply, reset, serve
from lab.fakes.sqs import Entry, FakeSqs, sqs_error
from tests.unit.state.killable_exporter import POLL_SECONDS, ExporterRun, readonly, run_exporter

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.unit.state.killable_exporter"])
TICKS = 12
STEPS = 36  # in a first run of TICKS; test_every_step_of_a_run_is_counted counts them
RESPONSES: list[Behavior] = [serve, serve, lose(), lose(reset), reply(503), hang, close]


@dataclass
class Harness:
    """The queue, the disk and the exporter's runs one after another."""

    place: Path
    sqs: FakeSqs
    second: int = 0
    bodies: dict[str, str] = field(default_factory=dict)  # id -> body, of every entry that came
    exits: list[int | None] = field(default_factory=list)

    def note(self, entry: Entry) -> dict[str, Any] | None:
        name, body = entry["MessageDeduplicationId"], entry["MessageBody"]
        assert self.bodies.setdefault(name, body) == body, "one id, two bodies"
        return None

    async def run(self, **what: Any) -> int | None:
        """Run one process to its end; return its exit code."""
        run = ExporterRun(
            directory=self.place / "state",
            journal=self.place / "journal",
            queue_url=self.sqs.queue_url,
            start_second=self.second,
            **{"ticks": TICKS, **what},
        )
        process = CONTEXT.Process(target=run_exporter, args=(run,))
        process.start()
        await asyncio.to_thread(process.join)
        self.second += run.ticks * POLL_SECONDS
        self.exits.append(process.exitcode)
        return process.exitcode

    async def end(self) -> None:
        """Drain, and hold everything that arrived against everything that is known."""
        self.sqs.http.script = always(serve)
        assert await self.run(finish=True) == 0
        self.check()

    def check(self) -> None:
        events = [json.loads(sent.body) for sent in self.sqs.messages]
        data = [event["data"] for event in events]
        assert len({event["id"] for event in events}) == len(events)
        sequences = [d["sequence"] for d in data]
        assert sequences == sorted(set(sequences)), "in order, none twice"
        transitions = [d for d in data if d["kind"] == "transition"]
        assert [d["transition"] for d in transitions] == list(range(1, len(transitions) + 1))
        states = [d["state"] for d in transitions]
        assert all(a != b for a, b in pairwise(states))
        accepted = set((self.place / "journal").read_text().split())
        assert accepted <= {event["id"] for event in events}, "accepted and lost"
        assert data[-1]["state"] == ("degraded" if readonly(self.second) else "running")
        assert {d["lost_transitions"] for d in data} == {0}
        for d in data:
            assert d["transition"] == sum(t["sequence"] <= d["sequence"] for t in transitions)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with FakeSqs() as sqs:
        made = Harness(tmp_path, sqs)
        sqs.refuse = made.note
        yield made


async def test_without_a_fault_every_change_arrives(harness: Harness) -> None:
    await harness.run()
    await harness.end()
    seconds = range(POLL_SECONDS, harness.second + 1, POLL_SECONDS)
    truth = [readonly(second) for second in seconds]
    changes = 1 + sum(a != b for a, b in pairwise(truth))
    kinds = [json.loads(sent.body)["data"]["kind"] for sent in harness.sqs.messages]
    assert kinds.count("transition") == changes


async def test_a_kill_loses_and_repeats_nothing(harness: Harness) -> None:
    """One run ends between a commit and its send, one between a send and its removal."""
    for step in (2, 10):
        assert await harness.run(kill_at=step) == -9
    await harness.end()


@pytest.mark.real  # a minute
@pytest.mark.parametrize("step", range(1, STEPS + 1))
async def test_a_kill_at_any_step_loses_and_repeats_nothing(harness: Harness, step: int) -> None:
    assert await harness.run(kill_at=step) == -9
    await harness.end()


@pytest.mark.real
@pytest.mark.parametrize("seed", range(5))
async def test_kills_and_bad_responses_at_random(harness: Harness, seed: int) -> None:
    rng = random.Random(seed)

    def script(_: Request) -> Behavior:
        return rng.choice(RESPONSES)

    harness.sqs.http.script = script
    for _ in range(4):
        await harness.run(kill_at=rng.randrange(1, STEPS), ticks=6, patience_seconds=0.3)
    assert -9 in harness.exits, f"seed {seed} killed nobody"
    await harness.end()


BAD: dict[str, Behavior] = {
    "throttled": reply(403, body=sqs_error(403, "RequestThrottled").body),
    "no queue": reply(
        400,
        {"content-type": "application/x-amz-json-1.0"},
        sqs_error(400, "QueueDoesNotExist").body,
    ),
    "forbidden": reply(403, body=sqs_error(403, "AccessDeniedException").body),
    "unknown": reply(400, body=sqs_error(400, "Surprise").body),
}


@pytest.mark.real
@pytest.mark.parametrize("name", BAD)
async def test_a_queue_that_refuses_for_a_while_gets_everything_later(
    harness: Harness, name: str
) -> None:
    harness.sqs.http.script = always(BAD[name])
    await harness.run()
    assert harness.sqs.messages == []
    await harness.end()


@pytest.mark.real
async def test_hours_offline_keep_every_transition_and_one_heartbeat(harness: Harness) -> None:
    await harness.run(ticks=700, ship=False)
    await harness.end()
    kinds = [json.loads(sent.body)["data"]["kind"] for sent in harness.sqs.messages]
    assert kinds.count("transition") > 200
    assert kinds.count("heartbeat") < 10


@pytest.mark.real
async def test_an_entry_that_fails_alone_holds_up_its_stream_and_nothing_is_overtaken(
    harness: Harness,
) -> None:
    rng: Callable[[], float] = random.Random(7).random

    def refuse(entry: Entry) -> dict[str, Any] | None:
        harness.note(entry)
        failure = {"Code": "InternalError", "Message": "-", "SenderFault": False}
        return failure if rng() < 0.4 else None

    await harness.run(ticks=30, ship=False)
    harness.sqs.refuse = refuse
    await harness.run(ticks=30)
    await harness.end()


@pytest.mark.real
async def test_every_step_of_a_run_is_counted(harness: Harness) -> None:
    assert await harness.run(kill_at=STEPS + 1) == 0, "STEPS is less than a run has"
    await harness.end()
