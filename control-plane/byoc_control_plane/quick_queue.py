"""Receives and deletes messages of SQS with a small part of botocore's work per request.

Takes the place of botocore's client for the two requests that a consumer makes. "Quick": see
`quick_http.py`. Only a response with status 200, and with the checksum of each message, is used;
everything else is left to botocore, with its errors.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from byoc_control_plane.quick_http import QuickHttp
from byoc_control_plane.signature import Keys, Signer

TARGET = "AmazonSQS."  # of the header x-amz-target
CONTENT_TYPE = "application/x-amz-json-1.0"
PATH = "/"
MAX_RESPONSE_BYTES = 16 * 1024**2  # ten messages of 1 MiB at most, escaped

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class QuickQueue:
    """The two requests, with the parameters and the responses of an SQS client of aiobotocore."""

    def __init__(  # noqa: PLR0913, PLR0917  what a request needs
        self,
        client: Any,
        http: QuickHttp,
        endpoint: str,
        region: str,
        keys: Callable[[], Awaitable[Keys]],
        wall_ns: Callable[[], int],
    ) -> None:
        """`client` sends what cannot be sent here. `keys` returns fresh credentials."""
        self._client = client
        self._http = http
        self._path = urlsplit(endpoint).path or PATH
        self._signer = Signer("sqs", region)
        self._keys = keys
        self._wall_ns = wall_ns

    async def receive_message(self, **asked: Any) -> dict[str, Any]:
        """Return messages. Raises the client's errors."""
        response = await self._send("ReceiveMessage", asked)
        if response is None or not all(map(_is_whole, response.get("Messages") or ())):
            response = await self._client.receive_message(**asked)
        return response

    async def delete_message_batch(self, **asked: Any) -> dict[str, Any]:
        """Delete messages; return which were not deleted. Raises the client's errors."""
        response = await self._send("DeleteMessageBatch", asked)
        if response is None:  # a deletion may be repeated
            response = await self._client.delete_message_batch(**asked)
        return response

    async def _send(self, operation: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        body = _encode(asked)
        headers = {"content-type": CONTENT_TYPE, "x-amz-target": f"{TARGET}{operation}"}
        digest = hashlib.sha256(body).hexdigest()
        place, keys = (self._http.host, self._path, ""), await self._keys()
        signed = self._signer.sign("POST", place, headers, digest, keys, self._wall_ns())
        response = await self._http.send("POST", self._path, signed, body)
        if response is None:
            return None
        try:
            return _decode(response.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None


def _is_whole(message: dict[str, Any]) -> bool:
    """Return whether a message has the checksum that SQS gives, as botocore compares it."""
    try:
        body = message["Body"].encode()
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        return bool(message["MD5OfBody"] == digest)
    except (KeyError, AttributeError, UnicodeEncodeError):
        return False
