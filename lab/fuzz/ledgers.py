"""Harnesses of ledger lines and ledger files that somebody else may have written."""

import hashlib
import tempfile
from functools import cache
from pathlib import Path

from byoc_agents.errors import Reason
from byoc_agents.ledger.format import (
    GENESIS,
    IntentLine,
    SegmentLine,
    decode,
    encode,
    intent_of,
    receipt_of,
)
from byoc_agents.ledger.verify import verify
from byoc_agents.message import Message, Receipt
from lab.fuzz.harness import Harness


def line(data: bytes) -> None:
    """Parse a line: formatting the result gives the same line, or it is not valid."""
    found = decode(data)
    assert found is None or decode(encode(found)) == found


def file(data: bytes) -> None:
    """Verify a file. If there is no finding, its hashes form a chain."""
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as place:
        Path(place, "ledger-000001.jsonl").write_bytes(data)
        verdict = verify(Path(place), settle=lambda: None)
    if not verdict.ok or verdict.notes:
        return
    before = GENESIS
    for number, raw in enumerate(data.splitlines()):
        found = decode(raw)
        assert found is not None
        assert (found.sequence, found.previous) == (number, before)
        before = hashlib.sha256(raw).hexdigest()


@cache
def chain() -> bytes:
    """Return a small valid ledger file."""
    messages = [Message(f"id-{n}", "t", b"body", 1) for n in range(2)]
    intent = intent_of("s3://bucket", messages, None)
    receipt = receipt_of(1, messages, [Receipt(Reason.OK, 200, "etag")] * 2)
    content, before = b"", GENESIS
    for number, one in enumerate(
        (SegmentLine(format=1, version="1", segment=1, open=()), intent, receipt)
    ):
        kind = type(one)
        fields = {name: getattr(one, name) for name in one.__struct_fields__}
        raw = encode(kind(**fields | {"sequence": number, "previous": before}))
        before = hashlib.sha256(raw).hexdigest()
        content += raw + b"\n"
    return content


WORDS = [b'"kind":"', b'"sequence":', b'"previous":"', b"intent", b"removed", b"recovered", b"\n",
         b"unknown", b"refused", b'"open":[', b"\0", b"-1", b'"aside":"../../etc/passwd"', b"null",
         b'"messages":[', b"[" * 40, b"1e9", b'"why":"torn"', b'"suppressed"']  # fmt: skip
HARNESSES = {
    "ledger-line": Harness(
        line, [*chain().splitlines(), encode(IntentLine(destination="d", messages=()))], WORDS
    ),
    "ledger-file": Harness(file, [chain()], WORDS),
}
