"""Which signatures and approvals of a grant count under the policy of now. Pure.

A grant has the envelopes as they were signed, so their signatures are checked again with the keys
that the policy has now. A key that was replaced under the same id, has expired or was removed does
not count any more, whenever it has signed. Grants of earlier versions have the envelopes too.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from byoc_agents.access.documents import APPROVAL, REQUEST
from byoc_agents.access.machine import LIVE, GivenApproval, Grant
from byoc_agents.access.policy import Granted, Policy
from byoc_agents.envelope import VerifyingKey, open_envelope
from byoc_agents.errors import EnvelopeError

CACHED = 256  # results; each pass asks for those of all grants


def count_granted(grant: Grant, policy: Policy, now_ms: int) -> Granted:
    """Return the approved role and duration, and everyone whose agreement counts now."""
    approvals = [one for one in grant.approvals if _has_meaning(grant, one, policy)]
    if policy.file.approval == "signed":
        approvers = {
            key_id
            for one in approvals
            for key_id in _find_signers(one.envelope, APPROVAL, policy.approver_keys, now_ms)
        }
    else:
        approvers = {one.by for one in approvals}
    return Granted(
        role=grant.role,
        duration_seconds=grant.duration_seconds,
        vendor_keys=_find_signers(grant.envelope, REQUEST, policy.vendor_keys, now_ms),
        approvers=tuple(sorted(approvers)),
    )


def describe_roles(policy: Policy, requested: str) -> Mapping[str, str]:
    """Return what each role means that may be approved instead of `requested`, and itself."""
    names = (name for name in policy.file.roles if policy.is_lesser_role(name, requested))
    return {name: _describe_role(policy, name) for name in names}


def _describe_role(policy: Policy, name: str) -> str:
    role = policy.file.roles.get(name)
    if role is None:
        return ""
    return " ".join((role.clickhouse_role or "-", *sorted(role.endpoints)))


def _has_meaning(grant: Grant, approval: GivenApproval, policy: Policy) -> bool:
    """Return whether the grant's role means what it meant when this approval was given.

    Approvals of earlier versions do not state it: they open nothing, and what they have opened
    goes on to its end.
    """
    if not approval.roles:
        return grant.state in LIVE
    return approval.roles.get(grant.role) == _describe_role(policy, grant.role)


def _find_signers(
    envelope: bytes, payload_type: str, keys: Sequence[VerifyingKey], now_ms: int
) -> tuple[str, ...]:
    """Return the ids of the keys that have signed an envelope and have not expired."""
    current = tuple(key for key in keys if key.not_after_ms is None or now_ms < key.not_after_ms)
    return _verify(envelope, payload_type, current)


@lru_cache(maxsize=CACHED)
def _verify(envelope: bytes, payload_type: str, keys: tuple[VerifyingKey, ...]) -> tuple[str, ...]:
    unexpired_ms = 0  # the caller has left out the expired keys
    try:
        found = open_envelope(envelope, (payload_type,), keys, threshold=1, now_ms=unexpired_ms)
    except EnvelopeError:
        return ()
    return found.key_ids
