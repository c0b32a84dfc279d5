"""A secret that may be rotated while the daemon runs: its file is read again when it changes."""

import time
from collections.abc import Callable, Sequence

import structlog

from byoc_agents.app.files import MAX_SECRET_BYTES, FileContent, Version

WAIT_SECONDS = 0.2  # at most, once per read; a slower file is then read in the background


class ReloadableSecret:
    """A fixed text or the text of a file. `repr` shows only the source, never the secret."""

    def __init__(
        self,
        text: str,
        path: str = "",
        *,
        check_seconds: float = 0.0,
        max_bytes: int = MAX_SECRET_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the secret from its text and the path of its file (empty = it never changes).

        The file is checked for changes at most once per `check_seconds`, and may have `max_bytes`.
        """
        self._text = text.strip()
        self._values = tuple(self._text.split())
        self._path = path
        self._check_seconds = check_seconds
        self._max_bytes = max_bytes
        self._monotonic = monotonic
        self._checked_at = -check_seconds  # monotonic seconds
        self._version: Version | None = None
        self._reading: FileContent | None = None  # a read in progress

    def __repr__(self) -> str:
        """Return the file's path, or `fixed`."""
        return f"ReloadableSecret({self._path or 'fixed'})"

    def __call__(self) -> str:
        """Return the current secret. Blocks for WAIT_SECONDS at most.

        The last value is kept while the file is unreadable, empty, not a regular file, too large or
        slow to read.
        """
        if not self._path:
            return self._text
        now = self._monotonic()
        if now - self._checked_at >= self._check_seconds:
            self._checked_at = now
            try:
                self._refresh()
            except (OSError, UnicodeDecodeError) as error:
                self._log_failure(type(error).__name__)
            except ValueError as error:
                self._log_failure(str(error))
        return self._text

    def values(self) -> Sequence[str]:
        """Return every secret of the file, which may hold the old and the new during a rotation."""
        self()
        return self._values

    def _refresh(self) -> None:
        late = self._reading
        reading = late or FileContent(self._path, self._max_bytes, self._version)
        if not reading.wait(0 if late else WAIT_SECONDS):
            self._reading = reading
            if not late:
                self._log_failure("timed out")
            return
        self._reading = None
        content = reading.result()
        if content is None:
            return
        text = content.content.decode().strip()
        if text:
            self._text, self._version = text, content.version
            self._values = tuple(text.split())
        else:
            self._log_failure("empty")

    def _log_failure(self, reason: str) -> None:
        structlog.get_logger().warning("secret.reload_failed", path=self._path, reason=reason)
