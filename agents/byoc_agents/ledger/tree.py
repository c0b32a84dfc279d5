"""The Merkle tree over a ledger's lines, as RFC 6962 (section 2.1) defines it.

A leaf is the bytes of a line without its line end, the same bytes that `previous` and `sha256sum`
cover. So anybody can compute the root of a history from its text, a proof shows that one line is in
it, and two roots show whether one history continues another.
"""

import hashlib
from collections.abc import Callable, Sequence

import msgspec

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
ReadRange = Callable[[int, int], bytes]  # (first leaf, number of leaves, a power of two) -> hash


def hash_leaf(line: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256 of 0x00 and the line."""
    return hashlib.sha256(b"\x00" + line).digest()


def hash_children(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256 of 0x01 and the hashes of its children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class TreeHead(msgspec.Struct, frozen=True):
    """The number of leaves, and the roots of the complete subtrees, the largest first.

    That is all that is needed to add leaves: at most one hash per bit of the size.
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


def split(size: int) -> int:
    """Return the largest power of two below `size`, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the root hash of leaf hashes."""
    head = TreeHead()
    for leaf in leaves:
        head = head.add(leaf)
    return head.root


def prove_inclusion(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the audit path of a leaf, from the leaf to the root (RFC 6962, section 2.1.1).

    Raises IndexError if there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of a tree with {len(leaves)} leaves")
    if len(leaves) == 1:
        return []
    middle = split(len(leaves))
    if index < middle:
        return [*prove_inclusion(leaves[:middle], index), root_of(leaves[middle:])]
    return [*prove_inclusion(leaves[middle:], index - middle), root_of(leaves[:middle])]


def prove_consistency(leaves: Sequence[bytes], earlier: int) -> list[bytes]:
    """Return the proof that the first `earlier` leaves are a prefix (section 2.1.2).

    Raises IndexError if there were never that many, or none.
    """
    if not 0 < earlier <= len(leaves):
        raise IndexError(f"a size of {earlier} of a tree with {len(leaves)} leaves")
    return _subproof(leaves, earlier, complete=True)


def _subproof(leaves: Sequence[bytes], earlier: int, *, complete: bool) -> list[bytes]:
    if earlier == len(leaves):
        return [] if complete else [root_of(leaves)]
    middle = split(len(leaves))
    if earlier <= middle:
        left = _subproof(leaves[:middle], earlier, complete=complete)
        return [*left, root_of(leaves[middle:])]
    right = _subproof(leaves[middle:], earlier - middle, complete=False)
    return [*right, root_of(leaves[:middle])]


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
