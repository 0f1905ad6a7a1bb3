# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which addresses are public: all but those of the special-purpose registries (RFC 6890 and its updates), multicast and metadata."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import (
    BITS,
    Address,
    Network,
    address_text,
    parse_network,
    sort_networks,
)

# Where clouds answer with credentials; the first is a public address (Azure), the others lie in networks below.
METADATA = ("168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::254/128")
# Nobody is reached at these from another host, so no intent may name them as a destination.
NOWHERE4 = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
NOWHERE6 = ("::/128", "::1/128", "fe80::/10", "fec0::/10", "ff00::/8")
# Those that carry an IPv4 address within: with the right bits, they would lead to a private one.
CARRIERS6 = ("64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
# IANA's registries for IPv4 and IPv6. ::ffff:0:0/96 is left out, for a host that reads it as IPv4 would refuse all of IPv4;
# it lies outside 2000::/3 in any case, as does all that is not global unicast.
SPECIAL = (
    *NOWHERE4,
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    *NOWHERE6,
    *CARRIERS6,
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001:db8::/32",
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    *METADATA,
)
UNICAST = ("0.0.0.0/0", "2000::/3")


def parse_all(texts: Iterable[str]) -> tuple[Network, ...]:
    return sort_networks(parse_network(text) for text in texts)


def cover(family: int, first: int, last: int) -> Iterable[Network]:
    """The fewest networks that hold the addresses from first to last, and no other."""
    bits = BITS[family]
    while first <= last:
        size = min((first & -first).bit_length() - 1 if first else bits, (last - first + 1).bit_length() - 1)
        end = first + (1 << size) - 1
        yield Network(family, first, end, bits - size, f"{address_text(family, first)}/{bits - size}")
        first = end + 1


def without(networks: Iterable[Network], holes: Iterable[Network]) -> tuple[Network, ...]:
    """The networks less the holes, sorted."""
    cut = sort_networks(holes)
    found: list[Network] = []
    for network in sort_networks(networks):
        first = network.first
        for hole in cut:
            if hole.overlaps(network) and hole.last >= first:
                found += cover(network.family, first, hole.first - 1)
                first = hole.last + 1
        found += cover(network.family, first, network.last)
    return tuple(found)


@lru_cache(maxsize=1)
def special_networks() -> tuple[Network, ...]:
    return parse_all(SPECIAL)


@lru_cache(maxsize=1)
def public_networks() -> tuple[Network, ...]:
    """Every network of global unicast that no registry sets aside."""
    return without(parse_all(UNICAST), special_networks())


@lru_cache(maxsize=1)
def nowhere() -> tuple[Network, ...]:
    """Where nobody is reached from another host: beside the above, all IPv6 that is neither global nor private unicast."""
    unicast = parse_all(("0.0.0.0/0", "2000::/3", "fc00::/7"))
    return sort_networks((*parse_all((*NOWHERE4, *CARRIERS6)), *without(parse_all(("::/0",)), unicast)))


def no_destination(network: Network) -> Network | None:
    """What a network has in common with where nothing may be reached through a proxy, metadata included."""
    return next((other for other in (*parse_all(METADATA), *nowhere()) if other.overlaps(network)), None)


def is_host(address: Address) -> bool:
    """Whether another host may have the address."""
    return not any(other.holds(address) for other in nowhere())
