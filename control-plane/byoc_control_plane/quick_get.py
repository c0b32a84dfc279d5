"""GETs of S3 objects with a small part of botocore's work per request.

botocore resolves the endpoint, builds a request, signs it and parses the answer again for each
object. Here the first is done once, and one signature is computed per request. Only a whole answer
with status 200 is used; everything else is left to botocore, with its retries and errors.
"""

import base64
import hashlib
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlsplit

from byoc_control_plane.quick_http import Answer, QuickHttp
from byoc_control_plane.signature import EMPTY_SHA256, Keys, Signer

CHECKSUM = "x-amz-checksum-"  # of the headers with a checksum of the object


class QuickGet:
    """Reads objects of one bucket."""

    def __init__(
        self,
        http: QuickHttp,
        url: str,
        region: str,
        keys: Callable[[], Awaitable[Keys]],
        wall_ns: Callable[[], int],
    ) -> None:
        """`url` is that of the bucket, and ends with /. `keys` returns fresh credentials."""
        self._http = http
        self._folder = urlsplit(url).path
        self._signer = Signer("s3", region)
        self._keys = keys
        self._wall_ns = wall_ns

    async def get(self, key: str) -> bytes | None:
        """Return an object's bytes; None if botocore must send the request.

        Raises the gate's EgressRefusedError. The checksum of the answer is compared.
        """
        path = self.path(key)
        headers = self.sign(path, await self._keys(), self._wall_ns())
        answer = await self._http.send("GET", path, headers)
        return answer.body if answer and _is_whole(answer) else None

    def path(self, key: str) -> str:
        """Return the path of an object's URL, which is also signed."""
        return self._folder + quote(key, safe="/-_.~")

    def sign(self, path: str, keys: Keys, wall_ns: int) -> dict[str, str]:
        """Return the headers of a GET."""
        extra = {"x-amz-checksum-mode": "ENABLED", "x-amz-content-sha256": EMPTY_SHA256}
        return self._signer.sign("GET", (self._http.host, path), extra, EMPTY_SHA256, keys, wall_ns)


def _is_whole(answer: Answer) -> bool:
    """Return whether the bytes have the checksum of the answer, if S3 gives one.

    False also for a checksum that only botocore knows.
    """
    given = {name: text for name, text in answer.headers.items() if name.startswith(CHECKSUM)}
    if not given:
        return True
    given.pop(f"{CHECKSUM}type", None)
    expected = given.pop(f"{CHECKSUM}sha256", None)
    if expected is None:
        return not given
    return base64.b64encode(hashlib.sha256(answer.body).digest()).decode() == expected
