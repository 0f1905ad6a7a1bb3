# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Addresses and networks as integers: netaddr reads each once, comparisons cost nothing afterwards."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

NETADDR_IMPORT_ERROR: str | None
try:
    import netaddr
except ImportError:
    HAS_NETADDR = False
    NETADDR_IMPORT_ERROR = traceback.format_exc()
else:
    HAS_NETADDR = True
    NETADDR_IMPORT_ERROR = None

BITS = {4: 32, 6: 128}
PRIVATE_TEXTS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
PRIVATE_WORDS = "RFC 1918 (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16), RFC 6598 (100.64.0.0/10) or RFC 4193 (fc00::/7)"


class AddressError(ValueError):
    """The text is no address or network; `remedy` says what to write instead."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class Address(NamedTuple):
    """One address: the family is 4 or 6."""

    family: int
    value: int
    text: str

    def host_network(self) -> str:
        return f"{self.text}/{BITS[self.family]}"


class Network(NamedTuple):
    """One network, by its first and last address."""

    family: int
    first: int
    last: int
    prefix: int
    text: str

    def holds(self, address: Address) -> bool:
        return address.family == self.family and self.first <= address.value <= self.last

    def overlaps(self, other: Network) -> bool:
        return self.family == other.family and self.first <= other.last and other.first <= self.last

    def within(self, other: Network) -> bool:
        return self.family == other.family and other.first <= self.first and self.last <= other.last


def address_text(family: int, value: int) -> str:
    return str(netaddr.IPAddress(value, family))


def parse_address(text: str) -> Address:
    """A single address, without a prefix length."""
    family = 6 if ":" in text else 4
    try:
        parsed = netaddr.IPAddress(text, family, netaddr.INET_PTON)
    except (netaddr.AddrFormatError, ValueError) as error:
        raise AddressError("is no IP address", "write an address such as 10.120.0.11 or fd00:120::11") from error
    return Address(family, int(parsed), str(parsed))


@lru_cache(maxsize=65536)
def parse_network(text: str) -> Network:
    """A network in CIDR form; an address alone is a network of one."""
    base, slash, length = text.partition("/")
    address = parse_address(base)
    bits = BITS[address.family]
    prefix = bits
    if slash:
        if not (length.isascii() and length.isdigit()) or int(length) > bits:
            raise AddressError(
                "is no network", f"write a prefix length between 0 and {bits}, such as {address.text}/{bits}"
            )
        prefix = int(length)
    last = address.value | ((1 << (bits - prefix)) - 1)
    first = (last >> (bits - prefix)) << (bits - prefix)
    if first != address.value:
        raise AddressError("has host bits set", f"write {address_text(address.family, first)}/{prefix}")
    return Network(address.family, first, last, prefix, f"{address.text}/{prefix}")


@lru_cache(maxsize=1)
def private_networks() -> tuple[Network, ...]:
    return tuple(parse_network(text) for text in PRIVATE_TEXTS)


def is_private(network: Network) -> bool:
    return any(network.within(private) for private in private_networks())


def is_private_address(address: Address) -> bool:
    return any(private.holds(address) for private in private_networks())


def sort_networks(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Sorted, without those that lie within another one."""
    kept: list[Network] = []
    for network in sorted(set(networks), key=lambda item: (item.family, item.first, item.prefix)):
        if not (kept and network.within(kept[-1])):
            kept.append(network)
    return tuple(kept)
