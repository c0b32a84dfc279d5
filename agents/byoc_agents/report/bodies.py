"""Decodes kept bodies: decompresses zstd and gzip, splits batches and NDJSON."""

import zlib
from pathlib import Path
from typing import Any

import zstandard

from byoc_agents.app.files import open_regular
from byoc_agents.ledger.query import Send
from byoc_agents.schema.document import decode_exactly

MAX_BODY_BYTES = 64 * 1024**2  # decompressed: a limit for bodies that we did not write
ZSTD, GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"  # the first bytes; RFC 8878, RFC 1952


def plain(body: bytes) -> bytes:
    """Return the body without compression. Raises ValueError if it is damaged or too large."""
    try:
        if body.startswith(ZSTD):
            decoder = zstandard.ZstdDecompressor().decompressobj()
            text = (
                decoder.decompress(body) if _read_declared_bytes(body) <= MAX_BODY_BYTES else None
            )
            text = text if decoder.eof else None
        elif body.startswith(GZIP):
            stream = zlib.decompressobj(wbits=31)  # 31: a gzip header, as zlib numbers it
            text = stream.decompress(body, MAX_BODY_BYTES)
            text = text if stream.eof else None
        else:
            return body
    except (zstandard.ZstdError, zlib.error) as error:
        raise ValueError(f"damaged: {error}") from error
    if text is None:
        raise ValueError("damaged, or larger than any body of ours")
    return text


def _read_declared_bytes(body: bytes) -> int:
    return int(zstandard.get_frame_parameters(body).content_size)


def events_in(body: bytes) -> list[Any]:
    """Return the decoded events of a body, in any of the forms we send. Raises ValueError."""
    text = plain(body)
    if text.startswith(b"["):
        return list(decode_exactly(text))
    return [decode_exactly(line) for line in text.splitlines() if line]


def read_kept(send: Send) -> bytes | None:
    """Return the exact bytes; None if they were not kept, or were removed by rotation."""
    try:
        if not send.body:
            return None
        with open_regular(Path(send.body)) as file:
            return file.read(send.bytes + 1)  # one more, to detect a file that has grown
    except FileNotFoundError:
        return None
