"""Keyed forms of the ids that Kubernetes and the kernel give to pods and nodes.

The uid of a pod and the boot id of a node join our records with other data about the customer's
cluster, and the boot id shows which pods share a node. Neither is sent as it is. Both are random
UUIDs with 122 bits that do not leave the cluster, so each is itself the key of its HMAC: nobody can
compute it back, and whoever has the original can compute the form that was sent.
"""

import hmac
import uuid

_VERSION_8 = 8 << 76
_VERSION_MASK = 0xF << 76
_VARIANT = 0b10 << 62
_VARIANT_MASK = 0b11 << 62


def keyed_id(original: str, *scope: str) -> str:
    """Return a UUID of version 8 (RFC 9562) for an id within a scope, "" for "".

    It is the first 16 bytes of HMAC-SHA-256 with `original` as the key and the parts of `scope`,
    joined by line feeds, as the message. Two scopes give forms that cannot be compared.

    >>> keyed_id("6f0a2c1e-7d1b-4f4c-9d0e-2b7c5a1f3e90", "pod", "org-1", "svc-1")
    '3a44ae1e-66f9-8a14-823f-648873640a95'
    """
    if not original:
        return ""
    digest = hmac.digest(original.encode(), "\n".join(scope).encode(), "sha256")
    number = int.from_bytes(digest[:16], "big")
    number = number & ~_VERSION_MASK & ~_VARIANT_MASK | _VERSION_8 | _VARIANT
    return str(uuid.UUID(int=number))
