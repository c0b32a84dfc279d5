"""The listening socket for `[::]`, which asyncio would restrict to IPv6."""

import errno
import socket

ANY_IPV6 = "::"
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # not in the kernel, or switched off


def open_dual_stack(port: int) -> socket.socket:
    """Return a socket bound to the port on every IPv6 and IPv4 address, not yet listening.

    Without IPv6 on this machine it is bound on every IPv4 address. Raises OSError when the port
    is taken.
    """
    try:
        return _bind(socket.AF_INET6, (ANY_IPV6, port))
    except OSError as error:
        if error.errno not in NO_IPV6:
            raise
    return _bind(socket.AF_INET, ("0.0.0.0", port))  # noqa: S104  the same request, without IPv6


def _bind(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind(address)
    except OSError:
        opened.close()
        raise
    return opened
