"""What an intent declares, worked out from its raw text by other means than the compiler's, and compared with a plan."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from typing import Any

from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter import oracle_egress

Address = Any  # ipaddress.IPv4Address or IPv6Address
Flow = tuple[str, str, int, str, str]  # chain, protocol, port, scope, network

LINK_RULES = ("in-gateway", "in-link", "out-gateway", "out-link")


def names_in(select: Any, inventory: dict[str, Any]) -> set[str]:
    """The hosts that a group, a host or a list of these stands for."""
    hosts = {name for name, variables in inventory["hosts"].items() if "moat_segment" in variables}
    found: set[str] = set()
    for name in [select] if isinstance(select, str) else select:
        members = {name} if name in inventory["hosts"] else set(inventory["groups"].get(name, ()))
        found |= hosts if name == "all" else members
    return found


class Oracle:
    """The edges that an intent declares, and who has which addresses."""

    def __init__(self, intent: dict[str, Any], inventory: dict[str, Any]) -> None:
        self.intent = intent
        self.selected = lambda select: names_in(select, inventory)
        self.proxy, self.dns = intent.get("proxy", {}), intent.get("dns", {})
        self.proxies, self.servers = (
            names_in(self.proxy.get("hosts", []), inventory),
            names_in(self.dns.get("hosts", []), inventory),
        )
        self.variables = inventory["hosts"]
        self.hosts = sorted(name for name, item in self.variables.items() if "moat_segment" in item)
        self.probes = sorted(name for name, item in self.variables.items() if item.get("moat_probe"))
        self.serving = {name: names_in(model["hosts"], inventory) for name, model in intent["models"].items()}
        self.running = {name: names_in(client["hosts"], inventory) for name, client in intent["clients"].items()}
        self.edges = {
            (client, app, model, gpu)
            for client, item in intent["clients"].items()
            for app in self.running[client]
            for model in item["models"]
            for gpu in self.serving[model]
        }
        self.services = {name: names_in(item["from"], inventory) for name, item in intent.get("services", {}).items()}
        self.domain = intent["domain"]
        link = intent.get("link", {})
        self.link_port = link.get("port", 51820)
        self.interface = link.get("interface", "moat0")
        self.link_networks = (link.get("cidr4", "100.64.0.0/10"), link.get("cidr6", "fd00:200::/64"))
        self.gateway_port = intent.get("gateway", {}).get("port", 8443)
        self.ca, self.ca_port = intent["ca"]["host"], intent["ca"].get("port", 9443)
        self.admin_ports = intent["admin"].get("ports", [22])
        self.metrics_port = intent["admin"].get("metrics_port", 9101)
        self.admin = [ipaddress.ip_network(text) for text in intent["admin"]["from"]]
        self._flows: dict[str, set[Flow]] = {}

    def addresses(self, host: str) -> list[Address]:
        variables = self.variables[host]
        keys = ("moat_address4", "moat_address6")
        return [ipaddress.ip_address(variables[key]) for key in keys if key in variables]

    def links(self, host: str) -> list[Address]:
        """As docs/architecture.md has it: the network's bits, then the low bits of the address or of the name's hash."""
        own = {address.version: int(address) for address in self.addresses(host)}
        by_name = int(hashlib.sha256(host.encode()).hexdigest(), 16)
        found = []
        for text in self.link_networks:
            network = ipaddress.ip_network(text)
            low = own.get(4, by_name) if network.version == 4 else by_name
            override = self.variables[host].get(f"moat_link_address{network.version}")
            made = network.network_address + low % network.num_addresses
            found.append(ipaddress.ip_address(override) if override else made)
        return found

    def shared(self, host: str, other: str) -> list[Address]:
        """Addresses of the other host in families that the host has."""
        versions = {address.version for address in self.addresses(host)}
        return [address for address in self.addresses(other) if address.version in versions]

    def ends(self, host: str) -> set[str]:
        """The hosts at the other ends of a host's edges."""
        return {gpu for _c, app, _m, gpu in self.edges if app == host} | {
            app for _c, app, _m, gpu in self.edges if gpu == host
        }

    def is_gateway(self, host: str) -> bool:
        return any(host in hosts for hosts in self.serving.values())

    def holds(self, host: str) -> bool:
        """Whether a host has a certificate."""
        return self.is_gateway(host) or any(host in hosts for hosts in self.running.values())

    def bare(self, host: str) -> bool:
        """Whether a host has no default route."""
        return not self.intent["segments"][self.variables[host]["moat_segment"]].get("default_route", True)

    def rule_ids(self, host: str) -> set[str]:
        """The rules that a host has whatever its clients are called and however many there are."""
        found = {"in-admin-ssh", *oracle_egress.rule_ids(self, host)}
        if self.is_gateway(host):
            found.add("in-admin-metrics")
        if self.ends(host):
            found |= {"in-link", "out-link", "in-gateway" if self.is_gateway(host) else "out-gateway"}
        if self.holds(host):
            found.add("out-ca")
        if host == self.ca:
            found |= {"in-ca-clients"} if any(self.running.values()) else set()
            found |= {"in-ca-gateways"} if any(self.serving.values()) else set()
        return found

    def flows(self, host: str) -> set[Flow]:
        """Every flow that the firewall of a host may admit."""
        if host not in self._flows:
            self._flows[host] = self._declared(host)
        return self._flows[host]

    def _declared(self, host: str) -> set[Flow]:
        found: set[Flow] = set()

        def add(chain: str, protocol: str, port: int, networks: Iterable[Any], scope: str = "") -> None:
            for network in networks:
                found.add((chain, protocol, port, scope, str(ipaddress.ip_network(network))))

        for port in self.admin_ports:
            add("input", "tcp", port, self.admin)
        if self.is_gateway(host):
            add("input", "tcp", self.metrics_port, self.admin)
        segment = f"segment {self.variables[host]['moat_segment']}"
        for other in self.ends(host):
            for chain in ("input", "output"):
                add(chain, "udp", self.link_port, self.shared(host, other), segment)
        for _client, app, _model, gpu in self.edges:
            if gpu == host:
                add("input", "tcp", self.gateway_port, self.links(app), f"interface {self.interface}")
            if app == host:
                add("output", "tcp", self.gateway_port, self.links(gpu), f"interface {self.interface}")
        if self.holds(host):
            add("output", "tcp", self.ca_port, self.shared(host, self.ca))
        if host == self.ca:
            for other in self.hosts:
                if self.holds(other):
                    add("input", "tcp", self.ca_port, self.shared(host, other))
        oracle_egress.declare(self, host, add)
        for name, item in self.intent.get("services", {}).items():
            if host in self.services[name]:
                for port in item["ports"]:
                    add("output", item["protocol"], port, item["to"])
        return found

    def admits(self, host: str, chain: str, port: int, peer: Address, scope: str) -> bool:
        """Whether a TCP packet is declared, whatever rule it would be."""
        return any(
            flow[:3] == (chain, "tcp", port) and flow[3] in ("", scope) and peer in ipaddress.ip_network(flow[4])
            for flow in self.flows(host)
        )


def flows_of(plan: dict[str, Any]) -> set[Flow]:
    """Every flow that a plan's firewall rules admit, as they are written."""
    found: set[Flow] = set()
    for rule in plan["firewall"]["rules"]:
        if rule["chain"] == "local":
            assert rule["users"] and not rule.get("peers4") and not rule.get("peers6")
            continue
        assert rule["peers4"] or rule["peers6"], "a rule without peers would admit anyone"
        assert not (rule.get("segment") and rule.get("interface"))
        scope = f"segment {rule['segment']}" if "segment" in rule else ""
        scope = f"interface {rule['interface']}" if "interface" in rule else scope
        for family in (4, 6):
            for text in rule[f"peers{family}"]:
                network = ipaddress.ip_network(text)
                assert network.version == family
                for port in rule["ports"]:
                    found.add((rule["chain"], rule["protocol"], port, scope, str(network)))
    return found


def merged(flows: set[Flow]) -> dict[tuple[str, str, int, str], set[Any]]:
    """Networks of like flows, without those that lie in another one."""
    found: dict[tuple[str, str, int, str], set[Any]] = {}
    for chain, protocol, port, scope, text in flows:
        found.setdefault((chain, protocol, port, scope), set()).add(ipaddress.ip_network(text))
    for key, networks in found.items():
        kept = {
            network
            for network in networks
            if not any(
                network != other and network.version == other.version and network.subnet_of(other) for other in networks
            )
        }
        found[key] = kept
    return found


def check_plan(intent: dict[str, Any], inventory: dict[str, Any], plan: dict[str, Any]) -> None:
    """Assert that the plan admits what is declared, and nothing else, in every layer."""
    oracle = Oracle(intent, inventory)
    assert sorted(plan["hosts"]) == oracle.hosts
    for host, planned in plan["hosts"].items():
        check_firewall(oracle, host, planned)
        check_link(oracle, host, planned)
        check_certificates(oracle, host, planned)
        check_gateway(oracle, host, planned)
        check_connector(oracle, host, planned)
        oracle_egress.check_egress(oracle, host, planned)
    check_cells(oracle, plan["cells"])


def check_firewall(oracle: Oracle, host: str, planned: dict[str, Any]) -> None:
    rules = planned["firewall"]["rules"]
    assert merged(flows_of(planned)) == merged(oracle.flows(host))
    ids = [rule["id"] for rule in rules]
    assert ids == sorted(set(ids))
    assert {name for name in ids if not name.startswith(("local-connector-", "out-service-"))} == oracle.rule_ids(host)
    assert {name: rule["admin"] for name, rule in zip(ids, rules) if "admin" in rule} == {"in-admin-ssh": True}
    assert {name for name, rule in zip(ids, rules) if rule.get("rate")} == {"in-egress"} & set(ids)
    for rule in rules:
        if rule["id"] in LINK_RULES:
            for family in (4, 6):
                peers = [ipaddress.ip_network(text) for text in rule[f"peers{family}"]]
                assert peers == sorted(set(peers))
    local = {(rule["ports"][0], tuple(rule["users"])) for rule in rules if rule["chain"] == "local"}
    assert local == {
        (client["port"], tuple(sorted(client["users"])))
        for name, client in oracle.intent["clients"].items()
        if host in oracle.running[name] and "port" in client
    }
    segment, *inner = planned["firewall"]["segments"]
    assert segment["addresses"] == [str(address) for address in oracle.addresses(host)]
    assert [item["addresses"] for item in inner] == (
        [[str(address) for address in oracle.links(host)]] if oracle.holds(host) else []
    )
    assert all(item["interface"] == planned["private_link"]["interface"] for item in inner)


def check_link(oracle: Oracle, host: str, planned: dict[str, Any]) -> None:
    assert ("private_link" in planned) == oracle.holds(host)
    if "private_link" not in planned:
        return
    link = planned["private_link"]
    assert link["addresses"] == [f"{item}/{item.max_prefixlen}" for item in oracle.links(host)]
    assert {peer["name"] for peer in link["peers"]} == oracle.ends(host)
    for peer in link["peers"]:
        assert peer["allowed_ips"] == [f"{item}/{item.max_prefixlen}" for item in oracle.links(peer["name"])]
        assert ipaddress.ip_address(peer["endpoint"]) in oracle.shared(host, peer["name"])


def check_certificates(oracle: Oracle, host: str, planned: dict[str, Any]) -> None:
    wanted = {}
    if oracle.is_gateway(host):
        own = f"{host}.gateway.{oracle.domain}"
        models = {f"{model}.model.{oracle.domain}" for model, hosts in oracle.serving.items() if host in hosts}
        wanted["gateway"] = (own, {own, *models}, [f"spiffe://{oracle.domain}/gateway/{host}"])
    for client, hosts in oracle.running.items():
        if host in hosts:
            uris = [f"spiffe://{oracle.domain}/client/{client}"]
            wanted[f"connector-{client}"] = (client, {f"{client}.client.{oracle.domain}"}, uris)
    found = {
        item["name"]: (item["common_name"], set(item["dns"]), item["uris"]) for item in planned.get("certificate", ())
    }
    assert found == wanted
    assert ("ca" in planned) == (host == oracle.ca)
    if "ca" in planned:
        names = {f"{model}.model.{oracle.domain}" for model in oracle.serving}
        names |= {f"{name}.gateway.{oracle.domain}" for name in oracle.hosts if oracle.is_gateway(name)}
        names |= {name for client in oracle.running for name in (client, f"{client}.client.{oracle.domain}")}
        assert set(planned["ca"]["allowed_names"]) == names


def check_gateway(oracle: Oracle, host: str, planned: dict[str, Any]) -> None:
    assert ("gateway" in planned) == oracle.is_gateway(host)
    if "gateway" not in planned:
        return
    gateway = planned["gateway"]
    assert gateway["addresses"] == [str(item) for item in oracle.links(host)]
    assert {item["name"] for item in gateway["models"]} == {name for name, on in oracle.serving.items() if host in on}
    entries = {
        (client["name"], address, model)
        for client in gateway["clients"]
        for address in client["addresses"]
        for model in client["models"]
    }
    assert entries == {
        (client, str(address), model)
        for client, app, model, gpu in oracle.edges
        if gpu == host
        for address in oracle.links(app)
    }
    for client in gateway["clients"]:
        written = oracle.intent["clients"][client["name"]].get("limits", {})
        assert {**client["limits"], **written} == client["limits"]
    peers = {ipaddress.ip_network(text) for text in gateway["metrics"]["peers"]}
    assert peers <= set(oracle.admin)
    assert gateway["metrics"]["addresses"] == [str(item) for item in oracle.addresses(host)]


def check_connector(oracle: Oracle, host: str, planned: dict[str, Any]) -> None:
    connectors = planned.get("connector", [])
    assert {item["name"] for item in connectors} == {name for name, hosts in oracle.running.items() if host in hosts}
    routes = {
        (item["name"], host, model["name"], backend["name"])
        for item in connectors
        for model in item["models"]
        for backend in model["backends"]
    }
    assert routes == {edge for edge in oracle.edges if edge[1] == host}
    for item in connectors:
        assert item["users"] == sorted(oracle.intent["clients"][item["name"]]["users"])
        for model in item["models"]:
            for backend in model["backends"]:
                assert backend["addresses"] == [str(address) for address in oracle.links(backend["name"])]
                assert backend["server_name"] == f"{backend['name']}.gateway.{oracle.domain}"


def check_cells(oracle: Oracle, cells: dict[str, list[dict[str, Any]]]) -> None:
    assert sorted(cells) == sorted(oracle.hosts + oracle.probes)
    for source, row in cells.items():
        assert len({cell["id"] for cell in row}) == len(row)
        for cell in row:
            assert (cell["expect"] == "allow") == cell_is_declared(oracle, source, cell), cell
    # nothing that is declared is left unproven
    for source in oracle.hosts:
        for chain, protocol, port, scope, text in oracle.flows(source):
            network = ipaddress.ip_network(text)
            for target in (
                (oracle.proxies | oracle.servers) - {source} if (chain, protocol) == ("output", "tcp") else ()
            ):
                served = {oracle.proxy.get("port", 3128)} if target in oracle.proxies else set()
                served |= {53} if target in oracle.servers else set()
                for address in oracle.addresses(target) if port in served and not scope else ():
                    wanted = {"address": str(address), "port": port, "expect": "allow"}
                    assert (
                        network.prefixlen < network.max_prefixlen
                        or address not in network
                        or any({key: cell[key] for key in wanted} == wanted for cell in cells[source])
                    )
    for client, app, model, gpu in oracle.edges:
        for address in oracle.links(gpu):
            path = f"/{model}/v1/models"
            wanted = {"address": str(address), "client": client, "path": path, "expect": "allow"}
            assert any({key: cell[key] for key in wanted} == wanted for cell in cells[app])


def cell_is_declared(oracle: Oracle, source: str, cell: dict[str, Any]) -> bool:
    target, address, port = cell["destination"], ipaddress.ip_address(cell["address"]), cell["port"]
    inner = address in oracle.links(target)
    assert inner or address in oracle.addresses(target)
    if cell["path"]:
        edge = (cell["client"], source, cell["path"].split("/")[1], target)
        assert (cell["identity"] == "own") == (cell["client"] is not None)
        return inner and edge in oracle.edges
    linked = inner and source in oracle.hosts and target in oracle.ends(source)
    scope = f"interface {oracle.interface}" if linked else "segment {}"
    senders = oracle.links(source) if linked else oracle.addresses(source)
    sender = next((item for item in senders if item.version == address.version), None)
    assert sender is not None
    inbound = oracle.admits(target, "input", port, sender, scope.format(oracle.variables[target]["moat_segment"]))
    if source in oracle.probes:
        return inbound
    return inbound and oracle.admits(
        source, "output", port, address, scope.format(oracle.variables[source]["moat_segment"])
    )
