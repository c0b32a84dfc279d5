"""The webhook over real sockets: limits that no client can exceed."""

import asyncio
import contextlib
import gc
import io
import socket
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from byoc_agents.alerts.payload import SMALL_BODY_BYTES
from byoc_agents.alerts.webhook import (
    LARGE_BODIES,
    LARGE_WAITING,
    MAX_BODY_BYTES,
)
from byoc_agents.app.http_server import MAX_FIELD_BYTES, MAX_HEADERS, MIN_IDLE_SECONDS, READ_BYTES
from tests.unit.alerts.webhook_harness import BEARER, BODY, TOKEN, Harness, Make, eventually, head


async def chunks() -> AsyncIterator[bytes]:
    yield BODY


async def test_a_body_over_the_limit_is_413(make: Make) -> None:
    async with make() as harness:
        fits = BODY.rjust(MAX_BODY_BYTES)
        assert (await harness.post(io.BytesIO(fits)))[0] == 200
        assert (await harness.post(io.BytesIO(fits + b" ")))[0] == 413


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity", "x"])
async def test_a_compressed_body_is_refused_and_not_decompressed(make: Make, coding: str) -> None:
    async with make() as harness:
        status, text, _ = await harness.post(b"not compressed", **{"Content-Encoding": coding})
        assert (status, text) == (415, '{"status": "compressed"}')
    assert harness.relay.bodies == []


async def test_a_compressed_body_of_an_unauthenticated_client_is_not_decompressed(
    make: Make,
) -> None:
    """By default, aiohttp decompresses the rest of a body that it discards after the response."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(compressor.compress(bytes(MAX_BODY_BYTES)) for _ in range(16))
    bomb += compressor.flush()
    gzip = head(len(bomb), "Content-Encoding: gzip").replace(TOKEN.encode(), b"unknown")
    before = time.process_time()
    for _ in range(16):
        zlib.decompressobj(31).decompress(bomb, MAX_BODY_BYTES)
    decompressing_seconds = time.process_time() - before
    async with make() as harness:
        reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
        tracemalloc.start()
        before = time.process_time()
        writer.write(gzip + bomb)
        assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        writer.close()
    assert time.process_time() - before < decompressing_seconds
    assert peak_bytes < MAX_BODY_BYTES


async def test_small_bodies_are_committed_concurrently(make: Make) -> None:
    async with make() as harness:
        harness.relay.may_commit.clear()
        asked = [
            asyncio.create_task(harness.post(BODY.rjust(SMALL_BODY_BYTES)))
            for _ in range(10 * LARGE_BODIES)
        ]
        await eventually(lambda: harness.relay.under_way == len(asked))
        harness.relay.may_commit.set()
        assert {(await one)[0] for one in asked} == {200}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (lambda: BODY.rjust(SMALL_BODY_BYTES + 1), {}),
        (chunks, {}),
    ],
    ids=["large", "of unknown length"],
)
async def test_bodies_that_may_be_large_are_read_a_few_at_a_time(
    make: Make, body: Callable[[], Any], headers: dict[str, str]
) -> None:
    async with make() as harness:
        harness.relay.may_commit.clear()
        asked = [
            asyncio.create_task(harness.post(body(), **headers)) for _ in range(3 * LARGE_BODIES)
        ]
        await eventually(lambda: harness.relay.under_way == LARGE_BODIES)
        asked.append(asyncio.create_task(harness.post()))  # a small body does not wait for them
        await eventually(lambda: harness.relay.under_way > LARGE_BODIES)
        assert harness.relay.under_way == LARGE_BODIES + 1
        harness.relay.may_commit.set()
        assert {(await one)[0] for one in asked} == {200}


async def test_a_large_body_is_503_if_too_many_others_wait(make: Make) -> None:
    async with make() as harness:
        harness.relay.may_commit.clear()
        large = BODY.rjust(SMALL_BODY_BYTES + 1)
        asked = [
            asyncio.create_task(harness.post(large)) for _ in range(LARGE_BODIES + LARGE_WAITING)
        ]
        await eventually(lambda: harness.relay.under_way == LARGE_BODIES)
        await eventually(lambda: len(connections()) >= len(asked))
        status, text, _ = await harness.post(large)
        assert (status, text) == (503, '{"status": "busy"}')
        harness.relay.may_commit.set()
        assert {(await one)[0] for one in asked} == {200}
        assert (await harness.post(large))[0] == 200


async def test_headers_are_bounded(make: Make) -> None:
    many = {f"x-{number}": "v" for number in range(MAX_HEADERS)}
    async with make() as harness:
        assert (await harness.post(BODY, x="v" * (MAX_FIELD_BYTES - 10)))[0] == 200
        assert (await harness.post(BODY, x="v" * 2 * MAX_FIELD_BYTES))[0] == 400
    async with make() as harness:
        assert (await harness.post(BODY, **many))[0] == 400


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"a b\r\n\r\n"]
)
async def test_malformed_http_gets_a_fixed_answer(make: Make, sent: bytes) -> None:
    async with make() as harness:
        with structlog.testing.capture_logs() as logs:
            reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
            writer.write(sent)
            response, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
    assert response.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert body == b'{"status": "malformed request"}'
    assert b"Server: byoc-agents" in response
    assert b"aiohttp" not in response
    refused = [(line["event"], line["why"]) for line in logs]
    assert refused == [("server.refused", "malformed request")]


async def test_only_the_buffers_hold_a_body_that_waits(make: Make) -> None:
    large_head = head(MAX_BODY_BYTES)
    async with make() as harness:
        harness.relay.may_commit.clear()
        large = BODY.rjust(SMALL_BODY_BYTES + 1)
        asked = [asyncio.create_task(harness.post(large)) for _ in range(LARGE_BODIES)]
        await eventually(lambda: harness.relay.under_way == LARGE_BODIES)
        with socket.create_connection(("127.0.0.1", harness.port)) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sender.settimeout(0)
            loop, taken_bytes = asyncio.get_running_loop(), 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await loop.sock_sendall(sender, large_head)
                    while True:
                        await loop.sock_sendall(sender, bytes(READ_BYTES))
                        taken_bytes += READ_BYTES
        harness.relay.may_commit.set()
        assert {(await one)[0] for one in asked} == {200}
    assert taken_bytes < 300 * 1024


async def test_an_idle_connection_holds_no_body(make: Make) -> None:
    body = BODY.rjust(1024**2)
    request = head(len(body))
    async with make() as harness:
        await harness.post(body)
        tracemalloc.start()
        try:
            pairs = [await asyncio.open_connection("127.0.0.1", harness.port) for _ in range(8)]
            for reader, writer in pairs:
                writer.write(request + body)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            harness.relay.bodies.clear()
            gc.collect()
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held_bytes < 2 * len(body)
        for _, writer in pairs:
            writer.close()


async def test_a_slow_body_is_503(make: Make) -> None:
    async with make(body=0.05) as harness:
        reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
        writer.write(head(99) + b"{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        assert (await harness.post())[0] == 200


@pytest.mark.parametrize("sent", [b"", b"POST /v1/al", b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_without_a_request_is_closed(make: Make, sent: bytes) -> None:
    async with make(header=0.05) as harness:
        reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
        writer.write(sent)
        assert await reader.read() == b""
        writer.close()


async def test_a_connection_in_use_is_not_closed_by_the_header_timeout(make: Make) -> None:
    async with make(header=0.05) as harness:
        harness.relay.may_commit.clear()
        asked = asyncio.create_task(harness.post())
        await asyncio.wait([asked], timeout=0.15)
        harness.relay.may_commit.set()
        assert (await asked)[0] == 200


async def test_a_client_that_disconnects_within_its_body_is_logged_as_refused(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async with make() as harness:
        with structlog.testing.capture_logs() as logs:
            reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
            writer.write(head(99, "Expect: 100-continue"))
            await reader.readuntil(b"100 Continue\r\n\r\n")
            writer.write(b"{")
            await writer.drain()
            writer.transport.abort()
            await eventually(lambda: logs)
        assert (await harness.post())[0] == 200
    assert [(line["event"], line["why"]) for line in logs] == [("webhook.refused", "broken body")]
    assert caplog.records == [], "no internal error"
    assert harness.relay.bodies == [BODY]


async def connect(harness: Harness) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", harness.port)


async def test_the_oldest_silent_connection_is_closed_for_a_new_one(make: Make) -> None:
    async with make(header=60, unauthenticated=3) as harness:
        pairs = [await connect(harness) for _ in range(3)]
        with structlog.testing.capture_logs() as logs:
            for reader, _ in pairs[:2]:
                pairs.append(await connect(harness))
                assert await reader.read() == b""
            await eventually(lambda: sum(line["number"] for line in logs) == 2)
        assert {line["event"] for line in logs} == {"server.connections_refused"}
        assert (await harness.post())[0] == 200
        for _, writer in pairs:
            writer.close()


async def test_a_notification_is_stored_despite_many_silent_connections(make: Make) -> None:
    async with make(header=60, unauthenticated=8) as harness, asyncio.timeout(10):
        pairs = []
        for number in range(200):
            pairs.append(await connect(harness))
            if number % 20 == 0:
                async with aiohttp.ClientSession() as fresh:
                    headers = {"Authorization": BEARER}
                    response = await fresh.post(harness.url, data=BODY, headers=headers)
                    assert response.status == 200
        for _, writer in pairs:
            writer.close()


async def test_a_connection_of_another_address_is_not_closed_for_the_busiest_one(
    make: Make,
) -> None:
    async with make(header=60, unauthenticated=4) as harness:
        first = await asyncio.open_connection(
            "127.0.0.1", harness.port, local_addr=("127.0.0.2", 0)
        )
        others = [await connect(harness) for _ in range(20)]
        first[1].write(head(len(BODY)) + BODY)
        assert (await first[0].readline()).startswith(b"HTTP/1.1 200 ")
        for _, writer in [first, *others]:
            writer.close()


async def test_an_authenticated_connection_is_not_closed_for_silent_ones(make: Make) -> None:
    async with make(header=60, unauthenticated=2) as harness:
        reader, writer = await connect(harness)
        writer.write(head(len(BODY)) + BODY)
        await reader.readuntil(b'{"status": "stored"}')
        silent = [await connect(harness) for _ in range(10)]
        writer.write(head(len(BODY)) + BODY)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        for _, one in [(reader, writer), *silent]:
            one.close()


async def test_an_unknown_client_keeps_no_connection(make: Make) -> None:
    async with make() as harness:
        for request in (
            head(0).replace(TOKEN.encode(), b"wrong"),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            reader, writer = await connect(harness)
            writer.write(request)
            assert (await reader.read()).startswith(b"HTTP/1.1 40")
            writer.close()


async def test_the_header_timeout_applies_to_a_second_request(make: Make) -> None:
    async with make(header=0.05) as harness:
        reader, writer = await connect(harness)
        writer.write(head(len(BODY)) + BODY)
        await reader.readuntil(b'{"status": "stored"}')
        await asyncio.sleep(0.1)  # idle for longer than the header timeout
        writer.write(head(len(BODY)) + BODY)
        await reader.readuntil(b'{"status": "stored"}')
        writer.write(b"POST /v1/al")
        assert await reader.read() == b""
        writer.close()


async def test_an_idle_connection_is_closed_for_a_new_one(make: Make) -> None:
    request = head(len(BODY)) + BODY
    async with make(authenticated=3) as harness:
        pairs = [await connect(harness) for _ in range(3)]
        for reader, writer in pairs:
            writer.write(request)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(MIN_IDLE_SECONDS)
        assert (await harness.post())[0] == 200
        rest = await pairs[0][0].read()
        assert rest.endswith(b'{"status": "stored"}'), "the oldest, after its response"
        for reader, writer in pairs[1:]:
            writer.write(request)
            await reader.readuntil(b"HTTP/1.1 200 ")
        for _, writer in pairs:
            writer.close()


async def test_a_connection_that_waits_for_its_answer_is_not_closed(make: Make) -> None:
    async with make(authenticated=3) as harness:
        harness.relay.may_commit.clear()
        asked = [asyncio.create_task(harness.post()) for _ in range(3)]
        await eventually(lambda: harness.relay.under_way == len(asked))
        await asyncio.sleep(MIN_IDLE_SECONDS)
        async with aiohttp.ClientSession() as fresh:
            headers = {"Authorization": BEARER}
            response = await fresh.post(harness.url, data=BODY, headers=headers)
            assert (response.status, await response.text()) == (503, '{"status": "busy"}')
        harness.relay.may_commit.set()
        assert [(await one)[0] for one in asked] == [200] * 3


def connections() -> list[web.RequestHandler]:
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, web.RequestHandler)]


async def test_closed_connections_are_garbage_collected(make: Make) -> None:
    """No timer or list refers to them any more."""
    before = len(connections())
    async with make(header=0.05) as harness:
        for _ in range(5):
            async with aiohttp.ClientSession() as session:
                headers = {"Authorization": BEARER}
                async with session.post(harness.url, data=BODY, headers=headers):
                    pass
        await harness.post()
        await eventually(lambda: len(connections()) <= before + 1)
