"""The source of the billing scraper: samples a target, closes windows, seals objects.

A window's records, the checkpoint after them and their sequence numbers are stored in one commit.
Sealing removes the staged lines and adds the object in one commit. A kill between any two steps
therefore neither loses nor repeats a record.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import encode, parse_rfc3339, rfc3339
from byoc_agents.app.metrics import Metrics
from byoc_agents.billing.checkpoint import (
    Checkpoint,
    DeferredPeriods,
    decode_checkpoint,
    encode_checkpoint,
    same_position,
)
from byoc_agents.billing.meter import Meter
from byoc_agents.billing.objects import STREAM, Compression, runs, seal
from byoc_agents.billing.record import GapReason, Usage, charge_period_ms
from byoc_agents.billing.recorder import Recorder
from byoc_agents.billing.rollback import count_stored_lines, uncertain_since_ms
from byoc_agents.billing.sources.select import Target, TargetObservation
from byoc_agents.billing.window import HOUR_MS, MeterState, Period, Sample, Window
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolCorruptError, SpoolError
from byoc_agents.ledger.recent import RecentSend, StreamPosition, newest_sent

CHECKPOINT = "billing/meter"
MAX_LINES = 1000  # per object; about half a MiB of JSON
DEFERRED_PER_COMMIT = 6  # samples per commit of deferred periods: about 10 KiB
MAX_DEFERRED = 10_000  # periods kept in memory while the spool is full, about 2 KiB each
HINT_POLL_MS = 1000  # interval of the checks for the file that announces the target's end
HINTED_SAMPLE_MS = 100  # the sample interval after the file has appeared
HINTED_MS = 600_000  # for this long: more than any usual terminationGracePeriodSeconds


class Intervals(msgspec.Struct, frozen=True, kw_only=True):
    """Intervals, milliseconds."""

    sample_ms: int
    window_ms: int
    seal_ms: int
    seal_phase_ms: int = 0  # offset of the seals from full seal intervals of the wall clock


def seal_phase_ms(pod: str, seal_ms: int) -> int:
    """Return the phase at which this pod's objects are sealed, 0 <= phase < `seal_ms`.

    It is a hash of the pod's uid (or the replica's name). The pods of a fleet, whose clocks agree,
    therefore do not all send in the same second, and a restarted daemon keeps its phase.
    """
    digest = hashlib.sha256(pod.encode()).digest()
    return int.from_bytes(digest[:8], "big") % seal_ms


class Scraper:
    """Meters one target and stores the records in a spool."""

    def __init__(  # noqa: PLR0913  its dependencies
        self,
        daemon: str,
        *,
        target: Target,
        recorder: Recorder,
        intervals: Intervals,
        spool: Spool,
        clock: Clock,
        metrics: Metrics,
        prefix: str,
        compression: Compression,
        sent: Callable[[], Sequence[RecentSend]] = tuple,
        machine_cpus: Callable[[], int | None] = lambda: None,
        asleep_ns: Callable[[], int | None] = lambda: None,
        end_hint: Path | None = None,
        max_deferred: int = MAX_DEFERRED,
    ) -> None:
        """Take the dependencies.

        `sent` may block. It returns the objects that the ledger has announced recently.
        `machine_cpus` returns the number of CPUs of the target's machine, or None if it is unknown;
        the bound is then `record.MAX_CPUS`. `asleep_ns` returns how long the machine has slept
        since its boot, nanoseconds, or None if that is unknown. `end_hint` is a file that appears
        when the target is about to end. From then on samples are taken every `HINTED_SAMPLE_MS`.
        `max_deferred` is how many periods are kept in memory while the spool accepts none.
        """
        self._daemon = daemon
        self._target = target
        self._recorder = recorder
        self._intervals = intervals
        self._meter = Meter(window_ms=intervals.window_ms)
        self._spool = spool
        self._clock = clock
        self._metrics = metrics
        self._samples = cache(partial(metrics.billing_samples.labels, daemon))  # by source
        self._prefix = prefix
        self._compression = compression
        self._sent = sent
        self._machine_cpus = machine_cpus
        self._asleep_ns = asleep_ns
        self._end_hint = end_hint
        self._max_deferred = max_deferred
        self._log = structlog.get_logger().bind(daemon=daemon)
        self._checkpoint: Checkpoint | None = None
        self._newest_sent: StreamPosition | None = None  # by the ledger
        self._uncertain_since_ms: int | None = None  # start of possibly lost usage
        self._staged: list[bytes] = []
        self._secondary_window = -1
        self._seal_interval: int | None = None  # of the last seal
        self._stale = True  # the checkpoint in memory may differ from the spool's
        self._target_error = ""  # the last one, also of a better source than the one in use
        self._spool_error = ""

    async def run(self) -> None:
        """Sample at every full sample interval of the wall clock, until cancelled.

        Objects are sealed in between, when they are due.
        """
        while True:
            await self.tick()
            await self._wait_for_sample()

    async def tick(self) -> None:
        """Take one sample, store the closed periods, and seal the records that are due."""
        sample = await self._take_sample()
        try:
            await self._record_sample(sample)
            await self._seal_due(sample.wall_ms)
        except SpoolError as error:
            self._report_spool_error(error)

    async def _wait_for_sample(self) -> None:
        """Wait until the next sample is due. Seal records that become due earlier."""
        if self._end_is_announced():
            await self._clock.sleep(min(HINTED_SAMPLE_MS, self._intervals.sample_ms) / 1000)
            return
        due_ns = self._clock.boot_ns() + round(self._sample_wait_ms() * 1e6)
        while (left_ms := (due_ns - self._clock.boot_ns()) / 1e6) > 0:
            seal_ms = self._seal_wait_ms()
            poll_ms = HINT_POLL_MS if self._end_hint else left_ms
            await self._clock.sleep(min(left_ms, seal_ms, poll_ms) / 1000)
            if seal_ms <= min(left_ms, poll_ms) and self._staged and not self._stale:
                try:
                    await self._seal_due(self._clock.wall_ns() // 1_000_000)
                except SpoolError as error:
                    self._report_spool_error(error)
            if self._end_is_announced():
                return

    def _end_is_announced(self) -> bool:
        """Return whether the file announced the target's end within the last `HINTED_MS`."""
        if self._end_hint is None:
            return False
        try:
            hinted_ms = self._end_hint.stat().st_mtime_ns // 1_000_000
        except OSError:
            return False
        return abs(self._clock.wall_ns() // 1_000_000 - hinted_ms) < HINTED_MS

    async def finish(self) -> None:
        """Take a last sample, close the open window and seal all staged records.

        Raises SpoolError if the window could not be stored. Earlier records are sealed then, so
        that sending them makes room, and the call can be repeated.
        """
        try:
            await self._record_sample(await self._take_sample())
            if self._checkpoint:
                checkpoint = await self._write_deferred(self._checkpoint)
                await self._write_periods(checkpoint, *self._meter.close(checkpoint.state))
        except SpoolError:
            await self.seal()
            raise
        await self._seal_all()
        self._target.close()

    async def seal(self) -> None:
        """Seal all staged records without measuring, to empty a state directory."""
        await self._load_checkpoint()
        await self._seal_all()

    async def _record_sample(self, sample: Sample) -> None:
        if self._stale:
            await self._load_checkpoint()
        checkpoint = self._checkpoint
        if checkpoint is None:
            await self._start_epoch(sample)
            return
        try:
            checkpoint = await self._write_deferred(checkpoint)
            await self._write_periods(checkpoint, *self._meter.observe(checkpoint.state, sample))
        except SpoolCorruptError:
            raise
        except SpoolError as error:  # the window grows until there is space, or until a full hour
            self._report_spool_error(error)
            self._defer(self._checkpoint or checkpoint, sample)

    def _defer(self, checkpoint: Checkpoint, sample: Sample) -> None:
        """Continue metering in memory. Deferred periods have the same values as stored ones.

        With `max_deferred` deferred periods no more are closed, and the following samples count as
        missed. CPU stays exact: it is distributed evenly over the time until there is space.
        """
        state, periods = self._meter.observe(checkpoint.state, sample, hours_only=True)
        waiting = sum(len(deferred.periods) for deferred in checkpoint.deferred)
        if periods and waiting + len(periods) > self._max_deferred:
            return
        deferred = checkpoint.deferred
        if periods:
            deferred = (*deferred, DeferredPeriods(periods, state))
        self._checkpoint = msgspec.structs.replace(checkpoint, state=state, deferred=deferred)

    async def _write_deferred(self, checkpoint: Checkpoint) -> Checkpoint:
        """Store the deferred periods, a few per commit. Return the present checkpoint."""
        while checkpoint.deferred:
            now = checkpoint.deferred[:DEFERRED_PER_COMMIT]
            later = checkpoint.deferred[DEFERRED_PER_COMMIT:]
            periods = [period for deferred in now for period in deferred.periods]
            written = await self._write_periods(checkpoint, now[-1].state, periods)
            checkpoint = msgspec.structs.replace(written, state=checkpoint.state, deferred=later)
            self._checkpoint = checkpoint
        return checkpoint

    async def _load_checkpoint(self) -> None:
        """Load the stored checkpoint. Keep the one in memory, which knows more, if both agree."""
        stored = (await self._spool.state(CHECKPOINT)).get(CHECKPOINT)
        self._staged = await self._spool.staged()
        sent = await asyncio.to_thread(self._sent)
        found = decode_checkpoint(stored)
        self._newest_sent = newest_sent(sent, STREAM)
        self._uncertain_since_ms = uncertain_since_ms(sent)
        mine = self._checkpoint
        if found and self._is_rolled_back(found.epoch, found.sequence):
            self._checkpoint = None
        elif not (found and mine and same_position(found, mine)):
            self._checkpoint = found
        if gone := count_stored_lines(self._staged, sent):
            await self._commit(WriteBatch(unstage=gone))
            del self._staged[:gone]
        self._stale = False

    def _is_rolled_back(self, epoch: int, sequence: int) -> bool:
        """Return whether a record of this position or a later one may have been sent."""
        return self._newest_sent is not None and self._newest_sent >= (epoch, sequence)

    async def _start_epoch(self, sample: Sample) -> None:
        """Start an epoch without a usable checkpoint. Earlier usage becomes a gap."""
        info = await self._spool.info()
        unusable = CHECKPOINT in await self._spool.state(CHECKPOINT)
        epoch, latest = info.epoch, self._newest_sent.epoch if self._newest_sent else 0
        rolled_back = self._is_rolled_back(epoch, 0)
        reason: GapReason = "spool_corrupt" if rolled_back or info.replaced else "no_checkpoint"
        if unusable or rolled_back:
            epoch = await self._spool.later_epoch(max(sample.wall_ms, latest + 1))
        state, periods = self._meter.start(sample, reason, since_ms=self._uncertain_since_ms)
        self._log.warning("billing.epoch_started", epoch=epoch, reason=reason)
        begun = Checkpoint(epoch=epoch, sequence=0, state=state)
        await self._write_periods(begun, state, periods, always=True)

    async def _write_periods(
        self,
        before: Checkpoint,
        state: MeterState,
        periods: Sequence[Period],
        *,
        always: bool = False,
    ) -> Checkpoint:
        """Adopt the state. If periods were closed, store them and the checkpoint first."""
        after = Checkpoint(epoch=before.epoch, sequence=before.sequence + len(periods), state=state)
        if periods or always:
            records = [
                self._recorder.record(period, before.epoch, before.sequence + index)
                for index, period in enumerate(periods)
            ]
            lines = [encode(record) for record in records]
            checkpoint = {CHECKPOINT: encode_checkpoint(after)}
            await self._commit(WriteBatch(stage=lines, state=checkpoint))
            self._spool_error = ""
            self._staged += lines
            for record in records:
                self._count_record(record.data)
        self._checkpoint = after
        return after

    async def _seal_due(self, wall_ms: int) -> None:
        """Seal at this pod's phase. Seal overdue records of an earlier run at once."""
        interval = self._interval_of(wall_ms)
        if self._staged:
            _, end_ms = charge_period_ms(self._staged[0])
            overdue = wall_ms - end_ms >= self._intervals.seal_ms + self._intervals.window_ms
            due = self._seal_interval is not None and interval != self._seal_interval
            if due or overdue or len(self._staged) >= MAX_LINES:
                await self._seal_all()
        self._seal_interval = interval

    def _interval_of(self, wall_ms: int) -> int:
        """Return the number of the seal interval that contains a time."""
        return (wall_ms - self._intervals.seal_phase_ms) // self._intervals.seal_ms

    def _seal_wait_ms(self) -> float:
        wall_ms = self._clock.wall_ns() / 1e6
        return (
            self._intervals.seal_ms
            - (wall_ms - self._intervals.seal_phase_ms) % self._intervals.seal_ms
        )

    async def _seal_all(self) -> None:
        """Seal all staged records, one object per hour in which records start."""
        for run in runs(self._staged):
            for _, hour in groupby(run, lambda line: charge_period_ms(line)[0] // HOUR_MS):
                lines = list(hour)
                for start in range(0, len(lines), MAX_LINES):
                    await self._seal_object(lines[start : start + MAX_LINES])

    async def _seal_object(self, lines: list[bytes]) -> None:
        message = seal(
            lines,
            created_at_ms=self._clock.wall_ns() // 1_000_000,
            prefix=self._prefix,
            compression=self._compression,
        )
        await self._commit(WriteBatch(messages=[message], unstage=len(lines)))
        del self._staged[: len(lines)]
        self._log.info("billing.sealed", id=message.id, records=len(lines), bytes=len(message.body))

    async def _commit(self, change: WriteBatch) -> None:
        """Make a change durable. Raises SpoolError.

        The change may be stored even if the commit fails or is cancelled, so the checkpoint must
        then be loaded again.
        """
        self._stale = True
        await self._spool.commit(change)
        self._stale = False

    async def _take_sample(self) -> Sample:
        window = self._clock.wall_ns() // 1_000_000 // self._intervals.window_ms
        secondary = window != self._secondary_window
        began_ns = self._clock.boot_ns()
        seen = await self._target.read(secondary=secondary)
        self._secondary_window = window
        self._count_sample(seen)
        now_ns = self._clock.boot_ns()
        return Sample(
            wall_ms=self._clock.wall_ns() // 1_000_000,
            boot_ns=now_ns,
            boot_id=self._clock.boot_id,
            reading=seen.reading,
            secondary=seen.secondary,
            absent=seen.absent,
            read_ns=now_ns - began_ns,
            asleep_ns=self._asleep_ns(),
            machine_cpus=self._machine_cpus(),
        )

    def _sample_wait_ms(self) -> float:
        interval_ms = self._intervals.sample_ms
        wait_ms = interval_ms - self._clock.wall_ns() / 1e6 % interval_ms
        if wait_ms < interval_ms / 10:  # the timer fired early: do not sample twice in one interval
            wait_ms += interval_ms
        return wait_ms

    def _count_sample(self, seen: TargetObservation) -> None:
        source = seen.reading.source if seen.reading else "none"
        self._samples(source).inc()
        self._report_target_error(seen.error)

    def _report_spool_error(self, error: SpoolError) -> None:
        self._metrics.spool_errors.labels(self._daemon, error.reason).inc()
        if not self._spool_error:
            self._log.error("billing.write_failed", error=str(error))
        self._spool_error = str(error)

    def _report_target_error(self, error: str) -> None:
        if error and error != self._target_error:
            self._log.warning("billing.source_degraded", error=error)
        self._target_error = error
        if error:
            self._metrics.billing_degraded_samples.labels(self._daemon).inc()

    def _count_record(self, usage: Usage) -> None:
        self._metrics.billing_records.labels(self._daemon, usage.quality).inc()
        start, end = usage.charge_period_start, usage.charge_period_end
        if usage.quality == "gap":
            seconds = (parse_rfc3339(end) - parse_rfc3339(start)) / 1000
            self._metrics.billing_gap_seconds.labels(self._daemon, usage.gap_reason).inc(seconds)
            self._log.warning("billing.gap_recorded", reason=usage.gap_reason, start=start, end=end)
        elif usage.restart_observed or usage.source_changed or usage.clock_step_milliseconds:
            self._log.warning(
                "billing.discontinuity",
                restart_observed=usage.restart_observed,
                source_changed=usage.source_changed,
                clock_step_milliseconds=usage.clock_step_milliseconds,
            )

    def status(self) -> dict[str, Any]:
        """Return the metering part of /status."""
        checkpoint = self._checkpoint
        phase = checkpoint.state.phase if checkpoint else None
        window = phase if isinstance(phase, Window) else None
        deferred = checkpoint.deferred if checkpoint else ()
        return {
            "target": str(self._target),
            "target_error": self._target_error,
            "spool_error": self._spool_error,
            "epoch": checkpoint.epoch if checkpoint else None,
            "next_sequence": checkpoint.sequence if checkpoint else None,
            "source": window.reading.source if window else None,
            "window_start": rfc3339(window.start_ms) if window else None,
            "staged_records": len(self._staged),
            "deferred_periods": sum(len(one.periods) for one in deferred),
        }
