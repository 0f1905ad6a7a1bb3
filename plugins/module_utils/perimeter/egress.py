# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What leaves by name: the proxies with the list of each source, and what the sources are told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ansible_collections.moat.inference.plugins.module_utils.perimeter import flows, names
from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import Network
from ansible_collections.moat.inference.plugins.module_utils.perimeter.flows import Data
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Egress, Host, Proxy
from ansible_collections.moat.inference.plugins.module_utils.perimeter.special import (
    public_networks,
    special_networks,
    without,
)

if TYPE_CHECKING:
    from ansible_collections.moat.inference.plugins.module_utils.perimeter.plan import Planner

OWN_HOST = ("localhost", "127.0.0.0/8", "::1")
# New connections to a proxy from each address: what is refused by the proxy costs a connection, so no host keeps it from the others.
RATE = "100/second"


class Egresses:
    """The part of the planner that is about the proxies."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.intent = planner.intent
        self.proxies: tuple[str, ...] = self.intent.proxy.hosts if self.intent.proxy else ()
        # The entries of a host in the order of the intent, whose numbers are their names.
        self.entries_of: dict[str, list[Egress]] = defaultdict(list)
        for egress in self.intent.egress if self.proxies else ():
            for host in egress.hosts:
                self.entries_of[host].append(egress)
        self.ports = sorted(
            {port for entries in self.entries_of.values() for egress in entries for port in egress.ports}
        )

    def is_proxy(self, host: str) -> bool:
        return host in self.proxies

    def proxies_of(self, host: str) -> list[str]:
        """The proxies that a host may use, in the order of failover: itself first if it is one."""
        if host not in self.entries_of:
            return []
        return sorted(self.proxies, key=lambda name: (name != host, name))

    def sources_of(self, proxy: str) -> list[str]:
        return sorted(self.entries_of) if self.is_proxy(proxy) else []

    def rules(self, host: Host) -> Iterable[Data]:
        proxy, name = self.intent.proxy, host.name
        if proxy is None:
            return
        # A proxy reaches itself over the loopback interface, which needs no rule.
        for rule_id, chain, others, title in (
            ("out-egress", "output", self.proxies_of(name), "what may leave, by name, through the proxy"),
            ("in-egress", "input", self.sources_of(name), "hosts that may use the proxy"),
        ):
            remote = [other for other in others if other != name]
            if remote:
                made = flows.rule(rule_id, chain, "tcp", [proxy.port], self.planner.of_hosts(host, remote), title)
                yield {**made, "rate": RATE} if chain == "input" else made
        if self.is_proxy(name):
            yield from self._outward(proxy)

    def _outward(self, proxy: Proxy) -> Iterable[Data]:
        resolvers = flows.of_addresses(proxy.resolvers)
        for protocol in ("tcp", "udp"):
            title = "names that the proxy resolves"
            yield flows.rule(f"out-resolver-{protocol}", "output", protocol, [names.DNS_PORT], resolvers, title)
        if not proxy.parents and self.ports:
            title = "where the proxy connects to, by name"
            yield flows.rule("out-internet", "output", "tcp", self.ports, flows.of_networks(destinations(proxy)), title)
        for port in sorted({parent.port for parent in proxy.parents}):
            parents = flows.of_addresses(parent.address for parent in proxy.parents if parent.port == port)
            yield flows.rule(f"out-parent-{port}", "output", "tcp", [port], parents, "parents of the proxy")

    def proxy(self, host: Host) -> Data:
        proxy = self._proxy()
        to = destinations(proxy)
        return {
            "port": proxy.port,
            "addresses": flows.texts(host.addresses),
            "to": [network.text for network in to],
            "resolvers": flows.texts(proxy.resolvers),
            "parents": [{"address": parent.address.text, "port": parent.port} for parent in proxy.parents],
            "upload_limit": proxy.upload_limit,
            "sources": [self._source(host, name) for name in self.sources_of(host.name)],
            "refused": [network.text for network in without(special_networks(), to)],
        }

    def _source(self, host: Host, name: str) -> Data:
        addresses = (address for address in self.planner.hosts[name].addresses if address.family in host.families)
        allow = [
            {"host": egress.host, "ports": list(egress.ports), "rule": names.egress_rule(egress.index)}
            for egress in self.entries_of[name]
        ]
        return {"name": name, "addresses": flows.texts(addresses), "allow": allow}

    def client(self, host: Host) -> Data:
        return {
            "proxies": [self._url(host, name) for name in self.proxies_of(host.name)],
            "no_proxy": self._no_proxy(host),
        }

    def _url(self, host: Host, name: str) -> str:
        return f"http://{self.planner.authority_of(host, name)}:{self._proxy().port}"

    def _proxy(self) -> Proxy:
        if self.intent.proxy is None:
            raise LookupError("the intent has no proxy")
        return self.intent.proxy

    def _no_proxy(self, host: Host) -> list[str]:
        """What the proxy would refuse, or what the host reaches without it."""
        own = [network.text for segment in self.intent.segments.values() for network in segment.networks]
        services = {
            network.text for service in self.planner.services_of.get(host.name, ()) for network in service.networks
        }
        own += [network.text for network in self.intent.link.networks]
        return [*OWN_HOST, self.intent.domain, *own, *sorted(services - set(own))]


def destinations(proxy: Proxy) -> tuple[Network, ...]:
    return proxy.networks or public_networks()
