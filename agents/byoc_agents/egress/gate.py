"""The gate: every outbound connection of the process is checked here.

Three independent guards check the request (host, port, scheme, no redirect, the configured
proxy), the name (the addresses it may resolve to) and the socket (the final address). For code
that does not use the gate, `enforce_process` applies the last two to the whole process.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from byoc_agents import __version__
from byoc_agents.egress.addresses import (
    address_of,
    is_imds,
    is_internet,
    is_private,
    may_lead_to,
)
from byoc_agents.egress.destinations import Destination, ip_literal, mistakes, proxy_destination
from byoc_agents.errors import ConfigError, Reason, SendError, remove_url_user

REDIRECTS = frozenset({301, 302, 303, 307, 308})
USER_AGENT = {
    "User-Agent": f"byoc-agents/{__version__}"
}  # on every request, and nothing else in it
REMEMBERED_ADDRESSES = 4096  # S3 returns a few new ones every minute; the oldest are removed
# From the last answer with an address until sockets may not reach it any more. aiohttp asks again
# after 10 s, and a connection is made within seconds of an answer.
ADDRESS_SECONDS = 300.0


class Refusal(StrEnum):
    """The reason of a refusal: a label of `byoc_egress_refused_total`. A closed set."""

    HOST = "host"  # a name or literal that is not a destination
    PORT = "port"  # the host of a destination, but another port
    PATH = "path"  # a destination, but outside its path, or with another host in the Host header
    SCHEME = "scheme"  # a destination, but http instead of https or the reverse
    ADDRESS = "address"  # an address that no destination resolved to, or may resolve to
    LISTEN = "listen"  # an address to listen on that is not in the settings
    OPERATION = "operation"  # a program, native code, or a socket of another kind
    REDIRECT = "redirect"
    PROXY = "proxy"  # any proxy but the configured one
    IMDS = "imds"  # the node's credentials


class EgressRefusedError(SendError):
    """The gate refused a connection, so nothing was sent. A `SendError`: sinks can pass it on."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        reason = Reason.REDIRECT if refusal is Refusal.REDIRECT else Reason.EGRESS_REFUSED
        super().__init__(reason, detail)
        self.refusal = refusal


def refusal_in(error: BaseException | None) -> EgressRefusedError | None:
    """Return the gate's refusal from inside a library's error; None if there is none."""
    while error is not None and not isinstance(error, EgressRefusedError):
        inner = getattr(error, "kwargs", {}).get("error")  # botocore's way
        error = inner or error.__cause__ or error.__context__
    return error


# One header of a response. aiohttp's 8190 is less than some proxies and security policies add.
MAX_HEADER_BYTES = 64 * 1024


class Gate:
    """Allows exactly the given destinations and the proxy; reports and refuses everything else.

    Raises ConfigError for plain http to another machine, unless `allow_insecure`. The CAs of
    `ca_file` are trusted in addition to the system's; `proxy` (http://[user:password@]host:port)
    carries all traffic that is not local. `on_refused(refusal, detail)` is called once for each
    refusal, possibly from another thread.
    """

    def __init__(  # noqa: PLR0913  the table and four switches of the settings
        self,
        destinations: Iterable[Destination],
        *,
        allow_insecure: bool = False,
        ca_file: str | None = None,
        proxy: str | None = None,
        on_refused: Callable[[Refusal, str], None] = lambda _refusal, _detail: None,
        names: AbstractResolver | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.destinations = tuple(destinations)
        if wrong := mistakes(self.destinations, allow_insecure=allow_insecure):
            raise ConfigError(wrong)
        self.proxy: URL | None = None
        self._proxy_auth: aiohttp.BasicAuth | None = None
        if proxy:
            self.proxy, self._proxy_auth = _proxy_parts(proxy)
        self._on_refused = on_refused
        self._reachable = [*self.destinations, *_proxy_destination(self.proxy)]
        self._addresses: dict[tuple[str, int], float] = {}  # until this time
        self._monotonic = monotonic
        self._ca_file = ca_file
        self._ssl: ssl.SSLContext | None = None
        if ca_file:
            self.ssl_context()  # reports an unusable file at the start
        self.resolver: AbstractResolver = _Resolver(self, names)

    def __repr__(self) -> str:
        """Return the whole table, which holds no secret."""
        return f"Gate({', '.join(str(d) for d in self._reachable)})"

    # Sessions, connectors and sockets for callers.

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """Return a session for any destination: no redirects, no cookies, no environment.

        Takes ClientSession's options (timeout, headers, auto_decompress). The caller closes it.
        """
        return aiohttp.ClientSession(
            connector=self.connector(limit=options.pop("limit", 10)),
            middlewares=[self._guard_request],
            trace_configs=[self._no_redirects()],
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={**USER_AGENT, **options.pop("headers", {})},
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            **options,
        )

    def connector(self, limit: int = 10) -> aiohttp.TCPConnector:
        """Return a connector for one session. Prefer `session`: it guards requests as well."""
        return aiohttp.TCPConnector(limit=limit, ssl=self.ssl_context(), **self.connector_args())

    def connector_args(self) -> dict[str, Any]:
        """Return the guards of names and sockets, as arguments of TCPConnector and AioConfig."""
        return {"resolver": self.resolver, "socket_factory": self.socket_factory}

    def ssl_context(self) -> ssl.SSLContext:
        """Return the shared context: TLS 1.2 or newer, certificates and names checked.

        The first call reads the CAs, about 20 ms. Raises ConfigError if `ca_file` is unusable.
        """
        self._ssl = self._ssl or _ssl_context(self._ca_file)
        return self._ssl

    def socket_factory(self, info: Any) -> socket.socket:
        """Return a socket for one result of getaddrinfo. Raises EgressRefusedError."""
        family, kind, protocol, _, address = info
        self.check_address(family, address)
        return socket.socket(family=family, type=kind, proto=protocol)

    # The three guards.

    def check_url(self, url: URL) -> Destination:
        """Return the destination of a URL. Raises EgressRefusedError.

        Its host, port and scheme must be those of a destination, its path the same or below it.
        """
        host, port = (url.raw_host or "").lower().rstrip("."), url.port or 0
        found = [d for d in self.destinations if (d.host, d.port) == (host, port)]
        if not found:
            raise self.deny(self._reason_for(host), f"{host}:{port} is not a destination")
        found = [d for d in found if d.scheme == url.scheme]
        if not found:
            raise self.deny(Refusal.SCHEME, f"{url.scheme} to {host}:{port}")
        for destination in found:
            if destination.serves(url.raw_path):
                return destination
        raise self.deny(Refusal.PATH, f"a path outside {found[0].path} of {host}:{port}")

    def check_host_header(self, url: URL, headers: Mapping[str, str]) -> None:
        """Check that the request names the host of its URL. Raises EgressRefusedError.

        A load balancer or a store may serve many customers at one address, chosen by this header.
        """
        expected = {url.host_port_subcomponent, f"{url.host_subcomponent}:{url.port}"}
        for name, value in headers.items():
            if name.lower() == "host" and value.lower() not in expected:
                raise self.deny(Refusal.PATH, f"the header Host is not {url.host}")

    def check_name(self, host: str, port: int | None = None) -> list[Destination]:
        """Return the destinations with this host name. Raises EgressRefusedError."""
        name = host.lower().rstrip(".")
        found = [d for d in self._reachable if d.host == name and port in {None, 0, d.port}]
        if not found:
            raise self.deny(self._reason_for(name), f"{name} is not a destination")
        return found

    def check_address(self, family: int, address: Any) -> None:
        """Check a socket's (address, port). Raises EgressRefusedError if no destination has it."""
        if not is_internet(family):
            raise self.deny(Refusal.ADDRESS, f"a socket of family {family}")
        host, port = str(address[0]), int(address[1])
        known = self._addresses.get((str(address_of(host)), port), 0.0) > self._monotonic()
        if not is_imds(host) and (known or self._is_literal(host, port)):
            return
        ours = any(d.port == port for d in self._reachable)
        why = Refusal.IMDS if is_imds(host) else Refusal.ADDRESS if ours else Refusal.PORT
        raise self.deny(why, f"{host} port {port} is not a destination")

    def admit(self, destination: Destination, answers: Iterable[str]) -> set[str]:
        """Remember the addresses that a name resolved to; return those it may lead to.

        Raises EgressRefusedError if there are addresses and none of them is allowed.
        """
        answers = list(answers)
        good = {text for text in answers if may_lead_to(destination, text)}
        if answers and not good:
            why = Refusal.IMDS if any(map(is_imds, answers)) else Refusal.ADDRESS
            raise self.deny(why, f"{destination.host} resolves to {answers[0]}{_hint(answers[0])}")
        until = self._monotonic() + ADDRESS_SECONDS
        for text in good:
            key = (str(address_of(text)), destination.port)
            self._addresses.pop(key, None)  # the newest are last
            self._addresses[key] = until
        while len(self._addresses) > REMEMBERED_ADDRESSES:
            del self._addresses[next(iter(self._addresses))]
        return good

    def deny(self, refusal: Refusal, detail: str) -> EgressRefusedError:
        """Record a refusal and return the error, for the caller to raise."""
        self.record_refusal(refusal, detail)
        return EgressRefusedError(refusal, detail)

    def record_refusal(self, refusal: Refusal, detail: str) -> None:
        """Report a refusal to `on_refused`, without an error."""
        self._on_refused(refusal, detail)

    def _is_literal(self, host: str, port: int) -> bool:
        """Return whether a destination is this literal, or localhost, which needs no look-up."""
        return any(
            d.port == port and (d.local or ip_literal(d.host)) and may_lead_to(d, host)
            for d in self._reachable
        )

    def _reason_for(self, host: str) -> Refusal:
        if is_imds(host):
            return Refusal.IMDS
        return Refusal.PORT if any(d.host == host for d in self._reachable) else Refusal.HOST

    async def _guard_request(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if request.proxy not in {None, self.proxy}:
            raise self.deny(Refusal.PROXY, f"proxy {request.proxy.host} is not the configured one")
        destination = self.check_url(request.url)
        self.check_host_header(request.url, request.headers)
        if destination.local:
            request.update_proxy(None, None, None)
        else:
            # CONNECT too has no header that names the interpreter and its libraries.
            request.update_proxy(self.proxy, self._proxy_auth, CIMultiDict(USER_AGENT))
        try:
            return await send(request)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            # aiohttp would resend a GET or PUT by itself after these two. The shipper owns retries.
            raise aiohttp.ClientConnectionError(type(error).__name__) from error

    def _no_redirects(self) -> aiohttp.TraceConfig:
        async def on_redirect(
            _session: aiohttp.ClientSession,
            _context: SimpleNamespace,
            asked: aiohttp.TraceRequestRedirectParams,
        ) -> None:
            asked.response.close()
            detail = f"{asked.url.host} answered {asked.response.status}"
            raise self.deny(Refusal.REDIRECT, detail)

        async def on_end(
            _session: aiohttp.ClientSession,
            _context: SimpleNamespace,
            ended: aiohttp.TraceRequestEndParams,
        ) -> None:
            if ended.response.status in REDIRECTS:  # not followed: recorded, but not an error
                detail = f"{ended.url.host} answered {ended.response.status}"
                self.record_refusal(Refusal.REDIRECT, detail)

        config = aiohttp.TraceConfig()
        config.on_request_redirect.append(on_redirect)
        config.on_request_end.append(on_end)
        return config


class _Resolver(AbstractResolver):
    """Resolves destinations only, and passes their addresses to the gate.

    Uses the system's resolver in a thread, not c-ares, whose sockets the audit hook cannot see.
    """

    def __init__(self, gate: Gate, names: AbstractResolver | None) -> None:
        self._gate = gate
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the allowed addresses. Raises EgressRefusedError, or OSError if there are none."""
        destinations = self._gate.check_name(host, port)
        names = self._names or aiohttp.ThreadedResolver()
        results = await names.resolve(host, port, family)
        good: set[str] = set()
        for destination in destinations:
            good |= self._gate.admit(destination, [result["host"] for result in results])
        return [result for result in results if result["host"] in good]

    async def close(self) -> None:
        """Do nothing: the resolver holds no resources."""


def _proxy_destination(proxy: URL | None) -> list[Destination]:
    return [proxy_destination(str(proxy))] if proxy else []


def _proxy_parts(url: str) -> tuple[URL, aiohttp.BasicAuth | None]:
    """Return the proxy's URL without a user, and its credentials. Raises ConfigError."""
    proxy_destination(url)  # reports everything but the user and the password
    bare = URL(remove_url_user(url))
    try:
        whole = URL(url)
        if whole.with_user(None) != bare:  # a `/` in the password ends the host, for a parser
            raise ValueError
    except ValueError:
        expected = "expected / ? # @ and % in them percent-encoded"
        raise ConfigError([f"BYOC_HTTPS_PROXY: invalid user or password: {expected}"]) from None
    return bare, aiohttp.BasicAuth.from_url(whole)


def _hint(address: str) -> str:
    literal = address_of(address)
    if literal is None or not is_private(literal):
        return ""
    return ", a private address: expected its name in BYOC_PRIVATE_HOSTS"


def _ssl_context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        try:
            context.load_verify_locations(cafile=Path(ca_file))
        except (OSError, ssl.SSLError) as error:
            text = f"BYOC_CA_FILE: {ca_file} cannot be used ({type(error).__name__}): expected PEM"
            raise ConfigError([text]) from error
    return context
