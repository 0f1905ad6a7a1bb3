# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""unbound.conf(5) of the private names: what is declared is answered, what is unknown below the domain does not exist, all else is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

CONFIGURATION = "/etc/moat/private-dns/unbound.conf"
NAME = re.compile(r"([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# an answer of a forwarder with one of these would lead an outside name into the site, or to the client itself (DNS rebinding)
PRIVATE = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "fc00::/7",
    "fe80::/10",
)
TTL = 60


class PrivateDnsError(ValueError):
    """The inputs cannot be used; the message names every fault."""


def faults(settings: Mapping[str, Any]) -> list[str]:
    """Return every fault of the inputs, each with its key and the remedy."""
    found = []
    if not NAME.fullmatch(settings["domain"]):
        found.append(f"private_dns_domain is {settings['domain']!r}: write a domain such as inference.internal")
    if not settings["addresses"]:
        found.append("private_dns_addresses is empty: name the addresses to answer at")
    if not settings["clients"]:
        found.append("private_dns_clients is empty: name the networks that may ask")
    for key in ("addresses", "clients"):
        found += _faults_of_networks(f"private_dns_{key}", settings[key], key == "addresses")
    forward = settings["forward"]
    if forward:
        for key in ("to", "for"):
            values = forward.get(key) or []
            if not values:
                found.append(f"private_dns_forward.{key} is empty: name addresses, or leave private_dns_forward out")
            found += _faults_of_networks(f"private_dns_forward.{key}", values, key == "to")
    for index, record in enumerate(settings["records"]):
        key, name = f"private_dns_records[{index}]", str(record["name"])
        if not NAME.fullmatch(name):
            found.append(f"{key}.name is {name!r}: write a full name in lower case, without a final dot")
        elif not name.endswith(f".{settings['domain']}"):
            found.append(f"{key}.name is {name}, which is not below {settings['domain']}: others answer for it")
        if not record["addresses"]:
            found.append(f"{key}.addresses is empty: name the addresses of {name}, or leave the record out")
        found += _faults_of_networks(f"{key}.addresses", record["addresses"], True)
    return found


def _faults_of_networks(key: str, values: Sequence[str], single: bool) -> Iterator[str]:
    for value in values:
        try:
            network = ip_network(value)
        except ValueError:
            yield f"{key} holds {value!r}: write {'an address' if single else 'a network'}"
            continue
        if single and network.num_addresses != 1:
            yield f"{key} holds {value}: write an address, not a network"
        elif network.prefixlen == 0:
            yield f"{key} holds {value}, which is everybody: name the networks"


def configuration(settings: Mapping[str, Any]) -> str:
    """Return the text of unbound.conf."""
    found = faults(settings)
    if found:
        raise PrivateDnsError("; ".join(found))
    return "\n".join(_lines(settings)) + "\n"


def _lines(settings: Mapping[str, Any]) -> Iterator[str]:
    domain, forward = settings["domain"], settings["forward"] or {}
    yield "# Managed by moat.inference."
    yield "server:"
    for line in (
        'chroot: ""',
        'username: ""',
        'pidfile: ""',
        "do-daemonize: no",
        "use-syslog: no",
        'logfile: ""',
        "log-time-ascii: no",
        "verbosity: 1",
        # who asked what and what became of it: the record of tunnels that were tried
        "log-replies: yes",
        "log-local-actions: no",
        "hide-identity: yes",
        "hide-version: yes",
        "qname-minimisation: no",
        "harden-below-nxdomain: no",
        # the forwarder validates; here nothing is asked of the root
        'module-config: "iterator"',
        'target-fetch-policy: "0 0 0 0 0"',
        "minimal-responses: yes",
        "do-not-query-localhost: yes",
        # addresses of a link that comes up later can be bound before it does
        "ip-freebind: yes",
        "port: 53",
    ):
        yield f"    {line}"
    for address in settings["addresses"]:
        yield f"    interface: {address}"
    # nobody else gets an answer, not even a refusal
    yield "    access-control: 0.0.0.0/0 deny"
    yield "    access-control: ::0/0 deny"
    for client in settings["clients"]:
        yield f"    access-control: {client} allow"
    yield from _private(domain)
    yield from _zone(domain)
    for record in settings["records"]:
        for address in record["addresses"]:
            kind = "A" if ip_address(address).version == 4 else "AAAA"
            yield f'    local-data: "{record["name"]}. {TTL} IN {kind} {address}"'
            if record.get("reverse"):
                yield f'    local-data-ptr: "{address} {TTL} {record["name"]}"'
    yield from _refusals(settings["clients"], forward)
    if forward:
        yield "forward-zone:"
        yield '    name: "."'
        for address in forward["to"]:
            yield f"    forward-addr: {address}"
    yield "remote-control:"
    yield "    control-enable: no"


def _private(domain: str) -> Iterator[str]:
    for network in PRIVATE:
        yield f"    private-address: {network}"
    yield f'    private-domain: "{domain}"'


def _zone(domain: str) -> Iterator[str]:
    """A name below the domain that is not declared does not exist; the SOA record says for how long (RFC 2308)."""
    yield f'    local-zone: "{domain}." static'
    yield f'    local-data: "{domain}. {TTL} IN SOA localhost. nobody.invalid. 1 3600 1200 604800 {TTL}"'
    yield f'    local-data: "{domain}. {TTL} IN NS localhost."'


def _refusals(clients: Sequence[str], forward: Mapping[str, Any]) -> Iterator[str]:
    """Whoever is not forwarded gets REFUSED for the root and all below, so no name carries anything out."""
    yield '    local-zone: "." always_refuse'
    forwarded = list(forward.get("for") or [])
    if not forwarded:
        return
    # the refusal is for those with the tag alone
    yield '    define-tag: "refused"'
    yield '    local-zone-tag: "." "refused"'
    for client in clients:
        if not any(_within(client, network) for network in forwarded):
            yield f'    access-control-tag: {client} "refused"'


def _within(client: str, network: str) -> bool:
    inner, outer = ip_network(client), ip_network(network)
    return inner.version == outer.version and inner[0] in outer and inner[-1] in outer


def files(settings: Mapping[str, Any], group: str) -> list[dict[str, Any]]:
    """Return the configuration as the option files of the deploy module takes it."""
    return [
        {
            "path": CONFIGURATION,
            "content": configuration(settings),
            "mode": "0640",
            "group": group,
            "validate": ["unbound-checkconf", "%s"],
        }
    ]
