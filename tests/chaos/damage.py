"""Damages a spool's file while nobody has it open, and says what lay in it."""

import os
import random
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

PAGE_BYTES = 4096
HEADER_BYTES = 100  # SQLite's database header


def held(spool: Path) -> dict[str, bytes]:
    """Return id -> body of a spool's messages, read from a copy: a look changes the journal."""
    with tempfile.TemporaryDirectory() as place:
        for file in spool.parent.glob(f"{spool.name}*"):
            if file.name in {spool.name, f"{spool.name}-wal"}:
                shutil.copy(file, place)
        with closing(sqlite3.connect(Path(place) / spool.name)) as copy:
            try:
                return dict(copy.execute("SELECT id, body FROM message"))
            except sqlite3.DatabaseError:  # killed before it had set a damaged one aside
                return {}


def damage(spool: Path, kind: str, rng: random.Random) -> None:
    """Do to the file what `kind` says. Its journal stays as it is, but for a file that is gone."""
    size = spool.stat().st_size
    match kind:
        case "spool_header":
            _overwrite(spool, 0, bytes(HEADER_BYTES))
        case "spool_page":
            _overwrite(spool, rng.randrange(size), rng.randbytes(PAGE_BYTES))
        case "spool_cut":
            os.truncate(spool, rng.randrange(size))
        case "spool_removed":
            for file in spool.parent.glob(f"{spool.name}*"):
                file.unlink()


def _overwrite(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)
