"""Read objects from a bucket.

It requires `s3:ListBucket` on itself and `s3:GetObject` on the prefix.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

from byoc_agents.audit.archives import Archives
from byoc_agents.audit.audit import Audit
from byoc_agents.audit.readers import SCHEME, Hours, ProgressCallback, UnreadableError
from byoc_agents.billing.archive import ArchiveKey, Part, parse_archive_key
from byoc_agents.billing.objects import MAX_BODY_BYTES, parse_key

GETS_IN_FLIGHT = 16

S3Connection = AbstractAsyncContextManager[Any]


def s3_client(region: str | None) -> S3Connection:
    """Return an S3 client that botocore configures from the environment and its own files."""
    client: S3Connection = get_session().create_client("s3", region_name=region)
    return client


def read_url(
    audit: Audit,
    url: str,
    hours: Hours,
    progress: ProgressCallback,
    connect: Callable[[], S3Connection],
) -> None:
    """Audit all objects of `s3://BUCKET/PREFIX`. Blocks. Raises UnreadableError."""
    bucket, _, prefix = url.removeprefix(SCHEME).partition("/")

    async def read() -> None:
        async with connect() as client:
            await read_bucket(audit, client, (bucket, prefix), hours, progress)

    try:
        asyncio.run(read())
    except BotoCoreError as error:  # no client can be made of the settings
        raise UnreadableError(str(error)) from error


async def read_bucket(
    audit: Audit, client: Any, url: tuple[str, str], hours: Hours, progress: ProgressCallback
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
        keys = [name.manifest, name.body] if self.archives.claim_body(name) else [name.manifest]
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
        response = await self._client.get_object(Bucket=self._bucket, Key=key)
        async with response["Body"] as stream:
            body: bytes = await stream.read()
            return body
