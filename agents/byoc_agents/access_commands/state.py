"""What the commands read of the broker's directory: grants, facts, and the kill switch."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from byoc_agents.access import clickhouse_sql
from byoc_agents.access.broker import POLICIES
from byoc_agents.access.clickhouse_admin import user_of
from byoc_agents.access.control_facts import CONFLICT
from byoc_agents.access.control_files import KillSwitch
from byoc_agents.access.documents import utc_text
from byoc_agents.access.errors import PolicyError
from byoc_agents.access.grants import GRANTS
from byoc_agents.access.machine import ENDS, LIVE, Grant, State
from byoc_agents.access.policy import load_stored_policy
from byoc_agents.durable.store import SpoolStore
from byoc_agents.ledger.format import FactLine
from byoc_agents.ledger.query import Filter, RecordedFact, events

BROKER = "access-broker"  # the broker's directory below the state directory
KILL_SWITCH = "kill-switch"
UNBOUNDED = 1 << 62  # the commands store nothing
_DECODER = msgspec.json.Decoder(Grant)


class NoBrokerError(Exception):
    """There is no directory of a broker. `str()` names it."""


class GrantSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One grant for a person or a program; times in RFC 3339, "" if there is none."""

    id: str
    state: str
    reason: str
    engineer: str
    engineer_name: str
    kind: str
    ticket: str
    text: str
    role: str
    requested_role: str
    endpoints: tuple[str, ...]
    clickhouse_user: str  # "" = none was ever created, so no server has a record of its use
    duration_seconds: int
    requested_seconds: int
    vendor_keys: tuple[str, ...]
    approvers: tuple[str, ...]
    comments: tuple[str, ...]
    issued_at: str
    since: str
    opened_at: str
    ends_at: str
    closed_at: str
    request_sha256: str
    policy_sha256: str
    replicas: tuple[str, ...]
    counts: dict[str, int]  # of the collected logs of all replicas


class BrokerState:
    """The directory of one broker, which may be running."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir / BROKER

    def check(self) -> None:
        """Raise NoBrokerError if no broker has stored anything."""
        if not (self.directory / "spool.db").is_file():
            raise NoBrokerError(f"no broker below {self.directory.parent}: expected its directory")

    @property
    def is_unused(self) -> bool:
        """Whether no broker has ever run here: the folder above exists, and this one is empty.

        A kill switch, which the commands set, does not count.
        """
        if not self.directory.exists():
            return self.directory.parent.is_dir()
        return {path.name for path in self.directory.iterdir()} <= {KILL_SWITCH}

    def grants(self) -> list[Grant]:
        """Return every grant, the oldest first. Raises NoBrokerError, SpoolError."""
        self.check()
        with closing(SpoolStore(self.directory / "spool.db", max_bytes=UNBOUNDED)) as store:
            raw = store.state(GRANTS)
        return sorted(map(_DECODER.decode, raw.values()), key=lambda grant: grant.request.issued_ms)

    def grant(self, grant_id: str) -> Grant | None:
        """Return one grant by its id, or by the beginning of it if that is unique."""
        found = [grant for grant in self.grants() if grant.id.startswith(grant_id)]
        return found[0] if len(found) == 1 else None

    def facts(self, grant_id: str = "") -> list[RecordedFact]:
        """Return the facts of a grant, or all of them."""
        found = events({BROKER: self.directory / "ledger"}, Filter(id=grant_id))
        return [event for event in found if isinstance(event, RecordedFact)]

    def facts_meanwhile(self, grant_id: str, own: Sequence[RecordedFact]) -> list[RecordedFact]:
        """Return the facts of no grant, such as the kill switch, between a grant's own facts.

        Those about other requests with its id are returned from any time.
        """
        sequences = [fact.sequence for fact in own] or [0]
        return [
            fact
            for fact in self.facts()
            if not fact.subject
            and (
                fact.detail.get("request", "") == grant_id
                if fact.fact == CONFLICT
                else min(sequences) < fact.sequence < max(sequences)
            )
        ]

    def readable(self, grant: Grant) -> list[str]:
        """Return the views that the grant's role may read, or nothing if its policy is gone."""
        try:
            path = self.directory / POLICIES / f"{grant.policy_sha256}.yaml"
            roles = load_stored_policy(path.read_bytes()).file.roles
        except (OSError, PolicyError):
            return []
        role = roles.get(grant.role)
        if role is None or role.clickhouse_role is None or not grant.needs_user:
            return []
        return _views_of(role.clickhouse_role)

    @property
    def kill_file(self) -> Path:
        """The kill switch that the commands set: it is on while the file exists."""
        return self.directory / KILL_SWITCH

    def kill_reason(self, mounted: str = "") -> str:
        """Return why the kill switch is on, or "". `mounted` is BYOC_ACCESS_KILL_SWITCH_FILE."""
        return KillSwitch(self.kill_file, mounted).find_reason()


def _views_of(clickhouse_role: str) -> list[str]:
    """Return the views that a shipped role and the roles in it may read."""
    views, inner = clickhouse_sql.role_grants().get(clickhouse_role, ((), ()))
    found = {f"{clickhouse_sql.VIEWS}.{view}" for view in views}
    return sorted(found.union(*map(_views_of, inner)))


def may_have_access(grant: Grant) -> bool:
    """Return whether an engineer may still have access, or a replica has not confirmed the end."""
    return grant.state in LIVE or grant.state is State.CLOSING


def is_ended(grant: Grant) -> bool:
    """Return whether nothing more happens to a grant."""
    return grant.state in ENDS


def summarize(grant: Grant, facts: Sequence[RecordedFact]) -> GrantSummary:
    """Return the summary of a grant; `facts` may be of others too."""
    request = grant.request
    return GrantSummary(
        id=grant.id,
        state=grant.state.value,
        reason=grant.reason,
        engineer=request.engineer.id,
        engineer_name=request.engineer.name,
        kind=request.reason.kind,
        ticket=request.reason.ticket,
        text=request.reason.text,
        role=grant.role,
        requested_role=request.role,
        endpoints=request.endpoints,
        clickhouse_user=user_of(grant.id) if grant.replicas else "",
        duration_seconds=grant.duration_seconds,
        requested_seconds=request.duration_seconds,
        vendor_keys=grant.vendor_keys,
        approvers=tuple(one.by for one in grant.approvals),
        comments=tuple(one.comment for one in grant.approvals if one.comment),
        issued_at=request.issued_at,
        since=_time(grant.since_ms),
        opened_at=_time(grant.opened_ms),
        ends_at=_time(grant.end_ms),
        closed_at=_time(grant.closed_ms),
        request_sha256=grant.payload_sha256,
        policy_sha256=grant.policy_sha256,
        replicas=grant.replicas,
        counts=sum_counts(grant.id, facts),
    )


def _time(milliseconds: int) -> str:
    return utc_text(milliseconds) if milliseconds else ""


def sum_counts(grant_id: str, facts: Sequence[RecordedFact | FactLine]) -> dict[str, int]:
    """Return the sums of the facts `collected`, one per replica: the last of each counts."""
    of_replica = {
        fact.detail["replica"]: fact.detail
        for fact in facts
        if fact.subject == grant_id and fact.fact == "collected" and "replica" in fact.detail
    }
    sums: dict[str, int] = {}
    for detail in of_replica.values():
        for name in COUNTS:
            if detail.get(name, "").isdigit():
                sums[name] = sums.get(name, 0) + int(detail[name])
    return sums


COUNTS = ("queries", "failed", "failed_logins", "result_rows", "result_bytes")
