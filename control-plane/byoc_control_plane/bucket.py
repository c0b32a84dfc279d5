"""The requests to S3 of the compactor.

Requires `s3:ListBucket` on the bucket, and `s3:GetObject`, `s3:PutObject` and `s3:DeleteObject` on
the prefix.
"""

import asyncio
import base64
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from io import BytesIO
from typing import Any, NamedTuple

from botocore.exceptions import ClientError, FlexibleChecksumError

from byoc_agents.errors import Reason, SendError
from byoc_control_plane.quick_get import ListPage, QuickGet

GETS_IN_FLIGHT = 32
MANY_DENIED = 32  # objects: with so many, and none that can be read, the cause is not an object
DELETES = 1000  # keys of one DeleteObjects; S3 quota


class Listed(NamedTuple):
    """One object of a listing."""

    key: str
    size: int  # bytes


class ExistsError(Exception):
    """An object exists with other bytes than those to be stored. `str()` is its key."""


class Bucket:
    """One bucket. All methods raise the client's errors, after its own retries."""

    def __init__(self, client: Any, name: str, quick: QuickGet | None = None) -> None:
        """`client` is an S3 client of aiobotocore. `quick` tries each GET and list before it."""
        self._client = client
        self._name = name
        self._quick = quick
        self._any_read = False
        self._denied: list[str] = []  # reasons; at most MANY_DENIED

    def check_readable(self) -> None:
        """Raise SendError if many objects were denied, and none could be read."""
        if len(self._denied) >= MANY_DENIED and not self._any_read:
            raise SendError(Reason.FORBIDDEN, f"no object can be read: {self._denied[0]}")

    async def list_objects(self, prefix: str) -> AsyncIterator[Listed]:
        """Yield all objects with a prefix, in the order of their keys."""
        token, more = "", True
        while more:
            found = await self._quick.list_page(prefix, token) if self._quick else None
            page = found or await self._list_page(prefix, token)
            for key, size in page.items:
                yield Listed(key, size)
            token, more = page.token, bool(page.token)

    async def _list_page(self, prefix: str, token: str) -> ListPage:
        after = {"ContinuationToken": token} if token else {}
        page = await self._client.list_objects_v2(Bucket=self._name, Prefix=prefix, **after)
        items = [(item["Key"], item["Size"]) for item in page.get("Contents", ())]
        return ListPage(items, page.get("NextContinuationToken", ""))

    async def get(self, key: str) -> bytes | str | None:
        """Return an object's bytes. None: it does not exist. Text: why they cannot be had."""
        if self._quick and (found := await self._quick.get(key)) is not None:
            self._any_read = True
            return found
        try:
            response = await self._client.get_object(Bucket=self._name, Key=key)
            async with response["Body"] as stream:
                body: bytes = await stream.read()
                self._any_read = True
                return body
        except FlexibleChecksumError as error:
            return str(error)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "NoSuchKey":
                return None
            if code == "InvalidObjectState":  # of an archive storage class
                return str(error)
            is_of_key = code.startswith("KMS.") and "Throttl" not in code  # a limit passes
            if code != "AccessDenied" and not is_of_key:
                raise
            if len(self._denied) < MANY_DENIED:
                self._denied.append(str(error))
            return str(error)

    async def get_in_order(
        self, items: AsyncIterable[Listed]
    ) -> AsyncGenerator[tuple[Listed, bytes | str | None], None]:
        """Yield each object with what `get` returns, with GETS_IN_FLIGHT requests at a time."""
        in_flight: deque[tuple[Listed, asyncio.Task[bytes | str | None]]] = deque()
        try:
            async for item in items:
                in_flight.append((item, asyncio.create_task(self.get(item.key))))
                if len(in_flight) >= GETS_IN_FLIGHT:
                    first, task = in_flight.popleft()
                    yield first, await task
            while in_flight:
                first, task = in_flight.popleft()
                yield first, await task
        finally:
            for _, task in in_flight:
                task.cancel()
            await asyncio.gather(*(task for _, task in in_flight), return_exceptions=True)

    async def put_once(
        self, key: str, body: bytes, content_type: str = "application/zstd", encoding: str = "", /
    ) -> None:
        """Store a new object. Raises ExistsError.

        Returns also if it exists with these bytes: after a response that was lost.
        """
        coding = {"ContentEncoding": encoding} if encoding else {}
        try:
            await self._client.put_object(
                Bucket=self._name,
                Key=key,
                Body=BytesIO(body),  # is sent in parts: bytes would be copied twice
                IfNoneMatch="*",
                ContentType=content_type,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=base64.b64encode(hashlib.sha256(body).digest()).decode(),
                **coding,
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            if await self.get(key) != body:
                raise ExistsError(key) from error

    async def delete(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects; return key -> error code of those that S3 did not delete."""
        failed: dict[str, str] = {}
        for start in range(0, len(keys), DELETES):
            response = await self._client.delete_objects(
                Bucket=self._name,
                Delete={
                    "Objects": [{"Key": key} for key in keys[start : start + DELETES]],
                    "Quiet": True,
                },
            )
            errors = response.get("Errors") or ()
            failed |= {one.get("Key", ""): one.get("Code", "") for one in errors}
        return failed
