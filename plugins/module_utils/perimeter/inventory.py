# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The hosts of the inventory: their addresses read and judged, and the names that groups stand for."""

from __future__ import annotations

import difflib
from contextlib import suppress
from functools import lru_cache
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import (
    PRIVATE_WORDS,
    Address,
    AddressError,
    is_private_address,
    parse_address,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import (
    Absent,
    Faults,
    find_secrets,
    kind,
    suggest,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Host, Intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.names import (
    COMMON_NAME_LENGTH,
    gateway_name,
    is_edge_of,
    is_label,
    label_remedy,
    link_address,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.read import interface_remedy

HOST_KEYS = (
    "moat_segment",
    "moat_address4",
    "moat_address6",
    "moat_interface",
    "moat_link_address4",
    "moat_link_address6",
    "moat_probe",
)
ALL = "all"


@lru_cache(maxsize=1024)
def nearest_key(key: str) -> str | None:
    """The host key that a name is a slip of: other moat_ variables belong to roles and stay unread."""
    if key in HOST_KEYS or not key.startswith("moat_"):
        return None
    return next(iter(difflib.get_close_matches(key, HOST_KEYS, n=1, cutoff=0.88)), None)


class Inventory:
    """Hosts and groups as the caller read them: plain dicts, lists and strings."""

    def __init__(self, data: dict[str, Any], faults: Faults) -> None:
        self.faults = faults
        self.variables: dict[str, dict[str, Any]] = data.get("hosts", {})
        self.groups: dict[str, list[str]] = data.get("groups", {})
        self.hosts: dict[str, Host] = {}
        self.probes: dict[str, Host] = {}
        self._resolved: dict[str, tuple[str, ...]] = {}
        # Hosts that are in the perimeter by their variables, even if these hold faults: named once, not twice.
        self.claimed: set[str] = set()

    def read(self, intent: Intent) -> None:
        """Read every host; then compare them with each other."""
        for name, variables in sorted(self.variables.items()):
            self._read_host(name, variables, intent)
        self._check_unique(
            "moat_address",
            {name: host.addresses for name, host in {**self.hosts, **self.probes}.items()},
            "give each host an address of its own",
        )
        remedy = "set {key} on one of them to a free address of the private link"
        self._check_unique("moat_link_address", {name: host.link for name, host in self.hosts.items()}, remedy)

    def _read_host(self, name: str, variables: dict[str, Any], intent: Intent) -> None:
        path = f"hostvars.{name}"
        find_secrets({key: item for key, item in variables.items() if key in HOST_KEYS}, path, self.faults)
        for key in variables:
            meant = nearest_key(key)
            if meant:
                self.faults.add(f"{path}.{key}", Absent, "is an unknown key", f"write {meant!r}")
        segment = variables.get("moat_segment")
        probe = variables.get("moat_probe")
        if probe is not None and not isinstance(probe, bool):
            self.faults.add(
                f"{path}.moat_probe", probe, f"is {kind(probe)}, not a boolean", "write true or false, without quotes"
            )
            return
        if segment is None and not probe:
            return
        addresses = tuple(item for item in (self._address(path, variables, family) for family in (4, 6)) if item)
        if probe:
            self._read_probe(name, path, addresses, segment)
            return
        self.claimed.add(name)
        self._check_name(name, intent)
        if not isinstance(segment, str) or segment not in intent.segments:
            self.faults.add(f"{path}.moat_segment", segment, "is no segment", suggest(segment, intent.segments))
        else:
            self._check_segment(path, segment, addresses, intent)
        interface = self._interface(path, variables, intent)
        if not addresses:
            if not any(variables.get(key) for key in ("moat_address4", "moat_address6")):
                self.faults.add(path, Absent, "has no address", "set moat_address4, moat_address6 or both")
            return
        self._check_administration(path, variables, addresses, intent)
        link = self._link(name, path, variables, addresses, intent)
        self.hosts[name] = Host(name, addresses, str(segment), interface, link)

    def _interface(self, path: str, variables: dict[str, Any], intent: Intent) -> str | None:
        value = variables.get("moat_interface")
        here = f"{path}.moat_interface"
        if value is None or self.faults.is_secret(here):
            return None
        remedy = (
            interface_remedy(value) if isinstance(value, str) else "write an interface name in quotes, such as eth0"
        )
        if remedy:
            self.faults.add(here, value, "is no interface name", remedy)
        elif value == intent.link.interface:
            remedy = "name the interface that has the segment address, or choose another moat_perimeter.link.interface"
            self.faults.add(here, value, "is the private link's interface", remedy)
        return str(value)

    def _read_probe(self, name: str, path: str, addresses: tuple[Address, ...], segment: Any) -> None:
        if segment is not None:
            remedy = "remove one of the two: a probe is outside the perimeter"
            self.faults.add(f"{path}.moat_segment", segment, "is set on a probe (moat_probe: true)", remedy)
        if not addresses:
            self.faults.add(path, Absent, "is a probe without an address", "set moat_address4, moat_address6 or both")
        self.probes[name] = Host(name, addresses, probe=True)

    def _check_name(self, name: str, intent: Intent) -> None:
        if not is_label(name):
            self.faults.add(
                f"hostvars.{name}", name, "is no DNS label", f"{label_remedy(name)}, with the real name as ansible_host"
            )
        elif len(gateway_name(name, intent.domain)) > COMMON_NAME_LENGTH:
            common = gateway_name(name, intent.domain)
            problem = f"makes the certificate name {common}, longer than {COMMON_NAME_LENGTH} characters"
            self.faults.add(f"hostvars.{name}", name, problem, "shorten the host's name or moat_perimeter.domain")

    def _address(self, path: str, variables: dict[str, Any], family: int, key: str = "moat_address") -> Address | None:
        value = variables.get(f"{key}{family}")
        here = f"{path}.{key}{family}"
        if value is None or self.faults.is_secret(here):
            return None
        if not isinstance(value, str):
            self.faults.add(here, value, f"is {kind(value)}, not an address", "write one address in quotes")
            return None
        try:
            address = parse_address(value)
        except AddressError as error:
            self.faults.add(here, value, error.problem, error.remedy)
            return None
        if address.family != family:
            self.faults.add(
                here, value, f"is IPv{address.family} where IPv{family} belongs", f"move it to {key}{address.family}"
            )
        elif not is_private_address(address):
            self.faults.add(
                here, value, "is a public address where a private one belongs", f"write an address of {PRIVATE_WORDS}"
            )
        else:
            return address
        return None

    def _check_segment(self, path: str, name: str, addresses: tuple[Address, ...], intent: Intent) -> None:
        for address in addresses:
            network = intent.segments[name].network(address.family)
            here = f"{path}.moat_address{address.family}"
            if network is None and address.family in intent.segments[name].written:
                continue
            if network is None:
                remedy = f"add cidr{address.family} to moat_perimeter.segments.{name}, or remove the address"
                self.faults.add(here, address.text, f"is IPv{address.family}, which segment {name} has not", remedy)
            elif not network.holds(address):
                remedy = f"write an address of {network.text}, or correct moat_segment"
                self.faults.add(here, address.text, f"is outside segment {name}", remedy)
            elif is_edge_of(address, network):
                self.faults.add(
                    here, address.text, f"is the network or broadcast address of {network.text}", "write a host address"
                )

    def _check_administration(
        self, path: str, variables: dict[str, Any], addresses: tuple[Address, ...], intent: Intent
    ) -> None:
        own = [(f"{path}.moat_address{address.family}", address) for address in addresses]
        # ansible_host may be a name: what it stands for is not known here.
        with suppress(AddressError):
            own.append((f"{path}.ansible_host", parse_address(str(variables.get("ansible_host")))))
        for here, address in own:
            for source in intent.admin.sources:
                if source.holds(address):
                    problem = (
                        f"lies in {source.text} of moat_perimeter.admin.from, so this host would administer all others"
                    )
                    self.faults.add(
                        here,
                        address.text,
                        problem,
                        "name only the stations that administer in moat_perimeter.admin.from",
                    )

    def _link(
        self, name: str, path: str, variables: dict[str, Any], addresses: tuple[Address, ...], intent: Intent
    ) -> tuple[Address, ...]:
        found = []
        for network in intent.link.networks:
            key = f"moat_link_address{network.family}"
            own = next((address for address in addresses if address.family == network.family), None)
            address = self._address(path, variables, network.family, "moat_link_address") or link_address(
                name, own, network
            )
            if not network.holds(address):
                remedy = f"write an address of {network.text}, or remove {key}"
                self.faults.add(f"{path}.{key}", address.text, "is outside the private link", remedy)
            elif is_edge_of(address, network):
                remedy = f"set {key} to a free address of {network.text}"
                self.faults.add(
                    f"{path}.{key}", address.text, f"is the network or broadcast address of {network.text}", remedy
                )
            found.append(address)
        return tuple(found)

    def _check_unique(self, key: str, addresses: dict[str, tuple[Address, ...]], remedy: str) -> None:
        owners: dict[tuple[int, int], str] = {}
        for name, owned in addresses.items():
            for address in owned:
                owner = owners.setdefault((address.family, address.value), name)
                if owner != name:
                    path = f"hostvars.{name}.{key}{address.family}"
                    self.faults.add(
                        path,
                        address.text,
                        f"is the address of {owner} too",
                        remedy.format(key=f"{key}{address.family}"),
                    )

    def resolve(self, select: dict[str, str], single: bool = False) -> tuple[str, ...]:
        """The perimeter hosts that names of groups and hosts, each with its path, stand for; sorted."""
        found: set[str] = set()
        for name, path in select.items():
            found.update(self._members(name, path, single))
        return tuple(sorted(found))

    def _members(self, name: str, path: str, single: bool) -> tuple[str, ...]:
        if name == ALL and not single:
            return tuple(sorted(self.hosts))
        known = self._resolved.get(name)
        if known is not None and not single:
            return known
        group, host = (None if single else self.groups.get(name)), name in self.variables
        if group is None and not host:
            names = set(self.claimed) if single else set(self.claimed) | set(self.groups)
            self.faults.add(
                path, name, f"is no {'host' if single else 'group or host'} of the inventory", suggest(name, names)
            )
            return ()
        if group is not None and host and list(group) != [name]:
            self.faults.add(path, name, "is both a group and a host", "rename one of the two in the inventory")
        members = tuple(sorted(group)) if group is not None else (name,)
        if not members:
            self.faults.add(path, name, "is a group without a host", "add a host to it in the inventory")
        good = True
        for member in members:
            if member not in self.claimed:
                good = False
                whose = f" of group {name}" if group is not None and member != name else ""
                self.faults.add(
                    path,
                    member,
                    f"is a host{whose} outside the perimeter",
                    f"set moat_segment on {member}, or name hosts that have it",
                )
        inside = tuple(member for member in members if member in self.hosts)
        if good and not single:
            self._resolved[name] = inside
        return inside
