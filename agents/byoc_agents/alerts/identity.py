"""The identity of an alert for the control plane: keyed, so that it reveals no labels.

Alertmanager's fingerprint is an unkeyed hash of all labels. Anyone who has a fingerprint can guess
table and host names until the hash matches. Therefore the forwarder sends an HMAC of it, with a
secret of the customer that all forwarders of a service share. The event's id and subject are
derived from the HMAC.
"""

import hmac
from collections.abc import Iterator, Sequence

import msgspec

from byoc_agents.alerts.payload import Received


class Identity(msgspec.Struct, frozen=True):
    """The fingerprint and the receiver's name from which the ids are computed."""

    fingerprint: str  # 16 hex digits
    receiver: str
    keyed: bool  # False = as in 0.1.0, without a secret


def identities(secrets: Sequence[str], alert: Received, receiver: str) -> Iterator[Identity]:
    """Yield the identity of an alert for each secret, the current secret first.

    The last identity is the one of version 0.1.0, without a secret.
    """
    for secret in secrets:
        key = secret.encode()
        yield Identity(
            fingerprint=_hash_keyed(key, "fingerprint", alert.fingerprint)[:16],
            receiver=_hash_keyed(key, "receiver", receiver),
            keyed=True,
        )
    yield Identity(fingerprint=alert.fingerprint, receiver=receiver, keyed=False)


def _hash_keyed(key: bytes, kind: str, value: str) -> str:
    return hmac.digest(key, f"{kind}\n{value}".encode(), "sha256").hex()[:32]
