"""The events about grants that are sent to the vendor: states, times and counts, never a query.

The names of approvers and the policy stay with the customer.
"""

import re
from typing import Annotated, Literal

import msgspec

from byoc_agents.access.machine import ENDS, Cause, Grant, State
from byoc_agents.access.policy import RULES
from byoc_agents.access.server_checks import ServerCheck
from byoc_agents.app.cloudevents import (
    Event,
    OrganizationId,
    ServiceId,
    describe,
    encode,
    rfc3339,
    stable_id,
)
from byoc_agents.message import Message

TYPE = "byoc.access.grant.v1"
FIRST_WORDS = re.compile("[^:;(]*")  # of a reason; names and texts of the customer follow
REASONS = frozenset(
    {
        *(cause.value for cause in Cause),
        *RULES,
        *(check.value for check in ServerCheck),
        # Why nothing was opened.
        *("unreachable", "skew", "no replicas", "users", "authority", "tailnet"),
        *("kill_switch", "clock", "not_before", "hours", "max_open", "max_open_per_engineer"),
    }
)
"""Every reason that the vendor is sent. Others are errors of the customer's machines."""
OTHER = "other"


class GrantState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a grant, for the vendor."""

    organization_id: OrganizationId
    service_id: ServiceId
    grant_id: Annotated[str, describe("Id of the request.")]
    state: Annotated[str, describe("The state of the grant.")]
    since: Annotated[str, describe("When it came into this state.")]
    reason: Annotated[str, describe("Why, without values of the policy.")]
    role: Annotated[str, describe("The approved role.")]
    duration_seconds: Annotated[int, describe("The approved duration.")]
    ends_at: Annotated[str | None, describe("When access ends; null before it opens.")]
    certificate: Annotated[str, describe("The signed certificate in PEM, while access is open.")]
    counts: Annotated[
        dict[str, int], describe("After the end: queries, failed logins, rows and bytes.")
    ]
    record: Annotated[
        Literal["", "complete", "gap"],
        describe("After the end: whether all of the servers' logs were collected."),
    ]


class GrantEvent(Event, frozen=True, kw_only=True):
    """The envelope of one state of a grant."""

    data: GrantState


def message_of(
    grant: Grant, organization_id: str, service_id: str, counts: dict[str, int]
) -> Message:
    """Return the message about a grant's state. The same state gives the same id."""
    closed = {State.CLOSED: "complete", State.CLOSED_INCOMPLETE: "gap"}
    data = GrantState(
        organization_id=organization_id,
        service_id=service_id,
        grant_id=grant.id,
        state=grant.state.value,
        since=rfc3339(grant.since_ms),
        reason=find_reason(grant.reason),
        role=grant.role,
        duration_seconds=grant.duration_seconds,
        ends_at=rfc3339(grant.end_ms) if grant.end_ms else None,
        certificate=grant.certificate if grant.state is State.OPEN else "",
        counts=counts if grant.state in ENDS else {},
        record=closed.get(grant.state, ""),  # type: ignore[arg-type]
    )
    event = GrantEvent(
        id=event_id(organization_id, service_id, grant.id, grant.state),
        source=_source(organization_id, service_id),
        type=TYPE,
        subject=grant.id,
        time=rfc3339(grant.since_ms),
        data=data,
    )
    return Message(
        id=event.id, type=TYPE, body=encode(event), created_at_ms=grant.since_ms, group=grant.id
    )


def event_id(organization_id: str, service_id: str, grant_id: str, state: State) -> str:
    """Return the id of the event about a state: the same for the same state."""
    return stable_id(_source(organization_id, service_id), grant_id, state)


def _source(organization_id: str, service_id: str) -> str:
    return f"/organizations/{organization_id}/services/{service_id}/access"


def find_reason(reason: str) -> str:
    """Return the fixed words of a grant's reason, or `other`: no text of an error is sent."""
    found = FIRST_WORDS.match(reason)
    words = found[0].strip() if found else ""
    return words if words in REASONS else OTHER
