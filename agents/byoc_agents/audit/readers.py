"""Read objects from a bucket, or from a directory of the directory sink.

A bucket requires `s3:ListBucket` on itself and `s3:GetObject` on the prefix.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

from byoc_agents.audit.audit import Audit
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

    def chosen(self, key: str) -> bool:
        """Return whether to read an object. An object with an unknown name is always read."""
        name = parse_key(key)
        if name is None:
            return True
        hour = f"{name.date}T{name.hour}"
        return self.since <= hour and (not self.until or hour < self.until)


def read_directory(audit: Audit, root: Path, hours: Hours, progress: Progress) -> None:
    """Audit all files below a directory, in the order of their keys. Raises UnreadableError."""
    try:
        for path in _files(str(root.resolve(strict=True))):
            if hours.chosen(path):
                _read_file(audit, path)
                progress(audit.objects)
    except OSError as error:
        raise UnreadableError(f"{error.filename or root}: {error.strerror}") from error


def _files(folder: str) -> Iterator[str]:
    """Yield paths without dot files, which are temporary files of a killed writer."""
    with os.scandir(folder) as entries:
        found = sorted((f"{e.name}/" if e.is_dir() else e.name, e.path) for e in entries)
    for name, path in found:
        if name.endswith("/"):
            yield from _files(path)
        elif not name.startswith("."):
            yield path


def _read_file(audit: Audit, path: str) -> None:
    file = Path(path)
    if file.stat().st_size > MAX_BODY_BYTES:
        audit.refuse(path, "too large for a billing object")
    else:
        audit.add(path, file.read_bytes())


async def read_bucket(
    audit: Audit, client: Any, url: tuple[str, str], hours: Hours, progress: Progress
) -> None:
    """Audit all objects of (bucket, prefix), in the order of their keys. Raises UnreadableError."""
    bucket, prefix = url
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        async for page in pages:
            listed = [item for item in page.get("Contents", []) if hours.chosen(item["Key"])]
            for start in range(0, len(listed), GETS_IN_FLIGHT):
                await _read_some(audit, client, bucket, listed[start : start + GETS_IN_FLIGHT])
                progress(audit.objects)
    except (ClientError, BotoCoreError, aiohttp.ClientError, OSError) as error:
        raise UnreadableError(f"s3://{bucket}/{prefix}: {error or type(error).__name__}") from error


async def _read_some(
    audit: Audit, client: Any, bucket: str, listed: Sequence[dict[str, Any]]
) -> None:
    """Get a few objects at once and audit them in order."""
    bodies = await asyncio.gather(*(_get(client, bucket, item) for item in listed))
    for item, body in zip(listed, bodies, strict=True):
        if isinstance(body, str):
            audit.refuse(item["Key"], body)
        elif not item["Key"].endswith("/"):  # a folder that the S3 console created
            audit.add(item["Key"], body)


async def _get(client: Any, bucket: str, item: dict[str, Any]) -> bytes | str:
    """Return the bytes, or the problem with the object."""
    if parse_key(item["Key"]) is None:
        return b""
    if item["Size"] > MAX_BODY_BYTES:
        return "too large for a billing object"
    try:
        answer = await client.get_object(Bucket=bucket, Key=item["Key"])
        async with answer["Body"] as stream:
            body: bytes = await stream.read()
            return body
    except FlexibleChecksumError as error:
        return str(error)
