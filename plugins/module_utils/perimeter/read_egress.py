# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads what the intent says of ways out: egress, proxy and names."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import (
    AddressError,
    Network,
    parse_address,
    parse_network,
    sort_networks,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import Absent, Faults, kind
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Dns, Egress, Forward, Parent, Proxy
from ansible_collections.moat.inference.plugins.module_utils.perimeter.names import DNS_PORTS, is_domain
from ansible_collections.moat.inference.plugins.module_utils.perimeter.section import PORTS, Section, read_address
from ansible_collections.moat.inference.plugins.module_utils.perimeter.special import no_destination

UPLOAD_LIMIT = re.compile(r"([1-9][0-9]{0,5}) ?(KB|MB|GB)")
PROXY_PORT = 3128
ALL_PUBLIC = "name networks such as 203.0.113.0/24, or remove the key for every public network"


def egress_host_remedy(text: str) -> str | None:
    try:
        parse_address(text)
    except AddressError:
        name = text[2:] if text.startswith("*.") else text
        good = is_domain(name) and "." in name
        return None if good else "write a DNS name with at least one dot, such as packages.example.org or *.example.org"
    return "write the name of the host: what may leave is named, never an address"


def upload_limit_remedy(text: str) -> str | None:
    return None if UPLOAD_LIMIT.fullmatch(text) else "write a size in KB, MB or GB, such as 10 MB"


def read_egress(root: Section, index: int, path: str, value: Any) -> Egress:
    section = Section(root.faults, path, value, ("from", "host", "ports", "reason"))
    host = section.text("host", "name what may be reached, such as packages.example.org", egress_host_remedy) or ""
    reason = section.text("reason")
    if host.startswith("*.") and not reason:
        root.faults.add(
            f"{path}.host", host, "is a wildcard without a reason", f"name the hosts one by one, or add {path}.reason"
        )
    ports = section.ports("ports", default=(443,))
    for port in sorted(set(ports) & set(DNS_PORTS)):
        remedy = "remove it: the proxy resolves the names that it is asked for"
        root.faults.add(f"{path}.ports", port, "is a port of DNS, which carries anything out", remedy)
    return Egress(
        index=index,
        select=section.texts("from", "name the hosts that need it: a group, a host or a list of these", single=True),
        host=host,
        ports=ports,
        reason=reason,
    )


def read_proxy(root: Section) -> Proxy | None:
    if root.take("proxy") is None:
        return None
    section = root.section("proxy", ("hosts", "port", "to", "resolvers", "parents", "upload_limit"))
    limit = section.text("upload_limit", check=upload_limit_remedy)
    match = UPLOAD_LIMIT.fullmatch(limit) if limit else None
    return Proxy(
        select=section.texts("hosts", "name the host of the proxy, such as egress1", single=True),
        port=section.number("port", *PORTS, default=PROXY_PORT),
        networks=read_destinations(section),
        resolvers=section.addresses("resolvers", "name the DNS servers that it resolves with, such as [203.0.113.53]"),
        parents=read_parents(section),
        upload_limit=" ".join(match.groups()) if match else None,
    )


def read_destinations(section: Section) -> tuple[Network, ...]:
    """Networks that the proxy may connect to, public ones and others outside the perimeter."""
    if section.data.get("to") == []:
        section.faults.add(f"{section.path}.to", Absent, "is an empty list", ALL_PUBLIC)
    found = (read_destination(section.faults, path, item) for path, item in section.items("to", single=True))
    return sort_networks(network for network in found if network is not None)


def read_destination(faults: Faults, path: str, value: Any) -> Network | None:
    if faults.is_secret(path):
        return None
    if not isinstance(value, str):
        faults.add(path, value, f"is {kind(value)}, not a network", "write a network in quotes, such as 203.0.113.0/24")
        return None
    try:
        network = parse_network(value)
    except AddressError as error:
        faults.add(path, value, error.problem, error.remedy)
        return None
    if network.prefix == 0:
        faults.add(path, value, "is every address there is, private ones included", ALL_PUBLIC)
        return None
    nowhere = no_destination(network)
    if nowhere is not None:
        faults.add(path, value, f"has addresses of {nowhere.text}, where no proxy may go", ALL_PUBLIC)
        return None
    return network


def read_parents(section: Section) -> tuple[Parent, ...]:
    parents: list[Parent] = []
    for path, item in section.items("parents"):
        parent = Section(section.faults, path, item, ("address", "port"))
        value = parent.take("address", "write the address of the parent proxy, such as 10.0.0.1")
        address = read_address(section.faults, f"{path}.address", value)
        port = parent.number("port", *PORTS, default=PROXY_PORT)
        if port in DNS_PORTS:
            section.faults.add(
                f"{path}.port", port, "is a port of DNS, which carries anything out", "write another port"
            )
        if address is not None and Parent(address, port) in parents:
            section.faults.add(path, address.text, "is there twice", "remove one of the two")
        elif address is not None:
            parents.append(Parent(address, port))
    return tuple(parents)


def read_dns(root: Section) -> Dns | None:
    if root.take("dns") is None:
        return None
    section = root.section("dns", ("hosts", "forward"))
    select = section.texts("hosts", "name the host that serves the private names, such as dns1", single=True)
    return Dns(select, read_forward(section))


def read_forward(section: Section) -> Forward | None:
    if section.take("forward") is None:
        return None
    forward = section.section("forward", ("to", "for"))
    return Forward(
        to=forward.addresses("to", "name the DNS servers that resolve all other names, such as [203.0.113.53]"),
        select=forward.texts(
            "for", "name the hosts that may resolve all other names, such as [app_hosts]", single=True
        ),
    )
