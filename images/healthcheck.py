"""Ends with 0 when /healthz of BYOC_LISTEN answers 200, else with 1: there is no curl here.

For HEALTHCHECK and for exec probes of a kubelet, which does not reach a pod's loopback. Port 0 in
BYOC_LISTEN, and a listen address from a --config file, cannot be known to it.
"""

import os
import socket
import sys

DEFAULT = "127.0.0.1:9464"  # BYOC_LISTEN's own, agents/byoc_agents/app/settings.py
EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104  IPv4's loopback reaches them, also without IPv6
SECONDS = 4.0
REQUEST = b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n"


def address(listen: str) -> tuple[str, int]:
    """Return (host, port) to ask, of `127.0.0.1:9464`, `0.0.0.0:9464` or `[::]:9464`."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    return "127.0.0.1" if host in EVERYWHERE else host, int(port)


def healthy(host: str, port: int) -> bool:
    """Ask once. Anything but a 200 in time is no."""
    try:
        with socket.create_connection((host, port), timeout=SECONDS) as connection:
            connection.sendall(REQUEST)
            return connection.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not healthy(*address(os.environ.get("BYOC_LISTEN", "").strip() or DEFAULT)))
