"""The shipper: the only place that decides retry, hold or dead letter.

One attempt at a time, oldest first. The first message of a quiet time leaves at once; in a busy one
those of GATHER_SECONDS share a request, a commit and two lines of the ledger. Back-off is
exponential with full jitter, and never shorter than what the receiver asked for.

A batch whose end is unknown (no answer, a reset, a 5xx, a kill) may have been stored. It is sent
again as it was: the same messages in the same order, so that a sink derives the same id from them
and a receiver that keys on that id drops all of it. The ledger's last intent carries it over a
restart. After any failure the batches begin with one message and grow, because an answer that is
lost costs a repeat of everything in its request.
"""

import asyncio
import random
from collections.abc import Sequence
from enum import Enum
from typing import Any

import msgspec
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_exponential

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.sink import Message, Outcome, Receipt, Sink
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import LedgerError, Reason, SendError, SpoolError, uncertain
from byoc_agents.ledger import Ledger

FIRST_WAIT_SECONDS = 0.5  # AWS: full jitter over an exponential ceiling
MAX_WAIT_SECONDS = {"retry": 60.0, "hold": 300.0}
GATHER_SECONDS = 0.05  # after a batch with room left: what comes meanwhile goes together
HURRIED_WAIT_SECONDS = 1.0  # at shutdown, within the grace period
MAX_RETRY_AFTER_SECONDS = 3600.0  # a receiver's word is kept up to here


class Action(Enum):
    """What a reason leads to."""

    DONE = "done"  # remove it from the spool
    RETRY = "retry"  # it will pass
    HOLD = "hold"  # a person must act: keep everything, alarm, try again more slowly
    DEAD_LETTER = "dead letter"  # refused for good: to the dead letters, so that the rest can go on


FATES: dict[Reason, Action] = {
    Reason.OK: Action.DONE,
    Reason.ALREADY_STORED: Action.DONE,
    Reason.TIMEOUT: Action.RETRY,
    Reason.CONNECTION: Action.RETRY,
    Reason.THROTTLED: Action.RETRY,
    Reason.SERVER_ERROR: Action.RETRY,
    Reason.CONFLICT: Action.RETRY,
    Reason.CHECKSUM: Action.RETRY,
    Reason.BAD_RESPONSE: Action.HOLD,
    Reason.TLS: Action.HOLD,
    Reason.LEDGER: Action.HOLD,
    Reason.CREDENTIALS: Action.HOLD,
    Reason.FORBIDDEN: Action.HOLD,
    Reason.NOT_FOUND: Action.HOLD,
    Reason.WRONG_REGION: Action.HOLD,
    Reason.REDIRECT: Action.HOLD,
    Reason.EGRESS_REFUSED: Action.HOLD,
    Reason.REJECTS_ALL: Action.HOLD,
    Reason.INTERNAL: Action.HOLD,
    Reason.TOO_LARGE: Action.DEAD_LETTER,
    Reason.REJECTED: Action.DEAD_LETTER,
}
HOLD = 1  # of `Spool.head`: keep a batch together while its end is unknown
SENDS_PER_DOUBLING = 3  # batches that must be answered before the next may be twice as large


class LastError(msgspec.Struct, frozen=True):
    """Why the head of the spool is still there."""

    reason: Reason
    detail: str
    retry_after_seconds: float = 0.0

    @property
    def fate(self) -> Action:
        """Return RETRY or HOLD."""
        return FATES[self.reason]


class Shipper:
    """Takes the oldest messages to the sink until they are there."""

    def __init__(  # noqa: PLR0913  the five parts of the one flow, the agent's name and the dice
        self,
        agent: str,
        *,
        spool: Spool,
        sink: Sink,
        ledger: Ledger,
        clock: Clock,
        metrics: Metrics,
        rng: random.Random | None = None,
        unfinished: Sequence[str] = (),
    ) -> None:
        """Take in `unfinished` the ids of the batch that the last process may have sent."""
        self.agent = agent
        self.destination = sink.destination
        self.last_error: LastError | None = None
        self.last_success_ms: int | None = None
        self._spool = spool
        self._sink = sink
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._rng = rng or random.Random()  # noqa: S311  jitter, no secret
        self._log = structlog.get_logger().bind(agent=agent)
        self._idle = asyncio.Event()
        self._hurry = asyncio.Event()
        self._room = False  # in the last batch
        self._unfinished = tuple(unfinished)  # ids of a batch that may have been stored, in order
        self._limit = 1 if unfinished else sink.max_messages  # messages in the next new batch
        self._answered = 0  # batches since `_limit` changed
        self._retrying = AsyncRetrying(
            retry=retry_if_result(lambda last_error: last_error is not None),
            wait=self._wait_seconds,
            sleep=self._pause,
            before_sleep=self._note_wait,
        )

    async def run(self) -> None:
        """Ship for ever. Ends only by cancellation; nothing is lost by that."""
        while True:
            self._spool.changed.clear()  # first: what is put from here on is another pass
            await self._retrying(self.attempt)
            if self._spool.totals.oldest_created_at_ms is None:
                self._idle.set()
            if self._room and not self._hurry.is_set():
                await self._pause(GATHER_SECONDS)
            if self._idle.is_set():
                await self._spool.changed.wait()
                self._idle.clear()

    async def drain(self) -> None:
        """Wait until nothing is left to send, with no wait longer than HURRIED_WAIT_SECONDS."""
        self._hurry.set()
        self._idle.clear()
        self._spool.changed.set()  # one more pass, so that idle speaks of now
        await self.empty()

    async def empty(self) -> None:
        """Wait until `run` has found nothing to send."""
        await self._idle.wait()

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt; a shutdown cuts the wait short, never an attempt."""
        if self._hurry.is_set():
            return await self._clock.sleep(min(seconds, HURRIED_WAIT_SECONDS))
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._clock.sleep(seconds))]
        waits.append(asyncio.ensure_future(self._hurry.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def attempt(self) -> LastError | None:
        """Take the head to the sink once. Return what holds it up, or None when it went on."""
        try:
            batch = await self._next_batch()
            self.last_error = await self._deliver(batch) if batch else None
        except SpoolError as error:
            self._metrics.spool_errors.labels(self.agent, type(error).__name__).inc()
            self.last_error = LastError(Reason.INTERNAL, f"spool: {error}")
        return self.last_error

    async def _next_batch(self) -> list[Message]:
        """Return the unfinished batch if all of it is still first in the spool, else a new one."""
        max_bytes = self._sink.max_bytes
        if 0 < len(self._unfinished) <= self._sink.max_messages:
            batch = await self._spool.head(len(self._unfinished), max_bytes, HOLD)
            if tuple(message.id for message in batch) == self._unfinished:
                self._room, self._limit, self._answered = False, 1, 0
                return batch
        self._unfinished = ()  # part of it was stored or buried, or the sink takes fewer now
        batch = await self._spool.head(self._limit, max_bytes, HOLD)
        size = sum(len(message.body) for message in batch)
        self._room = 0 < len(batch) < self._limit and size < max_bytes // 2
        return batch

    async def _deliver(self, batch: Sequence[Message]) -> LastError | None:
        repeated = bool(self._unfinished)
        try:
            line = await self._ledger.intent(self.destination, batch)
            self._unfinished = tuple(message.id for message in batch)
            outcomes = await self._send(batch)
            await self._ledger.receipt(line, batch, outcomes)
        except LedgerError as error:
            return self._count([SendError(Reason.LEDGER, str(error))])
        await self._settle(batch, outcomes)
        last_error = self._count(outcomes)
        if last_error is None:
            self._grow()
        elif _unanswered(outcomes):
            self._limit, self._answered = 1, 0
        rejected = any(one.reason is Reason.REJECTS_ALL for one in outcomes)
        if rejected:  # a larger batch may hold one that is accepted, which proves the others' fault
            self._limit = min(2 * len(batch), self._sink.max_messages)
        open_end = repeated or uncertain(one.reason for one in outcomes)
        if last_error is None or rejected or not open_end:
            self._unfinished = ()
            self._spool.release()
        return last_error

    def _grow(self) -> None:
        """Count a batch that was answered; let the next ones be larger when enough were."""
        self._answered += 1
        if self._limit < self._sink.max_messages and self._answered >= SENDS_PER_DOUBLING:
            self._limit, self._answered = min(2 * self._limit, self._sink.max_messages), 0

    async def _send(self, batch: Sequence[Message]) -> Sequence[Outcome]:
        try:
            outcomes = await self._sink.send(batch)
            if len(outcomes) == len(batch):
                return outcomes
            wrong = f"{len(outcomes)} outcomes for {len(batch)} messages"
            self._log.error("ship.defect", error=wrong)
        except SendError as error:
            return [error] * len(batch)
        except Exception as error:  # noqa: BLE001  a defect in a sink: held and alarmed, not dropped
            wrong = type(error).__name__
            self._log.error("ship.defect", error=wrong, exc_info=True)
        return [SendError(Reason.INTERNAL, wrong)] * len(batch)

    async def _settle(self, batch: Sequence[Message], outcomes: Sequence[Outcome]) -> None:
        pairs = list(zip(batch, outcomes, strict=True))
        for message, outcome in pairs:
            if isinstance(outcome, SendError) and FATES[outcome.reason] is Action.DEAD_LETTER:
                await self._dead_letter(message, outcome)
        done = [message for message, outcome in pairs if isinstance(outcome, Receipt)]
        if done:
            await self._spool.remove([message.id for message in done])
            self._note_sent(done)

    async def _dead_letter(self, message: Message, error: SendError) -> None:
        await self._spool.dead_letter(message, error.reason, error.detail)
        self._metrics.dead_letters.labels(self.agent, error.reason).inc()
        self._log.error("ship.dead_letter", id=message.id, reason=error.reason, detail=error.detail)

    def _note_sent(self, done: Sequence[Message]) -> None:
        self.last_success_ms = self._clock.wall_ns() // 1_000_000
        self._metrics.last_success.labels(self.agent).set(self.last_success_ms / 1000)
        self._metrics.sent.labels(self.agent).inc(len(done))
        self._metrics.sent_bytes.labels(self.agent).inc(sum(len(m.body) for m in done))
        records = sum(message.records for message in done)
        self._log.info("ship.sent", messages=len(done), records=records, last_id=done[-1].id)

    def _count(self, outcomes: Sequence[Outcome]) -> LastError | None:
        """Return the first of them that holds up the head."""
        reasons = [one.reason for one in outcomes]
        for reason in set(reasons):
            self._metrics.attempts.labels(self.agent, reason).inc(reasons.count(reason))
        for one in outcomes:
            if isinstance(one, SendError) and FATES[one.reason] is not Action.DEAD_LETTER:
                return LastError(one.reason, one.detail, one.retry_after_seconds or 0.0)
        return None

    def _wait_seconds(self, state: RetryCallState) -> float:
        last_error = _last_error(state)
        longest = MAX_WAIT_SECONDS[last_error.fate.value]
        ceiling = wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=longest)(state)
        asked = min(last_error.retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
        return max(self._rng.uniform(0, ceiling), asked)

    def _note_wait(self, state: RetryCallState) -> None:
        last_error = _last_error(state)
        write = self._log.error if last_error.fate is Action.HOLD else self._log.warning
        write(
            f"ship.{last_error.fate.value}",
            reason=last_error.reason,
            detail=last_error.detail,
            attempt=state.attempt_number,
            wait_seconds=round(state.upcoming_sleep, 3),
            backlog_records=self._spool.totals.records,
        )

    def status(self) -> dict[str, Any]:
        """Return what /status shows."""
        last_error, success, totals = self.last_error, self.last_success_ms, self._spool.totals
        oldest = totals.oldest_created_at_ms
        return {
            "destination": self.destination,
            "last_success": rfc3339(success) if success is not None else None,
            "trouble": {
                "reason": last_error.reason,
                "detail": last_error.detail,
                "fate": last_error.fate,
            }
            if last_error
            else None,
            "backlog": {
                "records": totals.records,
                "bytes": totals.bytes,
                "oldest": rfc3339(oldest) if oldest is not None else None,
                "dead_letters": totals.dead_letters,
            },
        }


def _unanswered(outcomes: Sequence[Outcome]) -> bool:
    """Return whether a request failed as a whole, not only some messages in its answer."""
    lost = {Reason.TIMEOUT, Reason.CONNECTION}
    return any(one.reason in lost for one in outcomes) or all(
        isinstance(one, SendError) for one in outcomes
    )


def _last_error(state: RetryCallState) -> LastError:
    assert state.outcome is not None  # noqa: S101  tenacity waits only after an attempt
    last_error: LastError = state.outcome.result()
    return last_error
