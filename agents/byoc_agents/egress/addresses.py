"""The addresses that a name may resolve to: a protection against DNS that points inwards."""

import ipaddress
import socket

from byoc_agents.egress.destinations import IMDS_HOSTS, Destination, ip_literal

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

EC2_LOCAL = ipaddress.ip_network("fd00:ec2::/32")  # AWS link-local services over IPv6
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
IPV4_COMPATIBLE = ipaddress.ip_network("::/96")  # RFC 4291, deprecated; loopback and :: are in it
SIX_TO_FOUR = ipaddress.ip_network("2002::/16")  # RFC 3056: an IPv4 address inside
TEREDO = ipaddress.ip_network("2001::/32")  # RFC 4380, likewise
LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")  # RFC 8215: translated as the network likes
IPV4_TRANSLATED = ipaddress.ip_network("::ffff:0:0:0/96")  # RFC 2765
TUNNELS = (IPV4_COMPATIBLE, SIX_TO_FOUR, TEREDO, LOCAL_NAT64, IPV4_TRANSLATED)
PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        (
            *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
            "100.64.0.0/10",  # RFC 6598
            *("192.0.0.0/24", "198.18.0.0/15"),  # RFC 6890, RFC 2544
            "240.0.0.0/4",  # RFC 1112: pods and nodes of some clusters have such addresses
            *("fc00::/7", "fec0::/10"),  # RFC 4193, and what it replaced: RFC 3879
        ),
    )
)
THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")  # RFC 1122: never a destination
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
    loopback, link-local, multicast or unspecified address, nor to an IPv4 address that is hidden
    in an IPv6 one. It leads to a private address only if the destination is `private`.
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
        or address in THIS_NETWORK
        or any(address in network for network in TUNNELS)
        or (is_private(address) and not destination.private)
    )


def is_private(address: Address) -> bool:
    """Return whether the address belongs to a private network, such as a VPC or a cluster."""
    return any(address in network for network in PRIVATE)


def is_imds(text: str) -> bool:
    """Return whether the address is the instance metadata service."""
    return address_of(text) in IMDS


def is_internet(family: int) -> bool:
    """Return whether sockets of the family connect to IP addresses."""
    return family in {socket.AF_INET, socket.AF_INET6}
