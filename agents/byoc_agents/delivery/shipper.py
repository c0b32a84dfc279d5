"""The shipper: the only place that decides retry, hold or dead letter.

One attempt at a time, oldest first. The first message of a quiet time leaves at once; in a busy one
those of GATHER_SECONDS share a request, a commit and two lines of the ledger. Back-off is
exponential with full jitter, and never shorter than what the receiver asked for.
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
from byoc_agents.errors import LedgerError, Reason, SendError, SpoolError
from byoc_agents.ledger import Ledger

FIRST_WAIT_SECONDS = 0.5  # AWS: full jitter over an exponential ceiling
MAX_WAIT_SECONDS = {"retry": 60.0, "hold": 300.0}
GATHER_SECONDS = 0.05  # after a batch with room left: what comes meanwhile goes together
HURRIED_WAIT_SECONDS = 1.0  # at shutdown, within the grace period
MAX_RETRY_AFTER_SECONDS = 3600.0  # a receiver's word is kept up to here


class Fate(Enum):
    """What a reason leads to."""

    DONE = "done"  # remove it from the spool
    RETRY = "retry"  # it will pass
    HOLD = "hold"  # a person must act: keep everything, alarm, try again more slowly
    BURY = "bury"  # refused for good: to the dead letters, so that the rest can go on


FATES: dict[Reason, Fate] = {
    Reason.OK: Fate.DONE,
    Reason.ALREADY_STORED: Fate.DONE,
    Reason.TIMEOUT: Fate.RETRY,
    Reason.CONNECTION: Fate.RETRY,
    Reason.THROTTLED: Fate.RETRY,
    Reason.SERVER_ERROR: Fate.RETRY,
    Reason.CONFLICT: Fate.RETRY,
    Reason.CHECKSUM: Fate.RETRY,
    Reason.BAD_RESPONSE: Fate.HOLD,
    Reason.TLS: Fate.HOLD,
    Reason.LEDGER: Fate.HOLD,
    Reason.CREDENTIALS: Fate.HOLD,
    Reason.FORBIDDEN: Fate.HOLD,
    Reason.NOT_FOUND: Fate.HOLD,
    Reason.WRONG_REGION: Fate.HOLD,
    Reason.REDIRECT: Fate.HOLD,
    Reason.EGRESS_REFUSED: Fate.HOLD,
    Reason.INTERNAL: Fate.HOLD,
    Reason.TOO_LARGE: Fate.BURY,
    Reason.REJECTED: Fate.BURY,
}


class Trouble(msgspec.Struct, frozen=True):
    """Why the head of the spool is still there."""

    reason: Reason
    detail: str
    retry_after_seconds: float = 0.0

    @property
    def fate(self) -> Fate:
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
    ) -> None:
        self.agent = agent
        self.destination = sink.destination
        self.trouble: Trouble | None = None
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
        self._retrying = AsyncRetrying(
            retry=retry_if_result(lambda trouble: trouble is not None),
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

    async def attempt(self) -> Trouble | None:
        """Take the head to the sink once. Return what holds it up, or None when it went on."""
        try:
            batch = await self._spool.head(self._sink.max_messages, self._sink.max_bytes)
            self._room = self._has_room(batch)
            self.trouble = await self._deliver(batch) if batch else None
        except SpoolError as error:
            self._metrics.spool_errors.labels(self.agent, type(error).__name__).inc()
            self.trouble = Trouble(Reason.INTERNAL, f"spool: {error}")
        return self.trouble

    def _has_room(self, batch: Sequence[Message]) -> bool:
        size = sum(len(message.body) for message in batch)
        return 0 < len(batch) < self._sink.max_messages and size < self._sink.max_bytes // 2

    async def _deliver(self, batch: Sequence[Message]) -> Trouble | None:
        try:
            line = await self._ledger.intent(self.destination, batch)
            outcomes = await self._send(batch)
            await self._ledger.receipt(line, batch, outcomes)
        except LedgerError as error:
            return self._count([SendError(Reason.LEDGER, str(error))])
        await self._settle(batch, outcomes)
        return self._count(outcomes)

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
            if isinstance(outcome, SendError) and FATES[outcome.reason] is Fate.BURY:
                await self._bury(message, outcome)
        done = [message for message, outcome in pairs if isinstance(outcome, Receipt)]
        if done:
            await self._spool.remove([message.id for message in done])
            self._note_sent(done)

    async def _bury(self, message: Message, error: SendError) -> None:
        await self._spool.bury(message, error.reason, error.detail)
        self._metrics.dead_letters.labels(self.agent, error.reason).inc()
        self._log.error("ship.dead_letter", id=message.id, reason=error.reason, detail=error.detail)

    def _note_sent(self, done: Sequence[Message]) -> None:
        self.last_success_ms = self._clock.wall_ns() // 1_000_000
        self._metrics.last_success.labels(self.agent).set(self.last_success_ms / 1000)
        self._metrics.sent.labels(self.agent).inc(len(done))
        self._metrics.sent_bytes.labels(self.agent).inc(sum(len(m.body) for m in done))
        records = sum(message.records for message in done)
        self._log.info("ship.sent", messages=len(done), records=records, last_id=done[-1].id)

    def _count(self, outcomes: Sequence[Outcome]) -> Trouble | None:
        """Return the first of them that holds up the head."""
        reasons = [one.reason for one in outcomes]
        for reason in set(reasons):
            self._metrics.attempts.labels(self.agent, reason).inc(reasons.count(reason))
        for one in outcomes:
            if isinstance(one, SendError) and FATES[one.reason] is not Fate.BURY:
                return Trouble(one.reason, one.detail, one.retry_after_seconds or 0.0)
        return None

    def _wait_seconds(self, state: RetryCallState) -> float:
        trouble = _trouble(state)
        longest = MAX_WAIT_SECONDS[trouble.fate.value]
        ceiling = wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=longest)(state)
        asked = min(trouble.retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
        return max(self._rng.uniform(0, ceiling), asked)

    def _note_wait(self, state: RetryCallState) -> None:
        trouble = _trouble(state)
        write = self._log.error if trouble.fate is Fate.HOLD else self._log.warning
        write(
            f"ship.{trouble.fate.value}",
            reason=trouble.reason,
            detail=trouble.detail,
            attempt=state.attempt_number,
            wait_seconds=round(state.upcoming_sleep, 3),
            backlog_records=self._spool.totals.records,
        )

    def status(self) -> dict[str, Any]:
        """Return what /status shows."""
        trouble, success, totals = self.trouble, self.last_success_ms, self._spool.totals
        oldest = totals.oldest_created_at_ms
        return {
            "destination": self.destination,
            "last_success": rfc3339(success) if success is not None else None,
            "trouble": {"reason": trouble.reason, "detail": trouble.detail, "fate": trouble.fate}
            if trouble
            else None,
            "backlog": {
                "records": totals.records,
                "bytes": totals.bytes,
                "oldest": rfc3339(oldest) if oldest is not None else None,
                "dead_letters": totals.dead_letters,
            },
        }


def _trouble(state: RetryCallState) -> Trouble:
    assert state.outcome is not None  # noqa: S101  tenacity waits only after an attempt
    trouble: Trouble = state.outcome.result()
    return trouble
