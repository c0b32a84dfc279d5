"""The identity of an alert for the control plane: keyed, so that it says nothing about its labels.

Alertmanager's fingerprint is a hash of all labels without a key. Whoever has one can try table and
host names until the hash agrees. So an HMAC of it is sent, with a secret of the customer that
all forwarders of a service share. The event's id and subject are made from that.
"""

import hmac
from collections.abc import Iterator, Sequence

import msgspec

from byoc_agents.alerts.payload import Received


class Identity(msgspec.Struct, frozen=True):
    """The fingerprint and the receiver's name as the ids are computed from them."""

    fingerprint: str  # 16 hex digits
    receiver: str
    keyed: bool  # False as in 0.1.0, without a secret


def identities(secrets: Sequence[str], alert: Received, receiver: str) -> Iterator[Identity]:
    """Yield the identity of an alert by each secret, the current one first.

    The last one is that of version 0.1.0, without a secret.
    """
    for secret in secrets:
        key = secret.encode()
        yield Identity(
            fingerprint=_keyed(key, "fingerprint", alert.fingerprint)[:16],
            receiver=_keyed(key, "receiver", receiver),
            keyed=True,
        )
    yield Identity(fingerprint=alert.fingerprint, receiver=receiver, keyed=False)


def _keyed(key: bytes, kind: str, value: str) -> str:
    return hmac.digest(key, f"{kind}\n{value}".encode(), "sha256").hex()[:32]
