"""The socket for `[::]`: one value for IPv4, IPv6 and both."""

import socket

import pytest
from aiohttp import ClientSession, web

from byoc_agents.app.http_server import Listen, PortLimits, serve
from byoc_agents.app.listening import open_dual_stack


def test_the_dual_stack_socket_accepts_ipv4_and_ipv6() -> None:
    with open_dual_stack(0) as server:
        server.listen()
        hosts = ["127.0.0.1", "::1"] if server.family == socket.AF_INET6 else ["127.0.0.1"]
        for host in hosts:
            socket.create_connection((host, server.getsockname()[1]), timeout=5).close()


def test_a_taken_port_is_an_error() -> None:
    with open_dual_stack(0) as server:
        server.listen()
        with pytest.raises(OSError, match="in use"):
            open_dual_stack(server.getsockname()[1])


async def test_the_webhook_on_any_ipv6_address_accepts_ipv4() -> None:
    async def respond(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="ok")

    async with (
        serve(respond, Listen("::", 0), PortLimits(max_unauthenticated=5)) as (_, port),
        ClientSession() as client,
        client.get(f"http://127.0.0.1:{port}/") as response,
    ):
        assert await response.text() == "ok"
