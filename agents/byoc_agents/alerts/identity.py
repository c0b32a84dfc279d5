"""The identity of an alert for the control plane: keyed, so that it reveals no labels.

Alertmanager's fingerprint is an unkeyed hash of all labels. Anyone who has a fingerprint can guess
table and host names until the hash matches. Therefore the forwarder sends an HMAC of it, with a
secret of the customer that all forwarders of a service share. The event's id and subject are
derived from the HMAC.
"""

import hmac
from collections.abc import Iterator, Sequence
from functools import lru_cache

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
        yield Identity(
            fingerprint=_hash_keyed(secret, "fingerprint", alert.fingerprint)[:16],
            receiver=_hash_receiver(secret, receiver),
            keyed=True,
        )
    yield Identity(fingerprint=alert.fingerprint, receiver=receiver, keyed=False)


@lru_cache(maxsize=64)  # Alertmanager has a few receivers
def _hash_receiver(secret: str, receiver: str) -> str:
    return _hash_keyed(secret, "receiver", receiver)


def _hash_keyed(secret: str, kind: str, value: str) -> str:
    """Return 32 hex digits. `hmac.digest` would release the interpreter and wait for it again."""
    keyed = _start(secret).copy()
    keyed.update(f"{kind}\n{value}".encode())
    return keyed.hexdigest()[:32]


@lru_cache(maxsize=8)  # the current secret, and the former ones during a rotation
def _start(secret: str) -> hmac.HMAC:
    return hmac.new(secret.encode(), digestmod="sha256")
