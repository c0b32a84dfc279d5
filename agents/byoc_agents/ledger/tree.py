"""The Merkle tree over a ledger's lines, as RFC 6962 (section 2.1) defines it.

A leaf is the bytes of a line without its line end, the same bytes that `previous` and `sha256sum`
cover. So anybody can compute the root of a history from its text, a proof shows that one line is in
it, and two roots show whether one history continues another.
"""

import base64
import hashlib
from collections.abc import Sequence

import msgspec

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def hash_leaf(line: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256 of 0x00 and the line."""
    return hashlib.sha256(b"\x00" + line).digest()


def hash_children(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256 of 0x01 and the hashes of its children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class TreeHead(msgspec.Struct, frozen=True):
    """The number of leaves, and the roots of the complete subtrees, the largest first.

    That is all that is needed to add leaves: one hash per bit of the size that is set.
    """

    size: int = 0
    subtrees: tuple[bytes, ...] = ()

    def add(self, leaf_hash: bytes) -> "TreeHead":
        """Return the head after one more leaf."""
        subtrees, carried, size = list(self.subtrees), leaf_hash, self.size
        while size & 1:
            carried = hash_children(subtrees.pop(), carried)
            size >>= 1
        return TreeHead(self.size + 1, (*subtrees, carried))

    @property
    def root(self) -> bytes:
        """The root hash."""
        if not self.subtrees:
            return EMPTY_ROOT
        *rest, root = self.subtrees
        for left in reversed(rest):
            root = hash_children(left, root)
        return root

    @property
    def valid(self) -> bool:
        """Return whether the number and the lengths of the hashes fit the size."""
        fits = self.size >= 0 and len(self.subtrees) == self.size.bit_count()
        return fits and all(len(one) == HASH_BYTES for one in self.subtrees)

    def __str__(self) -> str:
        """Return `41 ev3MPk8...=`: the size, and the root in base64."""
        return f"{self.size} {encode_hash(self.root)}"


def encode_hash(value: bytes) -> str:
    """Return a hash in base64, as checkpoints and messages have it."""
    return base64.b64encode(value).decode()


def decode_hash(text: str) -> bytes:
    """Return the hash of its base64. Raises ValueError."""
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error, or characters that are not ASCII
        value = b""
    if len(value) != HASH_BYTES or encode_hash(value) != text:
        raise ValueError(f"{text!r}: expected the base64 of {HASH_BYTES} bytes")
    return value


def split(size: int) -> int:
    """Return the largest power of two below `size`, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


class Leaves:
    """The leaves of a tree from some leaf on, and the complete subtrees before it.

    The subtrees are those of the removed leaves: every root of a size from `start.size` on, and
    every proof about leaves and sizes from there on, can be computed from them.
    """

    def __init__(self, start: TreeHead, hashes: Sequence[bytes]) -> None:
        self.start = start
        self.hashes = hashes
        self.size = start.size + len(hashes)
        self._known: dict[tuple[int, int], bytes] = {}
        first = 0
        for bit, subtree in zip(_bits(start.size), start.subtrees, strict=True):
            self._known[first, first + bit] = subtree
            first += bit

    def root(self, first: int, last: int) -> bytes:
        """Return the root hash of the leaves from `first` to before `last`, a subtree of the tree.

        Raises IndexError if it needs leaves that were removed or do not exist.
        """
        if known := self._known.get((first, last)):
            return known
        if last - first > 1:
            middle = first + split(last - first)
            return hash_children(self.root(first, middle), self.root(middle, last))
        if not self.start.size <= first < self.size:
            raise IndexError(f"leaf {first}: expected {self.start.size} to {self.size - 1}")
        return self.hashes[first - self.start.size]

    def root_at(self, size: int) -> bytes:
        """Return the root hash of the tree when it had `size` leaves. Raises IndexError."""
        return self.root(0, size) if size else EMPTY_ROOT


def _bits(number: int) -> list[int]:
    """Return the powers of two whose sum is the number, the largest first."""
    return [1 << bit for bit in reversed(range(number.bit_length())) if number >> bit & 1]


def prove_inclusion(leaves: Leaves, index: int, size: int) -> list[bytes]:
    """Return the audit path of a leaf in the tree of `size` leaves (RFC 6962, section 2.1.1).

    From the leaf to the root. Raises IndexError if the tree has no such leaf, or it was removed.
    """
    if not leaves.start.size <= index < size <= leaves.size:
        raise IndexError(f"leaf {index} of {size}: expected {_describe_kept(leaves)}")
    path: list[bytes] = []
    first, last = 0, size
    while last - first > 1:
        middle = first + split(last - first)
        if index < middle:
            path.append(leaves.root(middle, last))
            last = middle
        else:
            path.append(leaves.root(first, middle))
            first = middle
    return path[::-1]


def prove_consistency(leaves: Leaves, earlier: int, size: int) -> list[bytes]:
    """Return the proof that the tree of `earlier` leaves is a prefix (RFC 6962, section 2.1.2).

    Raises IndexError if the tree never had these sizes, or if the leaves of one were removed.
    """
    if not max(1, leaves.start.size) <= earlier <= size <= leaves.size:
        raise IndexError(f"sizes {earlier} and {size}: expected {_describe_kept(leaves)}")
    return _subproof(leaves, 0, earlier, size, complete=True)


def _subproof(
    leaves: Leaves, first: int, earlier: int, last: int, *, complete: bool
) -> list[bytes]:
    if earlier == last:
        return [] if complete else [leaves.root(first, last)]
    middle = first + split(last - first)
    if earlier <= middle:
        left = _subproof(leaves, first, earlier, middle, complete=complete)
        return [*left, leaves.root(middle, last)]
    right = _subproof(leaves, middle, earlier, last, complete=False)
    return [*right, leaves.root(first, middle)]


def _describe_kept(leaves: Leaves) -> str:
    return f"{leaves.start.size} to {leaves.size}, which are kept"


def includes(root: bytes, size: int, index: int, leaf_hash: bytes, path: Sequence[bytes]) -> bool:
    """Return whether the path proves that a leaf is at `index` of the tree (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, leaf_hash
    for sibling in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = hash_children(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = hash_children(found, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def continues(
    earlier_root: bytes, earlier: int, root: bytes, size: int, proof: Sequence[bytes]
) -> bool:
    """Return whether the proof shows that one tree is a prefix of the other (RFC 9162, 2.1.4.2)."""
    if not 0 < earlier <= size:
        return False
    if earlier == size:
        return not proof and earlier_root == root
    path = list(proof)
    if earlier & (earlier - 1) == 0:  # a complete subtree: its root is the earlier root
        path.insert(0, earlier_root)
    if not path:
        return False
    at, last = earlier - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old, new = hash_children(sibling, old), hash_children(sibling, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = hash_children(new, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and old == earlier_root and new == root
