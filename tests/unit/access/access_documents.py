"""What the tests of the access broker share: keys, requests, policies and their envelopes."""

import base64
from functools import cache
from typing import Any

import msgspec
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from byoc_agents.access import documents
from byoc_agents.access.documents import AccessRequest, Approval, utc_text
from byoc_agents.access.machine import GivenApproval, Grant, State
from byoc_agents.access.policy import Policy, load_policy
from byoc_agents.envelope import VerifyingKey, sign
from lab.fakes.core import START_MS

HOUR_MS = 3_600_000
GRANT_ID = "0190a7c2-7e5b-7c3e-8d21-f0a4b6c8d9e0"
AUDIENCE = {"organization": "org-1", "service": "svc-1"}


def key_of(number: int) -> Ed25519PrivateKey:
    """Return the private key with this number: the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(bytes([number] * 32))


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def base64_of(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(public_bytes(key)).decode()


VENDOR = key_of(1)
VENDOR_HUMAN = key_of(2)
APPROVER = key_of(3)
SECOND_APPROVER = key_of(4)
STRANGER = key_of(9)
ENGINEER = ec.derive_private_key(0x5EED, ec.SECP256R1())


def pinned(key_id: str, key: Ed25519PrivateKey, not_after_ms: int | None = None) -> VerifyingKey:
    return VerifyingKey(key_id, public_bytes(key), not_after_ms)


@cache
def csr_of(key: Any = ENGINEER) -> str:
    """Return the key's CSR in PEM; the same text within a run, although ECDSA is randomized."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()


def policy_text(**changes: Any) -> str:
    """Return a policy file. A change replaces a key of the first level; None removes it."""
    fields: dict[str, Any] = {
        "version": 1,
        "vendor_keys": [{"id": "vendor-1", "ed25519": base64_of(VENDOR)}],
        "approvers": [
            {"id": "sec-1", "ed25519": base64_of(APPROVER)},
            {"id": "sec-2", "ed25519": base64_of(SECOND_APPROVER)},
        ],
        "ticket": "CS-[0-9]+",
        "roles": {
            "system-metrics": {"clickhouse_role": "byoc_access_metrics", "max_duration": "30m"},
            "system-reader": {"clickhouse_role": "byoc_access_reader"},
            "query-text": {"clickhouse_role": "byoc_access_text", "approvals_needed": 2},
        },
    }
    kept = {key: value for key, value in (fields | changes).items() if value is not None}
    return yaml.safe_dump(kept, sort_keys=False)


def policy_of(**changes: Any) -> Policy:
    return load_policy(policy_text(**changes).encode())


def grant_id(number: int) -> str:
    return f"0190a7c2-7e5b-7c3e-8d21-{number:012x}"


def request_fields(start_ms: int = START_MS, **changes: Any) -> dict[str, Any]:
    """Return the fields of a request that was made at `start_ms`, as the vendor would write it."""
    fields = {
        "id": GRANT_ID,
        "audience": AUDIENCE,
        "issued_at": utc_text(start_ms),
        "expires_at": utc_text(start_ms + 4 * HOUR_MS),
        "not_before": utc_text(start_ms),
        "duration_seconds": 3600,
        "role": "system-reader",
        "endpoints": ["clickhouse"],
        "engineer": {"id": "eng-8841", "name": "A. Example"},
        "reason": {"kind": "incident", "ticket": "CS-1234", "text": "merge backlog, replica 2"},
        "vendor_approval": {"by": "eng-12", "at": utc_text(start_ms - 60_000)},
        "csr": csr_of(),
    }
    return fields | changes


def request_of(**changes: Any) -> AccessRequest:
    return msgspec.convert(request_fields(**changes), AccessRequest)


def request_envelope(
    *keys: tuple[str, Ed25519PrivateKey], payload_type: str = documents.REQUEST, **changes: Any
) -> bytes:
    payload = msgspec.json.encode(request_fields(**changes))
    return sign(payload_type, payload, keys or [("vendor-1", VENDOR)])


def withdrawal_envelope(key: Ed25519PrivateKey = VENDOR, **changes: Any) -> bytes:
    fields = {"id": GRANT_ID, "audience": AUDIENCE, "issued_at": utc_text(START_MS)} | changes
    return sign(documents.WITHDRAWAL, msgspec.json.encode(fields), [("vendor-1", key)])


def approval_envelope(
    request: bytes, key: Ed25519PrivateKey = APPROVER, key_id: str = "sec-1", **changes: Any
) -> bytes:
    """Return the approval of the request in this envelope, signed by one approver."""
    payload = base64.b64decode(msgspec.json.decode(request)["payload"])
    fields = {
        "id": msgspec.json.decode(payload)["id"],
        "request_sha256": documents.sha256(payload),
        "decision": "approve",
        "by": "sec-oncall",
        "at": utc_text(START_MS),
    }
    approval = msgspec.convert(fields | changes, Approval)
    return sign(documents.APPROVAL, msgspec.json.encode(approval), [(key_id, key)])


def grant_of(state: State, **changes: Any) -> Grant:
    """Return a grant that was approved by one person, and opened at START_MS if it is open."""
    envelope = request_envelope()
    payload = msgspec.json.encode(request_fields())
    grant = Grant(
        id=GRANT_ID,
        state=state,
        since_ms=START_MS - 1000,
        envelope=envelope,
        payload=payload,
        payload_sha256=documents.sha256(payload),
        vendor_keys=("vendor-1",),
        role="system-reader",
        duration_seconds=3600,
        lapses_ms=START_MS + 4 * HOUR_MS,
        policy_sha256="0" * 64,
        approvals=(GivenApproval(by="sec-1", at_ms=START_MS),),
        end_ms=START_MS + HOUR_MS,
        end_boot_ns=5 * 10**12 + 3600 * 10**9,
        boot_id="boot-1",
    )
    return msgspec.structs.replace(grant, **changes)
