"""One daemon: start, defects, stop, finish, drain, end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from byoc_agents.app.daemon import RESTART_SECONDS, Daemon
from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.durable.spool import Spool
from byoc_agents.durable.spool_file import OperationKind
from byoc_agents.durable.store import SpoolStore
from byoc_agents.errors import SpoolCorruptError, SpoolFullError, SpoolUnavailableError
from byoc_agents.message import Message
from lab.fakes.core import FakeClock, Hang, NullLedger, ScriptedSink, Step, settle


def message(number: int) -> Message:
    return Message(f"m{number}", "t", b"body", created_at_ms=number)


class Source:
    """Runs what the test gives it, and puts one message when it is finished."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.script: list[Exception | None] = []
        self.runs = 0
        self.finishing: Callable[[], Awaitable[None]] = self.put_last

    async def run(self) -> None:
        self.runs += 1
        step = self.script.pop(0) if self.script else asyncio.Event()
        if isinstance(step, Exception):
            raise step
        if step:
            await step.wait()

    async def put_last(self) -> None:
        await self.spool.put(message(99))

    async def finish(self) -> None:
        await self.finishing()

    def status(self) -> dict[str, Any]:
        return {"source": "fine"}


class Harness:
    def __init__(self, spool: Spool, sink: ScriptedSink, clock: FakeClock) -> None:
        self.spool, self.sink, self.clock = spool, sink, clock
        self.metrics, self.source, self.stop = Metrics(), Source(spool), asyncio.Event()
        parts: dict[str, Any] = {"clock": clock, "metrics": self.metrics}
        shipper = Shipper("daemon", spool=spool, sink=sink, ledger=NullLedger(), **parts)
        self.daemon = Daemon("daemon", source=self.source, spool=spool, shipper=shipper, **parts)

    def run(self, grace_seconds: float = 30) -> asyncio.Task[None]:
        return asyncio.create_task(self.daemon.run(self.stop, grace_seconds))

    def defects(self, task: str) -> float:
        labels = {"daemon": "daemon", "task": task}
        return self.metrics.registry.get_sample_value("byoc_task_failures_total", labels) or 0.0


@asynccontextmanager
async def harness(directory: Path, *script: Step) -> AsyncIterator[Harness]:
    clock = FakeClock()
    async with Spool(directory, max_bytes=1 << 20, clock=clock) as spool:
        yield Harness(spool, ScriptedSink(script), clock)
    assert [t.get_name() for t in asyncio.all_tasks() - {asyncio.current_task()}] == []


async def test_stop_finishes_the_source_drains_and_ends(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with harness(tmp_path) as it:
            run = it.run()
            await it.spool.put(message(1))
            it.stop.set()
            await run
            assert list(it.sink.stored) == ["m1", "m99"]
    assert [line["event"] for line in logs if line["event"].startswith("daemon.")] == [
        "daemon.started",
        "daemon.stopped",
    ]
    assert logs[-1]["backlog_events"] == 0


async def test_a_defect_of_the_source_is_counted_and_it_starts_anew(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with harness(tmp_path) as it:
            it.source.script = [ZeroDivisionError("a"), ZeroDivisionError("b")]
            run = it.run()
            for starts in (1, 2):
                assert await it.clock.parked() == [RESTART_SECONDS]
                assert (it.source.runs, it.defects("source")) == (starts, starts)
                await it.clock.advance(RESTART_SECONDS)
            assert it.source.runs == 3
            it.stop.set()
            await run
            assert list(it.sink.stored) == ["m99"]
    assert [line["error"] for line in logs if line["event"] == "daemon.task_failed"] == ["a", "b"]


async def test_a_source_that_returns_is_started_again_without_spinning(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with harness(tmp_path) as it:
            it.source.script = [None]
            run = it.run()
            assert await it.clock.parked() == [RESTART_SECONDS]
            assert it.defects("source") == 1
            it.stop.set()
            await run
    failed = [line["error"] for line in logs if line["event"] == "daemon.task_failed"]
    assert failed == ["ended"]


@pytest.mark.parametrize("error", [SpoolUnavailableError("disk"), ZeroDivisionError("defect")])
async def test_a_failing_finish_does_not_keep_the_rest_from_being_sent(
    tmp_path: Path, error: Exception
) -> None:
    async with harness(tmp_path) as it:

        async def fail() -> None:
            raise error

        it.source.finishing = fail
        await it.spool.put(message(1))
        run = it.run()
        it.stop.set()
        await run
        assert list(it.sink.stored) == ["m1"]
        assert it.defects("finish") == isinstance(error, ZeroDivisionError)


async def test_a_finish_without_room_is_repeated_when_the_rest_has_been_sent(
    tmp_path: Path,
) -> None:
    async with harness(tmp_path) as it:

        async def need_room() -> None:
            if it.spool.totals.events:
                raise SpoolFullError("full")
            await it.source.put_last()

        it.source.finishing = need_room
        await it.spool.put(message(1))
        run = it.run()
        it.stop.set()
        await run
        assert list(it.sink.stored) == ["m1", "m99"]


async def test_when_the_grace_is_over_it_ends_and_keeps_what_is_left(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with harness(tmp_path, Hang.FOREVER) as it:
            await it.spool.put(message(1))
            run = it.run(grace_seconds=0.05)
            await it.sink.entered.wait()
            it.stop.set()
            await run
            assert [m.id for m in await it.spool.peek(9)] == ["m1", "m99"]
    assert [line["event"] for line in logs][-2:] == ["daemon.shutdown_timeout", "daemon.stopped"]
    assert logs[-1]["backlog_events"] == 2


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_run_leaves_no_task_behind(tmp_path: Path, times: int) -> None:
    async with harness(tmp_path, Hang.FOREVER) as it:
        await it.spool.put(message(1))
        run = it.run(grace_seconds=0.05)
        await it.sink.entered.wait()
        for _ in range(times):
            run.cancel()
            await settle()
        await asyncio.wait([run])
        assert run.cancelled()
        assert "m1" in {m.id for m in await it.spool.peek(9)}


async def test_its_repr_is_its_pipeline(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        assert repr(it.daemon) == f"daemon -> Source -> {tmp_path}/spool.db -> test://sink"


async def test_the_gauges_tell_the_backlog_and_its_age(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        created = it.clock.wall_ns() // 1_000_000
        await it.spool.put(Message("a", "t", b"1234", created, events=3))
        await it.spool.put(Message("b", "t", b"1234", created))
        await it.spool.dead_letter(Message("b", "t", b"1234", created), "rejected", "")
        await it.clock.advance(90)
        it.daemon.observe()
        for name, value in {
            "events": 3,
            "bytes": 2 * 516,
            "oldest_age_seconds": 90,
            "dead_letters": 1,
        }.items():
            sample = it.metrics.registry.get_sample_value
            assert sample(f"byoc_spool_{name}", {"daemon": "daemon"}) == value


async def test_a_future_time_stamp_is_no_negative_age(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        await it.spool.put(message(1))
        it.clock.step_wall(-2_000_000_000)
        it.daemon.observe()
        name = "byoc_spool_oldest_age_seconds"
        assert it.metrics.registry.get_sample_value(name, {"daemon": "daemon"}) == 0


async def test_each_damaged_spool_file_is_counted_once(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        counted = []
        for damaged in (False, True, False, True):
            if damaged:
                it.spool.path.unlink()
                with pytest.raises(SpoolCorruptError):
                    await it.spool.put(message(1))
            for _ in range(2):
                it.daemon.observe()
            name = "byoc_spool_corruptions_total"
            counted.append(it.metrics.registry.get_sample_value(name, {"daemon": "daemon"}))
        assert counted == [0, 1, 1, 2]


def failing_write(_: SpoolStore) -> None:
    raise SpoolUnavailableError("disk")


async def test_the_daemon_is_not_ready_without_its_spool(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        assert await it.daemon.not_ready_reason() == ""
        with pytest.raises(SpoolUnavailableError, match="disk"):
            await it.spool.run(failing_write, OperationKind.GROW)
        assert await it.daemon.not_ready_reason() == ""  # a write works again
    assert await it.daemon.not_ready_reason() == "spool: the spool is not open"


async def test_a_task_that_is_down_makes_the_daemon_unready_until_it_has_run_a_while(
    tmp_path: Path,
) -> None:
    async with harness(tmp_path) as it:
        it.source.script = [OSError("cannot open the webhook: address in use")]
        run = it.run()
        await it.clock.parked()
        assert (
            await it.daemon.not_ready_reason() == "source: cannot open the webhook: address in use"
        )
        await it.clock.advance(RESTART_SECONDS)
        assert it.source.runs == 2
        assert (await it.daemon.not_ready_reason()).startswith(
            "source: "
        )  # it may fail again at once
        await it.clock.advance(RESTART_SECONDS)
        assert await it.daemon.not_ready_reason() == ""
        it.stop.set()
        await run


async def test_a_source_that_returned_makes_the_daemon_unready(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        it.source.script = [None]
        run = it.run()
        await it.clock.parked()
        assert await it.daemon.not_ready_reason() == "source: ended"
        it.stop.set()
        await run
