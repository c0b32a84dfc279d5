"""A small HTTP client for one ClickHouse server: `/ping`, `/replicas_status` and system tables.

Every failure raises one of six exceptions with a status or ClickHouse's error code only: the
server's error text and the query can contain table names, and exceptions are logged.
Credentials travel in headers, never in the URL; redirects are never followed.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec

from byoc_agents import __version__
from byoc_agents.errors import ByocError, SendError

SessionFactory = Callable[..., aiohttp.ClientSession]
Row = dict[str, Any]

# ClickHouse src/Common/ErrorCodes.cpp: UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD,
# IP_ADDRESS_NOT_ALLOWED, AUTHENTICATION_FAILED. ACCESS_DENIED (497, a missing grant) also comes
# with status 403, but the login was accepted: it is a server error.
AUTH_CODES = frozenset({192, 193, 194, 195, 516})
_UNAUTHORIZED, _FORBIDDEN, _UNAVAILABLE, _OK = 401, 403, 503, 200
_CODE = re.compile(rb"\bCode: (\d{1,5})\b")
_WHOLE = re.compile(r"(?:U?Int\d+)$")
_FRACTION = re.compile(r"(?:B?Float\d+)$")
_WRAPPER = re.compile(r"(?:Nullable|LowCardinality)\((.*)\)$")


class ClickHouseError(ByocError):
    """A request failed. `code` is ClickHouse's error code, or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(f"{message}, code {code}" if code else message)
        self.code = code


class ClickHouseUnreachableError(ClickHouseError):
    """No connection, or a broken one: refused, reset, unknown host, denied by the egress gate."""


class ClickHouseTimeoutError(ClickHouseError):
    """No complete response in time."""


class ClickHouseAuthError(ClickHouseError):
    """The server does not accept the user or password."""


class ClickHouseServerError(ClickHouseError):
    """The server answered with an error: see `code` (60 no such table, 497 no grant, ...)."""


class ClickHouseResponseError(ClickHouseError):
    """A response not from ClickHouse: a redirect, a proxy's page, cut or broken JSON."""


class ClickHouseTooLargeError(ClickHouseError):
    """The response is longer than the limit in bytes. The rest was not read."""


class _Columns(msgspec.Struct):
    name: str
    type: str


class _QueryResponse(msgspec.Struct):
    meta: list[_Columns]
    data: list[list[Any]]


class ClickHouseReply(msgspec.Struct, frozen=True):
    """A whole response: its HTTP status, ClickHouse's error code or 0, and the body."""

    status: int
    code: int
    body: bytes


_DECODER = msgspec.json.Decoder(_QueryResponse)
_HEADERS = {
    "User-Agent": f"byoc-agents/{__version__}",  # identifies the queries in query_log
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class Bounds(msgspec.Struct, frozen=True):
    """Limits of one request."""

    seconds: float = 5.0  # from the connection to the last byte
    response_bytes: int = 1024 * 1024  # responses to the exporter have a few KiB


BOUNDS = Bounds()


class ClickHouse:
    """One server.

    Each request opens a new connection: the server uses a thread for each idle connection, and
    closes it after 3 to 30 s, when a poll every 5 or 10 s might use it again.
    """

    def __init__(
        self,
        url: str,
        user: str = "default",
        password: str = "",
        *,
        session: SessionFactory = aiohttp.ClientSession,
        bounds: Bounds = BOUNDS,
    ) -> None:
        """Take `http[s]://host[:port]` and a login. Raises ValueError for any other URL.

        `session` is called inside the event loop with ClientSession's `timeout` and `headers`: in
        a daemon it is `Gate.session`, so that the gate checks every request.
        """
        self._base = base_url(url)
        self._login = _login(user, password)
        self._make_session = session
        self._bounds = bounds
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"ClickHouse({self._base})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. A later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ping(self) -> None:
        """Return if the server answers `/ping`. Needs no login. Raises ClickHouseError."""
        reply = await self._request("GET", "/ping")
        self._check(reply)
        if reply.body.strip() != b"Ok.":
            raise ClickHouseResponseError("/ping: not ClickHouse's response")

    async def replicas_status(self) -> bool:
        """Return False if the server reports that a replica lags (503), else True. Needs no login.

        The server's text names tables and is discarded. Raises ClickHouseError.
        """
        reply = await self._request("GET", "/replicas_status")
        if reply.status == _UNAVAILABLE and not reply.code:
            return False
        self._check(reply)
        return True

    async def query(
        self,
        sql: str,
        params: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> list[Row]:
        """Run one SELECT and return its rows by column name. Raises ClickHouseError.

        `params` fill `{name:Type}` in the SQL. `settings` go into the URL; a user with readonly=1
        may set none. Integers come as int, floats as float, other types as in the JSON.
        """
        options = {f"param_{name}": value for name, value in (params or {}).items()}
        # The server then answers at the end, so that a late failure also has an error status.
        options |= {"wait_end_of_query": "1", **(settings or {})}
        body = f"{sql.rstrip().rstrip(';')}\nFORMAT JSONCompact".encode()
        reply = await self._request("POST", "/", options, body, self._login)
        self._check(reply)
        return parse_rows(reply)

    async def execute(self, sql: str) -> None:
        """Run one statement that returns no rows, or whose rows do not matter.

        Raises ClickHouseError. After a time-out or a broken connection it may have been run.
        """
        body = sql.rstrip().rstrip(";").encode()
        # The server then answers at the end, so that a late failure also has an error status.
        reply = await self._request("POST", "/", {"wait_end_of_query": "1"}, body, self._login)
        self._check(reply)

    async def _request(
        self,
        method: str,
        path: str,
        options: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ClickHouseReply:
        request = self._open().request(
            method,
            self._base + path,
            params=options,
            data=body,
            headers=headers,
            allow_redirects=False,
        )
        try:
            async with request as response:
                content = await self._read(response)
                return ClickHouseReply(response.status, _code(response, content), content)
        except TimeoutError:
            raise ClickHouseTimeoutError(f"{path}: none in {self._bounds.seconds:g} s") from None
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            raise ClickHouseResponseError(f"{path}: {type(error).__name__}") from None
        except (aiohttp.ClientError, OSError, SendError) as error:  # SendError: from the gate
            raise ClickHouseUnreachableError(f"{path}: {type(error).__name__}") from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        async for chunk in response.content.iter_chunked(64 * 1024):
            content += chunk
            if len(content) > self._bounds.response_bytes:
                response.close()
                raise ClickHouseTooLargeError(f"more than {self._bounds.response_bytes} bytes")
        return bytes(content)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._bounds.seconds)
            self._session = self._make_session(timeout=timeout, headers=_HEADERS)
        return self._session

    @staticmethod
    def _check(reply: ClickHouseReply) -> None:
        """Raise the exception for a status or an error code."""
        code, status = reply.code, reply.status
        if code in AUTH_CODES or status == _UNAUTHORIZED or (status == _FORBIDDEN and not code):
            raise ClickHouseAuthError(f"login refused, status {status}", code)
        if code:
            raise ClickHouseServerError(f"status {status}", code)
        if status != _OK:
            raise ClickHouseResponseError(f"status {status} without a ClickHouse code")


def base_url(url: str) -> str:
    """Return `scheme://host:port` without a trailing slash. Raises ValueError.

    A user or password in the URL is rejected, because URLs are printed.
    """
    expected = "expected http://host:port or https://host:port without user, path or query"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ValueError(expected)
    if parts.path.strip("/") or parts.query or parts.fragment or not url.isprintable():
        raise ValueError(expected)
    return f"{parts.scheme}://{parts.netloc}"


def _login(user: str, password: str) -> dict[str, str]:
    if not (user + password).isprintable():
        raise ValueError("user or password: expected printable characters, no line end")
    return {"X-ClickHouse-User": user} | ({"X-ClickHouse-Key": password} if password else {})


def _code(response: aiohttp.ClientResponse, content: bytes) -> int:
    """Return ClickHouse's error code, or 0. Old servers have it in the text, not in a header."""
    header = response.headers.get("X-ClickHouse-Exception-Code", "")
    if re.fullmatch(r"[0-9]{1,5}", header):
        return int(header)
    match = _CODE.search(content[:1024]) if response.status != _OK else None
    return int(match[1]) if match else 0


def parse_rows(reply: ClickHouseReply) -> list[Row]:
    """Return the rows of a response in JSONCompact. Raises ClickHouseError."""
    try:
        response = _DECODER.decode(reply.body)
        converters = [(column.name, _converter(column.type)) for column in response.meta]
        return [
            {name: convert(value) for (name, convert), value in zip(converters, row, strict=True)}
            for row in response.data
        ]
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        if match := _CODE.search(reply.body[-4096:]):  # an error after the first bytes of a 200
            raise ClickHouseServerError("in a broken response", int(match[1])) from None
        raise ClickHouseResponseError("broken JSON") from None


def _converter(kind: str) -> Callable[[Any], Any]:
    """Return the converter of a column type: old servers send 64-bit integers as strings."""
    while match := _WRAPPER.match(kind):
        kind = match[1]
    if _WHOLE.match(kind):
        return _optional(int)
    return _optional(float) if _FRACTION.match(kind) else lambda value: value


def _optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)
