"""The files of a ledger: numbered segments, and the other files of each number.

    ledger-000007.jsonl      lines
    bodies/000007/<sha256>   exact bytes, if they are kept
    aside-000007-<offset>    the torn end of a write, cut off at a start
    foreign-000007-<offset>  a file that replaced the segment and was not written by byoc-agents,
                             renamed: not counted in the limit and never removed

All of one number goes together, oldest first, so the whole directory stays within one bound.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from byoc_agents.app.files import open_regular
from byoc_agents.durable.files import Disk, size_bytes
from byoc_agents.ledger.format import LedgerMessage
from byoc_agents.message import Message

NAME = re.compile(r"ledger-(\d{6,})\.jsonl", re.ASCII)
ASIDE = re.compile(r"aside-(\d{6,})-\d+", re.ASCII)
FOREIGN = re.compile(r"foreign-(\d{6,})-\d+", re.ASCII)


class Segments:
    """The directory. Every method may block and raises OSError."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self.directory = directory
        self.sizes: dict[int, int] = {}  # bytes of everything that has this number
        self._aside_of: dict[int, list[Path]] = {}  # since `load`: a list of the directory is long
        self._disk = disk or Disk()

    def load(self) -> None:
        """Create the directory, delete incomplete files and measure the others."""
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True)
            self._disk.sync_directory(self.directory.parent)
        for partial in self.directory.glob("*.partial"):
            partial.unlink()
        self._aside_of = {}
        for number, path in self.asides():
            self._aside_of.setdefault(number, []).append(path)
        self.sizes = {number: self._measure(number) for number in self.numbers()}

    def numbers(self) -> list[int]:
        """Return the numbers of the files that are there, oldest first."""
        found = (NAME.fullmatch(name) for name in _names(self.directory))
        return sorted(int(match[1]) for match in found if match)

    def total_bytes(self) -> int:
        """Return the bytes of all of it, as last counted."""
        return sum(self.sizes.values())

    def path(self, number: int) -> Path:
        """Return the path of the lines of a segment."""
        return self.directory / f"ledger-{number:06}.jsonl"

    def body_path(self, number: int, sha256: str) -> Path:
        """Return the path of an exact body, if it was kept."""
        return self._bodies(number) / sha256

    def asides(self) -> list[tuple[int, Path]]:
        """Return the torn ends, each with the number of its segment."""
        matches = (ASIDE.fullmatch(name) for name in _names(self.directory))
        return [(int(match[1]), self.directory / match[0]) for match in matches if match]

    def set_aside(self, number: int, offset: int, content: bytes) -> Path:
        """Keep bytes that are cut off a segment's end."""
        path = self.directory / f"aside-{number:06}-{offset}"
        self._disk.place(content, path)
        self._aside_of.setdefault(number, []).append(path)
        self.sizes[number] = self.sizes.get(number, 0) + len(content)
        return path

    def foreign(self) -> list[tuple[int, Path]]:
        """Return the renamed foreign files, each with the number of its segment."""
        matches = (FOREIGN.fullmatch(name) for name in _names(self.directory))
        return [(int(match[1]), self.directory / match[0]) for match in matches if match]

    def set_foreign_aside(self, number: int, good_bytes: int | None) -> Path:
        """Rename a foreign file in the place of a segment, of any size, without reading it.

        Its first `good_bytes`, which are a chain of ours, become the segment again. None = it
        has no chain. After a crash half-way it can be called again.
        """
        path = self.path(number)
        aside = self.directory / f"foreign-{number:06}-{good_bytes or 0}"
        while os.path.lexists(aside):
            aside = aside.with_name(f"{aside.name}0")
        if not good_bytes:
            path.rename(aside)
            self._disk.sync_directory(self.directory)
            self.sizes.pop(number, None)
            return aside
        with open_regular(path) as file:
            content = file.read(good_bytes)
        os.link(path, aside)
        self.create(number, content)
        return aside

    def create(self, number: int, content: bytes) -> None:
        """Make a segment with its first line."""
        self._disk.place(content, self.path(number))
        self.sizes[number] = len(content)

    def keep_bodies(
        self, number: int, messages: Sequence[Message], sent: Sequence[LedgerMessage]
    ) -> None:
        """Store the bodies that are marked as kept, once each, durably."""
        bodies = self._bodies(number)
        for message, about in zip(messages, sent, strict=True):
            path = bodies / about.sha256
            if about.kept and size_bytes(path) != about.bytes:
                if not bodies.is_dir():
                    bodies.mkdir(mode=0o700, parents=True)
                    self._disk.sync_directory(bodies.parent)
                    self._disk.sync_directory(self.directory)
                self._disk.place(message.body, path)
                self.sizes[number] = self.sizes.get(number, 0) + about.bytes

    def remove(self, number: int) -> None:
        """Delete a segment; its lines go last, so that a crash half-way is finished later."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._bodies(number))
        for aside in self._aside_of.get(number, ()):
            self._disk.remove(aside)
        self._disk.remove(self.path(number))
        self._aside_of.pop(number, None)
        self.sizes.pop(number, None)

    def _bodies(self, number: int) -> Path:
        return self.directory / "bodies" / f"{number:06}"

    def _measure(self, number: int) -> int:
        files = [self.path(number), *self._aside_of.get(number, ())]
        with contextlib.suppress(FileNotFoundError):
            files += self._bodies(number).iterdir()
        return sum(size_bytes(file) for file in files)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208  names are all we want
    except FileNotFoundError:
        return []
