"""The shipper: the only place that decides retry, hold or dead letter.

One attempt runs at a time, oldest messages first. The first message after an idle period is sent at
once. Under load, the messages of BATCH_WAIT_SECONDS share a request, a commit and two ledger lines.
Backoff is exponential with full jitter, and at least the receiver's Retry-After, up to an hour.
While the process stops, no wait is longer than HURRIED_WAIT_SECONDS.

A batch with an unknown outcome (no response, a reset, a 5xx, a kill) may have been stored. It is
sent again unchanged: the same messages in the same order. So a sink derives the same id from them,
and a receiver that deduplicates by this id drops the repeat. After a restart, the last intent in
the ledger names the batch. After a failure the batches begin with one message and grow, because a
lost response causes a repeat of the whole request.

The next batch is new, made of the oldest messages, or it is the last batch again, whose outcome is
unknown. `TRANSITIONS` is this table:

| next batch | attempt                                                  | next batch then |
|------------|----------------------------------------------------------|-----------------|
| new        | done: every message is stored, or a dead letter          | new             |
| new        | failed: the receiver stored what it reported, no more    | new             |
| new        | rejects_all: the same, and a larger batch is tried       | new             |
| new        | unknown: the receiver may have stored more               | unknown         |
| new        | not_sent: no request was made                            | new             |
| unknown    | done                                                     | new             |
| unknown    | failed: but the attempt before may have been stored      | unknown         |
| unknown    | rejects_all                                              | new             |
| unknown    | unknown                                                  | unknown         |
| unknown    | not_sent                                                 | unknown         |

The next batch is also new if part of the unknown one is no longer first in the spool.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.sink import Request, Sink
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import (
    LedgerError,
    Reason,
    SendError,
    SpoolError,
    leaves_unknown,
)
from byoc_agents.ledger import Ledger
from byoc_agents.message import Message, Outcome, Receipt

FIRST_WAIT_SECONDS = 0.5  # the upper bound of the first wait
BATCH_WAIT_SECONDS = 0.05  # after a batch that was not full: collects messages for the next one
HURRIED_WAIT_SECONDS = 1.0  # at shutdown, within the grace period
MAX_RETRY_AFTER_SECONDS = 3600.0  # a longer Retry-After is cut to this


class Action(Enum):
    """The shipper's step after an attempt with a reason."""

    DONE = "done"  # remove it from the spool
    RETRY = "retry"  # a temporary failure
    HOLD = "hold"  # an operator must act: keep all messages, log errors, retry more slowly
    DEAD_LETTER = "dead_letter"  # rejected for good: keep it apart, so that the others continue


ACTIONS: dict[Reason, Action] = {
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
WAIT_EVENTS = {Action.RETRY: "message.retrying", Action.HOLD: "message.held"}  # log events
LONGEST_WAIT = {  # doubles with each attempt; the wait is a random part of it
    Action.RETRY: wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=60.0),
    Action.HOLD: wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=300.0),
}
SENDS_PER_DOUBLING = 3  # successful batches before the batch size doubles


class NextBatch(Enum):
    """The batch of the next attempt."""

    NEW = "new"  # the oldest messages
    UNKNOWN = "unknown"  # the last batch again: its outcome is unknown


class BatchResult(Enum):
    """The end of an attempt, for the whole batch."""

    DONE = "done"  # every message is stored, or a dead letter
    FAILED = "failed"  # the receiver has stored the messages that it confirmed, and no others
    REJECTS_ALL = "rejects_all"  # failed, and the receiver accepts no message at all
    UNKNOWN = "unknown"  # the receiver may have stored more than it confirmed
    NOT_SENT = "not_sent"  # no request was made


TRANSITIONS = {
    (NextBatch.NEW, BatchResult.DONE): NextBatch.NEW,
    (NextBatch.NEW, BatchResult.FAILED): NextBatch.NEW,
    (NextBatch.NEW, BatchResult.REJECTS_ALL): NextBatch.NEW,
    (NextBatch.NEW, BatchResult.UNKNOWN): NextBatch.UNKNOWN,
    (NextBatch.NEW, BatchResult.NOT_SENT): NextBatch.NEW,
    (NextBatch.UNKNOWN, BatchResult.DONE): NextBatch.NEW,
    (NextBatch.UNKNOWN, BatchResult.FAILED): NextBatch.UNKNOWN,
    (NextBatch.UNKNOWN, BatchResult.REJECTS_ALL): NextBatch.NEW,
    (NextBatch.UNKNOWN, BatchResult.UNKNOWN): NextBatch.UNKNOWN,
    (NextBatch.UNKNOWN, BatchResult.NOT_SENT): NextBatch.UNKNOWN,
}


class LastError(msgspec.Struct, frozen=True):
    """The reason why the first message of the spool was not delivered."""

    reason: Reason
    detail: str
    retry_after_seconds: float = 0.0

    @property
    def action(self) -> Action:
        """Return RETRY or HOLD."""
        return ACTIONS[self.reason]


class UndeliveredError(Exception):
    """The first messages are still in the spool."""

    def __init__(self, last_error: LastError) -> None:
        super().__init__(last_error)
        self.last_error = last_error


class Shipper:
    """Sends the oldest messages to the sink until they are delivered."""

    def __init__(  # noqa: PLR0913  five collaborators, the name and the randomness
        self,
        daemon: str,
        *,
        spool: Spool,
        sink: Sink,
        ledger: Ledger,
        clock: Clock,
        metrics: Metrics,
        rng: random.Random | None = None,
        unknown_batch: Sequence[str] = (),
        ledger_state: Callable[[], Mapping[str, bytes]] = dict,
    ) -> None:
        """`unknown_batch` has the ids of the batch that the last process may have sent.

        `ledger_state` returns the head of the ledger, which the spool stores with each delivery.
        """
        self.daemon = daemon
        self.destination = sink.destination
        self.last_error: LastError | None = None
        self.last_success_ms: int | None = None
        self._spool = spool
        self._sink = sink
        self._ledger = ledger
        self._ledger_state = ledger_state
        self._clock = clock
        self._metrics = metrics
        self._rng = rng or random.Random()  # noqa: S311  jitter, no secret
        self._log = structlog.get_logger().bind(daemon=daemon)
        self._idle = asyncio.Event()
        self._hurry = asyncio.Event()
        self._room = False  # the last batch was not full: more messages can share the next one
        self._unknown_batch = tuple(unknown_batch)  # its ids; () if the next batch is new
        self._requested = False  # the attempt has made a request, or is about to
        self._limit = 1 if unknown_batch else sink.max_messages  # messages in the next new batch
        self._successes = 0  # batches since `_limit` changed
        self._attempts = AsyncRetrying(
            retry=retry_if_exception_type(UndeliveredError),
            wait=self._choose_wait_seconds,
            before_sleep=self._log_wait,
            sleep=self._pause,
        )

    async def run(self) -> None:
        """Send messages until cancelled. Cancellation loses nothing."""
        while True:
            self._spool.changed.clear()  # first, so that a later put causes another pass
            async for attempt in self._attempts:
                with attempt:
                    if last_error := await self.attempt():
                        raise UndeliveredError(last_error)
            if self._spool.totals.oldest_created_at_ms is None:
                self._idle.set()
            if self._room and not self._hurry.is_set():
                await self._pause(BATCH_WAIT_SECONDS)
            if self._idle.is_set():
                await self._spool.changed.wait()
                self._idle.clear()

    async def drain(self) -> None:
        """Wait until the spool is empty. Retries wait at most HURRIED_WAIT_SECONDS."""
        self._hurry.set()
        self._idle.clear()
        self._spool.changed.set()  # one more pass, so that idle is current
        await self.wait_until_idle()

    async def wait_until_idle(self) -> None:
        """Wait until `run` finds no message to send."""
        await self._idle.wait()

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt. A shutdown shortens the wait, but no attempt."""
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
        """Try to send the first messages once. Return the error, or None after success."""
        try:
            batch = await self._next_batch()
            self.last_error = await self._deliver(batch) if batch else None
        except SpoolError as error:
            self._metrics.spool_errors.labels(self.daemon, error.reason).inc()
            self.last_error = LastError(Reason.INTERNAL, f"spool: {error}")
        return self.last_error

    async def _next_batch(self) -> list[Message]:
        """Return the unknown batch if all of it is still first in the spool, else a new one."""
        max_bytes = self._sink.max_bytes
        if 0 < len(self._unknown_batch) <= self._sink.max_messages:
            batch = await self._spool.peek(len(self._unknown_batch), max_bytes, pin=True)
            if tuple(message.id for message in batch) == self._unknown_batch:
                self._room, self._limit, self._successes = False, 1, 0
                return batch
        self._unknown_batch = ()  # part of it has left the queue, or the sink accepts fewer now
        batch = await self._spool.peek(self._limit, max_bytes, pin=True)
        size = sum(len(message.body) for message in batch)
        self._room = 0 < len(batch) < self._limit and size < max_bytes // 2
        return batch

    async def _deliver(self, batch: Sequence[Message]) -> LastError | None:
        """Send a batch and act on the outcomes. Return the first error, or None after success.

        After a LedgerError the messages count as not sent.
        """
        before = NextBatch.UNKNOWN if self._unknown_batch else NextBatch.NEW
        self._requested = False
        try:
            outcomes = await self._send(batch)
        except LedgerError as error:
            last_error = self._count([SendError(Reason.LEDGER, str(error))])
            result = BatchResult.UNKNOWN if self._requested else BatchResult.NOT_SENT
        else:
            await self._apply_outcomes(batch, outcomes)
            last_error = self._count(outcomes)
            result = self._result_of(outcomes, last_error)
            self._adapt_batch_size(batch, outcomes, result)
        if TRANSITIONS[before, result] is NextBatch.NEW:
            self._unknown_batch = ()
            self._spool.unpin()
        return last_error

    def _result_of(self, outcomes: Sequence[Outcome], last_error: LastError | None) -> BatchResult:
        if last_error is None:
            return BatchResult.DONE
        reasons = {one.reason for one in outcomes}
        if Reason.REJECTS_ALL in reasons:
            return BatchResult.REJECTS_ALL
        if not self._requested:
            return BatchResult.NOT_SENT
        return BatchResult.UNKNOWN if leaves_unknown(reasons) else BatchResult.FAILED

    def _adapt_batch_size(
        self, batch: Sequence[Message], outcomes: Sequence[Outcome], result: BatchResult
    ) -> None:
        """Begin with one message after a failure, and double the size after some successes."""
        most = self._sink.max_messages
        if result is BatchResult.REJECTS_ALL:
            # A larger batch may have an accepted message: then only the others are invalid.
            self._limit, self._successes = min(2 * len(batch), most), 0
        elif result is not BatchResult.DONE:
            if _failed_as_a_whole(outcomes):
                self._limit, self._successes = 1, 0
        else:
            self._successes += 1
            if self._limit < most and self._successes >= SENDS_PER_DOUBLING:
                self._limit, self._successes = min(2 * self._limit, most), 0

    async def _send(self, batch: Sequence[Message]) -> Sequence[Outcome]:
        """Send a batch in as many requests as the sink makes. Raises LedgerError."""

        async def transmit(messages: Sequence[Message], request: Request) -> Sequence[Outcome]:
            line = await self._ledger.intent(self.destination, messages)
            self._unknown_batch, self._requested = tuple(message.id for message in batch), True
            try:
                outcomes = await request()
            except Exception as error:
                ended = error if isinstance(error, SendError) else _defect(error)
                await self._ledger.receipt(line, messages, [ended] * len(messages))
                raise
            await self._ledger.receipt(line, messages, _matching(outcomes, messages))
            return outcomes

        try:
            outcomes = await self._sink.send(batch, transmit)
            if len(outcomes) != len(batch):
                self._log.error("sink.unexpected_error", error=_wrong_number(outcomes, batch))
            return _matching(outcomes, batch)
        except LedgerError:
            raise
        except SendError as error:
            return [error] * len(batch)
        except Exception as error:  # noqa: BLE001  a defect in a sink: held and logged, not dropped
            self._log.error("sink.unexpected_error", error=type(error).__name__, exc_info=True)
            return [_defect(error)] * len(batch)

    async def _apply_outcomes(self, batch: Sequence[Message], outcomes: Sequence[Outcome]) -> None:
        pairs = list(zip(batch, outcomes, strict=True))
        for message, outcome in pairs:
            if isinstance(outcome, SendError) and ACTIONS[outcome.reason] is Action.DEAD_LETTER:
                await self._dead_letter(message, outcome)
        done = [message for message, outcome in pairs if isinstance(outcome, Receipt)]
        if done:
            await self._spool.remove([message.id for message in done], self._ledger_state())
            self._record_sent(done)

    async def _dead_letter(self, message: Message, error: SendError) -> None:
        await self._spool.dead_letter(message, error.reason, error.detail)
        self._metrics.dead_letters.labels(self.daemon, error.reason).inc()
        self._log.error(
            "message.dead_lettered", id=message.id, reason=error.reason, detail=error.detail
        )

    def _record_sent(self, done: Sequence[Message]) -> None:
        self.last_success_ms = self._clock.wall_ns() // 1_000_000
        self._metrics.last_send_success.labels(self.daemon).set(self.last_success_ms / 1000)
        self._metrics.messages_sent.labels(self.daemon).inc(len(done))
        self._metrics.messages_sent_bytes.labels(self.daemon).inc(sum(len(m.body) for m in done))
        events = sum(message.events for message in done)
        self._log.info("message.sent", messages=len(done), events=events, last_id=done[-1].id)

    def _count(self, outcomes: Sequence[Outcome]) -> LastError | None:
        """Count the outcomes. Return the first error that is not a dead letter."""
        reasons = [one.reason for one in outcomes]
        for reason in set(reasons):
            self._metrics.send_attempts.labels(self.daemon, reason).inc(reasons.count(reason))
        for one in outcomes:
            if isinstance(one, SendError) and ACTIONS[one.reason] is not Action.DEAD_LETTER:
                return LastError(one.reason, one.detail, one.retry_after_seconds or 0.0)
        return None

    def _choose_wait_seconds(self, state: RetryCallState) -> float:
        last_error = _last_error(state)
        jitter = self._rng.uniform(0, LONGEST_WAIT[last_error.action](state))
        return max(jitter, min(last_error.retry_after_seconds, MAX_RETRY_AFTER_SECONDS))

    def _log_wait(self, state: RetryCallState) -> None:
        last_error = _last_error(state)
        write = self._log.error if last_error.action is Action.HOLD else self._log.warning
        write(
            WAIT_EVENTS[last_error.action],
            reason=last_error.reason,
            detail=last_error.detail,
            attempt=state.attempt_number,
            wait_seconds=round(state.upcoming_sleep, 3),
            backlog_events=self._spool.totals.events,
        )

    def status(self) -> dict[str, Any]:
        """Return the /status section of this shipper."""
        last_error, success, totals = self.last_error, self.last_success_ms, self._spool.totals
        oldest = totals.oldest_created_at_ms
        return {
            "destination": self.destination,
            "last_success": rfc3339(success) if success is not None else None,
            "last_error": {
                "reason": last_error.reason,
                "detail": last_error.detail,
                "action": last_error.action,
            }
            if last_error
            else None,
            "backlog": {
                "events": totals.events,
                "bytes": totals.bytes,
                "oldest": rfc3339(oldest) if oldest is not None else None,
                "dead_letters": totals.dead_letters,
            },
        }


def _defect(error: Exception) -> SendError:
    return SendError(Reason.INTERNAL, type(error).__name__)


def _matching(outcomes: Sequence[Outcome], messages: Sequence[Message]) -> Sequence[Outcome]:
    """Return the outcomes, or as many errors as there are messages if the numbers differ."""
    if len(outcomes) == len(messages):
        return outcomes
    return [SendError(Reason.INTERNAL, _wrong_number(outcomes, messages))] * len(messages)


def _wrong_number(outcomes: Sequence[Outcome], messages: Sequence[Message]) -> str:
    return f"{len(outcomes)} outcomes for {len(messages)} messages"


def _failed_as_a_whole(outcomes: Sequence[Outcome]) -> bool:
    """Return whether a request failed as a whole, not only some messages in its response."""
    lost = {Reason.TIMEOUT, Reason.CONNECTION}
    return any(one.reason in lost for one in outcomes) or all(
        isinstance(one, SendError) for one in outcomes
    )


def _last_error(state: RetryCallState) -> LastError:
    """Return the error of the attempt that tenacity has just seen fail."""
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, UndeliveredError)  # noqa: S101  nothing else is retried
    return error.last_error
