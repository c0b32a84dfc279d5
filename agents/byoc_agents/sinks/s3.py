"""Messages to one S3 bucket: one object per message, written once and never overwritten.

Requires the permission `s3:PutObject` on `arn:aws:s3:::BUCKET/PREFIX*` (conditional writes need no
other), and `kms:GenerateDataKey` if the bucket's default encryption uses a customer key.
"""

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from byoc_agents.delivery.sink import Transmit, transmit_unrecorded
from byoc_agents.egress.aws import KeyRefresh, aws_config, fetch_credentials
from byoc_agents.egress.destinations import s3_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Outcome, Receipt
from byoc_agents.sinks.aws_errors import (
    KEYS_REFUSED,
    from_response,
    from_transport,
    md5_of,
    require_s3_form,
    sanitize_code,
)

REGION_SECONDS = 3.0  # to ask for the bucket's region at the start; else the first put shows it
ATTEMPT_SECONDS = 60.0  # one attempt with credentials, upload and response, however slow
MAX_BYTES = 5 * 1024**3  # one PutObject; Amazon S3 quotas
MAX_KEY_BYTES = 1024  # UTF-8; "Creating object key names"


class S3Sink:
    """Sends one message at a time; its id is the object's key. `async with` closes the connections.

    An existing key counts as stored by us, since ids are computed from the content.
    """

    max_messages = 1
    max_bytes = MAX_BYTES

    def __init__(  # noqa: PLR0913  the bucket, the gate, and the limits of one attempt
        self,
        session: AioSession,
        gate: Gate,
        bucket: str,
        *,
        region: str,
        endpoint_url: str | None = None,
        expected_bucket_owner: str | None = None,
        attempt_seconds: float = ATTEMPT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        **client_options: Any,
    ) -> None:
        self.destination = f"s3://{bucket}"
        self._keys = KeyRefresh(session, monotonic)
        self._wall_ns = wall_ns
        self._session = session
        self._bucket = bucket
        self._region = region
        self._owner = (
            {"ExpectedBucketOwner": expected_bucket_owner} if expected_bucket_owner else {}
        )
        self.attempt_seconds = attempt_seconds
        self._client_options = {
            "region_name": region,
            "endpoint_url": endpoint_url,
            "config": aws_config(gate, s3=addressing(bucket, endpoint_url), **client_options),
        }
        place = s3_destination(bucket, region, endpoint_url)
        style = addressing(bucket, endpoint_url)["addressing_style"]
        self._bucket_url = f"{place}/{bucket}" if style == "path" else f"{place}/"
        self._gate = gate
        self._client: Any = None
        self._resources = AsyncExitStack()

    def __repr__(self) -> str:
        """Return the bucket and its region."""
        return f"S3Sink({self.destination} in {self._region})"

    async def __aenter__(self) -> Self:
        """Open nothing yet: an unavailable credential source must not prevent the start."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._drop_client()

    async def _drop_client(self) -> None:
        self._client = None
        await self._resources.aclose()

    async def stated_region(self) -> str:
        """Return the region that S3 reports for the bucket; "" if it is unknown.

        Sends an unsigned HEAD to S3 in the configured region, without permissions or any data.
        """
        timeout = aiohttp.ClientTimeout(total=REGION_SECONDS)
        try:
            async with (
                self._gate.session(timeout=timeout) as session,
                session.head(self._bucket_url, allow_redirects=False) as response,
            ):
                return response.headers.get("x-amz-bucket-region", "")
        except (SendError, aiohttp.ClientError, OSError):  # the first put shows it
            return ""

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        """Put each message once; see `Sink.send`."""
        return [
            outcome
            for message in batch
            for outcome in await transmit([message], partial(self._outcomes, message))
        ]

    async def _outcomes(self, message: Message) -> Sequence[Outcome]:
        return [await self._outcome(message)]

    async def _outcome(self, message: Message) -> Outcome:
        if not 0 < len(message.id.encode()) <= MAX_KEY_BYTES:
            why = f"a key of {len(message.id.encode())} bytes: expected 1 to {MAX_KEY_BYTES}"
            return SendError(Reason.REJECTED, why)
        try:
            async with asyncio.timeout(self.attempt_seconds):
                await fetch_credentials(self._session)
                return await self._put(message)
        except TimeoutError:
            return SendError(Reason.TIMEOUT, f"no response within {self.attempt_seconds:g} s")
        except SendError as error:
            return error

    async def _put(self, message: Message) -> Receipt:
        try:
            client = await self.open_client()
            response = await client.put_object(**self._request(message))
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in KEYS_REFUSED and self._keys.forget():
                await self._drop_client()  # it holds the old keys
            return from_response(error.response, self._region, message.body, self._wall_ns())
        except ResponseParserError as error:
            raise SendError(Reason.BAD_RESPONSE, "the response is not in S3's form") from error
        except BotoCoreError as error:
            raise from_transport(error) from error
        return _receipt(response, message)

    def _request(self, message: Message) -> dict[str, Any]:
        coding = {"ContentEncoding": message.content_encoding} if message.content_encoding else {}
        return {
            "Bucket": self._bucket,
            "Key": message.id,
            "Body": message.body,
            "IfNoneMatch": "*",
            "ChecksumAlgorithm": "SHA256",
            "ChecksumSHA256": _sha256(message.body),
            "ContentType": message.content_type,
            **coding,
            **self._owner,
        }

    async def open_client(self) -> Any:
        """Return the client. The first call reads botocore's models, which may take a second."""
        if self._client is None:
            made = self._session.create_client("s3", **self._client_options)
            self._client = await self._resources.enter_async_context(made)
            # With a wildcard for the service it runs before botocore's own handler, which takes a
            # 200 with a body for the 500 that S3 may write into one.
            self._client.meta.events.register_first("before-parse.*.PutObject", require_s3_form)
        return self._client


def addressing(bucket: str, endpoint_url: str | None) -> dict[str, Any]:
    """Return the addressing that `s3_destination` derives its host from."""
    return {
        "addressing_style": "path" if endpoint_url or "." in bucket else "virtual",
        "us_east_1_regional_endpoint": "regional",
        "use_accelerate_endpoint": False,
        "use_dualstack_endpoint": False,
    }


_ETAG = re.compile(r"[0-9a-f]{32}(-[0-9]+)?")


def _receipt(response: dict[str, Any], message: Message) -> Receipt:
    """Return the receipt of a 200 that is proven to come from S3.

    A proxy's page may have an ETag too, so the response must also repeat our checksum, have the MD5
    of our body as its ETag, or have S3's request id and an ETag in S3's form: the ETag of an
    encrypted object is not an MD5, and some stores repeat no checksum. Raises SendError otherwise.
    """
    meta = response["ResponseMetadata"]
    status, headers = meta["HTTPStatusCode"], meta.get("HTTPHeaders", {})
    etag = response.get("ETag", "").strip('"')
    if not etag:
        kind = headers.get("content-type", "no content type")
        raise SendError(Reason.BAD_RESPONSE, f"{status} without an ETag, {sanitize_code(kind)}")
    checksum = response.get("ChecksumSHA256")
    if checksum is not None and checksum != _sha256(message.body):
        raise SendError(Reason.CHECKSUM, "S3 reports a different SHA-256")
    by_id = headers.get("x-amz-request-id") and _ETAG.fullmatch(etag)
    if not (checksum or etag == md5_of(message.body) or by_id):
        raise SendError(Reason.BAD_RESPONSE, f"{status} with an ETag, but not S3's response")
    return Receipt(Reason.OK, status, etag)


def _sha256(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()
