"""A name server with one address: `python -m lab.tailnet.resolver HOST LOG NAME=ADDRESS ...`.

Each question is a line of the log before it is answered: the asker's address and the name. Over TCP
it only accepts connections.
"""

import socket
import sys
from pathlib import Path

from lab.real.netlab.names import MAX_BYTES, PORT, answer


def main(host: str, log: str, *pairs: str) -> None:
    """Answer until killed."""
    addresses = dict(pair.split("=") for pair in pairs)
    with (
        socket.create_server((host, PORT)),  # the kernel accepts; nobody answers
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        Path(log).open("a") as file,
    ):
        sock.bind((host, PORT))
        print("ready", flush=True)
        while True:
            query, client = sock.recvfrom(MAX_BYTES)
            name, response = answer(query, addresses)
            file.write(f"{client[0]} {name}\n")
            file.flush()
            sock.sendto(response, client)


if __name__ == "__main__":
    main(*sys.argv[1:])
