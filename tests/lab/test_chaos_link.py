"""The paths of the chaos run."""

import socket
import threading
from contextlib import suppress

from lab.chaos.link import linked


def test_a_path_waits_for_its_port_and_is_back_as_soon_as_that_is_free() -> None:
    with linked("path", 1) as link:
        link.cut()
        with socket.socket() as other:
            other.bind(("127.0.0.1", link.http.port))
            other.listen()
            mending = threading.Thread(target=link.mend)
            mending.start()
            mending.join(0.2)
            assert mending.is_alive()
        mending.join(30)
        assert not mending.is_alive()
        with (
            socket.create_connection(("127.0.0.1", link.http.port)) as path,
            suppress(ConnectionResetError),
        ):
            path.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert path.recv(1) == b"", "nobody is behind it"
