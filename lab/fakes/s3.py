"""The used part of S3, in memory and exact: the oracle of fault tests."""

import base64
import hashlib
from bisect import bisect_left, bisect_right
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Self
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from lab.fakes.http import FakeHttp, Reply, Request, Script, serving


@dataclass(frozen=True, slots=True)
class Put:
    """One PutObject that reached the store, and the status. 200 = it changed something."""

    key: str
    sha256: str
    status: int


class StoredObjects(UserDict[str, bytes]):
    """Bodies by key. Keys are sorted once per list after a new key, not at every page."""

    def __init__(self, found: Mapping[str, bytes] | None = None) -> None:
        self._names: list[str] | None = None  # sorted, with those that were deleted since
        super().__init__(found)

    def __setitem__(self, key: str, body: bytes) -> None:
        """Store an object."""
        if key not in self.data:
            self._names = None
        self.data[key] = body

    def names_from(self, prefix: str, after: str) -> Iterator[str]:
        """Yield the keys with a prefix that come after another one, in their order."""
        if self._names is None:
            self._names = sorted(self.data)
        start = max(bisect_right(self._names, after), bisect_left(self._names, prefix))
        for position in range(start, len(self._names)):
            name = self._names[position]
            if not name.startswith(prefix):
                return
            if name in self.data:
                yield name


class FakeS3:
    """The used part of S3, in memory and exact: conditional writes, checksums, listings.

    `objects` is key -> bytes, `puts` every PUT that reached the store: the oracle of fault tests.
    Any bucket name is accepted; keys do not include it.
    """

    def __init__(
        self,
        script: Script = serving,
        *,
        port: int = 0,
        owner: str = "",
        on_put: Callable[[Put], None] = lambda _: None,
    ) -> None:
        self._objects = StoredObjects()
        self.puts: list[Put] = []
        self.deleted: list[str] = []
        self.undeletable: set[str] = set()  # keys whose deletion is refused
        self.page_keys = 1000  # of one response to ListObjectsV2; S3 quota
        self.http = FakeHttp(script, apply=self.apply, port=port)
        self._owner = owner
        self._on_put = on_put

    async def __aenter__(self) -> Self:
        """Listen."""
        await self.http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.http.__aexit__()

    @property
    def objects(self) -> StoredObjects:
        """Return the objects that are stored. They may be changed."""
        return self._objects

    @objects.setter
    def objects(self, found: Mapping[str, bytes]) -> None:
        self._objects = StoredObjects(found)

    @property
    def url(self) -> str:
        """Return the endpoint URL."""
        return self.http.url

    def applied(self, key: str) -> int:
        """Return how often the key was written: more than once breaks the guarantee."""
        return sum(put.key == key and put.status == Reply().status for put in self.puts)

    def apply(self, request: Request) -> Reply:
        """Execute the request atomically."""
        key = request.path.lstrip("/").partition("/")[2]
        if request.method == "GET" and not key:
            return self._list(dict(parse_qsl(urlsplit(request.target).query)))
        if request.method == "POST" and urlsplit(request.target).query == "delete":
            return self._delete(request.body)
        if request.method == "GET" and key in self.objects:
            return Reply(200, {"etag": _etag(self.objects[key])}, self.objects[key])
        if request.method != "PUT":
            return s3_error(404, "NoSuchKey")
        response = self._refusal(request, key) or self._store(key, request.body)
        put = Put(key, hashlib.sha256(request.body).hexdigest(), response.status)
        self.puts.append(put)
        self._on_put(put)
        return response

    def _list(self, query: Mapping[str, str]) -> Reply:
        """Answer ListObjectsV2. A token is the last key, so deleted keys shift no page."""
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        keys = list(islice(self.objects.names_from(prefix, after), self.page_keys + 1))
        more = len(keys) > self.page_keys
        keys = keys[: self.page_keys]
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            f"<ETag>{escape(_etag(self.objects[key]))}</ETag></Contents>"
            for key in keys
        )
        token = f"<NextContinuationToken>{escape(keys[-1])}</NextContinuationToken>" if more else ""
        text = (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}"
            "</ListBucketResult>"
        )
        return Reply(200, {"content-type": "application/xml"}, text.encode())

    def _delete(self, body: bytes) -> Reply:
        """Answer DeleteObjects. A key that does not exist counts as deleted, as in S3."""
        errors = ""
        for element in ET.fromstring(body).iter():
            if not element.tag.endswith("}Key"):
                continue
            key = element.text or ""
            if key in self.undeletable:
                errors += f"<Error><Key>{escape(key)}</Key><Code>AccessDenied</Code></Error>"
            elif self.objects.pop(key, None) is not None:
                self.deleted.append(key)
        text = f"<DeleteResult>{errors}</DeleteResult>"
        return Reply(200, {"content-type": "application/xml"}, text.encode())

    def _refusal(self, request: Request, key: str) -> Reply | None:
        headers, digest = request.headers, hashlib.sha256(request.body)
        if self._owner and headers.get("x-amz-expected-bucket-owner") != self._owner:
            return s3_error(403, "AccessDenied")
        signed = headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        if len(signed) == len(digest.hexdigest()) and signed != digest.hexdigest():
            return s3_error(400, "XAmzContentSHA256Mismatch")
        checksum = base64.b64encode(digest.digest()).decode()
        if headers.get("x-amz-checksum-sha256", checksum) != checksum:
            return s3_error(400, "BadDigest")
        if headers.get("if-none-match") == "*" and key in self.objects:
            return s3_error(412, "PreconditionFailed")
        return None

    def _store(self, key: str, body: bytes) -> Reply:
        self.objects[key] = body
        checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
        return Reply(200, {"etag": _etag(body), "x-amz-checksum-sha256": checksum})


def s3_error(
    status: int, code: str, headers: Mapping[str, str] | None = None, more: str = ""
) -> Reply:
    """Return an error as S3 writes it; `more` is XML in addition to the code."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>-</Message>{more}</Error>"
    return Reply(status, {"content-type": "application/xml", **(headers or {})}, body.encode())


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
