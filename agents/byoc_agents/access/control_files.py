"""The files by which the customer controls the broker: the policy and the kill switch.

Both are read again when they change. A file that cannot be read, for whatever reason, is the same
as a kill switch that is on: nothing opens, and everything that is open is closed.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from byoc_agents.access.errors import PolicyError
from byoc_agents.access.policy import MAX_POLICY_BYTES, Policy, load_policy
from byoc_agents.app.files import FileContent, Version

MAX_SWITCH_BYTES = 64
WAIT_SECONDS = 0.2  # at most per read of a file whose content is known
# A busy machine needs longer to start a thread. A file that does not respond within this time is
# unreadable until it does; together with one pass it is well below the 5 s of docs/access.md.
SLOW_SECONDS = 2.0
OFF = b"off"  # the only content of a kill switch that allows access
UNREADABLE = "cannot be read"  # the end of a reason
MOUNTED = "the mounted switch"
DISABLED = "the policy is disabled"


StartReading = Callable[[str, int, Version | None], FileContent]


class WatchedFile:
    """The content of a file that others replace."""

    def __init__(
        self,
        path: str,
        max_bytes: int,
        start: StartReading = FileContent,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start` begins to read the file, and `monotonic` is a clock in seconds."""
        self.path = path
        self._max_bytes = max_bytes
        self._start = start
        self._monotonic = monotonic
        self._content = b""
        self._version: Version | None = None  # None = the content is not known
        self._reading: FileContent | None = None  # a read that has not ended
        self._started = 0.0  # when it began

    def read(self) -> bytes:
        """Return the content. Raises OSError, ValueError.

        Blocks for WAIT_SECONDS at most, and for SLOW_SECONDS if no content is known. A known
        content counts while a read takes longer, but never for more than SLOW_SECONDS.
        """
        late = self._reading
        if late is None:
            self._started = self._monotonic()
        reading = late or self._start(self.path, self._max_bytes, self._version)
        patience = WAIT_SECONDS if self._version else SLOW_SECONDS
        if not reading.wait(0 if late else patience):
            self._reading = reading
            if self._version and self._monotonic() - self._started < SLOW_SECONDS:
                return self._content
            reading.result()  # raises NotReadableError
        self._reading = None
        try:
            found = reading.result()
        except BaseException:
            self._version = None  # read all of it next time
            raise
        if found is not None:
            self._content, self._version = found.content, found.version
        if late:  # it is of an earlier moment
            return self.read()
        return self._content


class PolicySource:
    """The policy file."""

    def __init__(self, path: str) -> None:
        self._file = WatchedFile(path, MAX_POLICY_BYTES)
        self._loaded: tuple[bytes, Policy | PolicyError] | None = None

    def load(self) -> Policy:
        """Return the policy of now. Raises PolicyError."""
        try:
            content = self._file.read()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise PolicyError(f"{self._file.path}: {why}: expected a policy file") from None
        if self._loaded is None or self._loaded[0] != content:
            self._loaded = (content, _try_to_load(content))
        result = self._loaded[1]
        if isinstance(result, PolicyError):
            raise PolicyError(*result.args)
        return result


def _try_to_load(content: bytes) -> Policy | PolicyError:
    try:
        return load_policy(content)
    except PolicyError as error:
        return error


class KillSwitch:
    """Two switches: a file that the command line creates, and a mounted file with `on` or `off`."""

    def __init__(self, local: Path, mounted: str = "") -> None:
        """`local` is on while it exists. `mounted` is "" if there is no such file."""
        self._local = local
        self._mounted = WatchedFile(mounted, MAX_SWITCH_BYTES) if mounted else None

    def find_reason(self) -> str:
        """Return why the kill switch is on, or "" if it is certain that it is off. May block."""
        try:
            os.lstat(self._local)
        except OSError as error:
            if error.errno != errno.ENOENT:
                return f"{self._local.name} {UNREADABLE}"
            # The folder itself must be there: a lost mount is not a switch that is off.
            if not self._local.parent.is_dir():
                return f"{self._local.name} {UNREADABLE}"
        else:
            return self._local.name
        if self._mounted is None:
            return ""
        try:
            content = self._mounted.read().strip()
        except (OSError, ValueError):
            return f"{MOUNTED} {UNREADABLE}"
        return "" if content == OFF else MOUNTED


def find_kind(reason: str) -> str:
    """Return what has set a kill switch, for a program: a word of a closed set."""
    if reason.endswith(UNREADABLE):
        return "unreadable"
    return {DISABLED: "policy", MOUNTED: "mounted"}.get(reason, "file")
