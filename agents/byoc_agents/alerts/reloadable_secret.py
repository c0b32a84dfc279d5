"""A secret that may be rotated while we run: it is read again when its file changes."""

from pathlib import Path

import structlog

Version = tuple[int, int, int]  # mtime in nanoseconds, size, inode: Kubernetes swaps a symlink


class Secret:
    """A fixed text, or the text of a file. Never printed: `repr` shows where it comes from."""

    def __init__(self, text: str, path: str = "") -> None:
        """Take the text of the start, and the path where it may change (empty = it cannot)."""
        self._text = text.strip()
        self._path = Path(path) if path else None
        self._version: Version | None = None

    def __repr__(self) -> str:
        """Return the file's name, or that it is fixed."""
        return f"Secret({self._path or 'fixed'})"

    def __call__(self) -> str:
        """Return the secret now. An unreadable or empty file leaves the last one in place."""
        if self._path is not None:
            try:
                self._refresh(self._path)
            except (OSError, UnicodeDecodeError) as error:
                self._keep(type(error).__name__)
        return self._text

    def words(self) -> list[str]:
        """Return every secret of the file: during a rotation it may hold the old and the new."""
        return self().split()

    def _refresh(self, path: Path) -> None:
        stat = path.stat()
        version = stat.st_mtime_ns, stat.st_size, stat.st_ino
        if version == self._version:
            return
        text = path.read_text().strip()
        if text:
            self._text, self._version = text, version
        else:
            self._keep("empty")

    def _keep(self, reason: str) -> None:
        structlog.get_logger().warning("secret.kept", path=str(self._path), reason=reason)
