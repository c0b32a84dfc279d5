"""Messages to a local directory, for runs without a cloud: the same contract as S3.

Requires permission to create and link files below the root. The file's path is the message's id.
"""

import asyncio
import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from byoc_agents.delivery.sink import Transmit, transmit_unrecorded
from byoc_agents.durable.files import create_file, sync_directory
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Outcome, Receipt

MAX_BYTES = 5 * 1024**3  # as S3Sink
TEMPORARY = ".partial-"  # files that a killed process leaves; never a message

ERRNOS = {
    errno.EACCES: Reason.FORBIDDEN,
    errno.EPERM: Reason.FORBIDDEN,
    errno.EROFS: Reason.FORBIDDEN,  # a person must act
    errno.ENOENT: Reason.NOT_FOUND,  # the root is gone
    errno.ENOTDIR: Reason.NOT_FOUND,
    errno.EEXIST: Reason.NOT_FOUND,  # a file exists in place of a directory
    errno.ENAMETOOLONG: Reason.REJECTED,
    errno.EFBIG: Reason.TOO_LARGE,
}  # all others, such as a full disk, may be temporary: SERVER_ERROR


class DirectorySink:
    """Writes one file per message, complete or not at all, and never overwrites one.

    The root must exist, so that an unmounted volume is not mistaken for an empty one.
    """

    max_messages = 1
    max_bytes = MAX_BYTES

    def __init__(self, root: Path) -> None:
        self.destination = f"file://{root}"
        self._root = root

    def __repr__(self) -> str:
        """Return the root directory."""
        return f"DirectorySink({self._root})"

    async def __aenter__(self) -> Self:
        """Do nothing: there is nothing to open."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing: there is nothing to close."""

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        """Store each message once; see `Sink.send`. Writes in a thread."""
        return [
            outcome
            for message in batch
            for outcome in await transmit([message], partial(self._outcomes, message))
        ]

    async def _outcomes(self, message: Message) -> Sequence[Outcome]:
        return [await asyncio.to_thread(self._outcome, message)]

    def _outcome(self, message: Message) -> Outcome:
        try:
            path = find_path(self._root, message.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            receipt = _store(path, message.body)
            self._sync(path.parent)
        except OSError as error:
            return SendError(reason_of(error), os.strerror(error.errno or 0))
        except SendError as error:
            return error
        return receipt

    def _sync(self, directory: Path) -> None:
        """Make the new names durable, from the file's directory up to the root."""
        sync_directory(directory)
        if directory != self._root:
            self._sync(directory.parent)


def find_path(root: Path, key: str) -> Path:
    """Return the path of a key below `root`. Raises SendError if the path is not below it."""
    parts = PurePosixPath(key).parts
    odd = "/".join(parts) != key or not parts or ".." in parts or "\0" in key
    if odd or parts[-1].startswith(TEMPORARY):
        raise SendError(Reason.REJECTED, "the id is not a path below the root")
    path = root.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(root.resolve(strict=True)):
        raise SendError(Reason.FORBIDDEN, "a link below the root leads out of it")
    return path


def reason_of(error: OSError) -> Reason:
    """Return the reason for a file system error; an unlisted one may be temporary."""
    return ERRNOS.get(error.errno or 0, Reason.SERVER_ERROR)


def _store(path: Path, body: bytes) -> Receipt:
    try:
        create_file(path, body, prefix=TEMPORARY)
    except FileExistsError:
        if not stat.S_ISREG(path.lstat().st_mode):  # also not a link to a file
            raise SendError(Reason.FORBIDDEN, "the path of the id is not a regular file") from None
        return Receipt(Reason.ALREADY_STORED, 0)
    return Receipt(Reason.OK, 0, hashlib.sha256(body).hexdigest())
