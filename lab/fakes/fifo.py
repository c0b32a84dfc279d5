"""An SQS FIFO queue with receive and delete: visibility, order within a group, long polls."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from lab.fakes.http import Behavior, Exchange, Reply, Request, serve
from lab.fakes.sqs import FakeSqs, Sent, sqs_error, sqs_response

RECEIVE, DELETE = "AmazonSQS.ReceiveMessage", "AmazonSQS.DeleteMessageBatch"
POLL_SECONDS = 0.01


@dataclass(slots=True)
class Queued:
    """A message in the queue, from its arrival to its deletion."""

    sent: Sent
    sent_ms: int
    sender_id: str
    visible_at: float = 0.0  # monotonic seconds
    receives: int = 0
    handle: str = ""  # of the newest delivery; the others have expired


class FakeFifo(FakeSqs):
    """A FIFO queue for senders and consumers.

    While a message of a group is in flight, no other receive gets a message of that group.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(self._script, port=port, on_sent=self._queue)
        self.groups: dict[str, list[Queued]] = {}
        self.deliveries = 0
        self.out_of_service = False  # answers 503 to consumers
        self.sender_id = "AROAONE:session"  # of the messages that arrive from now on
        self._wall_ms = wall_ms
        self._monotonic = monotonic
        self._numbers = count()
        self._by_handle: dict[str, tuple[str, Queued]] = {}

    @property
    def waiting(self) -> int:
        """Return how many messages are not deleted yet."""
        return sum(map(len, self.groups.values()))

    def add(self, group: str, deduplication_id: str, body: str) -> None:
        """Send one message, without a request."""
        self._take({
            "MessageGroupId": group,
            "MessageDeduplicationId": deduplication_id,
            "MessageBody": body,
        })  # fmt: skip

    def apply(self, request: Request) -> Reply:
        """Execute one request."""
        target = request.headers.get("x-amz-target", "")
        if target in {RECEIVE, DELETE} and self.out_of_service:
            return sqs_error(503, "ServiceUnavailable")
        if target == RECEIVE:
            return self._receive(json.loads(request.body))
        if target == DELETE:
            return self._delete(json.loads(request.body))
        return super().apply(request)

    def _script(self, request: Request) -> Behavior:
        is_poll = request.headers.get("x-amz-target") == RECEIVE
        return self._long_poll if is_poll else serve

    async def _long_poll(self, exchange: Exchange) -> None:
        end = self._monotonic() + json.loads(exchange.request.body).get("WaitTimeSeconds", 0)

        def must_wait() -> bool:  # visibility returns with time
            return not self.out_of_service and not self._is_visible() and self._monotonic() < end

        while must_wait():  # noqa: ASYNC110  there is no event for the time
            await asyncio.sleep(POLL_SECONDS)
        await serve(exchange)

    def _queue(self, sent: Sent) -> None:
        self.groups.setdefault(sent.group, []).append(Queued(sent, self._wall_ms(), self.sender_id))

    def _is_visible(self) -> bool:
        now = self._monotonic()
        return any(all(one.visible_at <= now for one in queued) for queued in self.groups.values())

    def _receive(self, asked: dict[str, Any]) -> Reply:
        now = self._monotonic()
        found: list[dict[str, Any]] = []
        for group in list(self.groups):
            queued = self.groups[group]
            if len(found) >= asked["MaxNumberOfMessages"]:
                break
            if any(one.visible_at > now for one in queued):
                continue  # one is in flight
            for one in queued[: asked["MaxNumberOfMessages"] - len(found)]:
                one.visible_at = now + asked["VisibilityTimeout"]
                found.append(self._deliver(group, one))
            self.groups[group] = self.groups.pop(group)  # the next receive begins elsewhere
        return sqs_response({"Messages": found} if found else {})

    def _deliver(self, group: str, one: Queued) -> dict[str, Any]:
        handle = f"handle-{next(self._numbers)}"
        one.handle = handle
        one.receives += 1
        self.deliveries += 1
        self._by_handle[handle] = group, one
        body = one.sent.body.encode()
        return {
            "MessageId": one.sent.message_id,
            "ReceiptHandle": handle,
            "Body": one.sent.body,
            "MD5OfBody": hashlib.md5(body, usedforsecurity=False).hexdigest(),
            "Attributes": {
                "SentTimestamp": str(one.sent_ms),
                "ApproximateReceiveCount": str(one.receives),
                "SenderId": one.sender_id,
            },
        }

    def _delete(self, asked: dict[str, Any]) -> Reply:
        """Delete messages. AWS documents that a handle expires with the visibility."""
        now = self._monotonic()
        deleted, failed = [], []
        for entry in asked["Entries"]:
            group, one = self._by_handle.get(entry["ReceiptHandle"], ("", None))
            if one is None or one not in self.groups.get(group, ()):
                deleted.append({"Id": entry["Id"]})  # a deletion may be repeated
            elif one.visible_at <= now or one.handle != entry["ReceiptHandle"]:
                failed.append({
                    "Id": entry["Id"],
                    "SenderFault": True,
                    "Code": "InvalidParameterValue",
                    "Message": "The receipt handle has expired.",
                })  # fmt: skip
            else:
                del self._by_handle[entry["ReceiptHandle"]]
                self.groups[group].remove(one)
                deleted.append({"Id": entry["Id"]})
                if not self.groups[group]:
                    del self.groups[group]
        return sqs_response({"Successful": deleted, "Failed": failed})
