"""GETs of S3 objects with a fifth of botocore's work per request.

botocore resolves the endpoint, builds a request, signs it and parses the answer again for each
object. Here the first three are done once, and one signature is computed per request. Only a whole
answer with status 200 is used; everything else is left to botocore, with its retries and errors.
"""

import base64
import datetime as dt
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

EMPTY = hashlib.sha256(b"").hexdigest()  # of the body of a GET
CHECKSUM = "x-amz-checksum-"  # of the headers with a checksum of the object
ALGORITHM = "AWS4-HMAC-SHA256"


class Keys(NamedTuple):
    """Credentials as botocore's `get_frozen_credentials` returns them."""

    access_key: str
    secret_key: str
    token: str | None


class QuickGet:
    """Reads objects of one bucket with one HTTP session."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        region: str,
        keys: Callable[[], Awaitable[Keys]],
        wall_ns: Callable[[], int],
    ) -> None:
        """`url` is that of the bucket, and ends with /. `keys` returns fresh credentials."""
        self._session = session
        self._place = urlsplit(url)
        self._origin = f"{self._place.scheme}://{self._place.netloc}"
        self._region = region
        self._keys = keys
        self._wall_ns = wall_ns
        self._signing: tuple[tuple[str, str], bytes] = (("", ""), b"")

    async def get(self, key: str) -> bytes | None:
        """Return an object's bytes; None if botocore must send the request.

        Raises the gate's EgressRefusedError. The checksum of the answer is compared.
        """
        path = self.path(key)
        headers = self.sign(path, await self._keys(), self._wall_ns())
        try:
            async with self._session.get(
                URL(self._origin + path, encoded=True), headers=headers, allow_redirects=False
            ) as answer:
                if answer.status != 200:  # noqa: PLR2004  the only one with the object
                    return None
                body = await answer.read()
                return body if _is_whole(body, answer) else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    def path(self, key: str) -> str:
        """Return the path of an object's URL, which is also signed."""
        return self._place.path + quote(key, safe="/-_.~")

    def sign(self, path: str, keys: Keys, wall_ns: int) -> dict[str, str]:
        """Return the headers of a GET: Signature Version 4 of AWS, as `botocore.auth` makes it."""
        moment = dt.datetime.fromtimestamp(wall_ns // 10**9, tz=dt.UTC)
        stamp = f"{moment:%Y%m%dT%H%M%SZ}"
        headers = {
            "x-amz-checksum-mode": "ENABLED",
            "x-amz-content-sha256": EMPTY,
            "x-amz-date": stamp,
        }
        if keys.token:
            headers["x-amz-security-token"] = keys.token
        signed = {"host": self._place.netloc, **headers}
        names = ";".join(signed)
        lines = "".join(f"{name}:{value}\n" for name, value in signed.items())
        request = f"GET\n{path}\n\n{lines}\n{names}\n{EMPTY}"
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"{ALGORITHM}\n{stamp}\n{scope}\n{digest}"
        signature = _mac(self._signing_key(keys.secret_key, stamp[:8]), text).hex()
        credential = f"{keys.access_key}/{scope}"
        headers["Authorization"] = (
            f"{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
        )
        return headers

    def _signing_key(self, secret_key: str, date: str) -> bytes:
        """Return the key of one day, which is computed once."""
        if self._signing[0] != (secret_key, date):
            key = _mac(f"AWS4{secret_key}".encode(), date)
            for part in (self._region, "s3", "aws4_request"):
                key = _mac(key, part)
            self._signing = ((secret_key, date), key)
        return self._signing[1]


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


def _is_whole(body: bytes, answer: aiohttp.ClientResponse) -> bool:
    """Return whether the bytes have the checksum of the answer, if S3 gives one.

    False also for a checksum that only botocore knows. aiohttp compares the length.
    """
    given = {n.lower(): v for n, v in answer.headers.items() if n.lower().startswith(CHECKSUM)}
    given.pop(f"{CHECKSUM}type", None)
    expected = given.pop(f"{CHECKSUM}sha256", None)
    if expected is None:
        return not given
    return base64.b64encode(hashlib.sha256(body).digest()).decode() == expected
