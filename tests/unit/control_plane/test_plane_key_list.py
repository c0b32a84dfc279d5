"""The compressed list of keys: the objects, in their order, are returned as they were added."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from zstandard import ZstdCompressor

from byoc_control_plane.bucket import Listed
from byoc_control_plane.key_list import BLOCK, ITEM_BYTES, KeyList

KEYS = st.text(st.characters(codec="utf-8") | st.sampled_from("\udc80\udcff\0\n"))
ITEMS = st.builds(Listed, KEYS, st.integers(0, 5 * 1024**4))


@given(st.lists(ITEMS), st.integers(0, 3 * BLOCK))
def test_a_list_returns_its_objects_in_their_order(items: list[Listed], more: int) -> None:
    expected = items + [Listed(f"key-{number}", number) for number in range(more)]
    keys = KeyList(ZstdCompressor())
    grown = sum(keys.add(item) for item in expected)
    assert list(keys) == expected
    assert list(keys) == expected  # may be read again
    assert grown == keys.bytes
    assert keys.bytes >= ITEM_BYTES * (len(expected) % BLOCK)


def test_many_keys_need_a_small_part_of_their_memory_as_a_list() -> None:
    keys = KeyList(ZstdCompressor())
    for number in range(100_000):
        pod = f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}"
        keys.add(
            Listed(
                f"v1/org=org-1/service=svc-{number // 100}/date=2026-11-23/hour=12/"
                f"{pod}-1795435199999-0000000000-0000000014.jsonl.zst",
                1600,
            )
        )
    assert keys.bytes < 100_000 * ITEM_BYTES // 5


def test_the_process_grows_by_little_more_than_what_is_counted() -> None:
    """A block that keeps its buffer of the uncompressed size would need 30 KiB each."""
    program = """
from zstandard import ZstdCompressor
from byoc_control_plane.bucket import Listed
from byoc_control_plane.key_list import KeyList

def resident_kib():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))

keys = KeyList(ZstdCompressor())
for number in range(5_000):
    keys.add(Listed(f"v1/org=org-1/service=svc-{number}/x", 1600))
before = resident_kib()
for number in range(500_000):
    keys.add(Listed(f"v1/org=org-1/service=svc-{number}/x", 1600))
print((resident_kib() - before) * 1024, keys.bytes)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    grown, counted = map(int, done.stdout.split())
    assert grown < 2 * counted + 4 * 1024**2
