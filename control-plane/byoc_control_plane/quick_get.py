"""Lists and gets S3 objects with a small part of botocore's work per request.

For each object, botocore resolves the endpoint, builds a request, signs it and parses the
response. For each key of a list, it also looks up the fields in a description of the response. Here
the endpoint is resolved once, and a request costs one signature. "Quick": see `quick_http.py`. Only
a whole response with status 200 is used; everything else is left to botocore, with its retries and
errors.
"""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

from byoc_control_plane.quick_http import PlainResponse, QuickHttp
from byoc_control_plane.signature import EMPTY_SHA256, Keys, Signer

SIMPLE = re.compile(r"[A-Za-z0-9/_.~=-]*")  # a key in which only = is to be quoted
CHECKSUM = "x-amz-checksum-"  # of the headers with a checksum of the object


class ListPage(NamedTuple):
    """A page of a list."""

    items: list[tuple[str, int]]  # key, bytes
    token: str  # of the next page; empty after the last one


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

        Raises the gate's EgressRefusedError. The checksum of the response is compared.
        """
        path = self.path(key)
        headers = self.sign(path, await self._keys(), self._wall_ns())
        response = await self._http.send("GET", path, headers)
        return response.body if response and _is_whole(response) else None

    async def list_page(self, prefix: str, token: str) -> ListPage | None:
        """Return a page of a list; None if botocore must send the request.

        `token` is that of the page before, or empty. Raises the gate's EgressRefusedError.
        """
        asked = {"continuation-token": token} if token else {}
        asked |= {"list-type": "2", "prefix": prefix}
        query = "&".join([f"{name}={quote(text, safe='-_.~')}" for name, text in asked.items()])
        headers = self.sign(self._folder, await self._keys(), self._wall_ns(), query)
        response = await self._http.send("GET", f"{self._folder}?{query}", headers)
        return response and _read_page(response.body)

    def path(self, key: str) -> str:
        """Return the path of an object's URL, which is also signed."""
        if SIMPLE.fullmatch(key):  # so if its names are DNS labels
            return self._folder + key.replace("=", "%3D")
        return self._folder + quote(key, safe="/-_.~")

    def sign(self, path: str, keys: Keys, wall_ns: int, query: str = "") -> dict[str, str]:
        """Return the headers of a GET."""
        place, extra = (self._http.host, path, query), {"x-amz-content-sha256": EMPTY_SHA256}
        if not query:
            extra["x-amz-checksum-mode"] = "ENABLED"
        return self._signer.sign("GET", place, extra, EMPTY_SHA256, keys, wall_ns)


def _read_page(body: bytes) -> ListPage | None:
    """Return a page of a list; None if a key cannot be written in XML, or is missing."""
    try:
        root = ET.fromstring(body)  # noqa: S314  botocore parses the same response with it
        items = []
        texts: dict[str, str] = {}
        for element in root:
            name = element.tag.rpartition("}")[2]
            if name == "Contents":
                found = {one.tag.rpartition("}")[2]: one.text or "" for one in element}
                items.append((found["Key"], int(found["Size"])))
            else:
                texts[name] = element.text or ""
        more = {"true": True, "false": False}[texts["IsTruncated"]]
        return ListPage(items, texts["NextContinuationToken"] if more else "")
    except (ET.ParseError, KeyError, ValueError):
        return None


def _is_whole(response: PlainResponse) -> bool:
    """Return whether the bytes have the checksum of the response, if S3 gives one.

    False also for a checksum that only botocore knows.
    """
    given = {name: text for name, text in response.headers.items() if name.startswith(CHECKSUM)}
    if not given:
        return True
    given.pop(f"{CHECKSUM}type", None)
    expected = given.pop(f"{CHECKSUM}sha256", None)
    if expected is None:
        return not given
    return base64.b64encode(hashlib.sha256(response.body).digest()).decode() == expected
