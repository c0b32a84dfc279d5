"""A network path: a loopback port that forwards each request to a real server, or misbehaves.

It can fail as a bad network or a broken service does.
"""

import asyncio
import errno
import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab.chaos.loops import LoopThread
from lab.fakes.http import FakeHttp, Reply, Request, Script, serving
from lab.real.scraper import eventually

UPSTREAM_SECONDS = 10.0
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


class Link:
    """A path to one server. Requests to a slow server are forwarded one at a time.

    No request is kept: `given` receives each forwarded request, `taken` each answered one.
    """

    def __init__(self, name: str, upstream_port: int) -> None:
        self.name = name
        self.upstream_port = upstream_port
        self.given: Callable[[Request], None] = lambda _: None
        self.taken: Callable[[Request, Reply], None] = lambda _request, _reply: None
        self.blocked = False  # nothing gets to the server behind: it is being recreated
        self.http = FakeHttp(serving, apply=self._apply)
        self._thread = LoopThread()
        self._open = False
        self.mend()

    @property
    def url(self) -> str:
        return self.http.url

    def mend(self) -> None:
        """Listen on the same port as before; the kernel may have given it to a client meanwhile."""
        if not self._open:
            eventually(self._listening)
            self._open = True

    def _listening(self) -> bool:
        try:
            self._thread.run(self.http.__aenter__())
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True

    def cut(self) -> None:
        """Close the port and all connections: new ones are refused."""
        if self._open:
            self._thread.run(self.http.__aexit__())
            self._open = False

    def block(self) -> None:
        """Stop forwarding; return when no request is in flight."""
        self.blocked = True
        self._thread.run(asyncio.sleep(0))

    def close(self) -> None:
        self.cut()
        self._thread.close()

    @contextmanager
    def behaving(self, script: Script) -> Iterator[None]:
        """Apply a behavior to every request inside the block."""
        before, self.http.script = self.http.script, script
        try:
            yield
        finally:
            self.http.script = before

    def _apply(self, request: Request) -> Reply:
        """Forward a request. Raises ConnectionError without a response, to close the connection."""
        self.http.requests.clear()
        if self.blocked:
            raise ConnectionResetError("nobody is there")
        self.given(request)
        try:
            reply = self._forward(request)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionResetError(str(error)) from error
        self.taken(request, reply)
        return reply

    def _forward(self, request: Request) -> Reply:
        server = http.client.HTTPConnection("127.0.0.1", self.upstream_port, UPSTREAM_SECONDS)
        headers = {k: v for k, v in request.headers.items() if k not in HOP_BY_HOP}
        headers["content-length"] = str(len(request.body))
        try:
            server.putrequest(
                request.method, request.target, skip_host=True, skip_accept_encoding=True
            )
            for name, value in headers.items():
                server.putheader(name, value)
            server.endheaders(request.body)
            response = server.getresponse()
            kept = {k: v for k, v in response.getheaders() if k.lower() not in HOP_BY_HOP}
            return Reply(response.status, kept, response.read())
        finally:
            server.close()


@contextmanager
def linked(name: str, upstream_port: int) -> Iterator[Link]:
    link = Link(name, upstream_port)
    try:
        yield link
    finally:
        link.close()
