"""ClickHouse's HTTP interface on top of an engine in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from lab.fakes.http import FakeHttp, Reply, Request


class Engine(Protocol):
    """The used part of `chdb.session.Session`. Raises RuntimeError with the server's own text."""

    def query(self, sql: str, fmt: str = "CSV") -> object: ...


class Front:
    """A server that answers each request with the engine's result, and keeps the queries."""

    def __init__(self, engine: Engine) -> None:
        self.http = FakeHttp(apply=self.apply)
        self.asked: list[str] = []
        self._engine = engine

    def apply(self, request: Request) -> Reply:
        if request.path in {"/ping", "/replicas_status"}:
            return Reply(200, {}, b"Ok.\n")
        sql = request.body.decode().removesuffix("\nFORMAT JSONCompact")
        self.asked.append(sql)
        try:
            response = self._engine.query(sql, "JSONCompact")
        except RuntimeError as error:
            return Reply(500, {}, str(error).encode())
        return Reply(200, {}, str(response).encode())


@asynccontextmanager
async def front(engine: Engine) -> AsyncIterator[Front]:
    made = Front(engine)
    async with made.http:
        yield made
