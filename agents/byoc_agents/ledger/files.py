"""All writes of a ledger, in one place so that a test can make each of them fail."""

import contextlib
import os
from pathlib import Path

from byoc_agents.durable.files import require_progress


class Disk:
    """The file system of the host. Every method may block and raises OSError."""

    def write(self, descriptor: int, content: bytes) -> None:
        """Append all of it, or raise with require_progress of it written."""
        view = memoryview(content)
        while view:
            view = view[require_progress(os.write(descriptor, view)) :]

    def sync(self, descriptor: int) -> None:
        """Wait until all written bytes survive a power cut."""
        os.fdatasync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cut the file to this length in bytes."""
        os.ftruncate(descriptor, size_bytes)

    def place(self, content: bytes, path: Path) -> None:
        """Create or replace a file atomically and durably."""
        partial = path.with_name(f"{path.name}.partial")
        descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        try:
            self.write(descriptor, content)
            self.sync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)  # noqa: PTH105  its name states that it replaces
        self.sync_directory(path.parent)

    def remove(self, path: Path) -> None:
        """Delete a file; it may be gone already."""
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        """Make the entries of a directory durable."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def size_bytes(path: Path) -> int:
    """Return the length of a file in bytes, or 0 if it does not exist. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
