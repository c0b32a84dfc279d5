"""`GET /v1/access/requests`: the vendor's signed requests for access, for the customers' brokers.

The requests are files of a directory, one DSSE envelope each, that the vendor's signing tool writes
with a rename. A broker is sent those of its organization that have not expired, and those of one
service with `?service=NAME`. This side holds no key: a broker verifies the signatures.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from byoc_agents.access.documents import (
    REQUEST,
    WITHDRAWAL,
    AccessRequest,
    Approval,
    Withdrawal,
    parse_document,
)
from byoc_agents.access.errors import DocumentError
from byoc_agents.access.requests import MAX_ENVELOPES, MAX_RESPONSE_BYTES
from byoc_agents.app.files import read_within
from byoc_agents.envelope import MAX_ENVELOPE_BYTES, Envelope, read_unverified
from byoc_agents.errors import EnvelopeError

REQUESTS_PATH = "/v1/access/requests"
SUFFIX = ".dsse.json"
MAX_FILES = 10_000  # of the directory
EMPTY = b'{"envelopes":[]}'


class ListedRequest(NamedTuple):
    """One file of the directory."""

    raw: bytes
    document: AccessRequest | Withdrawal


class RequestList(NamedTuple):
    """The response to one poll, and the requests in it."""

    body: bytes
    etag: str
    requests: Sequence[AccessRequest]


class RequestFolder:
    """The directory of the requests, read at each call; unchanged files are not read again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, tuple[tuple[int, int], ListedRequest | None]] = {}

    def list_for(self, owners: Mapping[str, bool], service: str, now_ms: int) -> RequestList:
        """Return the envelopes for these organizations; "" means all. Blocks.

        Raises OSError if the directory cannot be read.
        """
        chosen: list[ListedRequest] = []
        size = len(EMPTY)
        for one in self._read():
            audience, document = one.document.audience, one.document
            if not ("" in owners or audience.organization in owners):
                continue
            if service and audience.service != service:
                continue
            if isinstance(document, AccessRequest) and now_ms >= document.expires_ms:
                continue
            size += len(one.raw) + 1
            if len(chosen) == MAX_ENVELOPES or size > MAX_RESPONSE_BYTES:
                structlog.get_logger().error("requests.too_many", organizations=[*owners])
                break
            chosen.append(one)
        body = b'{"envelopes":[%s]}' % b",".join(one.raw for one in chosen)
        documents = (one.document for one in chosen)
        requests = [one for one in documents if isinstance(one, AccessRequest)]
        return RequestList(body, f'"{hashlib.sha256(body).hexdigest()}"', requests)

    def _read(self) -> list[ListedRequest]:
        """Return the usable files, by name. A file that is not a request is logged once."""
        paths = sorted(self._directory.glob(f"*{SUFFIX}"))[:MAX_FILES]
        self._directory.stat()  # glob returns nothing for a directory that is not there
        found: dict[str, tuple[tuple[int, int], ListedRequest | None]] = {}
        for path in paths:
            try:
                state = path.stat()
            except OSError:  # removed meanwhile
                continue
            version, before = (state.st_mtime_ns, state.st_size), self._known.get(path.name)
            same = before is not None and before[0] == version
            found[path.name] = before if same and before else (version, _load(path))
        self._known = found
        return [one for _, one in found.values() if one is not None]


def _load(path: Path) -> ListedRequest | None:
    try:
        raw = read_within(str(path), MAX_ENVELOPE_BYTES)
        payload = read_unverified(raw)  # as strict as the broker: what it refuses is not listed
        envelope = msgspec.json.decode(raw, type=Envelope)
        if envelope.payload_type not in {REQUEST, WITHDRAWAL}:
            raise ValueError(f"the type {envelope.payload_type}")
        document = parse_document(envelope.payload_type, payload)
    except (OSError, ValueError, EnvelopeError, DocumentError) as error:
        structlog.get_logger().error("requests.not_a_request", file=path.name, error=str(error))
        return None
    assert not isinstance(document, Approval)  # noqa: S101  its type is not accepted above
    return ListedRequest(raw.strip(), document)
