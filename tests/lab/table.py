"""The table of hosts: inventories/lab/hosts.yml, as the lab program reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from tests.lab.shell import ROOT, LabError

INVENTORY = ROOT / "inventories" / "lab"


@dataclass(frozen=True)
class Network:
    """A segment, or the management network, where the controller has an address."""

    name: str
    cidr4: str
    cidr6: str
    controller4: str | None = None
    controller6: str | None = None

    def holds(self, address: str) -> bool:
        return ip_address(address) in ip_network(self.cidr4)

    def sixth(self, address4: str) -> str:
        """The IPv6 address with the same last number: 10.90.0.121 -> fd00:90::121."""
        return str(ip_network(self.cidr6)[int(address4.rsplit(".", 1)[1], 16)])


@dataclass(frozen=True)
class Interface:
    network: str
    address4: str
    address6: str

    def prefixed(self, network: Network) -> tuple[str, str]:
        four = ip_interface(f"{self.address4}/{network.cidr4.split('/')[1]}")
        six = ip_interface(f"{self.address6}/{network.cidr6.split('/')[1]}")
        return str(four), str(six)


@dataclass(frozen=True)
class Host:
    name: str
    management: str
    interfaces: tuple[Interface, ...]
    gateway4: str | None
    gateway6: str | None
    router: bool = False
    probe: bool = False
    engine: bool = False
    authority: bool = False
    internet: bool = False
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    networks: dict[str, Network] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)


def _hosts(group: dict[str, Any], inherited: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Hosts with their variables, groups before hosts, the way Ansible merges them."""
    variables = {**inherited, **(group.get("vars") or {})}
    found: dict[str, dict[str, Any]] = {}
    for child in (group.get("children") or {}).values():
        for name, own in _hosts(child or {}, variables).items():
            found[name] = {**found.get(name, {}), **own}
    for name, own in (group.get("hosts") or {}).items():
        found[name] = {**found.get(name, {}), **variables, **(own or {})}
    return found


def _network_of(networks: dict[str, Network], host: str, address: str) -> Network:
    for network in networks.values():
        if network.holds(address):
            return network
    raise LabError(f"{host}: {address} lies in none of moat_lab_networks")


def _host(name: str, variables: dict[str, Any], networks: dict[str, Network], router: dict[str, Any]) -> Host:
    management = variables["ansible_host"]
    is_router = bool(variables.get("moat_lab_router"))
    octet = management.rsplit(".", 1)[1]
    interfaces: list[Interface] = []
    if is_router:
        for network in networks.values():
            four = f"{network.cidr4.split('/')[0].rsplit('.', 1)[0]}.{octet}"
            interfaces.append(Interface(network.name, four, network.sixth(four)))
    else:
        for address in dict.fromkeys((variables["moat_address4"], management, *variables.get("moat_lab_also", ()))):
            network = _network_of(networks, name, address)
            six = variables["moat_address6"] if address == variables["moat_address4"] else network.sixth(address)
            interfaces.append(Interface(network.name, address, six))
    first = networks[interfaces[0].network]
    by_router = f"{first.cidr4.split('/')[0].rsplit('.', 1)[0]}.{router['ansible_host'].rsplit('.', 1)[1]}"
    return Host(
        name=name,
        management=management,
        interfaces=tuple(interfaces),
        gateway4=None if is_router else by_router,
        gateway6=None if is_router else first.sixth(by_router),
        router=is_router,
        probe=bool(variables.get("moat_probe")),
        engine=bool(variables.get("moat_lab_engine")),
        authority=bool(variables.get("moat_lab_authority")),
        internet=bool(variables.get("moat_lab_internet")),
        models=tuple(variables.get("moat_lab_models", ())),
    )


def load() -> Table:
    """Read the inventory."""
    import yaml  # not there before setup, and what only removes things needs no setup

    top = yaml.safe_load((INVENTORY / "hosts.yml").read_text(encoding="utf-8"))["all"]
    networks = {name: Network(name, **values) for name, values in top["vars"]["moat_lab_networks"].items()}
    raw = _hosts(top, {})
    router = next((v for v in raw.values() if v.get("moat_lab_router")), None)
    if router is None:
        raise LabError(f"{INVENTORY}/hosts.yml: no host has moat_lab_router: true")
    hosts = {name: _host(name, variables, networks, router) for name, variables in raw.items()}
    return Table(networks, hosts)


def intent() -> dict[str, Any]:
    """What the operator of the lab wrote, as it is."""
    import yaml

    text = (INVENTORY / "group_vars" / "all.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text)["moat_perimeter"])
