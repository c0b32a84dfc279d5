"""Hooks for schemathesis that sign its requests to `/v1/events`.

A request whose three Standard Webhooks headers have the documented form gets a signature over its
bytes, so that it passes authentication. Other requests are sent unchanged.
"""

import base64
import hashlib
import hmac
import os
import re
import time
from typing import Any

import schemathesis  # type: ignore[import-not-found]  # of its own environment

TOKEN = os.environ["TOKEN"]
KEY = base64.b64decode(os.environ["SIGNING_SECRET"].removeprefix("whsec_"))
FORMS = {
    "webhook-id": r".{1,64}",
    "webhook-timestamp": r"[0-9]{1,12}",
    "webhook-signature": r"v1,[A-Za-z0-9+/]+=*( v1,[A-Za-z0-9+/]+=*)*",
}


def signed(request: Any) -> Any:
    """Add the bearer token and, to requests with the headers, time stamp and signature."""
    request.headers["Authorization"] = f"Bearer {TOKEN}"
    given = {name: encoded(request.headers.get(name, "")).decode("latin-1") for name in FORMS}
    if all(re.fullmatch(form, given[name], re.DOTALL) for name, form in FORMS.items()):
        stamp = str(int(time.time()))
        parts = (
            given["webhook-id"].encode("latin-1"),
            stamp.encode(),
            encoded(request.body or b""),
        )
        digest = hmac.digest(KEY, b".".join(parts), hashlib.sha256)
        request.headers["webhook-timestamp"] = stamp
        request.headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return request


def encoded(value: str | bytes) -> bytes:
    """Return the bytes on the wire."""
    return value if isinstance(value, bytes) else value.encode()


schemathesis.auth.set_from_requests(signed)
