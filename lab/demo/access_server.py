"""The stand-in ClickHouse of the access demo, as a process.

    python -m lab.demo.access_server HOST CERTIFICATE KEY AUTHORITY [NATIVE_PORT HTTPS_PORT]

The broker's side is HTTP on a loopback port, `lab.fakes.access`. The engineers' side is the
listener of `lab.tailnet`: a certificate of the access authority passes the handshake, and its user
must exist at each query, on an open connection too. Clients may use lines, the native protocol or
HTTP. The output is one line, `Ready`.
"""

import asyncio
import sys
import time
from pathlib import Path

import msgspec

from lab.fakes.access import FakeClickHouseServer
from lab.tailnet.listener import (
    HTTPS_PORT,
    NATIVE_PORT,
    READY,
    Answer,
    Query,
    listening,
    strict_context,
)

REFUSED = "Code: 516. DB::Exception: Authentication failed: no user has this certificate\n"


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The line on the output."""

    state: str
    http: str  # URL for the broker
    native: int  # port for engineers


def response_of(server: FakeClickHouseServer) -> Answer:
    """Return the answers to the engineers' queries: REFUSED without a user."""

    async def answer(query: Query) -> tuple[int, bytes]:
        found = await server.run_query(query.uri, query.text)
        return (403, REFUSED.encode()) if found is None else (200, found.encode())

    return answer


async def main(host: str, *arguments: str) -> None:
    """Serve until killed."""
    certificate, key, authority, *given = arguments
    native, https = given or (NATIVE_PORT, HTTPS_PORT)
    server = FakeClickHouseServer(lambda: time.time_ns() // 1_000_000)
    context = strict_context(Path(certificate), Path(key), Path(authority))
    ports = (int(native), int(https))
    serving = listening(host, context, response_of(server), ports, server.log_in)
    async with server.http, serving as (port, _):
        line = msgspec.json.encode(Ready(state=READY, http=server.http.url, native=port))
        print(line.decode(), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
