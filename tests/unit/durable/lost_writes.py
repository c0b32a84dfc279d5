"""Simulate a power cut in a commit: each sector that was not synced may be lost.

SQLite syncs the journal at the end of a commit. Where it then moves the journal into the file, it
syncs the journal before that and the file after it. So a cut falls into the first half, when the
file is as it was, or into the second, when all of the journal is there.
"""

import random
from pathlib import Path

SECTOR_BYTES = 512
FILES = ("spool.db", "spool.db-wal")

Image = dict[str, bytes]


def image(directory: Path) -> Image:
    """Return the spool's files as stored: the durable state if no write is in progress."""
    paths = (directory / name for name in FILES)
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def cut_short(before: Image, after: Image, rng: random.Random) -> tuple[Image, bool]:
    """Return the files after a cut between two images, and whether the commit must be there."""
    file, journal = FILES
    old, new = before.get(file, b""), after.get(file, b"")
    committed = old != new and rng.random() < 0.5
    if committed:
        return {**after, file: mixed(old, new, rng)}, True
    return {**before, journal: mixed(before.get(journal, b""), after.get(journal, b""), rng)}, False


def mixed(old: bytes, new: bytes, rng: random.Random) -> bytes:
    """Return content in which any sector may be the old one. The new content may be cut short."""
    chance = rng.choice([0.1, 0.5, 0.9])
    found = bytearray()
    for start in range(0, max(len(old), len(new)), SECTOR_BYTES):
        pieces = old[start : start + SECTOR_BYTES], new[start : start + SECTOR_BYTES]
        there = pieces[1] if rng.random() < chance else pieces[0]
        found += there.ljust(max(map(len, pieces)), b"\0")
    return bytes(found[: rng.choice([len(old), len(new), max(len(old), len(new))])])
