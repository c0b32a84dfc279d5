"""A file of lines whose first line is a signed statement about all others.

The first line is a DSSE envelope (`byoc_agents.envelope`) around a `FileManifest`, which has the
SHA-256 of everything after that line. So no line is parsed before a pinned key has vouched for it.
Exports and receipts have payload types of their own: one is never taken for the other.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeVar

import msgspec

from byoc_agents.envelope import VerifyingKey, open_envelope, sign
from byoc_agents.errors import ByocError, EnvelopeError
from byoc_agents.message import Message

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

T = TypeVar("T")

FileKind = Literal["export", "receipt"]
PAYLOAD_TYPES: dict[FileKind, str] = {
    "export": "application/vnd.byoc.export.v1+json",
    "receipt": "application/vnd.byoc.export-receipt.v1+json",
}
MAX_FILE_BYTES = 1024**3  # a file is read into memory
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class SignedFileError(ByocError):
    """The file cannot be trusted, or is not the one that was expected. `str()` states why."""


class FileManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The signed statement."""

    daemon: str  # whose spool the messages were in
    made_at: str  # RFC 3339
    lines: int
    sha256: Sha256  # of all bytes after the first line
    of: str = ""  # of a receipt: the id of the export


class Delivered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a receipt: the receiver has stored the message with this id and body."""

    id: str
    sha256: Sha256  # of the body


class SignedFile(NamedTuple):
    """A file that a pinned key has signed. `id` is the SHA-256 of its manifest, in hex."""

    id: str
    manifest: FileManifest
    lines: list[bytes]

    def messages(self) -> list[Message]:
        """Return the messages of an export. Raises SignedFileError."""
        return [_decode(line, Message) for line in self.lines]

    def delivered(self) -> list[Delivered]:
        """Return the lines of a receipt. Raises SignedFileError."""
        return [_decode(line, Delivered) for line in self.lines]


def _decode(line: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SignedFileError(f"signed, but a line is not of this version: {error}") from error


def sign_file(  # noqa: PLR0913  the statement, its lines and the key
    kind: FileKind,
    items: Sequence[Message] | Sequence[Delivered],
    key: "Ed25519PrivateKey",
    *,
    daemon: str,
    made_at: str,
    of: str = "",
) -> tuple[str, bytes]:
    """Return the id and the bytes of a file."""
    lines = [msgspec.json.encode(item) + b"\n" for item in items]
    rest = b"".join(lines)
    digest = hashlib.sha256(rest).hexdigest()
    manifest = FileManifest(daemon=daemon, made_at=made_at, lines=len(lines), sha256=digest, of=of)
    payload = msgspec.json.encode(manifest)
    first = sign(PAYLOAD_TYPES[kind], payload, [("", key)])
    return hashlib.sha256(payload).hexdigest(), first + b"\n" + rest


def open_file(raw: bytes, kind: FileKind, key: "Ed25519PublicKey") -> SignedFile:
    """Return the content of a file that was signed with this key. Raises SignedFileError."""
    first, _, rest = raw.partition(b"\n")
    pinned = VerifyingKey("", key.public_bytes_raw())
    try:
        opened = open_envelope(first, [PAYLOAD_TYPES[kind]], [pinned], threshold=1, now_ms=0)
    except EnvelopeError as error:
        raise SignedFileError(_explain(error, kind)) from error
    manifest = _decode(opened.payload, FileManifest)
    if hashlib.sha256(rest).hexdigest() != manifest.sha256:
        raise SignedFileError("changed or cut off: its lines do not have the signed SHA-256")
    lines = rest.splitlines()
    if len(lines) != manifest.lines:
        raise SignedFileError(f"{len(lines)} lines: expected {manifest.lines}, as it states")
    return SignedFile(hashlib.sha256(opened.payload).hexdigest(), manifest, lines)


def printable(text: str) -> str:
    """Return a text from a file of another party with its control characters escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _explain(error: EnvelopeError, kind: FileKind) -> str:
    if error.reason == "too_few_signatures":
        return "not signed with the given key: its first line was changed, or the key is another"
    if error.reason == "wrong_type":
        return f"signed, but as another kind of file: expected {kind}"
    return f"the first line is not a signature ({error.detail}): expected {kind}"
