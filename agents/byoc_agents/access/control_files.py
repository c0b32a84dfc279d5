"""The files by which the customer controls the broker: the policy and the kill switch.

Both are read again when they change. A file that cannot be read, for whatever reason, is the same
as a kill switch that is on: nothing opens, and everything that is open is closed.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from byoc_agents.access.errors import PolicyError
from byoc_agents.access.policy import MAX_POLICY_BYTES, Policy, load_policy
from byoc_agents.app.files import Content, FileContent, NotReadableError, Version

MAX_SWITCH_BYTES = 64
WAIT_SECONDS = 0.2  # at most per read of a file whose content is known
# A busy machine needs longer to start a thread. A file that does not respond within this time is
# unreadable until it does; together with one pass it is well below the 5 s of docs/access.md.
SLOW_SECONDS = 2.0
OFF, ON = b"off", b"on"  # only `off` allows access
UNREADABLE = "cannot be read"  # the end of a reason
MOUNTED = "the mounted switch"
DISABLED = "the policy is disabled"


class PendingRead(Protocol):
    """A read in a thread, such as `FileContent`."""

    def wait(self, seconds: float) -> bool:
        """Wait at most so many seconds; return whether the reading has ended."""
        ...

    def result(self) -> Content | None:
        """Return the content, None if it is not changed, or raise OSError or ValueError."""
        ...


StartReading = Callable[[str, int, Version | None], PendingRead]
LookUp = Callable[[Path], bytes]


def look_up_switch(path: Path) -> bytes:
    """Return ON if there is anything at the path, else OFF. May block. Raises OSError, ValueError.

    The folder itself must be there: a lost mount is not a switch that is off.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise NotReadableError(f"{path.parent}: expected a directory") from None
        return OFF
    return ON


class LocalReading:
    """One `look_up_switch` in a daemon thread, so that a hung volume blocks only that thread."""

    def __init__(
        self,
        path: str,
        _max_bytes: int = 0,
        _known: Version | None = None,
        look_up: LookUp = look_up_switch,
    ) -> None:
        """Start it. The arguments are those of `StartReading`."""
        self._path = Path(path)
        self._look_up = look_up
        self._content = b""
        self._error: Exception | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, name="switch", daemon=True).start()

    def _run(self) -> None:
        try:
            self._content = self._look_up(self._path)
        except (OSError, ValueError) as error:
            self._error = error
        finally:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        """Wait at most so many seconds; return whether it has ended."""
        return self._done.wait(seconds)

    def result(self) -> Content:
        """Return ON or OFF, or raise its error. Raises NotReadableError if it has not ended."""
        if not self._done.is_set():
            raise NotReadableError(f"{self._path} does not respond (a hung mount?)")
        if self._error:
            raise self._error
        return Content(self._content, Version(0, 0, 0))  # it has no versions


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
        self._reading: PendingRead | None = None  # a read that has not ended
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

    def __init__(
        self,
        local: Path,
        mounted: str = "",
        start: StartReading = LocalReading,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`local` is on while it exists. `mounted` is "" if there is no such file.

        `start` begins to look for the local file, and `monotonic` is a clock in seconds.
        """
        self._name = local.name
        self._local = WatchedFile(str(local), MAX_SWITCH_BYTES, start, monotonic)
        self._mounted = WatchedFile(mounted, MAX_SWITCH_BYTES) if mounted else None

    def find_reason(self) -> str:
        """Return why the kill switch is on, or "" if it is certain that it is off.

        Blocks as `WatchedFile.read`, for each of the two.
        """
        try:
            if self._local.read() != OFF:
                return self._name
        except (OSError, ValueError):
            return f"{self._name} {UNREADABLE}"
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
