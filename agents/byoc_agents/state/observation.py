"""What the probes saw of one server at one poll: numbers and closed words, never a text of it."""

from enum import StrEnum

import msgspec


class Source(StrEnum):
    """Where a figure comes from. These names leave in OBSERVABILITY_PARTIAL; the set is closed."""

    QUERIES = "queries"  # any query at all
    REPLICAS_STATUS = "replicas_status"  # HTTP GET /replicas_status
    METRICS = "system.metrics"
    EVENTS = "system.events"
    ASYNCHRONOUS_METRICS = "system.asynchronous_metrics"
    DISKS = "system.disks"
    ERRORS = "system.errors"
    REPLICAS = "system.replicas"
    PARTS = "system.parts"
    MUTATIONS = "system.mutations"
    DETACHED_PARTS = "system.detached_parts"


class Seen(StrEnum):
    """How looking at a source ended."""

    OK = "ok"
    ABSENT = "absent"  # this version has no such table or column
    EMPTY = "empty"  # no rows where a server that is up for a while has some
    DENIED = "denied"  # a grant is missing
    HIDDEN = "hidden"  # no rows, and no other figure proves that there are none to be seen
    OVER_BOUND = "over_bound"  # the time-out or a limit of the profile was reached
    FAILED = "failed"  # the server answered with another error, or the connection broke


BLIND = frozenset({Seen.DENIED, Seen.HIDDEN, Seen.OVER_BOUND, Seen.FAILED})
"""What ought to be seen and is not. ABSENT and EMPTY are a property of the server's version."""


class Ping(StrEnum):
    """How `GET /ping` ended. Every request of ours has a connection of its own."""

    OK = "ok"
    REFUSED = "refused"  # nobody listens
    TIMEOUT = "timeout"
    RESET = "reset"  # accepted, then closed without an answer
    UNREACHABLE = "unreachable"  # no such name, no route, refused by our own egress gate
    TLS = "tls"  # something listens, but its certificate is not trusted
    HTTP_ERROR = "http_error"  # answered with another status or another body


class Login(StrEnum):
    """Whether the server let us in. Not known where no query was answered."""

    UNKNOWN = "unknown"
    OK = "ok"
    REFUSED = "refused"  # wrong user or password, or not from this host


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Aggregates. None = not seen, which is never the same as 0."""

    readonly_replicas: int | None = None  # tables whose replica is read-only
    replicated_tables: int | None = None  # as far as SHOW TABLES lets us see
    keeper_sessions: int | None = None
    expired_sessions: int | None = None  # tables whose Keeper session has expired
    replication_lag_seconds: int | None = None  # the worst table
    replication_queue: int | None = None  # entries, all tables
    replicas_status_ok: bool | None = None  # False = the server itself says that it lags too far
    lost_parts: int | None = None  # cumulative since the server's start
    rejected_inserts: int | None = None  # cumulative since the server's start
    delayed_inserts: int | None = None  # now
    server_errors: int | None = None  # cumulative: errors that are the server's fault
    max_parts_in_partition: int | None = None  # active parts of the worst partition
    active_parts: int | None = None  # that we may see
    pending_mutations: int | None = None
    stuck_mutations: int | None = None  # not done for MUTATION_STUCK_SECONDS
    detached_parts: int | None = None  # not detached by a user
    disk_free_ratio: float | None = None  # the fullest disk, 0 to 1
    memory_used_ratio: float | None = None  # resident / limit of the container, else of the host


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One poll."""

    ping: Ping
    login: Login = Login.UNKNOWN
    seen: dict[Source, Seen] = {}
    figures: Figures = Figures()
    version: str = ""  # digits and dots only
    uptime_seconds: int | None = None
    shared_merge_tree: bool = False  # there are Shared*MergeTree tables: no replication queue
