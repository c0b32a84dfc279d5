"""ClickHouse's native protocol on the server's side: log in, ping, run a query, and exceptions.

It speaks revision 54429, the first one with settings as text, so it needs none of the fields that
later revisions add. A result is one column of strings. A query with compression is refused with
NOT_IMPLEMENTED and ends the connection, because its block is not read. Inserts, external tables and
a cancellation by the client end the connection.

The packets are those of `src/Core/ProtocolDefines.h` and `src/Server/TCPHandler.cpp` of ClickHouse.
`tests/lab/test_clickhouse_native.py` checks them with the package clickhouse-driver.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

REVISION = 54429
VERSION = (26, 9, 1)
HELLO, QUERY, DATA, PING = 0, 1, 2, 4  # packets of a client
SERVER_HELLO, SERVER_DATA, EXCEPTION, PONG, END_OF_STREAM = 0, 1, 2, 4, 5
INITIAL_QUERY = 1
MAX_TEXT_BYTES = 1024 * 1024
MAX_NUMBER_BYTES = 10  # of 64 bits
BLOCK_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"  # no overflow rows, no bucket
UNSUPPORTED = 48  # NOT_IMPLEMENTED


class ServerError(Exception):
    """An error of the server, by ClickHouse's code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}")
        self.code, self.message = code, message


class NativeSession(Protocol):
    """What one connection may do after its login."""

    async def run(self, text: str) -> list[str]:
        """Return the rows of a query, one string each. Raises ServerError."""


LogIn = Callable[[str, str], NativeSession]  # user, URI of the certificate. Raises ServerError


async def serve_native(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uri: str, log_in: LogIn
) -> None:
    """Serve one connection after the first byte of its hello. Raises ValueError and EOFError."""
    wire = _Wire(reader)
    try:
        session = log_in(await _read_user(wire), uri)
    except ServerError as error:
        writer.write(_exception(error))
        await writer.drain()
        return
    name = _text("ClickHouse stand-in")
    major, minor, patch = map(_number, VERSION)
    zone, display = _text("UTC"), _text("stand-in")
    revision = _number(REVISION)
    writer.write(_number(SERVER_HELLO) + name + major + minor + revision + zone + display + patch)
    while True:
        await writer.drain()
        kind = await wire.number()
        if kind == PING:
            writer.write(_number(PONG))
        elif kind == QUERY:
            writer.write(await _answer(wire, session))
        else:
            raise ValueError(f"packet {kind} of a client: expected a ping or a query")


async def _read_user(wire: "_Wire") -> str:
    """Read the rest of a hello: name, version, revision, database, user and password."""
    await wire.text()
    await wire.skip_numbers(2)
    if (revision := await wire.number()) < REVISION:
        raise ServerError(UNSUPPORTED, f"revision {revision}: expected at least {REVISION}")
    await wire.text()
    user = await wire.text()
    await wire.text()  # a certificate is the only login of the listener
    return user


async def _answer(wire: "_Wire", session: NativeSession) -> bytes:
    text, compressed = await _read_query(wire)
    if compressed:  # so is the block that follows: it is not read, and ends the connection
        return _exception(ServerError(UNSUPPORTED, "compression: expected a client without it"))
    await _read_empty_block(wire)
    try:
        rows = await session.run(text)
    except ServerError as error:
        return _exception(error)
    return _block([]) + _block(rows) + _number(END_OF_STREAM)


async def _read_query(wire: "_Wire") -> tuple[str, bool]:
    """Read the rest of a query: id, the client, the settings, stage, compression and text."""
    await wire.text()
    if (kind := await wire.byte()) != INITIAL_QUERY:
        raise ValueError(f"query of kind {kind}: expected one of a client")
    for _ in range(3):  # the initial user, query and address
        await wire.text()
    await wire.byte()  # the interface: TCP
    for _ in range(3):  # the client's user, host and name
        await wire.text()
    await wire.skip_numbers(3)  # its version and revision
    await wire.text()  # quota key
    await wire.skip_numbers(1)  # its patch version
    while await wire.text():  # a setting, up to an empty name
        await wire.byte()
        await wire.text()
    await wire.skip_numbers(1)  # stage
    compressed = await wire.number()
    return await wire.text(), bool(compressed)


async def _read_empty_block(wire: "_Wire") -> None:
    """Read the block without columns that ends the data of a client."""
    if (kind := await wire.number()) != DATA or await wire.text():
        raise ValueError(f"packet {kind} after a query: expected an unnamed block")
    while field := await wire.number():
        await wire.skip(1 if field == 1 else 4)
    if await wire.number() or await wire.number():
        raise ValueError("a block with data: expected an empty one")


def _block(rows: list[str]) -> bytes:
    """Return a packet of data: one column of strings. Without rows it is the header."""
    column = _text("answer") + _text("String") + b"".join(map(_text, rows))
    sizes = _number(1) + _number(len(rows))
    return _number(SERVER_DATA) + _text("") + BLOCK_INFO + sizes + column


def _exception(error: ServerError) -> bytes:
    code = error.code.to_bytes(4, "little")
    name, message = _text("DB::Exception"), _text(f"DB::Exception: {error.message}")
    return _number(EXCEPTION) + code + name + message + _text("") + b"\0"  # no trace, none nested


def _number(value: int) -> bytes:
    """Return 7 bits per byte, the low ones first."""
    made = bytearray()
    while value >= 1 << 7:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*made, value))


def _text(value: str) -> bytes:
    raw = value.encode()
    return _number(len(raw)) + raw


class _Wire:
    """Reads the values of the protocol."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def byte(self) -> int:
        return (await self._reader.readexactly(1))[0]

    async def skip(self, count: int) -> None:
        await self._reader.readexactly(count)

    async def number(self) -> int:
        value = 0
        for place in range(MAX_NUMBER_BYTES):
            part = await self.byte()
            value |= (part & 0x7F) << 7 * place
            if not part & 0x80:
                return value
        raise ValueError(f"a number of more than {MAX_NUMBER_BYTES} bytes")

    async def skip_numbers(self, count: int) -> None:
        for _ in range(count):
            await self.number()

    async def text(self) -> str:
        if (size := await self.number()) > MAX_TEXT_BYTES:
            raise ValueError(f"a text of {size} bytes: expected at most {MAX_TEXT_BYTES}")
        return (await self._reader.readexactly(size)).decode()
