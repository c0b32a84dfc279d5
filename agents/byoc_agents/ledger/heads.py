"""Heads: the number of lines and the root, as a customer keeps them outside of the machine.

A checkpoint is a head in the format of c2sp.org/tlog-checkpoint: a note with the log's name, the
size and the root, and with signatures (c2sp.org/signed-note, Ed25519). A plain head is one line:
the size, the root in base64, and optionally the name.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from byoc_agents.ledger.format import LinePosition
from byoc_agents.ledger.tree import decode_hash, encode_hash

if TYPE_CHECKING:  # 20 MiB, and only where a key is used: the extra `checkpoint`
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

ED25519 = b"\x01"  # the algorithm's number in a key of a signed note
SIGNATURE = re.compile(r"— (\S+) (\S+)")
PLAIN = re.compile(r"([0-9]{1,18}) (\S{44})(?: (\S+))?")
SIZE = re.compile(r"[0-9]{1,18}")
ANCHOR = re.compile(r"([0-9]{1,18}):([0-9a-fA-F]{64})")
EXPECTED_KEY = "expected an Ed25519 key in PEM, without a password"
NAME = re.compile(r"[^\s+]+")  # of a log or a key, in a signed note


class KeptHead(NamedTuple):
    """A head of the tree that somebody has kept."""

    size: int
    root: str  # base64
    name: str  # of the log; "" = not stated
    note: str  # its text and signatures, as they were; "" for a plain head

    @property
    def ledger(self) -> str:
        """The daemon that the name ends with."""
        return self.name.rpartition("/")[2]


class KeptHeads(NamedTuple):
    """The content of a file of heads."""

    heads: tuple[KeptHead, ...] = ()
    anchors: tuple[LinePosition, ...] = ()  # SEQUENCE:SHA256, from /status and the log

    def of_origin(self, origin: str) -> "KeptHeads":
        """Return the heads without those that are named after another origin."""
        named = (head for head in self.heads if head.name.rpartition("/")[0] in {"", origin})
        return KeptHeads(tuple(named), self.anchors)

    def of_ledger(self, name: str) -> "KeptHeads":
        """Return the heads without those of other ledgers."""
        return KeptHeads(
            tuple(head for head in self.heads if head.ledger in {"", name}), self.anchors
        )


def parse_heads(text: str) -> KeptHeads:
    """Return the heads of a text: checkpoints, `SIZE ROOT [NAME]` and `SEQUENCE:SHA256` lines.

    Empty lines and lines that start with `#` separate them. Raises ValueError with the line.
    """
    heads: list[KeptHead] = []
    anchors: list[LinePosition] = []
    lines = text.replace("\r\n", "\n").split("\n")  # no other character ends a line of a note
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip() or line.startswith("#"):
            at += 1
        elif found := ANCHOR.fullmatch(line):
            anchors.append(LinePosition(int(found[1]), found[2].lower()))
            at += 1
        elif found := PLAIN.fullmatch(line):
            heads.append(KeptHead(int(found[1]), _root(found[2], at), found[3] or "", ""))
            at += 1
        else:
            head, at = _checkpoint(lines, at)
            heads.append(head)
    return KeptHeads(tuple(heads), tuple(anchors))


def _checkpoint(lines: Sequence[str], at: int) -> tuple[KeptHead, int]:
    """Return the checkpoint that begins at a line, and the number of the line after it."""
    body = list(lines[at : at + 3])
    if len(body) < 3 or not SIZE.fullmatch(body[1]) or not NAME.fullmatch(body[0]):  # noqa: PLR2004
        raise ValueError(f"line {at + 1}: {lines[at]!r}: expected a checkpoint, or SIZE ROOT")
    root, end = _root(body[2], at + 2), at + 3
    while end < len(lines) and lines[end]:  # extensions
        end += 1
    signed = end + 1
    while signed < len(lines) and SIGNATURE.fullmatch(lines[signed]):
        signed += 1
    note = "".join(f"{line}\n" for line in lines[at:signed])
    return KeptHead(int(body[1]), root, body[0], note), signed


def _root(text: str, at: int) -> str:
    try:
        decode_hash(text)
    except ValueError as error:
        raise ValueError(f"line {at + 1}: {error}") from None
    return text


def checkpoint_text(name: str, size: int, root: bytes) -> str:
    """Return the text of a checkpoint, without signatures. Raises ValueError for a bad name."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r}: expected a name without spaces and without +")
    return f"{name}\n{size}\n{encode_hash(root)}\n"


# Signatures.


def load_signing_key(pem: bytes) -> "Ed25519PrivateKey":
    """Return the private key of a PEM text. Raises ValueError."""
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:  # TypeError: it has a password
        raise ValueError(f"{error}: {EXPECTED_KEY}") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    raise ValueError(f"a key of another kind: {EXPECTED_KEY}")


def load_public_key(text: bytes) -> "Ed25519PublicKey":
    """Return the public key of a PEM text or of a `NAME+HASH+KEY` line. Raises ValueError."""
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    if b"PRIVATE KEY" in text:
        return load_signing_key(text).public_key()
    if b"-----BEGIN" not in text:
        return _public_key_of_line(text.decode(errors="replace").strip())
    try:
        key = load_pem_public_key(text)
    except ValueError as error:
        raise ValueError(f"{error}: {EXPECTED_KEY}") from None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise ValueError(f"a key of another kind: {EXPECTED_KEY}")


def _public_key_of_line(line: str) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

    encoded = line.split("+", 2)[-1]
    try:
        raw = base64.b64decode(encoded, validate=True)
        if raw[:1] != ED25519:
            raise ValueError("no Ed25519 key")
        return ed25519.Ed25519PublicKey.from_public_bytes(raw[1:])
    except ValueError:
        raise ValueError(f"{EXPECTED_KEY}, or NAME+HASH+KEY") from None


def key_hash(name: str, public: bytes) -> bytes:
    """Return the four bytes that name a key in a signature (c2sp.org/signed-note)."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + public).digest()[:4]


def verifier_line(name: str, key: "Ed25519PublicKey") -> str:
    """Return the public key as `NAME+HASH+KEY`, for other programs that verify notes."""
    public = key.public_bytes_raw()
    encoded = base64.b64encode(ED25519 + public).decode()
    return f"{name}+{key_hash(name, public).hex()}+{encoded}"


def sign_note(text: str, name: str, key: "Ed25519PrivateKey") -> str:
    """Return the note: the text, an empty line and a signature with the key of this name."""
    signature = key_hash(name, key.public_key().public_bytes_raw()) + key.sign(text.encode())
    return f"{text}\n— {name} {base64.b64encode(signature).decode()}\n"


def is_signed(head: KeptHead, key: "Ed25519PublicKey") -> bool:
    """Return whether a checkpoint has a signature of this key, under the name of the log."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

    text, found, signatures = head.note.rpartition("\n\n")
    expected = key_hash(head.name, key.public_bytes_raw())
    for line in signatures.split("\n") if found else ():
        match = SIGNATURE.fullmatch(line)
        try:
            raw = base64.b64decode(match[2], validate=True) if match else b""
            if match and match[1] == head.name and raw[:4] == expected:
                key.verify(raw[4:], f"{text}\n".encode())
                return True
        except (ValueError, InvalidSignature):
            continue
    return False
