"""A stand-in for ClickHouse's listener for engineers: TLS on 9441 and 8444, by certificate only.

A peer without a certificate of the access authority ends in the handshake, as the chart's
`files/access-listener.xml` asks of ClickHouse. On 8444 each request is answered over HTTP. On 9441
a client of the native protocol is served if there is a `LogIn`, and each line of another client is
answered, so that a test of the way to the server needs no protocol. `Answer` decides about lines
and requests.

    python -m lab.tailnet.listener HOST CERTIFICATE KEY AUTHORITY

answers with the peer's name and the text, on one line, and a request for `/zeros?bytes=N` with that
many bytes. A test may serve another answer in its own
process, for example that of the embedded engine: `engine_answer`.
"""

import asyncio
import inspect
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lab.fakes.clickhouse_native import HELLO, LogIn, serve_native
from lab.real.chdb_front import Engine

NATIVE_PORT, HTTPS_PORT = 9441, 8444
MAX_LINE_BYTES = 64 * 1024
MAX_BODY_BYTES = 1024 * 1024
MAX_ZEROS_BYTES = 8 * 1024 * 1024
READY = "ready"


@dataclass(frozen=True, slots=True)
class Query:
    """One text, and whose it is."""

    text: str  # the line, or the body of the request
    uri: str  # the name in the client's certificate, empty without one
    peer: str  # address of the TCP connection
    target: str = ""  # path and query of an HTTP request
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case


Answered = tuple[int, bytes]  # HTTP status and body
Answer = Callable[[Query], Answered | Awaitable[Answered]]  # awaited: a query that takes long


def name_and_text(query: Query) -> tuple[int, bytes]:
    """Answer with the peer's name and the text, so that a test sees both."""
    return 200, f"{query.uri} {query.text}\n".encode()


def zeros_or_name(query: Query) -> tuple[int, bytes]:
    """Answer a request for bytes with them, and any other as `name_and_text` does."""
    target = urlsplit(query.target)
    if target.path != "/zeros":
        return name_and_text(query)
    size = int(parse_qs(target.query)["bytes"][0])
    if not 0 <= size <= MAX_ZEROS_BYTES:
        raise ValueError(f"bytes={size}: expected at most {MAX_ZEROS_BYTES}")
    return 200, bytes(size)


def engine_answer(engine: Engine) -> Answer:
    """Return the answers of an engine, as TSV; its errors are those of the server."""

    def answer(query: Query) -> tuple[int, bytes]:
        asked = parse_qs(urlsplit(query.target).query).get("query", [""])[0]
        try:
            return 200, str(engine.query(asked + query.text, "TSV")).encode()
        except RuntimeError as error:
            return 500, f"{error}\n".encode()

    return answer


def strict_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """Return the TLS of the listener: only clients of this one authority, no resumed sessions."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


@asynccontextmanager
async def listening(
    host: str,
    context: ssl.SSLContext,
    answer: Answer = name_and_text,
    ports: tuple[int, int] = (NATIVE_PORT, HTTPS_PORT),
    log_in: LogIn | None = None,
) -> AsyncIterator[tuple[int, int]]:
    """Serve the native and the HTTPS port, 0 for a free one; yield the ports."""
    async with AsyncExitStack() as stack:
        found = []
        both: tuple[Callable[..., Any], ...] = (
            partial(_serve_native_or_lines, log_in),
            _serve_http,
        )
        for port, serve in zip(ports, both, strict=True):
            handler = _closing(serve, answer)
            server = await asyncio.start_server(
                handler, host, port, ssl=context, limit=MAX_LINE_BYTES
            )
            await stack.enter_async_context(server)
            found.append(server.sockets[0].getsockname()[1])
        yield found[0], found[1]


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _closing(serve: Callable[..., Any], answer: Answer) -> Callable[..., Any]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve((reader, writer), answer)
        except (OSError, EOFError, ValueError):  # the peer went, or sent no request
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    return handle


async def _serve_native_or_lines(log_in: LogIn | None, streams: Streams, answer: Answer) -> None:
    """Serve a client by its first byte: that of a hello is in no line."""
    reader, writer = streams
    first = await reader.read(1)
    if log_in is not None and first == bytes((HELLO,)):
        await serve_native(reader, writer, _query(writer, "").uri, log_in)
        return
    while line := first + await reader.readline():
        first = b""
        _, body = await _finish(answer(_query(writer, line.decode().rstrip("\r\n"))))
        writer.write(body)
        await writer.drain()


async def _serve_http(streams: Streams, answer: Answer) -> None:
    reader, writer = streams
    while start := await reader.readline():
        _, target, _ = start.decode("latin-1").split(" ", 2)
        headers = {}
        while line := (await reader.readline()).decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        size = int(headers.get("content-length", "0"))
        if not 0 <= size <= MAX_BODY_BYTES:
            raise ValueError(f"content-length {size}: expected at most {MAX_BODY_BYTES}")
        text = (await reader.readexactly(size)).decode()
        status, body = await _finish(answer(_query(writer, text, target, headers)))
        head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()


async def _finish(found: Answered | Awaitable[Answered]) -> Answered:
    return await found if inspect.isawaitable(found) else found


def _query(
    writer: asyncio.StreamWriter,
    text: str,
    target: str = "",
    headers: Mapping[str, str] | None = None,
) -> Query:
    names = (writer.get_extra_info("peercert") or {}).get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    peer = writer.get_extra_info("peername")[0]
    return Query(text, uris[0] if uris else "", peer, target, headers or {})


async def main(host: str, certificate: str, key: str, authority: str) -> None:
    """Serve until killed."""
    context = strict_context(Path(certificate), Path(key), Path(authority))
    async with listening(host, context, zeros_or_name):
        print(READY, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
