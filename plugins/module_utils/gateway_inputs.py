# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Check the gateway's inputs: every fault with its key and the remedy, before anything is made of them."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

READY = "ready"
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SEGMENT = re.compile(r"/[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*")
ENDPOINT = re.compile(r"(/[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*)+")
SOCKET = re.compile(r"/[A-Za-z0-9_./-]{1,106}")  # sun_path holds 108 bytes with the final zero
METHOD = re.compile(r"[A-Z]+")
HEADROOM = 64  # connections an identity may hold at an address besides twice what it may ask at once


class GatewayError(ValueError):
    """The inputs cannot be used; the message names every fault."""


def normalised(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs with every number as an int, for an inventory and the command line may give text."""
    metrics = settings["metrics"]
    port = metrics.get("port")
    return {
        **settings,
        **{key: int(settings[key]) for key in ("port", "connections", "threads", "timeout", "drain_timeout")},
        "clients": [
            {**client, "limits": {key: int(value) for key, value in client["limits"].items()}}
            for client in settings["clients"]
        ],
        "metrics": {
            "port": None if port in (None, "") else int(port),
            "addresses": metrics.get("addresses") or [],
            "peers": metrics.get("peers") or [],
        },
    }


def faults(settings: Mapping[str, Any]) -> list[str]:
    """Return every fault of the inputs, each with its key and the remedy."""
    found = list(_faults_of_numbers(settings))
    found += _faults_of_addresses("gateway_addresses", settings["addresses"])
    if not LABEL.fullmatch(settings["certificate"]):
        found.append(
            f"gateway_certificate is {settings['certificate']!r}: write the name of a directory in /etc/moat/tls"
        )
    found += _faults_of_models(settings["models"])
    found += _faults_of_clients(settings["clients"], {model["name"] for model in settings["models"]})
    found += _faults_of_endpoints(settings["endpoints"])
    found += _faults_of_metrics(settings)
    if not found and connections_per_address(settings["clients"]) > settings["connections"]:
        needed = connections_per_address(settings["clients"])
        found.append(
            f"gateway_connections is {settings['connections']}, but the limits of gateway_clients allow {needed} connections"
            " from one address: raise it or lower limits.concurrent"
        )
    return found


def _faults_of_numbers(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, least, most in (
        ("port", 1, 65535),
        ("threads", 1, 64),
        ("connections", 64, 400000),
        ("timeout", 1, 86400),
        ("drain_timeout", 1, 86400),
    ):
        if not least <= settings[key] <= most:
            yield f"gateway_{key} is {settings[key]}: write a number from {least} to {most}"


def _faults_of_addresses(key: str, addresses: Sequence[str]) -> Iterator[str]:
    if not addresses:
        yield f"{key} is empty: list at least one address"
    for text in addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            yield f"{key} has {text!r}: write an IPv4 or IPv6 address, without a prefix length"
            continue
        special = address.is_unspecified or address.is_multicast or getattr(address, "ipv4_mapped", None)
        if special or "%" in text:
            yield f"{key} has {text!r}: write an address that one host has, not a wildcard, group, mapped or scoped address"
    yield from _faults_of_repeats(key, addresses)


def _faults_of_models(models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for model in models:
        where = f"gateway_models[{model['name']}]"
        if not LABEL.fullmatch(model["name"]):
            yield f"{where}.name is no DNS label: use lower-case letters, digits and inner hyphens"
        if not SEGMENT.fullmatch(model["prefix"]):
            yield f"{where}.prefix is {model['prefix']!r}: write one path segment such as /xray-7b"
        if not SOCKET.fullmatch(model["socket"]):
            yield f"{where}.socket is {model['socket']!r}: write an absolute path of at most 107 plain characters"
    for key in ("name", "prefix", "socket"):
        yield from _faults_of_repeats(f"gateway_models: {key}", [model[key] for model in models])


def _faults_of_clients(clients: Sequence[Mapping[str, Any]], models: set[str]) -> Iterator[str]:
    for client in clients:
        where = f"gateway_clients[{client['name']}]"
        if not LABEL.fullmatch(client["name"]):
            yield f"{where}.name is no DNS label: use lower-case letters, digits and inner hyphens"
        yield from _faults_of_addresses(f"{where}.addresses", client["addresses"])
        for name in client["models"]:
            if name not in models:
                yield f"{where}.models has {name!r}, which is not in gateway_models: add it there or remove it here"
        for key in ("requests_per_second", "burst", "concurrent"):
            value = client["limits"][key]
            if not 1 <= value <= 1000000:
                yield f"{where}.limits.{key} is {value}: write a number from 1 to 1000000"
    yield from _faults_of_repeats("gateway_clients: name", [client["name"] for client in clients])


def _faults_of_endpoints(endpoints: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for endpoint in endpoints:
        path, methods = endpoint["path"], endpoint["methods"]
        where = f"gateway_endpoints[{path}]"
        if not ENDPOINT.fullmatch(path):
            yield f"{where}.path: write an exact path such as /v1/models, without query, escapes or a final slash"
        if path == f"/{READY}":
            yield f"{where}.path: /{READY} is answered by the gateway itself; remove it"
        if not methods:
            yield f"{where}.methods is empty: list at least one method"
        for method in methods:
            if not METHOD.fullmatch(method) or method == "CONNECT":
                yield f"{where}.methods has {method!r}: write a method in capitals such as GET or POST"
    yield from _faults_of_repeats("gateway_endpoints: path", [endpoint["path"] for endpoint in endpoints])


def _faults_of_metrics(settings: Mapping[str, Any]) -> Iterator[str]:
    metrics = settings["metrics"]
    if metrics["port"] is None:
        return
    if not 1 <= metrics["port"] <= 65535:
        yield f"gateway_metrics.port is {metrics['port']}: write a number from 1 to 65535"
    if metrics["port"] == settings["port"] and set(metrics["addresses"]) & set(settings["addresses"]):
        yield f"gateway_metrics.port is {metrics['port']}, which gateway_port has on the same address: write another"
    yield from _faults_of_addresses("gateway_metrics.addresses", metrics["addresses"])
    if not metrics["peers"]:
        yield "gateway_metrics.peers is empty: list the networks of administration, or leave gateway_metrics.port out"
    for text in metrics["peers"]:
        try:
            network = ipaddress.ip_network(text)
            wide = network.prefixlen == 0
            if network.with_prefixlen != text:
                raise ValueError(text)
        except ValueError:
            yield f"gateway_metrics.peers has {text!r}: write a network such as 10.90.0.0/28, host bits zero"
            continue
        if wide:
            yield f"gateway_metrics.peers has {text!r}, which is everybody: write the networks of administration"


def _faults_of_repeats(what: str, values: Sequence[str]) -> Iterator[str]:
    for value in sorted({value for value in values if values.count(value) > 1}):
        yield f"{what} {value!r} is there twice: remove one"


def canonical(address: str) -> str:
    """Return the address in the form that HAProxy writes, for both use inet_ntop(3)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, address))


def connections_per_identity(client: Mapping[str, Any]) -> int:
    """Return how many connections an identity may hold from one address."""
    return HEADROOM + 2 * int(client["limits"]["concurrent"])


def connections_per_address(clients: Sequence[Mapping[str, Any]]) -> int:
    """Return how many connections one address may hold: those of its identities, so that none of them can starve another."""
    sums: dict[str, int] = {}
    for client in clients:
        for address in {canonical(item) for item in client["addresses"]}:
            sums[address] = sums.get(address, 0) + connections_per_identity(client)
    return max(sums.values(), default=HEADROOM)
