"""Harnesses of billing objects and their keys, as the verifier finds them in a bucket."""

import gzip
from functools import cache

import zstandard

from byoc_agents.audit import Audit
from byoc_agents.billing.objects import TornObjectError, parse_key, unseal
from lab.fakes.billing import ReplicaHistory, eventful, objects
from lab.fuzz.harness import Harness, text

DATE = "2026-11-23"


def key(data: bytes) -> None:
    """Parse a key: formatting the result gives the key again, or it is not a billing key."""
    found = parse_key(text(data))
    if found is None:
        return
    assert found.first >= 0
    assert str(found).count("/") == 4
    assert parse_key(f"{found}.jsonl.zst") == found


def body(data: bytes) -> None:
    """Unseal bytes: lines, or TornObjectError, which the audit reports."""
    for ending in ("zst", "gz"):
        audit = Audit()
        audit.add(f"{name()}.{ending}", data)
        report = audit.report("fuzz")
        try:
            lines = unseal(f"x.{ending}", data)
        except TornObjectError:
            assert not report.ok
        else:
            assert report.records == len(lines)


def records(data: bytes) -> None:
    """Audit a complete object with these lines."""
    for ending, packed in (("zst", _zstd(data)), ("gz", gzip.compress(data, 1))):
        audit = Audit()
        audit.add(f"{name()}.{ending}", packed)
        report = audit.report("fuzz")
        assert report.objects == 1
        assert report.records >= 0


def _zstd(data: bytes) -> bytes:
    made = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)
    return made.compress(data)


@cache
def sealed() -> tuple[str, bytes]:
    """Return the key and the bytes of a valid object."""
    message = objects(eventful(ReplicaHistory()))[0]
    return message.id, message.body


def name() -> str:
    """Return its key up to the ending."""
    return sealed()[0].removesuffix(".zst")


WORDS = [b'"NaN"', b'"Infinity"', b'"1e999"', b"-1", b'"gap"', b'"sequence":',
         b"9223372036854775808", b'"counter":null',
         b"9999-12-31T23:59:59Z", b"0001-01-01T00:00:00Z",
         b"\n", b'"epoch":', b'"charge_period_end":"', b"null", b'"source":"', b"0"]  # fmt: skip
HARNESSES = {
    "object-key": Harness(
        key,
        [sealed()[0].encode(), b"org=a/service=b/date=2026-11-23/hour=09/p-1-2-3.jsonl.gz"],
        [b"/", b"org=", b"service=", b"-", b"date=", b"hour=", b"\n", b".jsonl.zst", "٣".encode()],
    ),
    "object-body": Harness(
        body, [sealed()[1], gzip.compress(b"{}\n"), b"(\xb5/\xfd"], [b"\x1f\x8b", b"(\xb5/\xfd"]
    ),
    "object-records": Harness(
        records, [b"\n".join(unseal(*sealed())) + b"\n", unseal(*sealed())[0]], WORDS
    ),
}
