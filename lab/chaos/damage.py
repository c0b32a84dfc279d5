"""Damage a spool's file while no process has it open, and return its contents."""

import os
import random
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

PAGE_BYTES = 4096
HEADER_BYTES = 100  # SQLite's database header
ALL = "SELECT id, body FROM message UNION ALL SELECT id, body FROM dead_letter"
JOURNAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24  # SQLite's file format, section 4.1
SALT, FRAME_SALT = slice(16, 24), slice(8, 16)  # the same in the header and in all frames in use
TAIL_FRAMES = 12  # at most so many of the last frames are hit


def held(spool: Path) -> dict[str, bytes]:
    """Return id -> body of all messages and dead letters, from a copy: reading changes files."""
    with tempfile.TemporaryDirectory() as place:
        for file in spool.parent.glob(f"{spool.name}*"):
            if file.name in {spool.name, f"{spool.name}-wal"}:
                shutil.copy(file, place)
        with closing(sqlite3.connect(Path(place) / spool.name)) as copy:
            try:
                return dict(copy.execute(ALL))
            except sqlite3.DatabaseError:  # killed before it had set a damaged one aside
                return {}


def damage(spool: Path, kind: str, rng: random.Random) -> None:
    """Damage the file or its journal in the way of `kind`."""
    match kind:
        case "spool_header":
            _overwrite(spool, 0, bytes(HEADER_BYTES))
        case "spool_page":
            _overwrite(spool, rng.randrange(spool.stat().st_size), rng.randbytes(PAGE_BYTES))
        case "spool_cut":
            os.truncate(spool, rng.randrange(spool.stat().st_size))
        case "spool_removed":
            for file in spool.parent.glob(f"{spool.name}*"):
                file.unlink()
        case _:
            _damage_journal(spool.with_name(f"{spool.name}-wal"), kind, rng)


def _damage_journal(journal: Path, kind: str, rng: random.Random) -> None:
    """Damage the end of a journal. After a clean stop there is none, or an empty one."""
    frames = frames_in_use(journal)
    if not frames:
        return
    size = FRAME_HEADER_BYTES + PAGE_BYTES
    first = max(0, frames - rng.randint(1, TAIL_FRAMES))
    at = JOURNAL_HEADER_BYTES + first * size + rng.randrange(size)
    match kind:
        case "journal_cut":
            os.truncate(journal, at)
        case "journal_flipped":
            with journal.open("rb") as opened:
                opened.seek(at)
                byte = opened.read(1)[0]
            _overwrite(journal, at, bytes([byte ^ (1 << rng.randrange(8))]))
        case "journal_removed":
            journal.unlink()


def frames_in_use(journal: Path) -> int:
    """Return the number of current frames in a journal; the frames after them are older."""
    if not journal.exists():
        return 0
    content = journal.read_bytes()
    size, number = FRAME_HEADER_BYTES + PAGE_BYTES, 0
    while frame := content[JOURNAL_HEADER_BYTES + number * size :][:size]:
        if len(frame) < size or frame[FRAME_SALT] != content[SALT]:
            break
        number += 1
    return number


def _overwrite(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)
