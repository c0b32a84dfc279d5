"""The identity of an alert for the control plane: keyed, so that it reveals no labels.

Alertmanager's fingerprint is an unkeyed hash of all labels. Anyone who has a fingerprint can guess
table and host names until the hash matches. Therefore the forwarder sends an HMAC of it, with a
secret of the customer that all forwarders of a service share. The event's id and subject are
derived from the HMAC.
"""

import hmac
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from byoc_agents.alerts.payload import Received
from byoc_agents.app.cloudevents import stable_id

RECEIVER_KEY_DIGITS = 8
MAX_KEPT_NAME = 256  # characters of a receiver whose identities are kept, which bounds the memory


class Identity(msgspec.Struct, frozen=True):
    """How the alerts of one receiver of Alertmanager are identified."""

    receiver: str  # the name from which the ids are computed; never sent
    receiver_key: str  # the same in RECEIVER_KEY_DIGITS: begins the keys of its alerts
    keyed: hmac.HMAC | None = None  # with the secret, and nothing hashed; None = as in 0.1.0

    def fingerprint_of(self, alert: Received) -> str:
        """Return the fingerprint that is sent, 16 hex digits."""
        if self.keyed is None:
            return alert.fingerprint
        return _hash_keyed(self.keyed, "fingerprint", alert.fingerprint)[:16]

    def alert_key(self, fingerprint: str) -> str:
        """Return the alert's key in the forwarder's own state; it ends with `fingerprint`."""
        return f"{self.receiver_key}-{fingerprint}"


def identities(secrets: Sequence[str], receiver: str) -> Sequence[Identity]:
    """Return the identity of a receiver's alerts for each secret, the current secret first.

    The last identity is the one of version 0.1.0, without a secret.
    """
    if len(receiver) > MAX_KEPT_NAME:
        return _make_identities(tuple(secrets), receiver)
    return _kept_identities(tuple(secrets), receiver)


def _make_identities(secrets: tuple[str, ...], receiver: str) -> Sequence[Identity]:
    found = []
    for secret in secrets:
        keyed = hmac.new(secret.encode(), digestmod="sha256")
        name = _hash_keyed(keyed, "receiver", receiver)
        found.append(Identity(name, _receiver_key(name), keyed))
    return (*found, Identity(receiver, _receiver_key(receiver)))


_kept_identities = lru_cache(maxsize=64)(_make_identities)


def _receiver_key(receiver: str) -> str:
    return stable_id("receiver", receiver)[:RECEIVER_KEY_DIGITS]


def _hash_keyed(keyed: hmac.HMAC, kind: str, value: str) -> str:
    """Return 32 hex digits. `hmac.digest` would release the interpreter for every alert."""
    hashed = keyed.copy()
    hashed.update(f"{kind}\n{value}".encode())
    return hashed.hexdigest()[:32]
