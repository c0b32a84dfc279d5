"""The vendor's queue and its reader, as a control plane has them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

import msgspec

from byoc_agents.state.message import StateEvent, StateV1
from lab.demo.aws import Aws

NAME = "demo-state.fifo"


class Queue:
    """Receives and deletes the messages, and keeps each id once, in the order of arrival."""

    def __init__(self, client: Any, url: str) -> None:
        self.url = url
        self.reported: dict[str, StateV1] = {}  # by id
        self._client = client

    async def refresh(self) -> None:
        """Receive the new messages."""
        while messages := await self._receive():
            for message in messages:
                event = msgspec.json.decode(message["Body"], type=StateEvent)
                self.reported.setdefault(event.id, event.data)
                handle = message["ReceiptHandle"]
                await self._client.delete_message(QueueUrl=self.url, ReceiptHandle=handle)

    async def _receive(self) -> list[dict[str, Any]]:
        response = await self._client.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=0
        )
        return list(response.get("Messages", []))

    @property
    def transitions(self) -> list[StateV1]:
        """Return the messages that are not heartbeats."""
        return [reported for reported in self.reported.values() if reported.kind == "transition"]

    @property
    def states(self) -> list[str]:
        """Return the states in the order of arrival, without repetitions."""
        return [str(state) for state, _ in groupby(reported.state for reported in self.transitions)]


@asynccontextmanager
async def queue(aws: Aws) -> AsyncIterator[Queue]:
    """Create the queue."""
    async with aws.client("sqs") as client:
        made = await client.create_queue(QueueName=NAME, Attributes={"FifoQueue": "true"})
        yield Queue(client, made["QueueUrl"])
