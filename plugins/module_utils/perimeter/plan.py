# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plan of one host: what each of its roles is handed. The schema is in docs/architecture.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ansible_collections.moat.inference.plugins.module_utils.perimeter import flows, names
from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import Address
from ansible_collections.moat.inference.plugins.module_utils.perimeter.egress import Egresses
from ansible_collections.moat.inference.plugins.module_utils.perimeter.flows import Data
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Client, Host, Intent, Model, Service
from ansible_collections.moat.inference.plugins.module_utils.perimeter.naming import Naming
from ansible_collections.moat.inference.plugins.module_utils.perimeter.read_gpus import gpus_of
from ansible_collections.moat.inference.plugins.module_utils.perimeter.routes import host_routes


class Planner:
    """Plans hosts one at a time; what a plan needs of the others comes from indexes made once."""

    def __init__(self, intent: Intent, hosts: dict[str, Host]) -> None:
        self.intent = intent
        self.hosts = hosts
        # Models and clients come sorted by name, and so does every list made of them here.
        self.models_on: dict[str, list[str]] = defaultdict(list)
        self.clients_on: dict[str, list[Client]] = defaultdict(list)
        self.clients_of: dict[str, list[Client]] = defaultdict(list)
        self.services_of: dict[str, list[Service]] = defaultdict(list)
        for model in intent.models.values():
            for host in model.hosts:
                self.models_on[host].append(model.name)
        for client in intent.clients.values():
            for host in client.hosts:
                self.clients_on[host].append(client)
            for name in client.models:
                self.clients_of[name].append(client)
        for service in intent.services.values():
            for host in service.hosts:
                self.services_of[host].append(service)
        self.egress = Egresses(self)
        self.naming = Naming(self)

    def is_gateway(self, host: str) -> bool:
        return host in self.models_on

    def is_client_host(self, host: str) -> bool:
        return host in self.clients_on

    def holds_certificate(self, host: str) -> bool:
        return self.is_gateway(host) or self.is_client_host(host)

    def is_authority(self, host: str) -> bool:
        return host == self.intent.ca.host

    def roles(self, host: str) -> list[str]:
        """The roles of a host, in order of application: what installs software through the proxy comes after the proxy."""
        found = ["firewall"]
        if self.egress.is_proxy(host):
            found.append("egress_proxy")
        if self.is_sheltered(host):
            found.append("egress_client")
        if self.naming.is_server(host):
            found.append("private_dns")
        if self.is_gateway(host):
            return [*found, "private_link", "certificate", "model_server", "gateway"]
        if self.is_client_host(host):
            return [*found, "private_link", "certificate", "connector"]
        return [*found, "ca"] if self.is_authority(host) else found

    def is_sheltered(self, host: str) -> bool:
        """Whether anything of proxy, names or routes is set on a host."""
        intent = self.intent
        bare = not intent.segments[self.hosts[host].segment].default_route
        return bare or intent.proxy is not None or intent.dns is not None

    def clients_at(self, host: str) -> dict[str, tuple[Client, list[str]]]:
        """The clients that a gateway serves, each with its models on that host; sorted by name."""
        found: dict[str, tuple[Client, list[str]]] = {}
        for model in self.models_on.get(host, ()):
            for client in self.clients_of.get(model, ()):
                found.setdefault(client.name, (client, []))[1].append(model)
        return dict(sorted(found.items()))

    def gateways_of(self, client: Client) -> list[str]:
        """The hosts that serve any model of a client, sorted."""
        return sorted({host for model in client.models for host in self.intent.models[model].hosts})

    def peers(self, host: str) -> list[str]:
        """The other ends of a host's private links: one for each authorised pair, however many clients and models it carries."""
        if self.is_gateway(host):
            return sorted({other for client, _models in self.clients_at(host).values() for other in client.hosts})
        return sorted({other for client in self.clients_on.get(host, ()) for other in self.gateways_of(client)})

    def common_address(self, host: Host, other: Host) -> Address:
        """The address by which `host` reaches `other`: IPv4 where both have it."""
        families = host.families
        return next(address for address in other.addresses if address.family in families)

    def authority_of(self, host: Host, other: str) -> str:
        """The address by which `host` reaches another, as a URL has it."""
        address = self.common_address(host, self.hosts[other])
        return f"[{address.text}]" if address.family == 6 else address.text

    def plan(self, name: str) -> Data:
        host = self.hosts[name]
        roles = self.roles(name)
        plan: Data = {"name": name, "segment": host.segment, "roles": roles, "firewall": self._firewall(host)}
        if "egress_proxy" in roles:
            plan["egress_proxy"] = self.egress.proxy(host)
        if "egress_client" in roles:
            plan["egress_client"] = self.egress.client(host)
        if not self.intent.segments[host.segment].default_route:
            plan["routes"] = host_routes(self.intent, host, plan["firewall"]["rules"])
        if self.intent.dns is not None:
            plan["resolvers"] = self.naming.resolvers(host)
        if "private_dns" in roles:
            plan["private_dns"] = self.naming.server(host)
        if "private_link" in roles:
            plan["private_link"] = self._private_link(host)
        if "certificate" in roles:
            plan["certificate"] = self._certificate(host)
            plan["certificate_ca"] = self._certificate_ca(host)
        if "ca" in roles:
            plan["ca"] = self._ca(host)
        if "model_server" in roles:
            plan["model_server"] = self._model_server(name)
            plan["gateway"] = self._gateway(host)
        if "connector" in roles:
            plan["connector"] = [self._connector(client) for client in self.clients_on[name]]
        return plan

    def _firewall(self, host: Host) -> Data:
        segment = self.intent.segments[host.segment]
        networks = [network.text for network in segment.networks if network.family in host.families]
        shown = {
            "name": segment.name,
            "interface": host.interface,
            "addresses": flows.texts(host.addresses),
            "networks": networks,
        }
        segments = [shown]
        link = self.intent.link
        if link is not None and "private_link" in self.roles(host.name):
            of_link = [link.network4.text, link.network6.text]
            segments.append(
                {
                    "name": names.LINK_SEGMENT,
                    "interface": link.interface,
                    "addresses": flows.texts(host.link),
                    "networks": of_link,
                }
            )
        return {"segments": segments, "rules": self.rules(host)}

    def rules(self, host: Host) -> list[Data]:
        return sorted(self._rules(host), key=lambda rule: str(rule["id"]))

    def _rules(self, host: Host) -> Iterable[Data]:
        intent, name = self.intent, host.name
        sources = flows.of_networks(intent.admin.sources)
        administration = flows.rule("in-admin-ssh", "input", "tcp", intent.admin.ports, sources, "administration")
        yield {**administration, "admin": True}  # all that is loaded where the ruleset cannot be
        if self.is_gateway(name):
            yield flows.rule(
                "in-admin-metrics",
                "input",
                "tcp",
                [intent.admin.metrics_port],
                sources,
                "administration reads the gateway's metrics",
            )
        yield from self._link_rules(host)
        for client in self.clients_on.get(name, ()):
            if client.port is not None:
                yield {
                    "id": names.rule_id("local-connector", client.name),
                    "chain": "local",
                    "protocol": "tcp",
                    "ports": [client.port],
                    "users": list(client.users),
                    "comment": f"only the named users use the connector of {client.name}",
                }
        if self.holds_certificate(name):
            authority = self.hosts[intent.ca.host]
            yield flows.rule(
                "out-ca",
                "output",
                "tcp",
                [intent.ca.port],
                self.of_hosts(host, [authority.name]),
                f"certificates from {authority.name}",
            )
        if self.is_authority(name):
            for rule_name, owners, title in (
                ("in-ca-clients", self.clients_on, "clients"),
                ("in-ca-gateways", self.models_on, "gateways"),
            ):
                if owners:
                    yield flows.rule(
                        rule_name,
                        "input",
                        "tcp",
                        [intent.ca.port],
                        self.of_hosts(host, owners),
                        f"certificates for the {title}",
                    )
        yield from self.egress.rules(host)
        yield from self.naming.rules(host)
        for service in self.services_of.get(name, ()):
            targets = flows.of_networks(service.networks)
            yield flows.rule(
                names.rule_id("out-service", service.name),
                "output",
                service.protocol,
                service.ports,
                targets,
                f"service {service.name}",
            )

    def _link_rules(self, host: Host) -> Iterable[Data]:
        """One rule for all other ends of each kind: a client that comes or goes changes peers, and never the rules.

        Packets are admitted by host; which client of that host may use which model is for the gateway to decide.
        """
        others = self.peers(host.name)
        if not others:
            return
        link = self.intent.link
        gateway = self.is_gateway(host.name)
        outer = self.of_hosts(host, others)
        title = f"private link with the {'client hosts' if gateway else 'gateways'}"
        # Both ends open the link to each other: either may have something to send first.
        for chain, rule_name in (("input", "in-link"), ("output", "out-link")):
            yield flows.rule(rule_name, chain, "udp", [link.port], outer, title, segment=host.segment)
        chain, rule_name = ("input", "in-gateway") if gateway else ("output", "out-gateway")
        title = "client hosts to the gateway" if gateway else "to the gateways"
        port, inner = self.intent.gateway_port, self.of_links(others)
        yield flows.rule(rule_name, chain, "tcp", [port], inner, title, interface=link.interface)

    def of_hosts(self, host: Host, others: Iterable[str]) -> dict[int, list[str]]:
        """Segment addresses of other hosts, in the families this host has."""
        families = host.families
        addresses = (address for other in others for address in self.hosts[other].addresses)
        return flows.of_addresses(address for address in addresses if address.family in families)

    def of_links(self, others: Iterable[str]) -> dict[int, list[str]]:
        return flows.of_addresses(address for other in others for address in self.hosts[other].link)

    def _private_link(self, host: Host) -> Data:
        link = self.intent.link
        peers = []
        for name in self.peers(host.name):
            other = self.hosts[name]
            allowed = [address.host_network() for address in other.link]
            peers.append({"name": name, "endpoint": self.common_address(host, other).text, "allowed_ips": allowed})
        return {
            "interface": link.interface,
            "port": link.port,
            "addresses": [address.host_network() for address in host.link],
            "peers": peers,
        }

    def _certificate(self, host: Host) -> list[Data]:
        domain, name = self.intent.domain, host.name
        items = []
        if self.is_gateway(name):
            own = names.gateway_name(name, domain)
            models = [names.model_name(model, domain) for model in self.models_on[name]]
            items.append(
                self._item("gateway", own, [own, *models], names.gateway_uri(name, domain), "moat-gateway.service")
            )
        for client in self.clients_on.get(name, ()):
            dns, uri = [names.client_name(client.name, domain)], names.client_uri(client.name, domain)
            items.append(
                self._item(names.connector_certificate(client.name), client.name, dns, uri, "moat-connector.service")
            )
        return items

    def _item(self, name: str, common_name: str, dns: list[str], uri: str, unit: str) -> Data:
        return {
            "name": name,
            "common_name": common_name,
            "dns": dns,
            "uris": [uri],
            "lifetime": self.intent.ca.lifetime,
            "reload_unit": unit,
        }

    def _certificate_ca(self, host: Host) -> Data:
        ca = self.intent.ca
        return {"url": f"https://{self.authority_of(host, ca.host)}:{ca.port}", "host": ca.host}

    def _ca(self, host: Host) -> Data:
        ca, domain = self.intent.ca, self.intent.domain
        allowed = {names.gateway_name(name, domain) for name in self.models_on}
        allowed |= {names.model_name(model.name, domain) for model in self.intent.models.values() if model.hosts}
        for client in self.intent.clients.values():
            allowed |= {client.name, names.client_name(client.name, domain)}
        return {
            "name": domain,
            "port": ca.port,
            "dns_names": [names.ca_name(host.name, domain), *flows.texts(host.addresses)],
            "lifetime": ca.lifetime,
            "allowed_names": sorted(allowed),
            "trust_domain": domain,
        }

    def _model_server(self, host: str) -> list[Data]:
        models = (self.intent.models[name] for name in self.models_on[host])
        return [
            {
                "name": model.name,
                "engine": model.engine,
                "source": model.source,
                "engine_args": list(model.engine_args),
                "socket": names.model_socket(model.name),
                **self._gpus(model, host),
            }
            for model in models
        ]

    def _gpus(self, model: Model, host: str) -> Data:
        """What is not written is not there: the role then gives the model every GPU of the host."""
        gpus = list(gpus_of(model, host))
        return {**({"gpus": gpus} if gpus else {}), **({"shared": True} if model.shared else {})}

    def _gateway(self, host: Host) -> Data:
        admin = self.intent.admin
        metrics = {
            "port": admin.metrics_port,
            "addresses": flows.texts(host.addresses),
            "peers": [network.text for network in admin.sources],
        }
        return {
            "port": self.intent.gateway_port,
            "addresses": flows.texts(host.link),
            "certificate": "gateway",
            "metrics": metrics,
            "models": [
                {"name": name, "prefix": names.model_prefix(name), "socket": names.model_socket(name)}
                for name in self.models_on[host.name]
            ],
            "clients": [
                self._gateway_client(client, allowed) for client, allowed in self.clients_at(host.name).values()
            ],
        }

    def _gateway_client(self, client: Client, models: list[str]) -> Data:
        limits = client.limits
        return {
            "name": client.name,
            "addresses": [address.text for name in client.hosts for address in self.hosts[name].link],
            "models": models,
            "limits": {
                "requests_per_second": limits.requests_per_second,
                "burst": limits.burst,
                "concurrent": limits.concurrent,
            },
        }

    def _connector(self, client: Client) -> Data:
        return {
            "name": client.name,
            "users": list(client.users),
            "port": client.port,
            "socket": names.connector_socket(client.name),
            "certificate": names.connector_certificate(client.name),
            "models": [
                {
                    "name": model,
                    "prefix": names.model_prefix(model),
                    "backends": [self._backend(name) for name in self.intent.models[model].hosts],
                }
                for model in client.models
            ],
        }

    def _backend(self, name: str) -> Data:
        server_name = names.gateway_name(name, self.intent.domain)
        return {
            "name": name,
            "addresses": flows.texts(self.hosts[name].link),
            "port": self.intent.gateway_port,
            "server_name": server_name,
        }
