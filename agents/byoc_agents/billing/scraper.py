"""The source of the billing scraper: sample -> meter -> record -> seal.

A sample is one reading of the target's counters. The meter turns samples into periods: closed
windows and gaps. Each period becomes one usage record, and due records are sealed into one object.
Samples that only extend the open window wait, and are metered together with the next other sample.
A sample that waits costs little more than its reading. The records are the same, because nothing
of an open window is stored before its end.

A window's records, the checkpoint after them and their sequence numbers are stored in one commit.
A kill between any two steps therefore neither loses nor repeats a record.
"""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import encode, rfc3339
from byoc_agents.billing.checkpoint import Checkpoint, DeferredPeriods, same_position
from byoc_agents.billing.meter import Meter, is_routine
from byoc_agents.billing.metrics import BillingMetrics
from byoc_agents.billing.recorder import Recorder
from byoc_agents.billing.sealer import Sealer
from byoc_agents.billing.sources.target import Target
from byoc_agents.billing.streams import CHECKPOINT, EpochStart
from byoc_agents.billing.window import MeterState, Period, Sample, Window
from byoc_agents.errors import SpoolCorruptError, SpoolError

DEFERRED_PER_COMMIT = 6  # samples per commit of deferred periods: about 10 KiB
MAX_DEFERRED = 10_000  # periods kept in memory while the spool is full, about 2 KiB each
MAX_WAITING = 100  # samples that are metered together, about 0.5 KiB each
HINT_POLL_MS = 1000  # interval of the checks for the file that announces the target's end
HINTED_SAMPLE_MS = 100  # the sample interval after the file has appeared
HINTED_MS = 600_000  # for this long: more than any usual terminationGracePeriodSeconds


class TargetMachine(NamedTuple):
    """Figures of the target's machine. A function returns None if its figure is unknown."""

    online_cpus: Callable[[], int | None] = lambda: None  # unknown: the bound is `record.MAX_CPUS`
    asleep_ns: Callable[[], int | None] = lambda: None  # time asleep since the boot, nanoseconds


class Scraper:
    """Meters one target, stores the records in a spool, and has them sealed into objects."""

    def __init__(  # noqa: PLR0913  its dependencies
        self,
        *,
        target: Target,
        recorder: Recorder,
        sealer: Sealer,
        clock: Clock,
        metrics: BillingMetrics,
        key: str = CHECKPOINT,
        machine: TargetMachine = TargetMachine(),  # noqa: B008  a constant
        end_hint: Path | None = None,
        max_deferred: int = MAX_DEFERRED,
    ) -> None:
        """Take the dependencies.

        `key` is that of the checkpoint in the sealer's spool. `end_hint` is a file that appears
        when the target is about to end. From then on samples are taken every `HINTED_SAMPLE_MS`.
        `max_deferred` is how many periods are kept in memory while the spool accepts none.
        """
        self._target = target
        self._recorder = recorder
        self._intervals = sealer.intervals
        self._meter = Meter(window_ms=self._intervals.window_ms)
        self._sealer = sealer
        self._clock = clock
        self._metrics = metrics
        self._machine = machine
        self._end_hint = end_hint
        self._max_deferred = max_deferred
        self._stored = sealer.checkpoint(key)
        self._checkpoint: Checkpoint | None = None  # with the samples metered since the stored one
        self._waiting = deque[Sample]()  # not metered yet
        self._last_sample: Sample | None = None  # None: the next sample is metered at once
        self._secondary_window = -1  # the last window in which the secondary source was read

    @property
    def waiting(self) -> int:
        """The number of samples that are not metered yet."""
        return len(self._waiting)

    async def run(self) -> None:
        """Sample at every full sample interval of the wall clock, until cancelled.

        Objects are sealed in between, when they are due.
        """
        while True:
            await self.tick()
            await self._wait_for_sample()

    async def tick(self) -> None:
        """Take one sample, and meter it or let it wait. Seal the records that are due."""
        sample = await self._take_sample()
        try:
            if self._can_wait(sample):
                self._waiting.append(sample)
            else:
                await self._meter_samples(sample)
            if not self._waiting or self._sealer.interval_ended(sample.wall_ms):
                await self._sealer.seal_due(sample.wall_ms)
        except SpoolError as error:
            self._metrics.count_spool_error(error)

    async def _wait_for_sample(self) -> None:
        """Wait until the next sample is due. Seal records that become due earlier."""
        if self._end_is_announced():
            await self._clock.sleep(min(HINTED_SAMPLE_MS, self._intervals.sample_ms) / 1000)
            return
        due_ns = self._clock.boot_ns() + round(self._sample_wait_ms() * 1e6)
        while (left_ms := (due_ns - self._clock.boot_ns()) / 1e6) > 0:
            seal_ms = self._sealer.wait_ms()
            poll_ms = HINT_POLL_MS if self._end_hint else left_ms
            await self._clock.sleep(min(left_ms, seal_ms, poll_ms) / 1000)
            if seal_ms <= min(left_ms, poll_ms) and self._sealer.staged:
                try:
                    await self._sealer.seal_due(self._clock.wall_ns() // 1_000_000)
                except SpoolError as error:
                    self._metrics.count_spool_error(error)
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
            await self.close_window()
        except SpoolError:
            await self._sealer.seal_all()
            raise
        await self._sealer.seal_all()

    async def close_window(self) -> None:
        """Take a last sample, store the open window and close the target.

        Raises SpoolError. Then the call can be repeated.
        """
        await self._meter_samples(await self._take_sample())
        checkpoint = await self._load_checkpoint()
        if isinstance(checkpoint, Checkpoint):
            checkpoint = await self._write_deferred(checkpoint)
            await self._write_periods(checkpoint, *self._meter.close(checkpoint.state))
        self._target.close()

    def _can_wait(self, sample: Sample) -> bool:
        """Return whether a sample may be metered later. No sample waits while the spool fails."""
        before, self._last_sample = self._last_sample, sample
        return (
            before is not None
            and not self._metrics.spool_error
            and len(self._waiting) < MAX_WAITING
            and is_routine(before, sample, self._intervals.window_ms)
        )

    async def _meter_samples(self, sample: Sample) -> None:
        """Meter the waiting samples and this one. After an error the next one is not delayed."""
        self._waiting.append(sample)
        try:
            while self._waiting:
                await self._record_sample(self._waiting.popleft())
        except BaseException:
            self._last_sample = None
            raise

    async def _record_sample(self, sample: Sample) -> None:
        checkpoint = await self._load_checkpoint()
        if isinstance(checkpoint, EpochStart):
            await self._start_epoch(checkpoint, sample)
            return
        try:
            checkpoint = await self._write_deferred(checkpoint)
            await self._write_periods(checkpoint, *self._meter.observe(checkpoint.state, sample))
        except SpoolCorruptError:
            raise
        except SpoolError as error:  # the window grows until there is space, or until a full hour
            self._metrics.count_spool_error(error)
            self._defer(self._checkpoint or checkpoint, sample)

    def _defer(self, checkpoint: Checkpoint, sample: Sample) -> None:
        """Continue metering in memory. Deferred periods have the same values as stored ones.

        With `max_deferred` deferred periods no more are closed, and the following samples count as
        missed. CPU stays exact: it is distributed evenly over the time until there is space.
        """
        state, periods = self._meter.observe(checkpoint.state, sample, hours_only=True)
        already = sum(len(deferred.periods) for deferred in checkpoint.deferred)
        if periods and already + len(periods) > self._max_deferred:
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

    async def _load_checkpoint(self) -> Checkpoint | EpochStart:
        """Return the stored checkpoint, or the one in memory, which knows more, if both agree."""
        stored, known = await self._stored.load(), self._checkpoint
        if isinstance(stored, EpochStart):
            self._checkpoint = None
            return stored
        if known is None or not same_position(stored, known):
            self._checkpoint = known = stored
        return known

    async def _start_epoch(self, start: EpochStart, sample: Sample) -> None:
        """Start an epoch without a checkpoint. Earlier usage becomes a gap."""
        epoch = await self._sealer.choose_epoch(start, sample.wall_ms)
        state, periods = self._meter.start(sample, start.reason, since_ms=start.since_ms)
        self._metrics.log_epoch(epoch, start.reason)
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
            await self._sealer.stage(lines, self._stored, after)
            self._metrics.spool_error = ""
            for record in records:
                self._metrics.count_record(record.data)
        self._checkpoint = after
        return after

    async def _take_sample(self) -> Sample:
        window = self._clock.wall_ns() // 1_000_000 // self._intervals.window_ms
        secondary = window != self._secondary_window
        began_ns = self._clock.boot_ns()
        seen = await self._target.read(secondary=secondary)
        self._secondary_window = window
        self._metrics.count_sample(seen)
        now_ns = self._clock.boot_ns()
        reading = seen.reading
        knows_cpus = reading is not None and reading.machine_cpus is not None
        return Sample(
            wall_ms=self._clock.wall_ns() // 1_000_000,
            boot_ns=now_ns,
            boot_id=self._clock.boot_id,
            reading=reading,
            secondary=seen.secondary,
            absent=seen.absent,
            read_ns=now_ns - began_ns,
            asleep_ns=self._machine.asleep_ns(),
            machine_cpus=None if knows_cpus else self._machine.online_cpus(),
        )

    def _sample_wait_ms(self) -> float:
        interval_ms = self._intervals.sample_ms
        wait_ms = interval_ms - self._clock.wall_ns() / 1e6 % interval_ms
        if wait_ms < interval_ms / 10:  # the timer fired early: do not sample twice in one interval
            wait_ms += interval_ms
        return wait_ms

    def status(self) -> dict[str, Any]:
        """Return the metering part of /status."""
        checkpoint = self._checkpoint
        phase = checkpoint.state.phase if checkpoint else None
        window = phase if isinstance(phase, Window) else None
        deferred = checkpoint.deferred if checkpoint else ()
        return {
            "target": str(self._target),
            "target_error": self._metrics.target_error,
            "spool_error": self._metrics.spool_error,
            "epoch": checkpoint.epoch if checkpoint else None,
            "next_sequence": checkpoint.sequence if checkpoint else None,
            "source": window.reading.source if window else None,
            "window_start": rfc3339(window.start_ms) if window else None,
            "staged_records": self._sealer.staged,
            "deferred_periods": sum(len(one.periods) for one in deferred),
        }
