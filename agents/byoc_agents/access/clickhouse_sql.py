"""The SQL that the access broker and the administrator send to ClickHouse. Pure functions.

A grant is one user, `byoc_grant_` and the 32 hexadecimal digits of the grant's ID. No text of a
request becomes part of a statement except three values, each of a closed pattern: the ID, the
ticket and the URI of the certificate. Each function raises ValueError for any other value.

The files in `sql/` are what an administrator runs once: views, roles, and the broker's login.
"""

# ruff: noqa: S608 - a value becomes part of a statement only after its closed pattern was checked

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib import resources
from typing import Any

import msgspec

USER_PREFIX = "byoc_grant_"
PROFILE = "byoc_access"
QUOTA = "byoc_access"
VIEWS = "byoc_access"  # the database of the views
VIEWS_USER = "byoc_access_views"
BROKER_USER = "byoc_access_broker"
ROLES = ("byoc_access_metrics", "byoc_access_reader", "byoc_access_shape", "byoc_access_text")
"""The roles of `roles.sql`; each has the rights of the one before it."""
FILES = ("views.sql", "roles.sql", "broker.sql")
"""In the order in which an administrator runs them."""
MAX_ROWS = 1_000_000  # of one response of the collector
KEY_BYTES = 16  # of SipHash: two numbers of 64 bits

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TICKET = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_URI = re.compile(rf"spiffe://{_LABEL}(?:\.{_LABEL})*/grant/({_ID.pattern})")
_HASHED_NAME = re.compile(r"hex\(sipHash64Keyed\(name_key, (concat\([^()]*\)|[\w.]+)\)\)")
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)
_GRANT = re.compile(r"GRANT (.+) TO (\w+)( WITH ADMIN OPTION)?")
_VIEW = re.compile(
    rf"CREATE OR REPLACE VIEW {VIEWS}\.(\w+)\s+"
    rf"DEFINER = {VIEWS_USER} SQL SECURITY DEFINER AS\s+(.*)",
    re.DOTALL,
)
_SETTING = re.compile(r"(\w+) = ('[^']*'|\d+) CONST")


class Names(StrEnum):
    """How the views show the names of databases, tables and columns."""

    HASHED = "hashed"
    PLAIN = "plain"


class Storage(StrEnum):
    """Where the server keeps a grant's user: its first writable directory, or its memory."""

    DEFAULT = ""
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class GrantUser:
    """The user of one grant. Raises ValueError if a value is not of its pattern."""

    grant_id: str  # a UUID in lower case, with hyphens
    certificate_uri: str  # spiffe://SERVICE.byoc/grant/ID, the only name in the certificate
    role: str  # one of ROLES
    ticket: str
    valid_until: datetime  # with a time zone, whole seconds
    storage: Storage = Storage.DEFAULT

    def __post_init__(self) -> None:
        uri = _URI.fullmatch(self.certificate_uri)
        if uri is None or uri[1] != check_id(self.grant_id):
            raise ValueError(
                "certificate_uri: expected spiffe://SERVICE.byoc/grant/ID of this grant"
            )
        if self.role not in ROLES:
            raise ValueError(f"role: expected one of {', '.join(ROLES)}")
        if not _TICKET.fullmatch(self.ticket):
            raise ValueError("ticket: expected 1 to 64 of A-Z a-z 0-9 . _ : -")
        if self.valid_until.tzinfo is None or self.valid_until.microsecond:
            raise ValueError("valid_until: expected whole seconds and a time zone")

    @property
    def name(self) -> str:
        """Return the user's name."""
        return user_name(self.grant_id)

    @property
    def log_comment(self) -> str:
        """Return the text that the server writes next to each query of the user."""
        return f'{{"grant":"{self.grant_id}","ticket":"{self.ticket}"}}'


def check_id(grant_id: str) -> str:
    """Return the ID. Raises ValueError if it is not a UUID in lower case, with hyphens."""
    if not _ID.fullmatch(grant_id):
        raise ValueError("grant_id: expected a UUID in lower case, with hyphens")
    return grant_id


def user_name(grant_id: str) -> str:
    """Return the name of a grant's user. Raises ValueError."""
    return USER_PREFIX + check_id(grant_id).replace("-", "")


def create_user(user: GrantUser) -> str:
    """Return the statement that creates the user with all its limits at once.

    `DEFAULT ROLE` grants the role too. With replicated storage the second replica has the user
    already, so `IF NOT EXISTS`: `read_back` decides whether it is the same.
    """
    storage = f" IN {user.storage}" if user.storage else ""
    end = user.valid_until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        f"CREATE USER IF NOT EXISTS {user.name}{storage}"
        f" IDENTIFIED WITH ssl_certificate SAN 'URI:{user.certificate_uri}'"
        # Without the Z the server would read the time in its own zone.
        f" VALID UNTIL '{end}'"
        f" HOST ANY DEFAULT ROLE {user.role}"
        f" SETTINGS log_comment = '{user.log_comment}' CONST, PROFILE '{PROFILE}'"
        " GRANTEES NONE"
    )


def read_back(grant_id: str) -> str:
    """Return the query for the user as the server has stored it: one row, or none."""
    name = user_name(grant_id)
    return (
        "SELECT name, arrayMap(t -> toString(t), auth_type) AS auth_type, auth_params,"
        " arrayMap(t -> toUnixTimestamp(t), valid_until) AS valid_until,"
        " default_roles_list, default_roles_all, grantees_any,"
        " (SELECT groupArray(granted_role_name) FROM system.role_grants"
        f" WHERE user_name = '{name}') AS roles,"
        " (SELECT count() FROM system.grants"
        f" WHERE user_name = '{name}') AS grants,"
        " (SELECT groupArray((setting_name, value, toString(writability), inherit_profile))"
        f" FROM system.settings_profile_elements WHERE user_name = '{name}') AS settings"
        f" FROM system.users WHERE name = '{name}'"
    )


def user_differences(user: GrantUser, rows: list[dict[str, Any]]) -> list[str]:
    """Return how the response of `read_back` differs from the user; empty if it does not.

    Each entry is the name of a field: `missing`, `certificate`, `valid_until`, `role`, `grants`,
    `settings` or `grantees`.
    """
    if len(rows) != 1:
        return ["missing"]
    row, found = rows[0], []
    params = row["auth_params"]
    if row["auth_type"] != ["ssl_certificate"] or not _only_uri(params, user.certificate_uri):
        found.append("certificate")
    if [int(end) for end in row["valid_until"]] != [int(user.valid_until.timestamp())]:
        found.append("valid_until")
    active = row["default_roles_all"] or row["default_roles_list"] == [user.role]
    if row["roles"] != [user.role] or not active:
        found.append("role")
    if int(row["grants"]):
        found.append("grants")
    wanted = {
        ("log_comment", user.log_comment, "CONST", None),
        (None, None, None, PROFILE),
    }
    if {tuple(element) for element in row["settings"]} != wanted:
        found.append("settings")
    if row["grantees_any"]:
        found.append("grantees")
    return found


def _only_uri(params: list[str], uri: str) -> bool:
    """Return whether the parameters of the logins are one certificate with this URI alone."""
    try:
        names = [msgspec.json.decode(one) for one in params]
    except msgspec.DecodeError:
        return False
    return names == [{"subject_alt_names": [f"URI:{uri}"]}]


def drop_user(grant_id: str) -> str:
    """Return the statement after which no new query of the grant starts."""
    return f"DROP USER IF EXISTS {user_name(grant_id)}"


def drop_orphan(name: str) -> str:
    """Return the statement that drops a user of `grant_users`. Raises ValueError for another."""
    return f"DROP USER IF EXISTS {_check_user(name)}"


def kill_orphan(name: str) -> str:
    """Return the statement that ends the queries of such a user. Raises ValueError for another."""
    return f"KILL QUERY WHERE user = '{_check_user(name)}' ASYNC"


def _check_user(name: str) -> str:
    if not re.fullmatch(rf"{USER_PREFIX}\w{{1,64}}", name, re.ASCII):
        raise ValueError(f"name: expected a user whose name begins with {USER_PREFIX}")
    return name


def kill_queries(grant_id: str) -> str:
    """Return the statement that ends the grant's running queries. It does not wait for them."""
    return f"KILL QUERY WHERE user = '{user_name(grant_id)}' ASYNC"


def running_queries(grant_id: str) -> str:
    """Return the query for the IDs of the grant's running queries."""
    return (
        "SELECT query_id, elapsed FROM system.processes"
        f" WHERE user = '{user_name(grant_id)}' ORDER BY query_id"
    )


def grant_users() -> str:
    """Return the query for the names of all users that have the prefix of a grant."""
    return f"SELECT name FROM system.users WHERE startsWith(name, '{USER_PREFIX}') ORDER BY name"


def server_clock() -> str:
    """Return the query for the server's clock, in milliseconds since 1970."""
    return "SELECT toUnixTimestamp64Milli(now64(3)) AS milliseconds"


def flush_logs() -> str:
    """Return the statement after which query_log and session_log hold everything so far."""
    return "SYSTEM FLUSH LOGS"


QUERY_COLUMNS = (
    *("type", "query_id", "initial_query_id", "query", "query_kind", "databases", "tables"),
    *("columns", "exception_code", "exception", "user", "initial_user", "address", "port"),
    *("forwarded_for", "interface", "client_name", "http_user_agent", "query_duration_ms"),
    *("read_rows", "read_bytes", "result_rows", "result_bytes", "memory_usage", "log_comment"),
)
SESSION_COLUMNS = (
    *("type", "auth_id", "user", "auth_type", "client_address", "client_port", "interface"),
    *("client_name", "failure_reason"),
)
CERTIFICATE_COLUMNS = (  # of session_log, in ClickHouse since June 2026
    *("certificate_subjects", "certificate_serial", "certificate_issuer"),
    *("certificate_not_before", "certificate_not_after"),
)


def session_log_columns() -> str:
    """Return the query for the columns of session_log that this server has; no row: no such log."""
    return (
        "SELECT name FROM system.columns"
        " WHERE database = 'system' AND table = 'session_log' ORDER BY name"
    )


def collect_queries(grant_id: str, since: datetime, limit: int = MAX_ROWS, offset: int = 0) -> str:
    """Return the query for the lines of query_log of a grant since a time, oldest first.

    Each query has a line `QueryStart` and one about its end. `time` is in microseconds since 1970.
    """
    return _collect("query_log", QUERY_COLUMNS, grant_id, since, (limit, offset))


def collect_sessions(
    grant_id: str, since: datetime, *, certificates: bool, limit: int = MAX_ROWS, offset: int = 0
) -> str:
    """Return the query for the lines of session_log of a grant since a time, oldest first.

    `certificates`: whether the server has the columns of CERTIFICATE_COLUMNS.
    """
    columns = SESSION_COLUMNS + (CERTIFICATE_COLUMNS if certificates else ())
    return _collect("session_log", columns, grant_id, since, (limit, offset))


def count_queries(grant_id: str, since: datetime) -> str:
    """Return the query for the totals that the vendor receives: counts, no text."""
    name = user_name(grant_id)
    return (
        "SELECT countIf(type = 'QueryStart') AS started, countIf(type = 'QueryFinish') AS finished,"
        " countIf(type IN ('ExceptionBeforeStart', 'ExceptionWhileProcessing')) AS failed,"
        " count() AS lines,"
        " sum(result_rows) AS result_rows, sum(result_bytes) AS result_bytes,"
        " sum(read_rows) AS read_rows FROM system.query_log"
        f" WHERE {_period(since)} AND user = '{name}'"
    )


def count_sessions(grant_id: str, since: datetime) -> str:
    """Return the query for the number of lines of session_log, and of the failed logins in it."""
    name = user_name(grant_id)
    return (
        "SELECT count() AS lines, countIf(type = 'LoginFailure') AS failed_logins"
        f" FROM system.session_log WHERE {_period(since)} AND user = '{name}'"
    )


def _collect(
    table: str, columns: tuple[str, ...], grant_id: str, since: datetime, page: tuple[int, int]
) -> str:
    """Return the query of a page: so many lines after so many."""
    limit, offset = page
    if not 0 < limit <= MAX_ROWS:
        raise ValueError(f"limit: expected 1 to {MAX_ROWS}")
    return (
        "SELECT toUnixTimestamp64Micro(event_time_microseconds) AS time,"
        f" {', '.join(columns)} FROM system.{table}"
        f" WHERE {_period(since)} AND user = '{user_name(grant_id)}'"
        f" ORDER BY event_time_microseconds, type, {columns[1]} LIMIT {limit} OFFSET {offset}"
    )


def _period(since: datetime) -> str:
    """Return the condition; `event_date` is the table's partition, in the server's time zone."""
    if since.tzinfo is None:
        raise ValueError("since: expected a time zone")
    # A Date before 1970 would be one of the year 2149.
    seconds = max(2 * 24 * 3600, int(since.timestamp()))
    return (
        f"event_date >= toDate(toDateTime({seconds})) - 1"
        f" AND event_time_microseconds >= fromUnixTimestamp64Micro(toInt64({seconds * 1_000_000}))"
    )


def setup_script(key: bytes, names: Names = Names.HASHED) -> str:
    """Return all that an administrator runs on each replica, with the same `key` of 16 bytes.

    Raises ValueError for a key of another length.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"key: expected {KEY_BYTES} bytes")
    first, second = (int.from_bytes(key[n : n + 8]) for n in (0, 8))
    text = "\n".join(read_file(name) for name in FILES)
    text = text.replace("FIRST_HALF", str(first)).replace("SECOND_HALF", str(second))
    return show_names(text) if names is Names.PLAIN else text


def show_names(text: str) -> str:
    """Return SQL whose views show the names of databases, tables and columns."""
    return _HASHED_NAME.sub(r"\1", text)


def read_file(name: str) -> str:
    """Return the text of one of FILES."""
    return resources.files(__package__).joinpath("sql", name).read_text()


def split_statements(text: str) -> list[str]:
    """Return the statements of one of our files, without comments and semicolons."""
    parts = _COMMENT.sub("", text).split(";\n")
    return [part.strip() for part in parts if part.strip()]


def role_grants() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """Return the roles of `roles.sql`: the views that each may read, and the role it contains."""
    views: dict[str, set[str]] = {role: set() for role in ROLES}
    roles: dict[str, set[str]] = {role: set() for role in ROLES}
    for right, role, _ in grants("roles.sql"):
        if right.startswith("SELECT ON "):
            views[role].add(right.removeprefix(f"SELECT ON {VIEWS}."))
        else:
            roles[role].add(right)
    return {role: (frozenset(views[role]), frozenset(roles[role])) for role in ROLES}


def grants(file: str) -> list[tuple[str, str, bool]]:
    """Return the grants of a file: the rights, the user or role, and whether it may give it on."""
    found = map(_GRANT.fullmatch, split_statements(read_file(file)))
    return [(one[1], one[2], bool(one[3])) for one in found if one]


def views(names: Names = Names.HASHED) -> dict[str, str]:
    """Return the SELECT of each view of `views.sql`."""
    text = read_file("views.sql")
    if names is Names.PLAIN:
        text = show_names(text)
    found = map(_VIEW.fullmatch, split_statements(text))
    return {one[1]: one[2] for one in found if one}


def profile_settings() -> Mapping[str, str]:
    """Return the settings of the profile, all of them constant."""
    (profile,) = (
        one
        for one in split_statements(read_file("roles.sql"))
        if one.startswith("CREATE SETTINGS PROFILE")
    )
    return {name: value.strip("'") for name, value in _SETTING.findall(profile)}
