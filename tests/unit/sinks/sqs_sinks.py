"""Parts for the tests of the SQS sink: messages, and a sink on a fake's address."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiobotocore.session import AioSession

from byoc_agents.egress.destinations import sqs_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import Reason
from byoc_agents.message import Message, Outcome
from byoc_agents.sinks.sqs import SqsSink
from lab.fakes.http import Behavior, Script, raw, serving
from lab.fakes.sqs import FakeSqs, sqs_error

HERE = "eu-west-1"


def message(name: str, group: str = "g", body: str = "{}") -> Message:
    return Message(id=name, type="t", body=body.encode(), created_at_ms=0, group=group)


@asynccontextmanager
async def sink_to(queue_url: str, session: AioSession, **options: Any) -> AsyncIterator[SqsSink]:
    gate = Gate([sqs_destination(queue_url)])
    async with SqsSink(session, gate, queue_url, region=HERE, **options) as sink:
        yield sink


class Pair:
    """One sink and the queue that it talks to."""

    def __init__(self, sqs: FakeSqs, sink: SqsSink) -> None:
        self.sqs = sqs
        self.sink = sink

    def requests(self) -> list[list[str]]:
        """Return the de-duplication ids of each request, in order."""
        bodies = [json.loads(request.body)["Entries"] for request in self.sqs.http.requests]
        return [[entry["MessageDeduplicationId"] for entry in entries] for entries in bodies]

    async def send(self, *messages: Message, script: Script = serving) -> list[Outcome]:
        self.sqs.http.script = script
        self.sqs.http.requests.clear()
        return list(await self.sink.send(messages))


def reasons(outcomes: list[Outcome]) -> list[Reason]:
    return [outcome.reason for outcome in outcomes]


def said(status: int, code: str, headers: dict[str, str] | None = None) -> Behavior:
    return raw(sqs_error(status, code, headers).encode())
