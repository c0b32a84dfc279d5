"""Read the messages whose exact bytes a daemon's ledger keeps (BYOC_LEDGER_KEEP_BODIES)."""

import hashlib
from collections.abc import Container, Iterator
from pathlib import Path

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.app.files import open_regular
from byoc_agents.ledger.format import IntentLine, LedgerMessage, decode
from byoc_agents.ledger.reader import raw_lines
from byoc_agents.ledger.segments import Segments
from byoc_agents.message import Message


class KeptBodies:
    """One ledger. `unkept` and `damaged` are complete once `messages` has ended."""

    def __init__(self, directory: Path) -> None:
        self._segments = Segments(directory)
        self._read: set[bytes] = set()  # digests of id and body
        self._named: dict[bytes, str] = {}  # such digests of messages without a body so far -> id
        self.damaged: list[str] = []  # files whose bytes are not those that were sent

    @property
    def unkept(self) -> int:
        """Return how many messages have no kept body in any file of the ledger."""
        return len(self._named)

    def messages(self, without: Container[str] = ()) -> Iterator[Message]:
        """Yield each message once, however often and with whatever outcome it was sent.

        Messages whose id is in `without` are left out. The daemon may write meanwhile. Raises
        OSError.
        """
        for number in self._segments.numbers():
            try:
                for raw in raw_lines(self._segments.path(number)):
                    line = decode(raw.content) if raw.whole else None
                    if isinstance(line, IntentLine):
                        yield from self._of(line, number, without)
            except FileNotFoundError:  # removed by rotation meanwhile
                continue

    def _of(self, line: IntentLine, number: int, without: Container[str]) -> Iterator[Message]:
        for sent in line.messages:
            name = hashlib.sha256(f"{sent.id}\n{sent.sha256}".encode()).digest()
            if name in self._read or sent.id in without:
                continue
            body = self._body(sent, number)
            if body is None:
                self._named[name] = sent.id
                continue
            self._read.add(name)
            self._named.pop(name, None)
            yield Message(
                id=sent.id,
                type=sent.type,
                body=body,
                created_at_ms=parse_rfc3339(line.time),
                events=sent.events,
                content_type=sent.content_type,
                content_encoding=sent.content_encoding,
                stream=sent.stream,
                epoch=sent.epoch,
                sequence=sent.sequence,
            )

    def _body(self, sent: LedgerMessage, number: int) -> bytes | None:
        """Return the exact bytes; None if they were not kept, were removed or are damaged."""
        if not sent.kept:
            return None
        path = self._segments.body_path(number, sent.sha256)
        try:
            with open_regular(path) as file:
                body = file.read(sent.bytes + 1)  # one more, to detect a file that has grown
        except FileNotFoundError:
            return None
        if hashlib.sha256(body).hexdigest() != sent.sha256:
            self.damaged.append(str(path))
            return None
        return body
