"""What an engineer runs: TLS with a client certificate. One JSON object per line on the output.

`ask` sends one line and prints the answer, or the error. `hold` sends a line every 100 ms, or every
`--interval` seconds, until its input ends or the connection does. `dial` only connects. `download`
asks over HTTP for blocks of `/zeros` until it has `--bytes`, and prints the seconds. With `--user`,
the line is a query over the native protocol of ClickHouse, by clickhouse-driver.
"""

import argparse
import json
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BLOCK_BYTES = 4 * 1024 * 1024


def main() -> None:
    """Do one of the four."""
    parser = argparse.ArgumentParser()
    parser.add_argument("do", choices=("ask", "hold", "dial", "download"))
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--name", default="")
    parser.add_argument("--authority", default="")
    parser.add_argument("--certificate", default="")
    parser.add_argument("--send", default="hello\n")
    parser.add_argument("--user", default="")
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--interval", type=float, default=0.1)
    parser.add_argument("--bytes", type=int, default=0)
    asked = parser.parse_args()
    try:
        _do(asked)
    except (OSError, EOFError) as error:
        _print(at=time.monotonic(), error=f"{type(error).__name__}: {error}")
        sys.exit(1)


def _do(asked: argparse.Namespace) -> None:
    if asked.do == "dial":
        with socket.create_connection((asked.address, asked.port), asked.timeout):
            _print(at=time.monotonic(), connected=True)
        return
    if asked.do == "download":
        began = time.monotonic()
        received = _download(asked)
        _print(at=time.monotonic(), received_bytes=received, seconds=time.monotonic() - began)
        return
    with (_native if asked.user else _lines)(asked) as exchange:
        _print_answer(exchange, asked.send)
        if asked.do == "hold":
            while not select.select([sys.stdin], [], [], asked.interval)[0]:
                _print_answer(exchange, asked.send)


def _download(asked: argparse.Namespace) -> int:
    """Return how many bytes the bodies had."""
    received = 0
    with (
        socket.create_connection((asked.address, asked.port), asked.timeout) as plain,
        _context(asked).wrap_socket(plain, server_hostname=asked.name or None) as tls,
        tls.makefile("rb") as stream,
    ):
        while received < asked.bytes:
            tls.sendall(f"GET /zeros?bytes={BLOCK_BYTES} HTTP/1.1\r\n\r\n".encode())
            while line := stream.readline().strip():  # the head
                if line.lower().startswith(b"content-length:"):
                    left = int(line.partition(b":")[2])
            while left:
                if not (part := stream.read1(left)):
                    raise EOFError("closed by the peer")
                left -= len(part)
                received += len(part)
    return received


Exchange = Callable[[str], str]  # returns the answer. Raises OSError and EOFError


@contextmanager
def _lines(asked: argparse.Namespace) -> Iterator[Exchange]:
    """Connect, and give the exchange of a line for a line."""
    with (
        socket.create_connection((asked.address, asked.port), asked.timeout) as plain,
        _context(asked).wrap_socket(plain, server_hostname=asked.name or None) as tls,
    ):

        def exchange(text: str) -> str:
            tls.sendall(text.encode())
            if not (answer := tls.recv(65536)):
                raise EOFError("closed by the peer")
            return answer.decode()

        yield exchange


@contextmanager
def _native(asked: argparse.Namespace) -> Iterator[Exchange]:
    """Give the exchange of a query for its rows. The session begins with the first query."""
    from clickhouse_driver import Client, errors  # noqa: PLC0415  for --user only

    client = Client(
        asked.address,
        asked.port,
        user=asked.user,
        secure=True,
        ca_certs=asked.authority,
        certfile=asked.certificate or None,
        check_hostname=bool(asked.name),
        server_hostname=asked.name or None,
        connect_timeout=asked.timeout,
        send_receive_timeout=asked.timeout,
    )

    def exchange(text: str) -> str:
        try:
            return "".join(f"{row[0]}\n" for row in client.execute(text))
        except errors.Error as error:  # of the server or of the network
            raise OSError(f"code {error.code}: {error}") from error

    try:
        yield exchange
    finally:
        client.disconnect()


def _context(asked: argparse.Namespace) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=asked.authority)
    context.check_hostname = bool(asked.name)
    if asked.certificate:
        context.load_cert_chain(asked.certificate)
    return context


def _print_answer(exchange: Exchange, text: str) -> None:
    """Print the answer with the time at which it came."""
    answer = exchange(text)
    _print(at=time.monotonic(), answer=answer)


def _print(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
