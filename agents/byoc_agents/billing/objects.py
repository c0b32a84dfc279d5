"""Billing objects: encodes records as one S3 object with its key, and decodes them.

The key is computed from the records, so a repeated seal cannot store them twice. The body is
compressed, but `content_encoding` stays empty. A client that honors Content-Encoding would
decompress in transit and return bytes that match neither the key's suffix nor the stored checksum,
while ClickHouse uses only the suffix (`.zst`, `.gz`).
"""

import datetime as dt
import gzip
import re
import threading
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec
import zstandard

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.billing.record import TYPE
from byoc_agents.message import Message

Compression = Literal["zstd", "gzip"]

STREAM = "billing"  # of the objects of one spool
SHARED_STREAM = "billing/shared"  # of its shared objects
DEFAULT_PREFIX = "v1/"
MAX_BODY_BYTES = 64 * 1024**2  # decompressed; about 50,000 records, a month of minutes
HOUR_MS = 3_600_000
SEQUENCE_DIGITS = 10  # keys sort like sequences: 317 years of one record per second

_ENDINGS: dict[Compression, str] = {"zstd": ".jsonl.zst", "gzip": ".jsonl.gz"}
_MEDIA_TYPES: dict[Compression, str] = {
    "zstd": "application/zstd",  # RFC 8878
    "gzip": "application/gzip",  # RFC 6713
}
_KEY = re.compile(
    r"(?:^|/)org=(?P<organization_id>[^/]+)/service=(?P<service_id>[^/]+)"
    r"/date=(?P<date>\d{4}-\d\d-\d\d)/hour=(?P<hour>\d\d)"
    r"/(?P<pod>[^/]+)-(?P<epoch>\d+)-(?P<first>\d+)-(?P<last>\d+)"
    r"(?P<shared>\.shared)?\.jsonl\.(?:zst|gz)\Z",
    re.ASCII,
)


class TornObjectError(Exception):
    """An object's body is damaged. `str()` is the reason."""


class ObjectKey(NamedTuple):
    """The fields of an object's key, without the prefix and the suffix."""

    organization_id: str
    service_id: str
    date: str  # YYYY-MM-DD and
    hour: str  # HH, UTC, of the first record's charge_period_start
    pod: str  # pod uid, or the replica's name if there is none; the stream's name if shared
    epoch: int
    first: int  # sequence of the first record; its number in the stream if shared
    last: int
    shared: bool = False  # it has records of several replicas

    def __str__(self) -> str:
        """Return the key from `org=` up to the suffix."""
        return (
            f"org={self.organization_id}/service={self.service_id}"
            f"/date={self.date}/hour={self.hour}/{self.pod}-{self.epoch}"
            f"-{self.first:0{SEQUENCE_DIGITS}}-{self.last:0{SEQUENCE_DIGITS}}"
            f"{'.shared' if self.shared else ''}"
        )


class SharedNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """The number of an object's first record in a stream of records of several replicas."""

    name: str  # of the stream: the scraper's
    epoch: int
    first: int


class _ObjectPath(msgspec.Struct):
    organization_id: str
    service_id: str
    replica: str
    pod_uid: str = msgspec.field(name="k8s.pod.uid")
    charge_period_start: str
    epoch: int
    sequence: int

    def shared(self) -> tuple[str, str, str, int]:
        """Return the fields that all records of one object share."""
        return (self.organization_id, self.service_id, self.pod_uid or self.replica, self.epoch)

    def hour(self) -> tuple[str, str, int]:
        """Return the fields that all records of one shared object share."""
        start_ms = parse_rfc3339(self.charge_period_start)
        return (self.organization_id, self.service_id, start_ms // HOUR_MS)


class _ObjectLine(msgspec.Struct):
    data: _ObjectPath


_decode = msgspec.json.Decoder(_ObjectLine).decode
_of_thread = threading.local()


def seal(
    lines: Sequence[bytes],
    *,
    created_at_ms: int,
    prefix: str = DEFAULT_PREFIX,
    compression: Compression = "zstd",
    numbers: SharedNumbers | None = None,
) -> Message:
    """Return the object that contains exactly these encoded records, in this order.

    Raises ValueError if there are no records, if one is not a usage record or contains a line end,
    or if they are not of one organization, service, pod and epoch with contiguous sequences; see
    `runs`. With `numbers` they may be of any replicas of one service, and must start in one hour.
    The same records give the same key and, with the same libzstd or zlib, the same bytes.
    """
    places = [_decode_path(line) for line in lines]
    follows = _follows if numbers is None else _shares_hour
    if not places or any(not follows(a, b) for a, b in pairwise(places)):
        raise ValueError(
            "expected one or more records of one epoch with contiguous sequences"
            if numbers is None
            else "expected one or more records of one service that start in one hour"
        )
    key = _object_key(places[0], places[-1])
    if numbers:
        last = numbers.first + len(lines) - 1
        key = key._replace(
            pod=numbers.name, epoch=numbers.epoch, first=numbers.first, last=last, shared=True
        )
    folder = f"{prefix.rstrip('/')}/" if prefix else ""
    return Message(
        id=f"{folder}{key}{_ENDINGS[compression]}",
        type=TYPE,
        body=_compress(b"\n".join(lines) + b"\n", compression),
        created_at_ms=created_at_ms,
        events=len(lines),
        content_type=_MEDIA_TYPES[compression],
        stream=SHARED_STREAM if key.shared else STREAM,
        epoch=key.epoch,
        sequence=key.last,
    )


def runs(lines: Sequence[bytes], *, shared: bool = False) -> list[list[bytes]]:
    """Split records into one list per object, in order. Raises ValueError as `seal` does.

    More than one run means that the pod or the state directory changed between two records. Runs
    of `shared` objects end with the hour only.
    """
    found: list[list[bytes]] = []
    before: _ObjectPath | None = None
    follows = _shares_hour if shared else _follows
    for line in lines:
        place = _decode_path(line)
        if before is None or not follows(before, place):
            found.append([])
        found[-1].append(line)
        before = place
    return found


@lru_cache(maxsize=256)  # a reader parses the key of an object several times
def parse_key(key: str) -> ObjectKey | None:
    """Return the fields of a key with any prefix, or None if it is not a billing object's.

    An organization below the folder of another one is not: only the other one may write there.
    """
    match = _KEY.search(key)
    if match is None:
        return None
    before, own = key[: match.start()], f"org={match['organization_id']}"
    if "org=" in before and any(
        part.startswith("org=") and part != own for part in before.split("/")
    ):
        return None
    organization_id, service_id, date, hour, pod, epoch, first, last, shared = match.groups()
    numbers = (int(epoch), int(first), int(last))
    return ObjectKey(organization_id, service_id, date, hour, pod, *numbers, shared is not None)


def unseal(key: str, body: bytes) -> list[bytes]:
    """Return the encoded records of an object, without line ends. Raises TornObjectError."""
    read = _read_gzip if key.endswith(".gz") else _read_zstd
    text = read(body)
    if not text.endswith(b"\n"):
        raise TornObjectError("the last line is cut" if text else "it holds no record")
    return text[:-1].split(b"\n")


def _decode_path(line: bytes) -> _ObjectPath:
    if b"\n" in line:
        raise ValueError("an encoded record contains a line end")
    return _decode(line).data  # msgspec's errors are ValueErrors


def _follows(before: _ObjectPath, path: _ObjectPath) -> bool:
    return before.shared() == path.shared() and path.sequence == before.sequence + 1


def _shares_hour(one: _ObjectPath, other: _ObjectPath) -> bool:
    return one.hour() == other.hour()


def _object_key(first: _ObjectPath, last: _ObjectPath) -> ObjectKey:
    seconds = parse_rfc3339(first.charge_period_start) // 1000
    start = dt.datetime.fromtimestamp(seconds, tz=dt.UTC)
    organization_id, service_id, pod, epoch = first.shared()
    return ObjectKey(
        organization_id=organization_id,
        service_id=service_id,
        date=f"{start:%Y-%m-%d}",
        hour=f"{start:%H}",
        pod=pod,
        epoch=epoch,
        first=first.sequence,
        last=last.sequence,
    )


def _compress(text: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        return gzip.compress(text, mtime=0)
    # Level 1 takes 0.5 us per record. The frame's checksum and size reveal a truncated object.
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)
    return compressor.compress(text)


def _read_zstd(body: bytes) -> bytes:
    try:
        frame = zstandard.get_frame_parameters(body)
        if not frame.has_checksum or frame.content_size > MAX_BODY_BYTES:
            raise TornObjectError("the zstd frame has no checksum, or no sane size")
        return _decompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise TornObjectError(f"bad zstd frame: {error}") from error


def _decompressor() -> zstandard.ZstdDecompressor:
    """Return the decompressor of this thread: making one takes as long as an object's body."""
    found: zstandard.ZstdDecompressor | None = getattr(_of_thread, "decompressor", None)
    if found is None:
        found = _of_thread.decompressor = zstandard.ZstdDecompressor()
    return found


def _read_gzip(body: bytes) -> bytes:
    inflate: Callable[..., zlib._Decompress] = zlib.decompressobj
    stream = inflate(wbits=31)  # 31: zlib's number for a gzip header and checksum
    try:
        text = stream.decompress(body, MAX_BODY_BYTES)
    except zlib.error as error:
        raise TornObjectError(f"bad gzip stream: {error}") from error
    if not stream.eof or stream.unused_data:
        raise TornObjectError("the gzip stream is cut, too long, or followed by other bytes")
    return text
