"""Read objects from a bucket, or from a directory of the directory sink.

Archives of the compactor are read as the objects that they hold.

A bucket requires `s3:ListBucket` on itself and `s3:GetObject` on the prefix.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

from byoc_agents.audit.archives import Archives
from byoc_agents.audit.audit import Audit
from byoc_agents.billing.archive import (
    MAX_ARCHIVE_BYTES,
    ArchiveKey,
    Part,
    parse_archive_key,
)
from byoc_agents.billing.objects import MAX_BODY_BYTES, parse_key
from byoc_agents.errors import ByocError

GETS_IN_FLIGHT = 16

Progress = Callable[[int], None]  # takes the number of objects read so far


class UnreadableError(ByocError):
    """The bucket, directory or object cannot be read. The message has its name and the reason."""


class Hours(NamedTuple):
    """A half-open range of hours `YYYY-MM-DDTHH` in the keys of the objects; "" = no bound."""

    since: str = ""
    until: str = ""

    def selects(self, key: str) -> bool:
        """Return whether to read an object. An object with an unknown name is always read."""
        archive = parse_archive_key(key)
        name = archive[0] if archive else parse_key(key)
        if name is None:
            return True
        hour = f"{name.date}T{name.hour}"
        return self.since <= hour and (not self.until or hour < self.until)


def read_directory(audit: Audit, root: Path, hours: Hours, progress: Progress) -> None:
    """Audit all files below a directory, in the order of their keys. Raises UnreadableError."""
    archives = Archives(audit)
    try:
        for path in _files(str(root.resolve(strict=True))):
            if hours.selects(path):
                _read_file(audit, archives, path)
                progress(audit.objects)
    except OSError as error:
        raise UnreadableError(f"{error.filename or root}: {error.strerror}") from error
    archives.report_rest()


def _files(folder: str) -> Iterator[str]:
    """Yield paths without dot files, which are temporary files of a killed writer."""
    with os.scandir(folder) as entries:
        found = sorted((f"{e.name}/" if e.is_dir() else e.name, e.path) for e in entries)
    for name, path in found:
        if name.endswith("/"):
            yield from _files(path)
        elif not name.startswith("."):
            yield path


def _read_file(audit: Audit, archives: Archives, path: str) -> None:
    file = Path(path)
    if archive := parse_archive_key(path):
        name, part = archive
        if part == "jsonl":
            archives.note_body(name)
        else:
            body = _small_file(name.body) if archives.take_body(name) else None
            archives.read(name, _small_file(path), body)
    elif file.stat().st_size > MAX_BODY_BYTES:
        audit.refuse(path, "too large for a billing object")
    else:
        if unread := archives.unread_manifests(path):
            archives.load(path, [_small_file(name.manifest) for name in unread])
        body = file.read_bytes()
        if not archives.holds(path, body):
            audit.add(path, body)


def _small_file(path: str) -> bytes:
    """Return the bytes of a part of an archive, but no more than it may have."""
    with Path(path).open("rb") as file:
        return file.read(MAX_ARCHIVE_BYTES)


async def read_bucket(
    audit: Audit, client: Any, url: tuple[str, str], hours: Hours, progress: Progress
) -> None:
    """Audit all objects of (bucket, prefix), in the order of their keys. Raises UnreadableError."""
    bucket, prefix = url
    reader = _BucketReader(audit, client, bucket)
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        async for page in pages:
            listed = [item for item in page.get("Contents", []) if hours.selects(item["Key"])]
            for item in listed:
                if archive := parse_archive_key(item["Key"]):
                    await reader.read_archive(*archive)
                    progress(audit.objects)
            single = [item for item in listed if not parse_archive_key(item["Key"])]
            for start in range(0, len(single), GETS_IN_FLIGHT):
                await reader.read_some(single[start : start + GETS_IN_FLIGHT])
                progress(audit.objects)
    except (ClientError, BotoCoreError, aiohttp.ClientError, OSError) as error:
        raise UnreadableError(f"s3://{bucket}/{prefix}: {error or type(error).__name__}") from error
    reader.archives.report_rest()


class _BucketReader:
    """Gets the objects of one bucket."""

    def __init__(self, audit: Audit, client: Any, bucket: str) -> None:
        self.archives = Archives(audit)
        self._audit = audit
        self._client = client
        self._bucket = bucket

    async def read_archive(self, name: ArchiveKey, part: Part) -> None:
        """Audit the objects of an archive once both of its parts are listed."""
        if part == "jsonl":
            self.archives.note_body(name)
            return
        keys = [name.manifest, name.body] if self.archives.take_body(name) else [name.manifest]
        manifest, *bodies = [await self._get_part(key) for key in keys]
        self.archives.read(name, manifest, bodies[0] if bodies else None)

    async def read_some(self, listed: Sequence[dict[str, Any]]) -> None:
        """Get a few objects at once and audit them in order."""
        bodies = await asyncio.gather(*(self._get(item) for item in listed))
        for item, body in zip(listed, bodies, strict=True):
            key = item["Key"]
            if unread := self.archives.unread_manifests(key):
                self.archives.load(key, [await self._get_part(name.manifest) for name in unread])
            if isinstance(body, str):
                self._audit.refuse(key, body)
            elif not key.endswith("/") and not self.archives.holds(key, body):
                self._audit.add(key, body)  # a key that ends with / is the S3 console's folder

    async def _get(self, item: dict[str, Any]) -> bytes | str:
        """Return the bytes, or what is wrong with the object."""
        if parse_key(item["Key"]) is None:
            return b""
        if item["Size"] > MAX_BODY_BYTES:
            return "too large for a billing object"
        try:
            return await self._get_whole(item["Key"])
        except FlexibleChecksumError as error:
            return str(error)

    async def _get_part(self, key: str) -> bytes:
        """Return a part of an archive; no bytes, which fit no manifest, if its checksum fails."""
        try:
            return await self._get_whole(key)
        except FlexibleChecksumError:
            return b""

    async def _get_whole(self, key: str) -> bytes:
        answer = await self._client.get_object(Bucket=self._bucket, Key=key)
        async with answer["Body"] as stream:
            body: bytes = await stream.read()
            return body
