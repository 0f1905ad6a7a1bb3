# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What all parts of a plan are made of: rules of the firewall, and lists of addresses and networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import Address, Network

Data = dict[str, Any]


def texts(addresses: Iterable[Address]) -> list[str]:
    return [address.text for address in addresses]


def of_addresses(addresses: Iterable[Address]) -> dict[int, list[str]]:
    """Each address once, as a network of one, in the order of the numbers."""
    return by_family((address.family, address.host_network()) for address in sorted(set(addresses)))


def of_networks(networks: Iterable[Network]) -> dict[int, list[str]]:
    return by_family((network.family, network.text) for network in networks)


def by_family(networks: Iterable[tuple[int, str]]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {4: [], 6: []}
    for family, text in networks:
        found[family].append(text)
    return found


def rule(
    rule_id: str,
    chain: str,
    protocol: str,
    ports: Iterable[int],
    peers: dict[int, list[str]],
    comment: str,
    segment: str | None = None,
    interface: str | None = None,
) -> Data:
    made: Data = {
        "id": rule_id,
        "chain": chain,
        "protocol": protocol,
        "ports": list(ports),
        "peers4": list(peers[4]),
        "peers6": list(peers[6]),
        "comment": comment,
    }
    if segment:
        made["segment"] = segment
    if interface:
        made["interface"] = interface
    return made
