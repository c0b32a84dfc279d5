"""ClickHouse with a table of users: the HTTP interface of the access broker, and users' queries.

It parses our statements strictly and refuses every other one (code 62), so a test sees a statement
that changes. Users, queries and logs are as in ClickHouse's documentation of `CREATE USER`, `DROP
USER` and `KILL QUERY`: an existing user stays unchanged, and a running query survives its user.
TLS is not part of it: a listener passes the name in a client's certificate to `run_query`, or to
`log_in` for the native protocol. Both know the user and the end of its validity, and nothing of
roles. A session keeps the end that its user had at the login, and compares it before each query; a
dropped user is refused then as well.

Where ClickHouse's source has what this stand-in does, with the commit that was read:

- `src/Interpreters/Session.cpp` (`checkIfUserIsStillValid`): the end, before each query
- `src/Access/ContextAccess.cpp` at 01da5d95: a live session of a dropped user, code 192
- `src/Access/Authentication.cpp`: the names in a certificate, without its other fields
- `src/Server/HTTP/authenticateUserByHTTP.cpp` at 03f61fcd: the certificate of the connection itself
- `src/Server/TLSHandler.cpp` at 08f89d9b: the certificate reaches the handlers of both protocols
- `src/Interpreters/Access/getValidUntilFromAST.cpp`: the end is a moment if it has a time zone

No commit was noted for the other files. A native handler of ClickHouse tries
a password after a failed certificate; this one does not, since its users have none.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from byoc_agents.access import clickhouse_sql as sql
from byoc_agents.access.server_checks import formatted_views
from lab.fakes.clickhouse_native import ServerError
from lab.fakes.http import FakeHttp, Reply, Request

CREATE = re.compile(
    r"CREATE USER IF NOT EXISTS (?P<name>byoc_grant_[0-9a-f]{32})(?P<storage> IN memory)?"
    r" IDENTIFIED WITH ssl_certificate SAN '(?P<san>URI:[^']+)' VALID UNTIL '(?P<end>[^']+)'"
    r" HOST ANY DEFAULT ROLE (?P<role>\w+) SETTINGS log_comment = '(?P<comment>[^']+)' CONST,"
    r" PROFILE 'byoc_access' GRANTEES NONE"
)
DROP = re.compile(r"DROP USER IF EXISTS (byoc_grant_\w+)")
KILL = re.compile(r"KILL QUERY WHERE user = '(byoc_grant_\w+)' ASYNC")
NAMED = re.compile(r"'(byoc_grant_[0-9a-f]{32})'")
CHECKED = re.compile(r"FROM (system\.\w+) WHERE (?!user = )")
PAGE = re.compile(r"LIMIT (\d+) OFFSET (\d+)")

QUERY = "SELECT currentUser()"
LONG_QUERY = "SELECT sleepEachRow(1) FROM numbers(600)"  # ends by KILL QUERY, or after 600 s
RUNNING_QUERY = "SELECT count() FROM byoc_access.processes WHERE query LIKE 'SELECT sleep%'"
LONG_SECONDS = 600
CANCELLED = "Code: 394. DB::Exception: Query was cancelled\n"
ERROR = re.compile(r"Code: (\d+)\. DB::Exception: (.*)\n")
UNKNOWN_USER, AUTHENTICATION_FAILED, USER_EXPIRED = 192, 516, 720

Row = dict[str, Any]
LIMITS = ("max_queries", "max_result_rows", "max_result_bytes", "max_execution_time")
QUOTA: Row = {
    "keys": ["user_name"],
    "apply_to_list": list(sql.ROLES),
    "apply_to_except": [sql.BROKER_USER],
}
LOCKED: Row = {"host_ip": [], "host_names": [], "host_names_regexp": [], "host_names_like": []}


@dataclass
class FakeClickHouseServer:
    """One server. Tests change its fields; `refused` maps a part of a statement to a code."""

    clock_ms: Callable[[], int]
    version: str = "26.3.1.1"
    names: sql.Names = sql.Names.HASHED  # of the views
    users: dict[str, Row] = field(default_factory=dict)
    running: dict[str, list[str]] = field(default_factory=dict)
    query_log: dict[str, list[Row]] = field(default_factory=dict)
    session_log: dict[str, list[Row]] | None = None  # None = the server does not write one
    refused: dict[str, int] = field(
        default_factory=lambda: {
            "SELECT is_done FROM system.mutations": 497,  # not open to everybody
            "SELECT length(file(": 497,
        }
    )
    hidden_lines: int = 0  # of query_log: counted, and not returned
    statements: list[str] = field(default_factory=list)
    on_statement: Callable[[str], None] = lambda _: None  # after it has run, before the response
    engine: Callable[[str], str] | None = None  # answers other queries as TSV, or RuntimeError
    logins: int = 0  # sessions of the native protocol that began

    def __post_init__(self) -> None:
        self.http = FakeHttp(apply=self._apply)
        self.query_runs = asyncio.Event()  # set when LONG_QUERY begins
        self._kills: dict[str, asyncio.Event] = {}  # user -> set by KILL QUERY

    async def run_query(self, uri: str, text: str) -> str | None:
        """Return the result of a query as TSV, or None if no user has the certificate's name now.

        Each query begins and ends in query_log. The known queries are QUERY, RUNNING_QUERY
        and LONG_QUERY, and those of the engine if there is one. LONG_QUERY is in system.processes
        while it runs. It goes on after its user was dropped: only KILL QUERY ends it.
        """
        user = next((one for one in self.users.values() if _has_name(one, uri)), None)
        if user is None or self.clock_ms() >= _end_ms(user):
            return None
        return await self.run_query_as(user["name"], text)

    def log_in(self, name: str, uri: str) -> "UserSession":
        """Begin a session of a user with the name of a certificate. Raises ServerError."""
        user = self.users.get(name)
        if user is None or not _has_name(user, uri) or self.clock_ms() >= _end_ms(user):
            raise ServerError(AUTHENTICATION_FAILED, f"{name}: Authentication failed")
        self.logins += 1
        return UserSession(self, user)

    async def run_query_as(self, name: str, text: str) -> str:
        """Return the result of a query of a user, also of one that is dropped meanwhile."""
        log = self.query_log.setdefault(name, [])
        started = sum(row["type"] == "QueryStart" for row in log)
        query_id = f"q-{started}"
        row = {"time": self.clock_ms(), "query_id": query_id, "query": text}
        log.append({**row, "type": "QueryStart", "result_rows": 0})
        response = await self._run_known_query(name, query_id, text)
        known = not response.startswith("Code: ")
        ended = "QueryFinish" if known else "ExceptionWhileProcessing"
        log.append({**row, "type": ended, "result_rows": int(known)})
        return response

    async def _run_known_query(self, user: str, query_id: str, text: str) -> str:
        if text == QUERY:
            return f"{user}\n"
        if text == RUNNING_QUERY:
            return f"{len(self.running.get(user, []))}\n"
        if text != LONG_QUERY:
            return self._answer_by_engine(text)
        killed = self._kills.setdefault(user, asyncio.Event())
        self.running.setdefault(user, []).append(query_id)
        self.query_runs.set()
        try:
            async with asyncio.timeout(LONG_SECONDS):
                await killed.wait()
        except TimeoutError:
            self.running[user].remove(query_id)
            return "0\n" * LONG_SECONDS
        return CANCELLED

    def _answer_by_engine(self, text: str) -> str:
        if self.engine is None:
            return "Code: 62. DB::Exception: Syntax error\n"
        try:
            return self.engine(text)
        except RuntimeError as error:
            if found := ERROR.search(f"{error}\n"):
                return found[0]
            raise

    def _apply(self, request: Request) -> Reply:
        text = request.body.decode()
        statement = text.removesuffix("\nFORMAT JSONCompact")
        self.statements.append(statement)
        reply = self._respond(statement, selects=text != statement)
        self.on_statement(statement)
        return reply

    def _respond(self, statement: str, *, selects: bool) -> Reply:
        for part, code in self.refused.items():
            if part in statement:
                return refuse(code)
        if selects:
            rows = self._select(statement)
            return refuse(62) if rows is None else respond(rows)
        return Reply() if self._execute(statement) else refuse(62)

    def _execute(self, statement: str) -> bool:
        """Run a statement without rows. Return whether it is known."""
        if found := CREATE.fullmatch(statement):
            self.users.setdefault(found["name"], _stored(found))
        elif found := DROP.fullmatch(statement):
            self.users.pop(found[1], None)
        elif found := KILL.fullmatch(statement):
            self.running.pop(found[1], None)
            if killed := self._kills.pop(found[1], None):
                killed.set()
        else:
            return statement == "SYSTEM FLUSH LOGS"
        return True

    def _select(self, statement: str) -> list[Row] | None:  # noqa: PLR0911  one per query
        """Return the rows of a query, or None if it is not one of ours."""
        if statement.startswith("SELECT [formatQuery"):
            asked = next(one for one in sql.Names if statement == formatted_views(one))
            return [{"views": list(sql.views(asked).values())}]
        named = NAMED.search(statement)
        user = named[1] if named else ""
        if statement.startswith("SELECT name, arrayMap"):
            return [self.users[user]] if user in self.users else []
        if statement == sql.grant_users():
            return [{"name": name} for name in sorted(self.users)]
        if statement == sql.server_clock():
            return [{"milliseconds": self.clock_ms()}]
        if "FROM system.processes" in statement:
            return [{"query_id": one, "elapsed": 1.0} for one in self.running.get(user, [])]
        if "FROM system.query_log" in statement or "FROM system.session_log" in statement:
            return self._select_log(statement, user)
        if statement == sql.session_log_columns():
            columns = (*sql.SESSION_COLUMNS, *sql.CERTIFICATE_COLUMNS)
            return [] if self.session_log is None else [{"name": one} for one in columns]
        return self._select_for_check(statement)

    def _select_log(self, statement: str, user: str) -> list[Row]:
        queries = "FROM system.query_log" in statement
        rows = (self.query_log if queries else self.session_log or {}).get(user, [])
        if page := PAGE.search(statement):
            limit, offset = int(page[1]), int(page[2])
            return rows[: len(rows) - self.hidden_lines][offset : offset + limit]
        if not queries:
            failed = sum(row["type"] == "LoginFailure" for row in rows)
            return [{"lines": len(rows), "failed_logins": failed}]
        started = sum(row["type"] == "QueryStart" for row in rows)
        failed = sum(row["type"].startswith("Exception") for row in rows)
        total = sum(row.get("result_rows", 0) for row in rows)
        sums = {"result_rows": total, "result_bytes": 8 * total, "read_rows": total}
        return [
            {"lines": len(rows), "started": started, "failed": failed, "finished": started - failed}
            | sums
        ]

    def _select_for_check(self, statement: str) -> list[Row] | None:
        """Answer the checks as a server on which an administrator has run the shipped SQL."""
        if statement == "SELECT version() AS version":
            return [{"version": self.version}]
        if statement == "SELECT is_done FROM system.mutations LIMIT 0":
            return []
        if statement.startswith("SELECT length(file("):
            return [{"length": 0}]
        found = CHECKED.search(statement)
        tables: dict[str, Callable[[], list[Row]]] = {
            "system.roles": lambda: [{"name": role} for role in sql.ROLES],
            "system.grants": lambda: _role_grants() if "role_name" in statement else [],
            "system.role_grants": _members,
            "system.settings_profile_elements": _profile,
            "system.quotas": lambda: [QUOTA],
            "system.quota_limits": lambda: [{"duration": 3600, **dict.fromkeys(LIMITS, 1)}],
            "system.tables": lambda: [
                {"name": name, "as_select": text, "definer": 1}
                for name, text in sql.views(self.names).items()
            ],
            "system.users": lambda: [LOCKED],
        }
        return tables[found[1]]() if found and found[1] in tables else None


class UserSession:
    """A session of the native protocol, with the user and its end as they were at the login."""

    def __init__(self, server: FakeClickHouseServer, user: Row) -> None:
        self._server, self._user = server, user
        self._end_ms = _end_ms(user)

    async def run(self, text: str) -> list[str]:
        """Return the lines of the answer. Raises ServerError."""
        name = self._user["name"]
        if self._server.users.get(name) is not self._user:  # one of the same name is another user
            raise ServerError(UNKNOWN_USER, f"User {name} has been dropped")
        if self._server.clock_ms() >= self._end_ms:
            raise ServerError(USER_EXPIRED, f"The user {name} has expired")
        answer = await self._server.run_query_as(name, text)
        if error := ERROR.fullmatch(answer):
            raise ServerError(int(error[1]), error[2])
        return answer.splitlines()


def _has_name(user: Row, uri: str) -> bool:
    """Return whether a certificate with this name is the user's."""
    named = msgspec.json.encode({"subject_alt_names": [f"URI:{uri}"]}).decode()
    return bool(user["auth_params"] == [named])


def _end_ms(user: Row) -> int:
    return 1000 * int(user["valid_until"][0])


def _role_grants() -> list[Row]:
    usual = {"column": None, "is_partial_revoke": 0, "grant_option": 0}
    return [
        {"owner": role, "access_type": "SELECT", "database": sql.VIEWS, "table": view, **usual}
        for role, (views, _) in sql.role_grants().items()
        for view in sorted(views)
    ]


def _members() -> list[Row]:
    return [
        {"role_name": role, "granted_role_name": one}
        for role, (_, inner) in sql.role_grants().items()
        for one in inner
    ]


def _profile() -> list[Row]:
    return [
        {"setting_name": name, "value": value, "writability": "CONST", "inherit_profile": None}
        for name, value in sql.profile_settings().items()
    ]


def _stored(found: re.Match[str]) -> Row:
    """Return the user as `read_back` shows it."""
    end = datetime.fromisoformat(found["end"])
    settings = [["log_comment", found["comment"], "CONST", None], [None, None, None, "byoc_access"]]
    return {
        "name": found["name"],
        "auth_type": ["ssl_certificate"],
        "auth_params": [msgspec.json.encode({"subject_alt_names": [found["san"]]}).decode()],
        "valid_until": [int(end.timestamp())],
        "default_roles_list": [found["role"]],
        "default_roles_all": 0,
        "grantees_any": 0,
        "roles": [found["role"]],
        "grants": 0,
        "settings": settings,
    }


def refuse(code: int) -> Reply:
    return Reply(
        403 if code == 497 else 500,
        {"X-ClickHouse-Exception-Code": str(code)},
        f"Code: {code}. DB::Exception: refused".encode(),
    )


def respond(rows: list[Row]) -> Reply:
    """Return the rows in JSONCompact, with the types that our client converts."""
    columns = list(rows[0]) if rows else []
    body = {
        "meta": [{"name": name, "type": _type_of(rows[0][name])} for name in columns],
        "data": [[row[name] for name in columns] for row in rows],
    }
    return Reply(200, {}, msgspec.json.encode(body))


def _type_of(value: Any) -> str:
    return {int: "UInt64", float: "Float64"}.get(type(value), "String")
