"""Checks one ClickHouse server before a grant is opened on it. Each check has a name and a reason.

The broker opens nothing on a server that fails a check: its grants would then give an engineer more
than the customer's policy states. All queries run with the grants of `sql/broker.sql`.
"""

# ruff: noqa: S608 - the statements are made from constants

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from byoc_agents.access import clickhouse_sql as sql
from byoc_agents.clickhouse import ClickHouseServerError, Row

Query = Callable[[str], Awaitable[list[Row]]]
"""Runs one SELECT as the broker. Raises ClickHouseError, with `code` 497 for a missing grant."""

_ACCESS_DENIED = 497
_READ_CODES = {107, 481}  # no such file; not in user_files: the server looked for the file
# The scalar function file() reads `user_files` without a grant before these releases
# (ClickHouse pull request 98115). Releases of other branches between them have no fix.
FIXED_RELEASES = {
    (25, 8): (19, 7),
    (25, 12): (9, 13),
    (26, 1): (5, 7),
    (26, 2): (4, 13),
}
_FIRST_FIXED_BRANCH = (26, 3)
_EXPECTED_VERSION = "25.8.19.7, 25.12.9.13, 26.1.5.7, 26.2.4.13, a later one of these, or 26.3"
SOURCES = frozenset(
    {
        *("READ", "WRITE", "FILE", "URL", "REMOTE", "MONGO", "REDIS", "MYSQL", "POSTGRES"),
        *("SQLITE", "ODBC", "JDBC", "HDFS", "S3", "HIVE", "AZURE", "KAFKA", "NATS", "RABBITMQ"),
        *("YTSAURUS", "ARROW FLIGHT", "BIGQUERY", "DISK", "CLUSTER", "SOURCES", "ALL"),
    }
)
"""Rights that read or write beyond the tables of this server."""


class ServerCheck(StrEnum):
    """The checks, in the order in which they are made."""

    VERSION = "version"
    FILE_FUNCTION = "file_function"
    SYSTEM_OPEN = "system_open"
    ROLE_MISSING = "role_missing"
    ROLE_REMOTE = "role_remote"
    ROLE_GRANTS = "role_grants"
    PROFILE = "profile"
    QUOTA = "quota"
    VIEWS = "views"
    VIEWS_USER = "views_user"
    BROKER_GRANTS = "broker_grants"


@dataclass(frozen=True, slots=True)
class ServerProblem:
    """A failed check: what the server has, and what is expected."""

    check: ServerCheck
    problem: str
    expected: str

    def __str__(self) -> str:
        return f"{self.check}: {self.problem}: expected {self.expected}"


async def check_server(
    query: Query, *, names: sql.Names = sql.Names.HASHED, allow_open_system: bool = False
) -> list[ServerProblem]:
    """Return the failed checks of one server; an empty list: a grant may be opened.

    `allow_open_system`: the customer's policy accepts that every user reads all of `system`.
    Raises ClickHouseError if a query fails, which is not a passed check either.
    """
    (version,) = await query("SELECT version() AS version")
    problems = judge_version(version["version"])
    if await _reads_files(query):
        problems.append(
            ServerProblem(
                ServerCheck.FILE_FUNCTION,
                "the function file() reads files without a grant",
                "code 497 for a login without READ ON FILE",
            )
        )
    if not allow_open_system and await _reads_system(query):
        problems.append(
            ServerProblem(
                ServerCheck.SYSTEM_OPEN,
                "every user reads all of system",
                "select_from_system_db_requires_grant",
            )
        )
    problems += judge_roles(
        await query("SELECT name FROM system.roles WHERE startsWith(name, 'byoc_access_')"),
        await query(_GRANTS.format("role_name")),
        await query(_MEMBERS),
    )
    problems += judge_profile(await query(_PROFILE))
    problems += judge_quota(await query(_QUOTAS), await query(_LIMITS))
    problems += judge_views(await query(_VIEWS), (await query(formatted_views(names)))[0]["views"])
    problems += judge_views_user(await query(_VIEWS_USER))
    rows = await query(_GRANTS.format("user_name"))
    return problems + judge_broker(rows)


async def _reads_files(query: Query) -> bool:
    """Return whether the scalar function file() looks for a file without a grant.

    The broker has every role of a grant, and no right to files, as an engineer.
    """
    try:
        await query("SELECT length(file('byoc_access_no_such_file')) AS length")
    except ClickHouseServerError as error:
        if error.code == _ACCESS_DENIED:
            return False
        if error.code not in _READ_CODES:
            raise
    return True


async def _reads_system(query: Query) -> bool:
    """Return whether the broker reads a table for which it has no grant."""
    try:
        await query("SELECT is_done FROM system.mutations LIMIT 0")
    except ClickHouseServerError as error:
        if error.code == _ACCESS_DENIED:
            return False
        raise
    return True


def judge_version(text: str) -> list[ServerProblem]:
    """Return a problem for a release in which file() reads files without a grant."""
    parts = text.split(".")
    try:
        year, month, *rest = (int(part) for part in parts[:4])
    except ValueError:
        year, month, rest = 0, 0, []
    branch, release = (year, month), tuple(rest)
    fixed = FIXED_RELEASES.get(branch)
    if branch >= _FIRST_FIXED_BRANCH or (fixed is not None and release >= fixed):
        return []
    return [ServerProblem(ServerCheck.VERSION, f"has {text!r}", _EXPECTED_VERSION)]


_GRANT_COLUMNS = (
    "toString(access_type) AS access_type, database, table, column, is_partial_revoke, grant_option"
)
_GRANTS = (
    f"SELECT {{0}} AS owner, {_GRANT_COLUMNS} FROM system.grants"
    f" WHERE startsWith({{0}}, '{sql.VIEWS}_')"
)
_MEMBERS = (
    "SELECT role_name, granted_role_name FROM system.role_grants"
    f" WHERE startsWith(role_name, '{sql.VIEWS}_')"
)


def judge_roles(roles: list[Row], grants: list[Row], members: list[Row]) -> list[ServerProblem]:
    """Return a problem for each role that is missing or has other rights than `roles.sql`."""
    problems = []
    present = {row["name"] for row in roles}
    for role, (views, inner) in sql.role_grants().items():
        if role not in present:
            problems.append(ServerProblem(ServerCheck.ROLE_MISSING, f"no role {role}", "roles.sql"))
            continue
        wanted = {f"SELECT ON {sql.VIEWS}.{view}" for view in views} | set(inner)
        own = [row for row in grants if row["owner"] == role]
        sources = sorted(row["access_type"] for row in own if row["access_type"] in SOURCES)
        if sources:
            problems.append(
                ServerProblem(
                    ServerCheck.ROLE_REMOTE,
                    f"{role} has {', '.join(sources)}",
                    "no right to a source: with REMOTE it reads every table of the cluster",
                )
            )
        found = {right(row) for row in own if row["access_type"] not in SOURCES}
        found |= {m["granted_role_name"] for m in members if m["role_name"] == role}
        if more := sorted(found - wanted):
            problems.append(
                ServerProblem(
                    ServerCheck.ROLE_GRANTS, f"{role} also has {', '.join(more)}", "roles.sql"
                )
            )
        if less := sorted(wanted - found):
            problems.append(
                ServerProblem(
                    ServerCheck.ROLE_GRANTS, f"{role} has not {', '.join(less)}", "roles.sql"
                )
            )
    return problems


def right(row: Row) -> str:
    """Return one line of system.grants as a statement has it, without GRANT and TO."""
    column = f"({row['column']})" if row["column"] else ""
    place = f"{row['database'] or '*'}.{row['table'] or '*'}"
    text = f"{row['access_type']}{column} ON {place}"
    if row["is_partial_revoke"]:
        text = f"REVOKE {text}"
    return f"{text} WITH GRANT OPTION" if row["grant_option"] else text


_PROFILE = (
    "SELECT setting_name, value, toString(writability) AS writability, inherit_profile"
    f" FROM system.settings_profile_elements WHERE profile_name = '{sql.PROFILE}'"
)


def judge_profile(rows: list[Row]) -> list[ServerProblem]:
    """Return a problem for each setting of the profile that is missing, other, or not constant."""
    wanted = sql.profile_settings()
    values = {row["setting_name"]: row["value"] for row in rows if row["value"] is not None}
    constant = {row["setting_name"] for row in rows if row["writability"] == "CONST"}
    wrong = [
        f"{name} {'is ' + values[name] if name in values else 'is missing'}"
        if values.get(name) != value
        else f"{name} is not constant"
        for name, value in wanted.items()
        if values.get(name) != value or name not in constant
    ]
    wrong += [f"{name} is not in roles.sql" for name in sorted(values.keys() - wanted.keys())]
    wrong += [f"inherits {row['inherit_profile']}" for row in rows if row["inherit_profile"]]
    if not wrong:
        return []
    return [ServerProblem(ServerCheck.PROFILE, "; ".join(wrong), f"profile {sql.PROFILE}")]


_QUOTAS = (
    "SELECT arrayMap(k -> toString(k), keys) AS keys, apply_to_list, apply_to_except"
    f" FROM system.quotas WHERE name = '{sql.QUOTA}'"
)
_LIMITS = (
    "SELECT duration, max_queries, max_result_rows, max_result_bytes, max_execution_time"
    f" FROM system.quota_limits WHERE quota_name = '{sql.QUOTA}'"
)


def judge_quota(quotas: list[Row], limits: list[Row]) -> list[ServerProblem]:
    """Return a problem if the quota is missing, does not bind every role, or is not limited."""
    bound = [row for row in quotas if set(sql.ROLES) <= set(row["apply_to_list"])]
    if len(bound) != 1 or bound[0]["keys"] != ["user_name"]:
        problem = "is missing, not by user, or not for every role"
    elif set(bound[0]["apply_to_except"]) - {sql.BROKER_USER}:
        problem = f"excepts {', '.join(bound[0]['apply_to_except'])}"
    elif not limits or any(None in row.values() for row in limits):
        problem = "has no limit of queries, rows, bytes or time"
    else:
        return []
    return [ServerProblem(ServerCheck.QUOTA, problem, f"quota {sql.QUOTA} of broker.sql")]


_VIEWS = (
    "SELECT name, as_select,"
    f" position(create_table_query, 'DEFINER = {sql.VIEWS_USER} SQL SECURITY DEFINER') > 0"
    f" AS definer FROM system.tables WHERE database = '{sql.VIEWS}' AND engine = 'View'"
)


def formatted_views(names: sql.Names) -> str:
    """Return the query that formats the SELECTs of the views as this server does."""
    texts = (text.replace("\\", "\\\\").replace("'", "\\'") for text in sql.views(names).values())
    formatted = ", ".join(f"formatQuerySingleLine('{text}')" for text in texts)
    return f"SELECT [{formatted}] AS views"


def judge_views(rows: list[Row], formatted: list[str]) -> list[ServerProblem]:
    """Return a problem for each view that is missing, other than in `views.sql`, or not DEFINER."""
    found = {row["name"]: row for row in rows}
    problems = []
    for name, text in zip(sql.views(), formatted, strict=True):
        row = found.get(name)
        if row is None:
            problem = "is missing"
        elif not int(row["definer"]):
            problem = f"does not read as {sql.VIEWS_USER}"
        elif row["as_select"] != text:
            problem = "reads something else"
        else:
            continue
        problems.append(
            ServerProblem(
                ServerCheck.VIEWS,
                f"{sql.VIEWS}.{name} {problem}",
                "views.sql, as the policy's tables",
            )
        )
    return problems


_VIEWS_USER = (
    "SELECT host_ip, host_names, host_names_regexp, host_names_like FROM system.users"
    f" WHERE name = '{sql.VIEWS_USER}'"
)


def judge_views_user(rows: list[Row]) -> list[ServerProblem]:
    """Return a problem if somebody can log in as the user with whose grants the views read."""
    if len(rows) == 1 and not any(rows[0].values()):
        return []
    problem = "can log in from some host" if rows else "is missing"
    return [ServerProblem(ServerCheck.VIEWS_USER, f"{sql.VIEWS_USER} {problem}", "HOST NONE")]


# Rights that would let a stolen login of the broker do more than broker.sql states. Its grants of
# columns only read, and a missing one fails the query that needs it.
_BROKER_RIGHTS = {
    *("CREATE USER", "DROP USER", "KILL QUERY", "SYSTEM FLUSH LOGS", "SELECT"),
    *("SHOW USERS", "SHOW ROLES", "SHOW QUOTAS", "SHOW SETTINGS PROFILES"),
    *("SHOW TABLES", "SHOW COLUMNS"),
}


def judge_broker(rows: list[Row]) -> list[ServerProblem]:
    """Return a problem for each right of the broker's login that `broker.sql` does not grant."""
    more = sorted(
        {
            right(row)
            for row in rows
            if row["owner"] == sql.BROKER_USER
            and (
                row["access_type"] not in _BROKER_RIGHTS
                or row["grant_option"]
                or (row["access_type"] == "SELECT" and row["database"] != "system")
            )
        }
    )
    if not more:
        return []
    return [ServerProblem(ServerCheck.BROKER_GRANTS, f"also has {', '.join(more)}", "broker.sql")]
