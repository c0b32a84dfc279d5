"""What an engineer runs: TLS with a client certificate. One JSON object per line on the output.

`ask` sends one line and prints the answer, or the error. `hold` sends a line every 100 ms until its
input ends or the connection does. `dial` only connects.
"""

import argparse
import json
import select
import socket
import ssl
import sys
import time

INTERVAL_SECONDS = 0.1


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser()
    parser.add_argument("do", choices=("ask", "hold", "dial"))
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--name", default="")
    parser.add_argument("--authority", default="")
    parser.add_argument("--certificate", default="")
    parser.add_argument("--send", default="hello\n")
    parser.add_argument("--timeout", type=float, default=5.0)
    asked = parser.parse_args()
    try:
        _do(asked)
    except (OSError, EOFError) as error:
        _print(at=time.monotonic(), error=f"{type(error).__name__}: {error}")
        sys.exit(1)


def _do(asked: argparse.Namespace) -> None:
    address = (asked.address, asked.port)
    with socket.create_connection(address, asked.timeout) as plain:
        if asked.do == "dial":
            _print(at=time.monotonic(), connected=True)
            return
        with _context(asked).wrap_socket(plain, server_hostname=asked.name or None) as tls:
            if asked.do == "ask":
                _print_answer(tls, asked.send)
                return
            while not select.select([sys.stdin], [], [], INTERVAL_SECONDS)[0]:
                _print_answer(tls, asked.send)


def _context(asked: argparse.Namespace) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=asked.authority)
    context.check_hostname = bool(asked.name)
    if asked.certificate:
        context.load_cert_chain(asked.certificate)
    return context


def _print_answer(tls: ssl.SSLSocket, text: str) -> None:
    """Print the answer with the time at which it came."""
    answer = _exchange(tls, text)
    _print(at=time.monotonic(), answer=answer)


def _exchange(tls: ssl.SSLSocket, text: str) -> str:
    tls.sendall(text.encode())
    if not (answer := tls.recv(65536)):
        raise EOFError("closed by the peer")
    return answer.decode()


def _print(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
