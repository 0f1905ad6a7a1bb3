# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private names: who serves them, to whom, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING

from ansible_collections.moat.inference.plugins.module_utils.perimeter import flows, names
from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import Address
from ansible_collections.moat.inference.plugins.module_utils.perimeter.flows import Data
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Host

if TYPE_CHECKING:
    from ansible_collections.moat.inference.plugins.module_utils.perimeter.plan import Planner

PROTOCOLS = ("tcp", "udp")


class Naming:
    """The part of the planner that is about names."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.intent = planner.intent
        self.servers: tuple[str, ...] = self.intent.dns.hosts if self.intent.dns else ()

    def is_server(self, host: str) -> bool:
        return host in self.servers

    def rules(self, host: Host) -> Iterable[Data]:
        dns = self.intent.dns
        if dns is None:
            return
        # A server asks itself over the loopback interface, which needs no rule.
        servers = [name for name in self.servers if name != host.name]
        if servers:
            yield from self._pair("out-dns", "output", self.planner.of_hosts(host, servers), "private names")
        if not self.is_server(host.name):
            return
        others = [name for name in self.planner.hosts if name != host.name]
        if others:
            yield from self._pair("in-dns", "input", self.planner.of_hosts(host, others), "hosts that ask for names")
        if dns.forward is not None:
            targets = flows.of_addresses(dns.forward.to)
            yield from self._pair("out-forward", "output", targets, "who resolves all other names")

    def _pair(self, rule_id: str, chain: str, peers: dict[int, list[str]], title: str) -> Iterable[Data]:
        for protocol in PROTOCOLS:
            yield flows.rule(f"{rule_id}-{protocol}", chain, protocol, [names.DNS_PORT], peers, title)

    def resolvers(self, host: Host) -> list[str]:
        """Addresses of the servers in the order of failover: a server asks itself first.

        Every server's first address comes before any second one, for programs use three and wait for each.
        """
        families, hosts = host.families, self.planner.hosts
        ordered = sorted(self.servers, key=lambda name: (name != host.name, name))
        each = [[address.text for address in hosts[name].addresses if address.family in families] for name in ordered]
        return [text for row in zip_longest(*each) for text in row if text]

    def server(self, host: Host) -> Data:
        hosts = self.planner.hosts
        clients = flows.of_addresses(address for other in hosts.values() for address in other.addresses)
        forward = self.intent.dns.forward if self.intent.dns else None
        shown = None
        if forward is not None:
            asking = [address for name in forward.hosts for address in hosts[name].addresses]
            shown = {"to": flows.texts(forward.to), "for": flows.texts(sorted(asking))}
        return {
            "domain": self.intent.domain,
            "addresses": flows.texts(host.addresses),
            "clients": [*clients[4], *clients[6]],
            "forward": shown,
            "records": sorted(self._records(), key=lambda record: record["name"]),
        }

    def _records(self) -> Iterable[Data]:
        """An address may have many names but one of its own, which is what it is found by in reverse."""
        domain, hosts = self.intent.domain, self.planner.hosts
        for model in self.intent.models.values():
            links = [address for name in model.hosts for address in hosts[name].link]
            yield record(names.model_name(model.name, domain), links, False)
        for name in self.planner.models_on:
            yield record(names.gateway_name(name, domain), hosts[name].link, True)
        authority = self.intent.ca.host
        yield record(names.ca_name(authority, domain), hosts[authority].addresses, True)


def record(name: str, addresses: Iterable[Address], reverse: bool) -> Data:
    return {"name": name, "addresses": flows.texts(sorted(addresses)), "reverse": reverse}
