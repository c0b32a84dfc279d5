"""The addresses that a name may resolve to: a protection against DNS that points inwards."""

import ipaddress
import socket

from byoc_agents.egress.destinations import IMDS_HOSTS, Destination, ip_literal

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

EC2_LOCAL = ipaddress.ip_network("fd00:ec2::/32")  # AWS link-local services over IPv6
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
IMDS = frozenset(ipaddress.ip_address(host) for host in IMDS_HOSTS)


def address_of(text: str) -> Address | None:
    """Return the address that packets go to, with IPv4 taken out of IPv6; None if not a literal."""
    address = ip_literal(text.split("%", 1)[0])
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if address.ipv4_mapped:
        return address.ipv4_mapped
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else address


def may_lead_to(destination: Destination, text: str) -> bool:
    """Return whether the destination's host may resolve to this address.

    A literal leads to itself and a local name to loopback only. Any other name must not lead to a
    loopback, link-local, multicast or unspecified address. Private addresses are allowed, since
    VPC endpoints have them.
    """
    address, literal = address_of(text), ip_literal(destination.host)
    if address is None or address in IMDS:
        return False
    if literal is not None:
        return address == literal
    if destination.local:
        return address.is_loopback
    return not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in EC2_LOCAL
    )


def is_imds(text: str) -> bool:
    """Return whether the address is the instance metadata service."""
    return address_of(text) in IMDS


def is_internet(family: int) -> bool:
    """Return whether sockets of the family connect to IP addresses."""
    return family in {socket.AF_INET, socket.AF_INET6}
