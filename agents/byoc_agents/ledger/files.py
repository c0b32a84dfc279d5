"""The writes a ledger makes, in one place: so that a test can let each of them fail."""

import contextlib
import os
from pathlib import Path

from byoc_agents.durable.files import some


class Disk:
    """The machine's own. Every method may block and raises OSError."""

    def write(self, descriptor: int, content: bytes) -> None:
        """Append all of it, or raise with some of it written."""
        view = memoryview(content)
        while view:
            view = view[some(os.write(descriptor, view)) :]

    def sync(self, descriptor: int) -> None:
        """Wait until what was written survives a power cut."""
        os.fdatasync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cut the end off."""
        os.ftruncate(descriptor, size_bytes)

    def place(self, content: bytes, path: Path) -> None:
        """Make a whole file appear at once, durably. Replaces what is there."""
        partial = path.with_name(f"{path.name}.partial")
        descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        try:
            self.write(descriptor, content)
            self.sync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)  # noqa: PTH105  the one that says it replaces
        self.sync_directory(path.parent)

    def remove(self, path: Path) -> None:
        """Delete a file; it may be gone already."""
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        """Make the names in a directory durable."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def size_bytes(path: Path) -> int:
    """Return the length of a file; 0 where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
