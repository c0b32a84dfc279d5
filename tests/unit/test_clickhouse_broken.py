"""The ClickHouse client where nobody listens, the connection breaks, or a response is anything."""

import asyncio
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.clickhouse import (
    ClickHouse,
    ClickHouseError,
    ClickHouseReply,
    ClickHouseResponseError,
    ClickHouseServerError,
    ClickHouseUnreachableError,
    parse_rows,
)


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"", ClickHouseUnreachableError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", ClickHouseResponseError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nOk", ClickHouseResponseError),
    ],
    ids=["closed", "no http", "cut"],
)
async def test_a_connection_that_breaks(response: bytes, error: type[ClickHouseError]) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        writer.close()

    listener = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, ClickHouse(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(error):
            await client.ping()


async def test_nobody_listening_is_unreachable(unused_port: int) -> None:
    async with ClickHouse(f"http://127.0.0.1:{unused_port}") as client:
        with pytest.raises(ClickHouseUnreachableError):
            await client.ping()


@pytest.fixture
async def unused_port() -> int:
    listener = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = int(listener.sockets[0].getsockname()[1])
    listener.close()
    await listener.wait_closed()
    return port


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
META = st.lists(
    st.fixed_dictionaries({"name": st.text(), "type": st.sampled_from(["UInt64", "Float64", "S"])}),
    max_size=3,
)
ANYTHING = st.binary() | st.builds(
    lambda meta, data: json.dumps({"meta": meta, "data": data}).encode(),
    META | JSON,
    st.lists(st.lists(JSON, max_size=3), max_size=3) | JSON,
)


@given(ANYTHING)
def test_no_response_makes_it_crash(body: bytes) -> None:
    with contextlib.suppress(ClickHouseResponseError, ClickHouseServerError):
        assert isinstance(parse_rows(ClickHouseReply(200, 0, body)), list)
