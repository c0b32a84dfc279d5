"""DSSE envelopes with Ed25519 signatures: https://github.com/secure-systems-lab/dsse, version 1.

A signature covers the type of the payload and its exact bytes, so nothing is parsed before a pinned
key has verified it. Several keys may sign the same bytes: a threshold counts distinct keys.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from byoc_agents.errors import EnvelopeError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_ENVELOPE_BYTES = 64 * 1024  # 32 KiB of payload are 43 KiB in base64
MAX_PAYLOAD_BYTES = 32 * 1024
MAX_SIGNATURES = 8
KEY_BYTES = 32  # RFC 8032: public keys of Ed25519
SIGNATURE_BYTES = 64

ShortText = Annotated[str, msgspec.Meta(max_length=128)]


class VerifyingKey(msgspec.Struct, frozen=True):
    """A pinned public key. `not_after_ms` is when it stops to count; None = never."""

    id: str
    public: bytes  # 32 bytes
    not_after_ms: int | None = None


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature, base64. `keyid` is a hint that nothing protects."""

    sig: Annotated[str, msgspec.Meta(max_length=128)]
    keyid: ShortText = ""


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The JSON form. The payload is base64."""

    payload: str
    payload_type: ShortText
    signatures: Annotated[
        tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=MAX_SIGNATURES)
    ]


class Verified(NamedTuple):
    """A payload that enough pinned keys have signed."""

    payload: bytes
    payload_type: str
    key_ids: tuple[str, ...]  # of the keys that signed it, in the order of the pinned keys


def encode_for_signing(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def open_envelope(
    raw: bytes,
    payload_types: Sequence[str],
    keys: Sequence[VerifyingKey],
    *,
    threshold: int,
    now_ms: int,
) -> Verified:
    """Return the payload if `threshold` of the keys have signed it. Raises EnvelopeError.

    A key whose `not_after_ms` has passed does not count. The error is the same for a changed byte,
    an unknown key and an expired one, but for the ids of our own keys: an unknown sender
    learns nothing from it.
    """
    envelope, payload = _decode(raw)
    if envelope.payload_type not in payload_types:
        expected = " or ".join(payload_types)
        raise EnvelopeError("wrong_type", f"expected {expected}")
    message = encode_for_signing(envelope.payload_type, payload)
    signatures = [_decode_base64(s.sig, "a signature") for s in envelope.signatures]
    signed = [key for key in keys if any(_is_signed(key, s, message) for s in signatures)]
    current = [key for key in signed if key.not_after_ms is None or now_ms < key.not_after_ms]
    distinct = {key.public: key.id for key in current}
    if len(distinct) < threshold:
        expired = sorted({key.id for key in signed} - {key.id for key in current})
        note = f"; expired: {', '.join(expired)}" if expired else ""
        counted = f"{len(distinct)} of the pinned keys have signed it"
        raise EnvelopeError("too_few_signatures", f"{counted}, expected {threshold}{note}")
    return Verified(payload, envelope.payload_type, tuple(distinct.values()))


def read_unverified(raw: bytes) -> bytes:
    """Return the payload, which nobody may have signed. Raises EnvelopeError."""
    return _decode(raw)[1]


def sign(
    payload_type: str, payload: bytes, keys: Sequence[tuple[str, "Ed25519PrivateKey"]]
) -> bytes:
    """Return an envelope in JSON, signed with each (key id, private key)."""
    message = encode_for_signing(payload_type, payload)
    signatures = tuple(
        Signature(base64.b64encode(key.sign(message)).decode(), key_id) for key_id, key in keys
    )
    text = base64.b64encode(payload).decode()
    return msgspec.json.encode(Envelope(text, payload_type, signatures))


def _decode(raw: bytes) -> tuple[Envelope, bytes]:
    if len(raw) > MAX_ENVELOPE_BYTES:
        raise EnvelopeError("too_large", f"expected at most {MAX_ENVELOPE_BYTES} bytes")
    try:
        envelope = msgspec.json.decode(raw, type=Envelope)
        json.loads(raw, object_pairs_hook=_refuse_repeated)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise EnvelopeError("not_an_envelope", "expected a DSSE envelope in JSON") from None
    payload = _decode_base64(envelope.payload, "the payload")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise EnvelopeError("too_large", f"expected a payload of at most {MAX_PAYLOAD_BYTES} bytes")
    return envelope, payload


def _refuse_repeated(pairs: list[tuple[str, object]]) -> None:
    """Refuse a field that is given twice: two readers could verify different payloads."""
    names = {name for name, _ in pairs}
    if len(names) != len(pairs):
        raise EnvelopeError("not_an_envelope", "a field is given twice")


def _decode_base64(text: str, part: str) -> bytes:
    """Return the bytes of standard or URL-safe base64: DSSE allows both."""
    try:
        return base64.b64decode(text.translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        raise EnvelopeError("not_an_envelope", f"{part} is not base64") from None


def _is_signed(key: VerifyingKey, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  8 MiB, only in the broker
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PublicKey,
    )

    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
    except InvalidSignature:
        return False
    return True
