"""The compactor's bucket as a directory: the scrapers' `BYOC_BILLING_BUCKET=file:///DIRECTORY`.

Requires permission to read, create, link and delete files below it. Directories stay when they are
empty, because a scraper may create a file in one at any time.
"""

import errno
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Sequence
from pathlib import Path

from byoc_agents.durable.files import create_file, sync_directory
from byoc_agents.sinks.directory import TEMPORARY, find_path
from byoc_control_plane.bucket import Bucket, ExistsError, Listed


class DirectoryBucket(Bucket):
    """Files below a directory. All methods block, and raise OSError."""

    def __init__(self, root: Path) -> None:
        """`root` exists."""
        super().__init__(None, str(root))
        self._root = root

    async def list_objects(self, prefix: str) -> AsyncIterator[Listed]:
        """See `Bucket.list_objects`. Files whose name begins with a dot are not listed."""
        folder, _, start = prefix.rpartition("/")
        for item in _list(self._root / folder, f"{folder}/" if folder else "", start):
            yield item

    async def get(self, key: str) -> bytes | str | None:
        """See `Bucket.get`. A link is not followed."""
        try:
            descriptor = os.open(self._root / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return "not a regular file"
            raise
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    async def get_in_order(
        self, items: AsyncIterable[Listed]
    ) -> AsyncGenerator[tuple[Listed, bytes | str | None], None]:
        """See `Bucket.get_in_order`. Reads one file at a time."""
        async for item in items:
            yield item, await self.get(item.key)

    async def put_once(
        self, key: str, body: bytes, _content_type: str = "", _encoding: str = "", /
    ) -> None:
        """See `Bucket.put_once`. The file is complete and durable, or does not exist.

        A file has no place for the type and the encoding. Raises SendError if the key is not a
        path below the directory.
        """
        path = find_path(self._root, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            create_file(path, body, prefix=TEMPORARY)
        except FileExistsError:
            if await self.get(key) != body:
                raise ExistsError(key) from None
        for directory in path.parents:
            sync_directory(directory)
            if directory == self._root:
                return

    async def delete(self, keys: Sequence[str]) -> dict[str, str]:
        """See `Bucket.delete`. A file that does not exist counts as deleted, as in S3."""
        failed: dict[str, str] = {}
        for key in keys:
            try:
                (self._root / key).unlink(missing_ok=True)
            except OSError as error:
                failed[key] = os.strerror(error.errno or 0)
        return failed


def _list(folder: Path | str, prefix: str, start: str = "") -> Iterator[Listed]:
    """Yield the files below a folder in the order of their keys, as S3 does."""
    try:
        with os.scandir(folder) as entries:
            found = [
                (f"{one.name}/" if one.is_dir(follow_symlinks=False) else one.name, one)
                for one in entries
                if one.name.startswith(start) and not one.name.startswith(".")
            ]
    except FileNotFoundError:
        return
    for name, entry in sorted(found, key=lambda pair: os.fsencode(pair[0])):
        if name.endswith("/"):
            yield from _list(entry.path, f"{prefix}{name}")
            continue
        try:
            yield Listed(f"{prefix}{name}", entry.stat(follow_symlinks=False).st_size)
        except FileNotFoundError:  # deleted since
            continue
