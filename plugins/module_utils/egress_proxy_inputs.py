# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Check the egress proxy's inputs: every fault with its key and the remedy, before anything is made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
SOURCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
RULE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
SIZE = re.compile(r"[1-9][0-9]{0,8} ?(KB|MB|GB)")


class EgressProxyError(ValueError):
    """The inputs cannot be used; the message names every fault."""


def normalised(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs with every number as an int, and lists and texts that were null as empty."""
    lists = {key: settings[key] or [] for key in ("addresses", "to", "refused", "resolvers", "parents", "sources")}
    return {
        **settings,
        **lists,
        **{key: int(settings[key]) for key in ("port", "connections", "workers")},
        "upload_limit": settings["upload_limit"] or "",
        "extra_config": settings["extra_config"] or "",
        "parents": [{"address": item["address"], "port": int(item.get("port") or 3128)} for item in lists["parents"]],
        "sources": [
            {
                **source,
                "allow": [
                    {**item, "ports": [int(port) for port in item.get("ports") or (443,)]}
                    for item in source.get("allow") or []
                ],
            }
            for source in lists["sources"]
        ],
    }


def faults(settings: Mapping[str, Any]) -> list[str]:
    """Return every fault of normalised inputs, each with its key and the remedy."""
    found = [
        f"egress_proxy_{key} is {settings[key]}: write a number from {least} to {most}"
        for key, least, most in (("port", 1024, 65535), ("connections", 1, 16384), ("workers", 2, 32))
        if not least <= settings[key] <= most
    ]
    for key in ("addresses", "resolvers"):
        found += _faults_of_addresses(f"egress_proxy_{key}", settings[key])
    for key in ("to", "refused"):
        found += _faults_of_networks(f"egress_proxy_{key}", settings[key])
    if settings["upload_limit"] and not SIZE.fullmatch(settings["upload_limit"]):
        found.append(f"egress_proxy_upload_limit is {settings['upload_limit']!r}: write a size such as 10 MB")
    for index, parent in enumerate(settings["parents"]):
        found += _faults_of_addresses(f"egress_proxy_parents[{index}].address", [parent["address"]])
        found += _faults_of_ports(f"egress_proxy_parents[{index}].port", [parent["port"]])
    found += _faults_of_sources(settings["sources"])
    return found


def _faults_of_addresses(key: str, values: Sequence[str]) -> Iterator[str]:
    if not values:
        yield f"{key} is empty: list at least one address"
    for text in values:
        try:
            address = ip_address(text)
        except ValueError:
            yield f"{key} has {text!r}: write an IPv4 or IPv6 address, without a prefix length"
            continue
        special = address.is_unspecified or address.is_multicast or getattr(address, "ipv4_mapped", None)
        if special or "%" in text:
            yield f"{key} has {text!r}: write an address that one host has, not a wildcard, group, mapped or scoped one"


def _faults_of_networks(key: str, values: Sequence[str]) -> Iterator[str]:
    for text in values:
        try:
            ip_network(text)
        except ValueError:
            yield f"{key} has {text!r}: write a network such as 198.18.0.0/15, host bits zero"


def _faults_of_ports(key: str, ports: Sequence[int]) -> Iterator[str]:
    for port in ports:
        if not 1 <= port <= 65535:
            yield f"{key} has {port}: write a number from 1 to 65535"


def _faults_of_sources(sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    owners: dict[Any, str] = {}
    for source in sources:
        name = str(source["name"])
        where = f"egress_proxy_sources[{name}]"
        if not SOURCE.fullmatch(name):
            yield f"{where}.name: write the name of a host, of letters, digits, dots, hyphens and underscores"
        wrong = list(_faults_of_addresses(f"{where}.addresses", source["addresses"]))
        yield from wrong
        for address in [] if wrong else {ip_address(item) for item in source["addresses"]}:
            if owners.setdefault(address, name) != name:
                yield f"{where}.addresses has {address}, which {owners[address]} has: remove it here or there"
        for index, item in enumerate(source["allow"]):
            key = f"{where}.allow[{index}]"
            if not NAME.fullmatch(str(item["host"]).lower()):
                yield f"{key}.host is {item['host']!r}: write a name such as packages.example.org, never an address"
            if not RULE.fullmatch(str(item["rule"])) or str(item["rule"]).startswith("deny-"):
                yield f"{key}.rule is {item['rule']!r}: write a name for the log such as egress-0, not one of a refusal"
            yield from _faults_of_ports(f"{key}.ports", item["ports"])
    names = [str(source["name"]) for source in sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"egress_proxy_sources: {name} is there twice: remove one"
