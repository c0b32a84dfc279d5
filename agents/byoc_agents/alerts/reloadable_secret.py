"""A secret that may be rotated while we run: it is read again when its file changes."""

import time
from collections.abc import Callable

import structlog

from byoc_agents.app.files import MAX_SECRET_BYTES, FileContent, Version

WAIT_SECONDS = 0.2  # at most, and once: a file that takes longer is read in the background


class ReloadableSecret:
    """A fixed text, or the text of a file. Never printed: `repr` shows where it comes from."""

    def __init__(
        self,
        text: str,
        path: str = "",
        *,
        check_seconds: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the text of the start, and the path where it may change (empty = it cannot).

        The file is looked at no more often than once in `check_seconds`.
        """
        self._text = text.strip()
        self._path = path
        self._check_seconds = check_seconds
        self._monotonic = monotonic
        self._checked_at = -check_seconds  # monotonic seconds
        self._version: Version | None = None
        self._reading: FileContent | None = None  # one that has not ended

    def __repr__(self) -> str:
        """Return the file's name, or that it is fixed."""
        return f"ReloadableSecret({self._path or 'fixed'})"

    def __call__(self) -> str:
        """Return the secret now. Blocks for WAIT_SECONDS at most.

        A file that is unreadable, empty, no regular file, too large or that does not answer leaves
        the last value in place.
        """
        now = self._monotonic()
        if self._path and now - self._checked_at >= self._check_seconds:
            self._checked_at = now
            try:
                self._refresh()
            except (OSError, UnicodeDecodeError) as error:
                self._keep(type(error).__name__)
            except ValueError as error:
                self._keep(str(error))
        return self._text

    def words(self) -> list[str]:
        """Return every secret of the file: during a rotation it may hold the old and the new."""
        return self().split()

    def _refresh(self) -> None:
        late = self._reading
        reading = late or FileContent(self._path, MAX_SECRET_BYTES, self._version)
        if not reading.wait(0 if late else WAIT_SECONDS):
            self._reading = reading
            if not late:
                self._keep("the file does not answer")
            return
        self._reading = None
        content = reading.result()
        if content is None:
            return
        text = content.content.decode().strip()
        if text:
            self._text, self._version = text, content.version
        else:
            self._keep("empty")

    def _keep(self, reason: str) -> None:
        structlog.get_logger().warning("secret.reload_failed", path=self._path, reason=reason)
