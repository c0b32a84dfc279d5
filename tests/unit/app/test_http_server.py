"""The HTTP server's tasks end with their connections."""

import asyncio

from aiohttp import web

from byoc_agents.app.http_server import LINGER_SECONDS, Listen, PortLimits, serve

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
CONNECTIONS = 20


async def test_a_closed_connection_does_not_wait_for_the_rest_of_its_body() -> None:
    """2,000 such connections per second would keep 2,000 tasks, requests and buffers."""

    async def respond(_: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(text="ok")
        response.force_close()
        return response

    async with serve(respond, Listen("127.0.0.1", 0), PortLimits(CONNECTIONS)) as (host, port):
        before = asyncio.all_tasks()
        for _ in range(CONNECTIONS):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(REQUEST)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            writer.close()
        _, late = await asyncio.wait(asyncio.all_tasks() - before, timeout=LINGER_SECONDS / 2)
    assert not late
