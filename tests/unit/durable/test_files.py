"""Tests of the durable files that have no file of their own."""

import errno
import os
from pathlib import Path

import pytest

from byoc_agents.durable.files import unavailable_error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_has_one_text(number: int) -> None:
    """The reserve, the locks and SQLite's index meet it in turn: operators search for one text."""
    error = unavailable_error(Path("/state/spool"), OSError(number, os.strerror(number)))
    assert str(error) == "/state/spool: the disk is full"


def test_another_error_keeps_the_text_of_the_system() -> None:
    error = unavailable_error(Path("/state/spool"), OSError(errno.EROFS, os.strerror(errno.EROFS)))
    assert str(error) == "/state/spool: Read-only file system"
