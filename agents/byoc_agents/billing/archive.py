"""Archives: many billing objects of one hour in one object, with a manifest that names each.

    PREFIX/archive/date=2026-11-23/hour=12/shard-3-of-16.jsonl.zst        the records
    PREFIX/archive/date=2026-11-23/hour=12/shard-3-of-16.manifest.json.zst

Objects that arrive after their hour is archived go to `shard-3-of-16-1`, `-2` and so on. The
manifest is written first and fixes the content of its archive. An archive holds the lines of its
sources unchanged, in the order of the manifest, so the same queries read it.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Literal, NamedTuple

import msgspec
import zstandard

from byoc_agents.billing.objects import MAX_BODY_BYTES, ObjectKey, TornObjectError, unseal

FOLDER = "archive/"  # below the prefix of the objects; sorts before `org=`
MAX_SHARDS = 9_999
MAX_ARCHIVE_BYTES = 1024**3  # compressed, when one is read; the compactor writes far smaller ones
MAX_MANIFEST_BYTES = 1024**3  # decompressed; about 4 million sources
LEVEL = 1  # of zstd; part of the format, since the manifest has the digest of the archive

_NAME = re.compile(r"(?:^|/)(org=[^/]+/service=.+)$")
_KEY = re.compile(
    r"(?P<prefix>(?:.*/)?)archive/date=(?P<date>\d{4}-\d\d-\d\d)/hour=(?P<hour>\d\d)"
    r"/shard-(?P<number>\d{1,4})-of-(?P<shards>\d{1,4})(?:-(?P<generation>\d+))?"
    r"\.(?P<part>jsonl|manifest\.json)\.zst"
)
Part = Literal["jsonl", "manifest.json"]


class Shard(NamedTuple):
    """One of `shards` parts of all pods; `number` counts from 0."""

    number: int
    shards: int

    def __str__(self) -> str:
        """Return `number/shards`."""
        return f"{self.number}/{self.shards}"

    def has(self, name: ObjectKey | str) -> bool:
        """Return whether an object belongs to it; all objects of a pod belong to one shard.

        An object whose key is not a billing object's is given as its key.
        """
        text = (
            name
            if isinstance(name, str)
            else f"{name.organization_id}/{name.service_id}/{name.pod}"
        )
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8]) % self.shards == self.number


def parse_shard(text: str) -> Shard:
    """Return the shard that `i/n` names. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text, re.ASCII)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(
            f"invalid value {text!r}: expected i/n with i from 0 to n-1 and n up to {MAX_SHARDS}"
        )
    return Shard(int(match[1]), int(match[2]))


class ArchiveKey(NamedTuple):
    """Names one archive and its manifest."""

    prefix: str  # of the objects and of the folder `archive/`; ends with / or is empty
    date: str
    hour: str
    shard: Shard
    generation: int = 0

    @property
    def folder(self) -> str:
        """Return the prefix of all archives of the hour."""
        return f"{self.prefix}{FOLDER}date={self.date}/hour={self.hour}/"

    @property
    def body(self) -> str:
        """Return the key of the records."""
        return self.key("jsonl")

    @property
    def manifest(self) -> str:
        """Return the key of the manifest."""
        return self.key("manifest.json")

    def key(self, part: Part) -> str:
        """Return the key of one of its two objects."""
        more = f"-{self.generation}" if self.generation else ""
        shard = f"shard-{self.shard.number}-of-{self.shard.shards}"
        return f"{self.folder}{shard}{more}.{part}.zst"


def parse_archive_key(key: str) -> tuple[ArchiveKey, Part] | None:
    """Return what a key names; None if it belongs to no archive."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    shard = Shard(int(match["number"]), int(match["shards"]))
    place = (match["prefix"], match["date"], match["hour"])
    name = ArchiveKey(*place, shard, int(match["generation"] or 0))
    part: Part = "jsonl" if match["part"] == "jsonl" else "manifest.json"
    return (name, part) if shard.number < shard.shards and name.key(part) == key else None


def source_name(key: str) -> str:
    """Return a billing object's key from `org=` on: equal in each bucket and directory."""
    match = _NAME.search(key)
    return match[1] if match else key


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One object as it was stored, and its place in the archive."""

    name: str  # its key from `org=` on
    size: int  # bytes as stored
    sha256: str  # of the stored bytes, hex
    text_bytes: int  # of its records in the archive, decompressed
    records: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of one archive. Has no times, so the same sources give the same manifest."""

    version: Literal[1] = 1
    size: int  # bytes of the archive
    sha256: str  # of the archive's bytes, hex
    records: int
    sources: list[Source]  # in the order of their records

    def encode(self) -> bytes:
        """Return the bytes to store."""
        return _compressor().compress(msgspec.json.encode(self))


_decode_manifest = msgspec.json.Decoder(Manifest).decode


def decode_manifest(body: bytes) -> Manifest:
    """Return a manifest. Raises TornObjectError."""
    try:
        frame = zstandard.get_frame_parameters(body)
        if not frame.has_checksum or frame.content_size > MAX_MANIFEST_BYTES:
            raise TornObjectError("the manifest has no checksum, or no sane size")
        text = zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
        return _decode_manifest(text)
    except (
        zstandard.ZstdError,
        msgspec.MsgspecError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:
        raise TornObjectError(f"bad manifest: {error}") from error


class ArchiveBuilder:
    """Collects sources and returns the archive. The same sources in the same order: same bytes.

    Holds the compressed records in memory: about 65 bytes per record.
    """

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.source_bytes = 0
        self._stream = _compressor().compressobj()
        self._body = BytesIO()  # returns its bytes without a copy

    def add(self, key: str, body: bytes, lines: Sequence[bytes] | None = None) -> None:
        """Add one stored object. Raises TornObjectError; then nothing was added.

        `lines` are its records, if they are known already.
        """
        if lines is None:
            lines = unseal(key, body)
        text = b"\n".join(lines) + b"\n"
        self._body.write(self._stream.compress(text))
        self.source_bytes += len(body)
        self.sources.append(
            Source(
                name=source_name(key),
                size=len(body),
                sha256=hashlib.sha256(body).hexdigest(),
                text_bytes=len(text),
                records=len(lines),
            )
        )

    def finish(self) -> tuple[Manifest, bytes]:
        """Return the manifest and the archive. Ends the builder."""
        self._body.write(self._stream.flush())
        body = self._body.getvalue()
        manifest = Manifest(
            size=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            records=sum(source.records for source in self.sources),
            sources=self.sources,
        )
        return manifest, body


def check_archive(manifest: Manifest, body: bytes) -> None:
    """Raise TornObjectError if the bytes are not those of the manifest."""
    if len(body) != manifest.size or hashlib.sha256(body).hexdigest() != manifest.sha256:
        raise TornObjectError("the archive is not the one of its manifest: SHA-256 differs")


def read_archive(sources: Sequence[Source], body: bytes) -> Iterator[list[bytes]]:
    """Yield the lines of each source, without line ends; the text of one is in memory at a time.

    Raises TornObjectError at the first source that is damaged.
    """
    try:
        with zstandard.ZstdDecompressor().stream_reader(body) as stream:
            for source in sources:
                if source.text_bytes > MAX_BODY_BYTES:
                    raise TornObjectError(f"{source.name}: too large for a billing object")
                text = stream.read(source.text_bytes)
                lines = text[:-1].split(b"\n")
                if not text.endswith(b"\n") or len(lines) != source.records:
                    raise TornObjectError(f"{source.name}: other lines than in the manifest")
                yield lines
            if stream.read(1):
                raise TornObjectError("the archive has more records than its manifest")
    except zstandard.ZstdError as error:
        raise TornObjectError(f"bad zstd frame: {error}") from error


def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
