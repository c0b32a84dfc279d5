"""Objects of a listing (key and size), compressed: less than a fifth of the memory of a list.

A backlog has a million objects. The compactor lists the bucket again for those that do not fit.
"""

from collections.abc import Iterator

import msgspec
import zstandard

from byoc_control_plane.bucket import Listed

BLOCK = 250  # keys that are compressed together
ITEM_BYTES = 250  # of an item that is not compressed yet, with a key of 110 characters

Pairs = list[tuple[bytes, int]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pairs).decode


class KeyList:
    """Keys and sizes of objects, in the order in which they were added."""

    def __init__(self, zstd: zstandard.ZstdCompressor) -> None:
        """`zstd` may be shared by the lists of one thread."""
        self._zstd = zstd
        self._blocks: list[bytes] = []
        self._last: Pairs = []
        self.bytes = 0  # of memory, approximately

    def add(self, item: Listed) -> int:
        """Add an object; return by how many bytes the memory grew, which may be negative."""
        grown = ITEM_BYTES
        self._last.append((item.key.encode(errors="surrogateescape"), item.size))
        if len(self._last) == BLOCK:
            # A copy: zstandard shrinks a buffer of the full size, and keeps the rest allocated.
            block = bytes(memoryview(self._zstd.compress(_encode(self._last))))
            grown += len(block) - ITEM_BYTES * BLOCK
            self._blocks.append(block)
            self._last = []
        self.bytes += grown
        return grown

    def __iter__(self) -> Iterator[Listed]:
        """Yield the objects in their order."""
        for block in self._blocks:
            yield from _listed(_decode(zstandard.ZstdDecompressor().decompress(block)))
        yield from _listed(self._last)


def _listed(pairs: Pairs) -> Iterator[Listed]:
    for key, size in pairs:
        yield Listed(key.decode(errors="surrogateescape"), size)
