"""The Merkle tree against the definitions of RFC 6962, and its proofs against every change."""

import hashlib

import pytest

from byoc_agents.ledger.tree import (
    EMPTY_ROOT,
    Leaves,
    TreeHead,
    continues,
    decode_hash,
    encode_hash,
    hash_children,
    hash_leaf,
    includes,
    prove_consistency,
    prove_inclusion,
)

SIZES = range(1, 34)
LEAVES = [hash_leaf(b'{"sequence":%d}' % number) for number in range(40)]
OTHER = hash_leaf(b"another line")


def defined_root(leaves: list[bytes]) -> bytes:
    """MTH of section 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return hash_children(defined_root(leaves[:middle]), defined_root(leaves[middle:]))


def known(leaves: list[bytes], removed: int = 0) -> Leaves:
    """Return the tree without its first leaves, of which only the subtrees are known."""
    head = TreeHead()
    for leaf in leaves[:removed]:
        head = head.add(leaf)
    return Leaves(head, leaves[removed:])


def test_the_values_that_certificate_transparency_publishes() -> None:
    assert EMPTY_ROOT.hex().startswith("e3b0c44298fc1c14")
    assert hash_leaf(b"").hex().startswith("6e340b9cffb37a98")
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
    leaves = [hash_leaf(bytes.fromhex(text)) for text in inputs]
    assert known(leaves).root_at(2).hex().startswith("fac54203e7cc696c")
    assert known(leaves).root_at(3).hex().startswith("aeb6bcfe274b70a1")
    assert known(leaves).root_at(7).hex().startswith("ddb89be403809e32")


@pytest.mark.parametrize("size", [0, *SIZES])
def test_the_root_is_the_defined_one_and_needs_one_hash_per_bit(size: int) -> None:
    head = TreeHead()
    for leaf in LEAVES[:size]:
        head = head.add(leaf)
    assert head.size == size
    assert head.root == defined_root(LEAVES[:size])
    assert len(head.subtrees) == size.bit_count()


@pytest.mark.parametrize("size", SIZES)
def test_each_leaf_is_proven_and_nothing_else(size: int) -> None:
    leaves, root = LEAVES[:size], defined_root(LEAVES[:size])
    for index, leaf in enumerate(leaves):
        path = prove_inclusion(known(leaves), index, size)
        assert includes(root, size, index, leaf, path)
        assert not includes(root, size, index, OTHER, path)
        assert not includes(OTHER, size, index, leaf, path)
        assert not includes(root, size, index, leaf, [*path, OTHER])
        assert not any(
            includes(root, size, other, leaf, path) for other in range(size) if other != index
        )
        for at in range(len(path)):
            assert not includes(root, size, index, leaf, [*path[:at], OTHER, *path[at + 1 :]])
            assert not includes(root, size, index, leaf, path[:at] + path[at + 1 :])


@pytest.mark.parametrize("size", SIZES)
def test_each_earlier_tree_is_continued_and_no_other(size: int) -> None:
    leaves, root = LEAVES[:size], defined_root(LEAVES[:size])
    for earlier in range(1, size + 1):
        old, proof = defined_root(leaves[:earlier]), prove_consistency(known(leaves), earlier, size)
        assert continues(old, earlier, root, size, proof)
        assert not continues(OTHER, earlier, root, size, proof)
        assert not continues(old, earlier, OTHER, size, proof)
        assert not continues(old, earlier, root, size, [*proof, OTHER])
        for at in range(len(proof)):
            assert not continues(old, earlier, root, size, [*proof[:at], OTHER, *proof[at + 1 :]])
        changed = [OTHER, *leaves[1:]]  # a history that was written again
        again = prove_consistency(known(changed), earlier, size)
        assert not continues(old, earlier, defined_root(changed), size, again)


def test_what_does_not_exist_is_not_proven() -> None:
    with pytest.raises(IndexError, match="leaf 3 of 3: expected 0 to 3"):
        prove_inclusion(known(LEAVES[:3]), 3, 3)
    with pytest.raises(IndexError, match="sizes 4 and 4: expected 0 to 3"):
        prove_consistency(known(LEAVES[:3]), 4, 4)
    assert not includes(EMPTY_ROOT, 0, 0, OTHER, [])
    assert not continues(EMPTY_ROOT, 0, OTHER, 1, [])


@pytest.mark.parametrize("removed", SIZES)
def test_proofs_about_what_is_kept_do_not_need_what_was_removed(removed: int) -> None:
    """The subtrees of the removed part are enough, for every size from there on."""
    kept, size = known(LEAVES, removed), len(LEAVES)
    for index in range(removed, size):
        assert prove_inclusion(kept, index, size) == prove_inclusion(known(LEAVES), index, size)
    for earlier in range(removed, size + 1):
        assert kept.root_at(earlier) == defined_root(LEAVES[:earlier])
        proof = prove_consistency(kept, earlier, size)
        assert proof == prove_consistency(known(LEAVES), earlier, size)
    with pytest.raises(IndexError, match=f"expected {removed} to 40, which are kept"):
        prove_inclusion(kept, removed - 1, size)
    with pytest.raises(IndexError, match=f"expected {removed} to 40, which are kept"):
        prove_consistency(kept, removed - 1, size)


def test_a_head_whose_hashes_do_not_fit_its_size_is_not_valid() -> None:
    assert TreeHead().valid
    assert known(LEAVES, 7).start.valid
    assert not TreeHead(3, (OTHER,)).valid
    assert not TreeHead(1, (OTHER[:-1],)).valid
    assert not TreeHead(-1, ()).valid


@pytest.mark.parametrize("text", ["", "AAAA", OTHER.hex(), encode_hash(OTHER)[:-1], "ä" * 44])
def test_a_text_that_is_no_hash_is_refused(text: str) -> None:
    assert decode_hash(encode_hash(OTHER)) == OTHER
    with pytest.raises(ValueError, match="expected the base64 of 32 bytes"):
        decode_hash(text)
