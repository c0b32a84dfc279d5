"""chdb behind ClickHouse's HTTP interface, so that several processes share one store.

`python -m lab.control_plane.chdb_http DIRECTORY` prints its URL.
"""

import argparse
import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lab.fakes.http import FakeHttp, Reply, Request


class ChdbServer:
    """Executes one statement per request; `broken` answers as a server that is starting."""

    def __init__(self, session: Any, port: int = 0) -> None:
        self.http = FakeHttp(apply=self.apply, port=port)
        self.broken = False
        self._session = session

    def apply(self, request: Request) -> Reply:
        """Execute a statement."""
        if self.broken:
            return Reply(503, {}, b"starting")
        statement = parse_qs(urlsplit(request.target).query).get("query", [""])[0]
        text = f"{statement}\n{request.body.decode()}" if statement else request.body.decode()
        try:
            response = self._session.query(text)
        except RuntimeError as error:
            code = re.match(r"Code: (\d+)", str(error))
            headers = {"X-ClickHouse-Exception-Code": code[1] if code else "0"}
            return Reply(500, headers, str(error).encode())
        return Reply(200, {}, bytes(response.bytes()) if response is not None else b"")


@asynccontextmanager
async def serving_chdb(session: Any, port: int = 0) -> AsyncIterator[ChdbServer]:
    """Serve a session on a loopback port."""
    server = ChdbServer(session, port)
    async with server.http:
        yield server


async def _serve(directory: str, port: int) -> None:
    from chdb.session import Session  # noqa: PLC0415  a real part, next to the environment

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    session = Session(directory)
    async with serving_chdb(session, port) as server:
        sys.stdout.write(f"{server.http.url}\n")
        sys.stdout.flush()
        await stop.wait()
    session.close()


def main() -> None:
    """Read the command line and serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m lab.control_plane.chdb_http")
    parser.add_argument("directory")
    parser.add_argument("--port", type=int, default=0, help="0 = any free one")
    options = parser.parse_args()
    asyncio.run(_serve(options.directory, options.port))


if __name__ == "__main__":
    main()
