"""The used part of SQS, in memory and exact: the oracle of fault tests.

`python -m lab.fakes.sqs --port 0 --journal FILE` serves it in its own process and prints its port.
"""

import argparse
import asyncio
import hashlib
import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lab.fakes.http import (
    Behavior,
    FakeHttp,
    Reply,
    Request,
    Script,
    close,
    lose,
    serve,
    serving,
)

MAX_ENTRIES = 10


@dataclass(frozen=True, slots=True)
class Sent:
    """One accepted message. A repeat inside the deduplication window is not one."""

    group: str
    deduplication_id: str
    body: str
    message_id: str


Entry = Mapping[str, Any]


class FakeSqs:
    """One FIFO queue with any name: order, deduplication, failures of single entries.

    `messages` has the messages that a consumer would get, in order; `entries` counts every entry
    that reached the queue, repeats included. `refuse` returns a failure (Code, Message,
    SenderFault) for an entry, or None. Deduplication has no end here; in SQS it ends after five
    minutes.
    """

    def __init__(
        self,
        script: Script = serving,
        *,
        port: int = 0,
        refuse: Callable[[Entry], dict[str, Any] | None] = lambda _: None,
        on_sent: Callable[[Sent], None] = lambda _: None,
    ) -> None:
        self.messages: list[Sent] = []
        self.entries = 0
        self.http = FakeHttp(script, apply=self.apply, port=port)
        self.refuse = refuse
        self._on_sent = on_sent
        self._known: dict[tuple[str, str], str] = {}

    async def __aenter__(self) -> Self:
        """Listen."""
        await self.http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, and yield to the loop until the closed connections have released their sockets."""
        await self.http.__aexit__()
        for _turn in range(3):
            await asyncio.sleep(0)

    @property
    def queue_url(self) -> str:
        """Return the URL of the queue."""
        return f"{self.http.url}/000000000000/state.fifo"

    def apply(self, request: Request) -> Reply:
        """Execute the request, entry by entry."""
        if request.headers.get("x-amz-target") != "AmazonSQS.SendMessageBatch":
            return sqs_error(400, "InvalidAction")
        asked = json.loads(request.body)["Entries"]
        if len(asked) > MAX_ENTRIES:
            return sqs_error(400, "TooManyEntriesInBatchRequest")
        response: dict[str, list[dict[str, Any]]] = {"Successful": [], "Failed": []}
        for entry in asked:
            self.entries += 1
            if failure := self.refuse(entry):
                response["Failed"].append({"Id": entry["Id"], **failure})
            else:
                response["Successful"].append({"Id": entry["Id"], **self._take(entry)})
        return sqs_response(response)

    def _take(self, entry: Entry) -> dict[str, Any]:
        key = (entry["MessageGroupId"], entry["MessageDeduplicationId"])
        if key not in self._known:
            message_id = f"m-{len(self.messages)}"
            self._known[key] = message_id
            sent = Sent(*key, entry["MessageBody"], message_id)
            self.messages.append(sent)
            self._on_sent(sent)
        body = entry["MessageBody"].encode()
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        return {"MessageId": self._known[key], "MD5OfMessageBody": digest}


def sqs_response(response: Mapping[str, Any]) -> Reply:
    """Return a response as SQS writes it."""
    headers = {"content-type": "application/x-amz-json-1.0"}
    return Reply(200, headers, json.dumps(response).encode())


def sqs_error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Reply:
    """Return an error for the whole request as SQS writes it."""
    body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": "-"}).encode()
    kind = {"content-type": "application/x-amz-json-1.0"}
    return Reply(status, {**kind, **(headers or {})}, body)


async def run(port: int, journal: Path, lose_every: int) -> None:
    """Serve until SIGTERM. The journal gets one JSON line per message before the response."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def script(request: Request) -> Behavior:
        return lose(close) if lose_every and request.number % lose_every == 0 else serve

    with journal.open("a") as file:

        def note(sent: Sent) -> None:
            file.write(json.dumps({"id": sent.deduplication_id, "body": sent.body}) + "\n")
            file.flush()

        async with FakeSqs(script, port=port, on_sent=note) as sqs:
            sys.stdout.write(f"{sqs.http.port}\n")
            sys.stdout.flush()
            await stop.wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m lab.fakes.sqs", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 = any free one, printed")
    parser.add_argument("--journal", type=Path, required=True, help="JSON lines, one a message")
    parser.add_argument("--lose-every", type=int, default=0, help="lose every n-th answer")
    options = parser.parse_args()
    asyncio.run(run(options.port, options.journal, options.lose_every))


if __name__ == "__main__":
    main()
