"""The result of one poll of one server: numbers and values of closed sets, no text of it."""

from enum import StrEnum

import msgspec


class ProbeSource(StrEnum):
    """The source of a figure. OBSERVABILITY_PARTIAL publishes these names; a closed set."""

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


class SourceResult(StrEnum):
    """The outcome of reading one source."""

    OK = "ok"
    ABSENT = "absent"  # this version has no such table or column
    EMPTY = "empty"  # no rows, although a server that has been up for a while has some
    DENIED = "denied"  # a grant is missing
    HIDDEN = "hidden"  # no rows, and no other figure proves that there are none
    OVER_BOUND = "over_bound"  # the request's or the profile's limit was reached, twice in a row
    FAILED = "failed"  # another error, or the connection broke, twice in a row
    RETRYING = "retrying"  # OVER_BOUND or FAILED once: the last response is used for one more poll
    PENDING = "pending"  # the same, but there is no recent response to use


BLIND = frozenset(
    {SourceResult.DENIED, SourceResult.HIDDEN, SourceResult.OVER_BOUND, SourceResult.FAILED}
)
"""Sources that should be readable and are not. ABSENT and EMPTY depend on the server's version."""

UNCONFIRMED = frozenset({SourceResult.RETRYING, SourceResult.PENDING})
"""One query without a response. It is asked again at the next poll before it counts."""


class Ping(StrEnum):
    """The outcome of `GET /ping`. Every request has its own connection."""

    OK = "ok"
    REFUSED = "refused"  # nobody listens
    TIMEOUT = "timeout"
    RESET = "reset"  # accepted, then closed without a response
    UNREACHABLE = "unreachable"  # unknown host name, no route, or refused by the egress gate
    TLS = "tls"  # something listens, but its certificate is not trusted
    HTTP_ERROR = "http_error"  # another status or another body


class Login(StrEnum):
    """The server's decision about the user. Unknown if no query was answered."""

    UNKNOWN = "unknown"
    OK = "ok"
    REFUSED = "refused"  # wrong user or password, or not allowed from this host


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Aggregates of one server. None = not seen, which is never the same as 0."""

    readonly_replicas: int | None = None  # tables whose replica is read-only
    replicated_tables: int | None = None  # as far as SHOW TABLES shows them
    keeper_sessions: int | None = None
    expired_sessions: int | None = None  # tables whose Keeper session has expired
    replication_lag_seconds: int | None = None  # of the worst table whose lag is known
    replication_lag_unknown: bool = False  # a table reports a delay that is not possible
    replication_queue: int | None = None  # entries, all tables
    replicas_status_ok: bool | None = None  # False = the server itself reports too large a lag
    lost_parts: int | None = None  # cumulative since the server's start
    rejected_inserts: int | None = None  # cumulative since the server's start
    delayed_inserts: int | None = None  # now
    server_errors: int | None = None  # cumulative: errors that no statement can cause
    max_parts_in_partition: int | None = None  # active parts of the worst partition
    active_parts: int | None = None  # as far as SHOW TABLES shows them
    pending_mutations: int | None = None
    stuck_mutations: int | None = None  # not done for MUTATION_STUCK_SECONDS
    detached_parts: int | None = None  # not detached by a user
    disk_free_ratio: float | None = None  # of the fullest disk, 0 to 1
    memory_used_ratio: float | None = None  # resident / limit of the container, else of the host


class StateObservation(msgspec.Struct, frozen=True, kw_only=True):
    """One poll."""

    ping: Ping
    login: Login = Login.UNKNOWN
    sources: dict[ProbeSource, SourceResult] = {}
    figures: Figures = Figures()
    version: str = ""  # digits and dots only
    uptime_seconds: int | None = None
    shared_merge_tree: bool = False  # there are Shared*MergeTree tables: no replication queue
