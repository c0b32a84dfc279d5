"""SQS FIFO to ClickHouse: insert, then delete.

Requires the permissions `sqs:ReceiveMessage` and `sqs:DeleteMessage` on the queue (DeleteMessage
includes DeleteMessageBatch), and `kms:Decrypt` if the queue uses a customer key.

The consumer stores nothing itself. If it is killed between insert and delete, the message is
delivered again and replaces its own row. Any number of consumers may read one queue: SQS gives the
messages of a group to one of them at a time.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from byoc_agents.app.clock import Clock
from byoc_agents.errors import SendError
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import OUTAGE_MS, Progress
from byoc_control_plane.rows import InvalidEventError, TableRow, build_rejected, build_row
from byoc_control_plane.store import RowsRefusedError, StoreError

BATCH = 10  # messages of one ReceiveMessage and of one DeleteMessageBatch; SQS quotas
WAIT_SECONDS = 2  # of a long poll: an empty response means that no message waited anywhere
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0  # after failures
LONGEST_VISIBILITY_SECONDS = 120  # twice what an insert may take with the one that it waits for
STREAM = "state"


class Consumer:
    """Reads one queue with several requests at a time.

    Back-pressure: a loop receives again only after its batch is stored and deleted, so at most
    `loops` x 10 messages are in memory.
    """

    def __init__(  # noqa: PLR0913, PLR0917  the queue, the store and the metrics
        self,
        client: Any,
        queue_url: str,
        inserter: Inserter,
        progress: Progress,
        metrics: PlaneMetrics,
        clock: Clock,
        *,
        senders: Callable[[], AbstractSet[tuple[str, str]]] | None = None,
        loops: int = 4,
        visibility_seconds: int = 30,
    ) -> None:
        """`client` is an SQS client of aiobotocore.

        With `senders`, a message of another sender than its organization's is set aside. They are
        asked for with every message.
        """
        self._client = client
        self._queue_url = queue_url
        self._inserter = inserter
        self._progress = progress
        self._metrics = metrics
        self._clock = clock
        self._senders = senders
        self._loops = loops
        self._visibility_seconds = visibility_seconds
        self._log = structlog.get_logger().bind(stream=STREAM)

    async def run(self) -> None:
        """Consume until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._loops):
                group.create_task(self._run_loop())

    async def _run_loop(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self.poll()
            except (BotoCoreError, ClientError, SendError, StoreError, TimeoutError) as error:
                # The messages of the batch become visible again by themselves.
                if not isinstance(error, StoreError):
                    self._metrics.queue_errors.inc()
                self._log.warning("consumer.failed", error=str(error)[:300])
                await self._clock.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
            else:
                pause_seconds = FIRST_PAUSE_SECONDS

    async def poll(self) -> int:
        """Receive, store and delete one batch; return its number of messages.

        Raises the errors of the client and StoreError; then the batch is delivered again.
        """
        asked_ms = self._progress.now_ms
        response = await self._client.receive_message(
            QueueUrl=self._queue_url,
            MaxNumberOfMessages=BATCH,
            WaitTimeSeconds=WAIT_SECONDS,
            VisibilityTimeout=self._visibility_seconds,
            MessageSystemAttributeNames=[
                "SentTimestamp",
                "ApproximateReceiveCount",
                "SenderId",
            ],
        )
        messages: Sequence[Mapping[str, Any]] = response.get("Messages") or ()
        rows = await self._store(messages) if messages else []
        all_deleted = await self._delete(messages) if messages else True
        late = _find_late(messages, rows, asked_ms)
        self._progress.observe(asked_ms, caught_up=all_deleted, late=late)
        return len(messages)

    async def _store(self, messages: Sequence[Mapping[str, Any]]) -> list[TableRow]:
        """Store a batch; return the rows in the order of the messages."""
        rows = [self._build(message) for message in messages]
        try:
            await self._inserter.insert(rows)
        except RowsRefusedError:
            rows = [
                await self._store_one(message, row)
                for message, row in zip(messages, rows, strict=True)
            ]
        for row in rows:
            outcome = "rejected" if row.table == "byoc_rejected" else "stored"
            self._metrics.messages.labels(STREAM, outcome).inc()
        return rows

    async def _store_one(self, message: Mapping[str, Any], row: TableRow) -> TableRow:
        """Store one row of a batch that ClickHouse refused; set it aside if it is the reason."""
        try:
            await self._inserter.insert([row])
        except RowsRefusedError as error:
            rejected = _reject(message, f"ClickHouse refuses the row: {error}")
            await self._inserter.insert([rejected])
            return rejected
        return row

    def _build(self, message: Mapping[str, Any]) -> TableRow:
        try:
            body = message["Body"].encode(errors="surrogatepass")  # refused below, as not UTF-8
            row = build_row(body, _sent_ms(message))
            # AWS states the sender: a role's unique id and its session's name, or a user's id.
            sender = message["Attributes"].get("SenderId", "").partition(":")[0]
            if self._senders and (row.organization_id, sender) not in self._senders():
                raise InvalidEventError(f"sent by {sender or 'nobody'}, who may not send for it")
        except InvalidEventError as error:
            self._log.error("message.rejected", id=message["MessageId"], error=str(error)[:300])
            return _reject(message, str(error))
        return row

    async def _delete(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Delete a batch; return whether the queue deleted all of it.

        What it did not delete is delivered again, and stored as the same row.
        """
        response = await self._client.delete_message_batch(
            QueueUrl=self._queue_url,
            Entries=[
                {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                for number, message in enumerate(messages)
            ],
        )
        failures = response.get("Failed") or ()
        if failures:
            self._metrics.queue_errors.inc()
            codes = sorted({str(failed.get("Code")) for failed in failures})
            self._log.error("messages.not_deleted", messages=len(failures), codes=codes)
            if any(failed.get("SenderFault") for failed in failures):
                self._extend_visibility()
        return not failures

    def _extend_visibility(self) -> None:
        """Ask for twice the time: the insert took longer, so the receipt handles had expired.

        Otherwise no message would ever be deleted while ClickHouse is so slow.
        """
        if self._visibility_seconds < LONGEST_VISIBILITY_SECONDS:
            seconds = min(2 * self._visibility_seconds, LONGEST_VISIBILITY_SECONDS)
            self._visibility_seconds = seconds
            self._progress.expect_redelivery(seconds)
            self._log.warning("consumer.visibility_extended", seconds=seconds)


def _sent_ms(message: Mapping[str, Any]) -> int:
    """Return when SQS accepted the message, milliseconds since 1970: equal in every delivery."""
    return int(message["Attributes"]["SentTimestamp"])


def _reject(message: Mapping[str, Any], reason: str) -> TableRow:
    body = message["Body"].encode(errors="replace")
    return build_rejected(STREAM, message["MessageId"], body, reason, _sent_ms(message))


def _find_late(
    messages: Sequence[Mapping[str, Any]], rows: Sequence[TableRow], asked_ms: int
) -> Iterator[str]:
    """Yield the organizations whose messages waited long.

    Repeated deliveries do not count: they waited here. Nor do messages that were set aside: anybody
    could name any organization in them.
    """
    for message, row in zip(messages, rows, strict=True):
        first = message["Attributes"].get("ApproximateReceiveCount") == "1"
        if first and row.organization_id and asked_ms - _sent_ms(message) > OUTAGE_MS:
            yield row.organization_id
