"""The webhook on a real socket, with a fake relay."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import aiohttp
from prometheus_client import CollectorRegistry

from byoc_agents.alerts.payload import read

TOKEN = "token-of-alertmanager"
BEARER = f"Bearer {TOKEN}"
BODY = b'{"version":"4","alerts":[]}'


def head(length: int, *more: str) -> bytes:
    """Return the request line and headers of a notification from Alertmanager."""
    lines = ["POST /v1/alerts HTTP/1.1", "Host: x", f"Authorization: {BEARER}", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


class Relay:
    """A fake relay: decodes the body, waits for `may_commit`, then stores it or raises `error`."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.under_way = 0
        self.bodies: list[bytes] = []
        self.may_commit = asyncio.Event()
        self.may_commit.set()

    async def accept(self, body: bytes) -> int:
        read(body)
        self.under_way += 1
        await self.may_commit.wait()
        self.under_way -= 1
        if self.error:
            raise self.error
        self.bodies.append(body)
        return 0


@dataclass
class Harness:
    relay: Relay
    url: str
    port: int
    registry: CollectorRegistry
    session: aiohttp.ClientSession

    async def post(
        self, body: bytes | io.BytesIO | AsyncIterator[bytes] = BODY, **headers: str
    ) -> tuple[int, str, aiohttp.ClientResponse]:
        given = {"Authorization": BEARER} | headers
        async with self.session.post(self.url, data=body, headers=given) as response:
            return response.status, await response.text(), response


Make = Callable[..., AbstractAsyncContextManager[Harness]]


async def eventually(reached: Callable[[], object]) -> None:
    """Wait until a condition holds that another task or thread brings about without a signal."""
    async with asyncio.timeout(10):
        while not reached():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
