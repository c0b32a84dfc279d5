"""Finds lists of networks that are too wide to be a filter, also by their sum. Pure."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

Network = IPv4Network | IPv6Network

WIDEST_IPV4, WIDEST_IPV6 = 8, 20
"""The prefix of the widest list of public addresses that is still a filter."""
_PRIVATE = tuple(
    map(ip_network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
_CONTAINS_IPV4 = tuple(
    map(IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96", "2002::/16"))  # the 32 bits that follow
)


def find_width_problem(networks: Sequence[Network]) -> str:
    """Return why the networks together do not work as a filter; empty if they do.

    Private networks do not count. IPv6 networks that contain IPv4 addresses count as those.
    """
    for network in networks:
        if network.prefixlen == 0:
            return f"{network} is every address"
    plain = [_plain(network) for network in networks]
    four = [one for one in plain if isinstance(one, IPv4Network)]
    six = [one for one in plain if isinstance(one, IPv6Network)]
    counted = (
        (WIDEST_IPV4, sum(one.num_addresses for one in collapse_addresses(four) if _public(one))),
        (WIDEST_IPV6, sum(one.num_addresses for one in collapse_addresses(six) if _public(one))),
    )
    for (widest, addresses), bits in zip(counted, (32, 128), strict=True):
        if addresses > 2 ** (bits - widest):
            text = ", ".join(map(str, networks))
            return f"{text}: more public addresses than a /{widest} of IPv{4 if bits == 32 else 6}"  # noqa: PLR2004  the bits of IPv4
    return ""


def _plain(network: Network) -> Network:
    if isinstance(network, IPv6Network):
        for block in _CONTAINS_IPV4:
            if network.subnet_of(block):
                shift = 128 - block.prefixlen - 32
                address = (int(network.network_address) >> shift) & 0xFFFFFFFF
                return IPv4Network((address, min(network.prefixlen - block.prefixlen, 32)))
    return network


def _public(network: Network) -> bool:
    return not any(
        network.version == block.version and network.subnet_of(block)  # type: ignore[arg-type]
        for block in _PRIVATE
    )
