"""Signature Version 4 of AWS, as `botocore.auth` makes it. The key of a day is computed once."""

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import NamedTuple

ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()  # of an empty body


class Keys(NamedTuple):
    """Credentials as botocore's `get_frozen_credentials` returns them."""

    access_key: str
    secret_key: str
    token: str | None


class Signer:
    """Signs requests to one service in one region."""

    def __init__(self, service: str, region: str) -> None:
        self._service = service
        self._region = region
        self._key: tuple[tuple[str, str], bytes] = (("", ""), b"")
        self._stamp: tuple[int, str] = (-1, "")

    def sign(  # noqa: PLR0913, PLR0917  what a signature is computed from
        self,
        method: str,
        place: tuple[str, str, str],
        headers: Mapping[str, str],
        body_sha256: str,
        keys: Keys,
        wall_ns: int,
    ) -> dict[str, str]:
        """Return the headers of a request, the given ones and those of its signature.

        `place` is the header Host, the path, and the query with its names sorted, both
        percent-encoded. `headers` have lower-case names. All of them are signed.
        """
        host, path, query = place
        stamp = self._format(wall_ns // 10**9)
        found = {**headers, "x-amz-date": stamp}
        if keys.token:
            found["x-amz-security-token"] = keys.token
        signed = sorted([("host", host), *found.items()])
        names = ";".join([name for name, _ in signed])
        lines = "".join([f"{name}:{value}\n" for name, value in signed])
        request = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{body_sha256}"
        scope = f"{stamp[:8]}/{self._region}/{self._service}/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"{ALGORITHM}\n{stamp}\n{scope}\n{digest}"
        signature = _mac(self._signing_key(keys.secret_key, stamp[:8]), text).hex()
        found["Authorization"] = (
            f"{ALGORITHM} Credential={keys.access_key}/{scope}, SignedHeaders={names}, "
            f"Signature={signature}"
        )
        return found

    def _format(self, seconds: int) -> str:
        """Return a time as AWS writes it, formatted once per second."""
        if self._stamp[0] != seconds:
            self._stamp = (seconds, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds)))
        return self._stamp[1]

    def _signing_key(self, secret_key: str, date: str) -> bytes:
        """Return the key of one day, which is computed once."""
        if self._key[0] != (secret_key, date):
            key = _mac(f"AWS4{secret_key}".encode(), date)
            for part in (self._region, self._service, "aws4_request"):
                key = _mac(key, part)
            self._key = ((secret_key, date), key)
        return self._key[1]


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
