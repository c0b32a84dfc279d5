"""The stand-in for ClickHouse's access listener refuses in the handshake, and answers by Answer."""

import asyncio
import datetime as dt
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from lab.tailnet import certificates
from lab.tailnet.listener import (
    Answer,
    engine_answer,
    listening,
    name_and_text,
    strict_context,
)

URI = f"spiffe://svc-1.byoc/grant/{certificates.GRANT}"


class Engine:
    """Answers with the query, or fails as a server does."""

    def query(self, sql: str, fmt: str = "CSV") -> object:
        if sql == "broken":
            raise RuntimeError("Code: 62. DB::Exception: Syntax error")
        return f"{fmt} {sql}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("certificates")
    certificates.make(place, "svc-1", dt.datetime.now(dt.UTC))
    return place


async def exchange(
    files: Path, text: str, client: str = "good", answer: Answer = name_and_text, *, http: bool
) -> str:
    """Send a text to one of the ports; return everything that comes back."""
    own, key, authority = map(Path, certificates.server_files(files))
    context = ssl.create_default_context(cafile=str(files / "server-ca.crt"))
    if client:
        context.load_cert_chain(files / f"{client}.pem")
    async with listening("127.0.0.1", strict_context(own, key, authority), answer, (0, 0)) as ports:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", ports[http], ssl=context, server_hostname=certificates.NAMES[0]
        )
        try:
            writer.write(text.encode())
            if not http:
                return (await reader.readline()).decode()
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.decode().split("Content-Length: ")[1].split("\r")[0])
            return (head + await reader.readexactly(size)).decode()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.mark.parametrize("http", [False, True])
@pytest.mark.parametrize("client", ["", "expired", "foreign"], ids=["none", "expired", "foreign"])
async def test_a_peer_without_a_valid_certificate_gets_nothing(
    files: Path, client: str, http: bool
) -> None:
    request = "GET / HTTP/1.1\r\n\r\n" if http else "hello\n"
    found = ""
    with suppress(OSError, EOFError):
        found = await exchange(files, request, client, http=http)
    assert found == ""


async def test_lines_are_answered_with_the_name_of_the_certificate(files: Path) -> None:
    assert await exchange(files, "hello\n", http=False) == f"{URI} hello\n"


async def test_requests_are_answered_by_an_engine(files: Path) -> None:
    answer = engine_answer(Engine())
    get = "GET /?query=SELECT%201 HTTP/1.1\r\nX-ClickHouse-User: u\r\n\r\n"
    assert (await exchange(files, get, answer=answer, http=True)).endswith("\r\n\r\nTSV SELECT 1")
    post = "POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nbroken"
    found = await exchange(files, post, answer=answer, http=True)
    assert found.startswith("HTTP/1.1 500")
    assert "Syntax error" in found
