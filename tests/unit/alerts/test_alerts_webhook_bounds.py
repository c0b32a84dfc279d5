"""The webhook over real sockets: what nobody can hold up."""

import asyncio
import contextlib
import gc
import io
import socket
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from byoc_agents.alerts.http_server import MAX_FIELD_BYTES, MAX_HEADERS, READ_BYTES, REST_SECONDS
from byoc_agents.alerts.webhook import (
    LARGE_BODIES,
    LARGE_WAITING,
    MAX_BODY_BYTES,
    SMALL_BODY_BYTES,
)
from tests.unit.alerts.webhook_world import BODY, Make, eventually


async def chunks() -> AsyncIterator[bytes]:
    yield BODY


async def test_a_body_over_the_limit_is_413(make: Make) -> None:
    async with make() as world:
        fits = BODY.rjust(MAX_BODY_BYTES)
        assert (await world.post(io.BytesIO(fits)))[0] == 200
        assert (await world.post(io.BytesIO(fits + b" ")))[0] == 413


async def test_a_compressed_bomb_is_bounded(make: Make) -> None:
    bomb = zlib.compress(BODY.rjust(4 * MAX_BODY_BYTES))
    async with make() as world:
        assert (await world.post(bomb, **{"Content-Encoding": "deflate"}))[0] == 413
        assert (await world.post(b"no zlib", **{"Content-Encoding": "deflate"}))[0] == 400


async def test_small_bodies_wait_for_the_disk_together(make: Make) -> None:
    async with make() as world:
        world.relay.may_commit.clear()
        asked = [
            asyncio.create_task(world.post(BODY.rjust(SMALL_BODY_BYTES)))
            for _ in range(10 * LARGE_BODIES)
        ]
        await eventually(lambda: world.relay.under_way == len(asked))
        world.relay.may_commit.set()
        assert {(await one)[0] for one in asked} == {200}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (lambda: BODY.rjust(SMALL_BODY_BYTES + 1), {}),
        (lambda: zlib.compress(BODY), {"Content-Encoding": "deflate"}),
        (chunks, {}),
    ],
    ids=["large", "compressed", "of unknown length"],
)
async def test_bodies_that_may_be_large_are_read_a_few_at_a_time(
    make: Make, body: Callable[[], Any], headers: dict[str, str]
) -> None:
    async with make() as world:
        world.relay.may_commit.clear()
        asked = [
            asyncio.create_task(world.post(body(), **headers)) for _ in range(3 * LARGE_BODIES)
        ]
        await eventually(lambda: world.relay.under_way == LARGE_BODIES)
        asked.append(asyncio.create_task(world.post()))  # a small one is not behind them
        await eventually(lambda: world.relay.under_way > LARGE_BODIES)
        assert world.relay.under_way == LARGE_BODIES + 1
        world.relay.may_commit.set()
        assert {(await one)[0] for one in asked} == {200}


async def test_who_would_wait_behind_too_many_large_ones_is_told_to_come_again(make: Make) -> None:
    async with make(connections=200) as world:
        world.relay.may_commit.clear()
        large = BODY.rjust(SMALL_BODY_BYTES + 1)
        asked = [
            asyncio.create_task(world.post(large)) for _ in range(LARGE_BODIES + LARGE_WAITING)
        ]
        await eventually(lambda: world.relay.under_way == LARGE_BODIES)
        await eventually(lambda: len(connections()) >= len(asked))
        status, word, _ = await world.post(large)
        assert (status, word) == (503, '{"status": "busy"}')
        world.relay.may_commit.set()
        assert {(await one)[0] for one in asked} == {200}
        assert (await world.post(large))[0] == 200


async def test_headers_are_bounded(make: Make) -> None:
    many = {f"x-{number}": "v" for number in range(MAX_HEADERS)}
    async with make() as world:
        assert (await world.post(BODY, x="v" * (MAX_FIELD_BYTES - 10)))[0] == 200
        assert (await world.post(BODY, x="v" * 2 * MAX_FIELD_BYTES))[0] == 400
    async with make() as world:
        assert (await world.post(BODY, **many))[0] == 400


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"a b\r\n\r\n"]
)
async def test_what_is_no_http_is_told_so_in_a_fixed_word(make: Make, sent: bytes) -> None:
    async with make() as world:
        with structlog.testing.capture_logs() as logs:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(sent)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert body == b'{"status": "no HTTP"}'
    assert b"Server: byoc-agents" in head
    assert b"aiohttp" not in head
    assert [(line["event"], line["why"]) for line in logs] == [("webhook.refused", "no HTTP")]


async def test_of_a_body_that_waits_only_what_fills_the_buffers_is_taken(make: Make) -> None:
    head = b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % MAX_BODY_BYTES
    async with make() as world:
        world.relay.may_commit.clear()
        large = BODY.rjust(SMALL_BODY_BYTES + 1)
        asked = [asyncio.create_task(world.post(large)) for _ in range(LARGE_BODIES)]
        await eventually(lambda: world.relay.under_way == LARGE_BODIES)
        with socket.create_connection(("127.0.0.1", world.port)) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sender.settimeout(0)
            loop, taken_bytes = asyncio.get_running_loop(), 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await loop.sock_sendall(sender, head)
                    while True:
                        await loop.sock_sendall(sender, bytes(READ_BYTES))
                        taken_bytes += READ_BYTES
        world.relay.may_commit.set()
        assert {(await one)[0] for one in asked} == {200}
    assert taken_bytes < 300 * 1024


async def test_a_connection_at_rest_holds_no_body(make: Make) -> None:
    body = BODY.rjust(1024**2)
    request = b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with make() as world:
        await world.post(body)
        tracemalloc.start()
        try:
            pairs = [await asyncio.open_connection("127.0.0.1", world.port) for _ in range(8)]
            for reader, writer in pairs:
                writer.write(request + body)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            world.relay.bodies.clear()
            gc.collect()
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held_bytes < 2 * len(body)
        for _, writer in pairs:
            writer.close()


async def test_a_body_that_drips_is_given_up(make: Make) -> None:
    async with make(body=0.05) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        assert (await world.post())[0] == 200


@pytest.mark.parametrize("head", [b"", b"POST /v1/al", b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_without_a_request_is_closed(make: Make, head: bytes) -> None:
    async with make(header=0.05) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(head)
        assert await reader.read() == b""
        writer.close()


async def test_a_connection_in_use_outlives_the_time_for_its_headers(make: Make) -> None:
    async with make(header=0.05) as world:
        world.relay.may_commit.clear()
        asked = asyncio.create_task(world.post())
        await asyncio.wait([asked], timeout=0.15)
        world.relay.may_commit.set()
        assert (await asked)[0] == 200


async def test_a_client_that_cuts_its_body_does_no_harm(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    head = (
        b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n"
    )
    async with make() as world:
        with structlog.testing.capture_logs() as logs:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(head)
            await reader.readuntil(b"100 Continue\r\n\r\n")
            writer.write(b"{")
            await writer.drain()
            writer.transport.abort()
            await eventually(lambda: logs)
        assert (await world.post())[0] == 200
    assert [(line["event"], line["why"]) for line in logs] == [("webhook.refused", "broken body")]
    assert caplog.records == [], "no defect"
    assert world.relay.bodies == [BODY]


async def test_connections_are_bounded_and_free_again_when_they_end(make: Make) -> None:
    async with make(header=60, connections=3) as world:
        pairs = [await asyncio.open_connection("127.0.0.1", world.port) for _ in range(3)]
        with structlog.testing.capture_logs() as logs:
            for _ in range(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
                assert await reader.read() == b""
                writer.close()
            await eventually(lambda: sum(line["number"] for line in logs) == 5)
        assert {line["event"] for line in logs} == {"webhook.connections_refused"}
        assert len(logs) < 5
        for _, writer in pairs:
            writer.close()
            await writer.wait_closed()
        assert (await world.post())[0] == 200


async def test_a_connection_at_rest_makes_room_for_a_new_one(make: Make) -> None:
    request = b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (
        len(BODY),
        BODY,
    )
    async with make(connections=3) as world:
        pairs = [await asyncio.open_connection("127.0.0.1", world.port) for _ in range(3)]
        for reader, writer in pairs:
            writer.write(request)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(REST_SECONDS)
        assert (await world.post())[0] == 200
        rest = await pairs[0][0].read()
        assert rest.endswith(b'{"status": "stored"}'), "the oldest, after its answer"
        for reader, writer in pairs[1:]:
            writer.write(request)
            await reader.readuntil(b"HTTP/1.1 200 ")
        for _, writer in pairs:
            writer.close()


async def test_nobody_who_waits_for_an_answer_makes_room(make: Make) -> None:
    async with make(connections=3) as world:
        world.relay.may_commit.clear()
        asked = [asyncio.create_task(world.post()) for _ in range(3)]
        await eventually(lambda: world.relay.under_way == len(asked))
        await asyncio.sleep(REST_SECONDS)
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        assert await reader.read() == b""
        writer.close()
        world.relay.may_commit.set()
        assert [(await one)[0] for one in asked] == [200] * 3


def connections() -> list[web.RequestHandler]:
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, web.RequestHandler)]


async def test_nothing_is_kept_of_connections_that_have_ended(make: Make) -> None:
    """They are forgotten with the patience for the next one."""
    before = len(connections())
    async with make(header=0.05) as world:
        for _ in range(5):
            async with aiohttp.ClientSession() as session, session.post(world.url, data=BODY):
                pass
        await world.post()
        await eventually(lambda: len(connections()) <= before + 1)
