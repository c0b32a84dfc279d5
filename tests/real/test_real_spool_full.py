"""A spool on a disk that is full to the last block: an error, never a signal that ends the daemon.

The file system has blocks of 1 KiB, so SQLite's index of its journal would have holes.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.real.burner import ROOT
from lab.real.disks import DISK_BYTES, fill
from lab.real.parts import kernel

BLOCK_BYTES = 1024
JOURNAL_BYTES = 256 * 1024
MAKE = """
import pathlib, sys
from byoc_agents.durable.model import WriteBatch
from byoc_agents.errors import SpoolError
from byoc_agents.durable.store import SpoolStore
store = SpoolStore(pathlib.Path(sys.argv[1]), max_bytes=1 << 30)
"""
USE = """
print("open", flush=True)
sys.stdin.readline()
with store.transaction():
    store.apply(WriteBatch(stage=[b"x" * 2000]))
print("written")
"""


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Path]:
    """Make a spool on an ext4 with blocks of 1 KiB; mkfs chooses them for every small disk."""
    with kernel.ext4(tmp_path / "disk", DISK_BYTES) as directory:
        assert os.statvfs(directory).f_bsize == BLOCK_BYTES
        with python(MAKE, directory / "spool.db") as made:
            made.communicate()
        assert made.returncode == 0
        yield directory / "spool.db"


def python(code: str, path: Path) -> subprocess.Popen[str]:
    """Start a separate process: a failure would end this one."""
    command = [sys.executable, "-c", code, str(path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def leave(blocks: int, directory: Path) -> None:
    """Fill the disk but for that many blocks."""
    other = directory / "other"
    fill(other)
    os.truncate(other, other.stat().st_size - blocks * BLOCK_BYTES)


@pytest.mark.parametrize("blocks", [0, 8, 12, 20, 28])
def test_opening_a_spool_on_a_full_disk_is_an_error(spool: Path, blocks: int) -> None:
    leave(blocks, spool.parent)
    with python(MAKE, spool) as opening:
        _, said = opening.communicate()
    assert opening.returncode == 1, f"ended with {opening.returncode}"
    assert f"SpoolUnavailableError: {spool.parent}: the disk is full\n" in said


def test_the_first_write_after_the_disk_has_filled_up_is_no_signal(spool: Path) -> None:
    with python(MAKE + USE, spool) as writing:
        assert writing.stdout is not None
        assert writing.stdout.readline() == "open\n"
        with spool.with_name("spool.db-wal").open("r+b") as journal:
            journal.write(bytes(JOURNAL_BYTES))  # it has room; only its index lacks it
        leave(0, spool.parent)
        out, said = writing.communicate("\n")
    assert (writing.returncode, out) == (0, "written\n"), said
