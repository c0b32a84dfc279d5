"""The listening sockets of an address, also of `[::]`, which asyncio would restrict to IPv6."""

import asyncio
import errno
import ipaddress
import socket
from typing import Any

ANY_IPV6 = "::"
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # not in the kernel, or switched off

IPV4 = 4
SocketAddress = tuple[int, tuple[Any, ...]]  # family, (host, port)


async def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Return one socket per address of the host, bound to the port and not yet listening.

    Raises OSError if the host has no address, or if one cannot be bound.
    """
    if host == ANY_IPV6:
        sockets = [open_dual_stack(port)]
    else:
        sockets = _bind_all(await _find_addresses(host, port))
    for opened in sockets:
        opened.settimeout(0)
    return sockets


async def _find_addresses(host: str, port: int) -> list[SocketAddress]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys((family, place[:2]) for family, _, _, _, place in found))
    return [(socket.AF_INET if address.version == IPV4 else socket.AF_INET6, (host, port))]


def _bind_all(addresses: list[SocketAddress]) -> list[socket.socket]:
    """Bind one socket per address; `localhost` may name an IPv6 address that does not exist."""
    sockets: list[socket.socket] = []
    refused: OSError | None = None
    for family, address in addresses:
        try:
            sockets.append(_bind(socket.AddressFamily(family), address))
        except OSError as error:
            refused = error
            if error.errno not in NO_IPV6:
                sockets = _close_all(sockets)
                break
    if refused and not sockets:
        raise refused
    return sockets


def _close_all(sockets: list[socket.socket]) -> list[socket.socket]:
    for opened in sockets:
        opened.close()
    return []


def open_dual_stack(port: int) -> socket.socket:
    """Return a socket bound to the port on every IPv6 and IPv4 address, not yet listening.

    Without IPv6 on this machine it is bound on every IPv4 address. Raises OSError when the port
    is taken.
    """
    try:
        return _bind(socket.AF_INET6, (ANY_IPV6, port), only_ipv6=False)
    except OSError as error:
        if error.errno not in NO_IPV6:
            raise
    return _bind(socket.AF_INET, ("0.0.0.0", port))  # noqa: S104  the same request, without IPv6


def _bind(
    family: socket.AddressFamily, address: tuple[Any, ...], *, only_ipv6: bool = True
) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        opened.bind(address)
    except OSError as error:
        opened.close()
        reason = (error.strerror or str(error)).lower()
        raise OSError(error.errno, f"{address[0]}:{address[1]}: {reason}") from error
    return opened
