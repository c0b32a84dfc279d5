"""Bytes that were found are written again, in place, and are the same bytes after it."""

import os
from pathlib import Path

import pytest

from byoc_agents.durable import files as settling
from byoc_agents.durable.files import rewrite_and_sync


def test_a_files_bytes_stay_and_its_inode_too(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    content = os.urandom(settling.CHUNK_BYTES * 2 + 17)
    file.write_bytes(content)
    before = file.stat()
    rewrite_and_sync(file)
    assert file.read_bytes() == content
    assert file.stat().st_ino == before.st_ino
    assert file.stat().st_mtime_ns > before.st_mtime_ns, "nothing was written"


def test_a_missing_file_is_nothing_to_settle(tmp_path: Path) -> None:
    rewrite_and_sync(tmp_path / "journal")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        rewrite_and_sync(tmp_path / "gone" / "journal")


def test_a_disk_that_takes_not_one_byte_is_an_error_and_no_endless_loop() -> None:
    assert settling.require_progress(1) == 1
    with pytest.raises(OSError, match="nothing was written"):
        settling.require_progress(0)
