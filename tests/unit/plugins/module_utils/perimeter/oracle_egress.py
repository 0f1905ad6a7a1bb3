"""What an intent declares of ways out, names and routes, by other means than the compiler's, and compared with a plan."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

Network = Any  # ipaddress.IPv4Network or IPv6Network
Oracle = Any  # of oracle.py, which imports this
Add = Callable[..., None]

# The registries once more, written from RFC 6890 and its updates, so that a slip in the compiler's list shows.
SPECIAL4 = """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3"""
SPECIAL6 = "2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20"


@lru_cache(maxsize=1)
def public() -> frozenset[Network]:
    """By cutting each special network out of what is left."""
    left: set[Network] = {ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("2000::/3")}
    for text in f"{SPECIAL4} {SPECIAL6}".split():
        hole = ipaddress.ip_network(text)
        around = next(item for item in left if item.version == hole.version and hole.subnet_of(item))
        left = (left - {around}) | set(around.address_exclude(hole))
    return frozenset(left)


def networks(texts: Iterable[str]) -> set[Network]:
    return {ipaddress.ip_network(text) for text in texts}


def destinations(oracle: Oracle) -> set[Network]:
    written = oracle.proxy.get("to")
    return networks(written) if written else set(public())


def allowances(oracle: Oracle, host: str) -> set[tuple[str, int, str]]:
    """Name, port and rule of all that may leave from a host."""
    return {
        (entry["host"], port, f"egress-{index}")
        for index, entry in enumerate(oracle.intent.get("egress", []))
        for port in entry.get("ports", [443])
        if host in oracle.selected(entry["from"])
    }


def rule_ids(oracle: Oracle, host: str) -> set[str]:
    found: set[str] = set()
    users = {name for name in oracle.hosts if allowances(oracle, name)}
    if host in users and oracle.proxies - {host}:
        found.add("out-egress")
    if host in oracle.proxies:
        found |= {"out-resolver-tcp", "out-resolver-udp"}
        found |= {"in-egress"} if users - {host} else set()
        parents = {f"out-parent-{parent['port']}" for parent in oracle.proxy.get("parents", [])}
        found |= parents or ({"out-internet"} if users else set())
    if oracle.servers - {host}:
        found |= {"out-dns-tcp", "out-dns-udp"}
    if host in oracle.servers:
        found |= {"in-dns-tcp", "in-dns-udp"} if len(oracle.hosts) > 1 else set()
        found |= {"out-forward-tcp", "out-forward-udp"} if "forward" in oracle.dns else set()
    return found


def declare(oracle: Oracle, host: str, add: Add) -> None:
    """The flows of a host that lead to proxies, name servers and out."""
    users = {name for name in oracle.hosts if allowances(oracle, name)}
    port = oracle.proxy.get("port", 3128)
    if host in users:
        for proxy in oracle.proxies - {host}:
            add("output", "tcp", port, oracle.shared(host, proxy))
    if host in oracle.proxies:
        for user in users - {host}:
            add("input", "tcp", port, oracle.shared(host, user))
        for protocol in ("tcp", "udp"):
            add("output", protocol, 53, oracle.proxy["resolvers"])
        for parent in oracle.proxy.get("parents", []):
            add("output", "tcp", parent["port"], [parent["address"]])
        if not oracle.proxy.get("parents"):
            for _name, outer, _rule in set().union(*(allowances(oracle, user) for user in users)):
                add("output", "tcp", outer, destinations(oracle))
    for protocol in ("tcp", "udp"):
        for server in oracle.servers - {host}:
            add("output", protocol, 53, oracle.shared(host, server))
        if host in oracle.servers:
            for other in set(oracle.hosts) - {host}:
                add("input", protocol, 53, oracle.shared(host, other))
            add("output", protocol, 53, oracle.dns.get("forward", {}).get("to", []))


def check_egress(oracle: Oracle, host: str, planned: dict[str, Any]) -> None:
    check_proxy(oracle, host, planned)
    check_client(oracle, host, planned)
    check_routes(oracle, host, planned)
    check_names(oracle, host, planned)
    # Nothing else asks for names, or for the proxy.
    if oracle.servers:
        for rule in planned["firewall"]["rules"]:
            names = "-dns-" in rule["id"] or rule["id"].startswith(("out-resolver-", "out-forward-"))
            assert names or not {53, 853} & set(rule["ports"])


def check_proxy(oracle: Oracle, host: str, planned: dict[str, Any]) -> None:
    assert ("egress_proxy" in planned) == ("egress_proxy" in planned["roles"]) == (host in oracle.proxies)
    if "egress_proxy" not in planned:
        return
    proxy = planned["egress_proxy"]
    assert proxy["port"] == oracle.proxy.get("port", 3128)
    assert proxy["addresses"] == [str(address) for address in oracle.addresses(host)]
    assert proxy["resolvers"] == oracle.proxy["resolvers"] and proxy["parents"] == oracle.proxy.get("parents", [])
    assert networks(proxy["to"]) == destinations(oracle)
    found = {
        (address, item["host"], port, item["rule"])
        for source in proxy["sources"]
        for address in source["addresses"]
        for item in source["allow"]
        for port in item["ports"]
    }
    assert found == {
        (str(address), *allowed)
        for name in oracle.hosts
        for allowed in allowances(oracle, name)
        for address in oracle.shared(host, name)
    }
    for source in proxy["sources"]:
        assert source["addresses"] == [str(address) for address in oracle.shared(host, source["name"])]
    refused, to = networks(proxy["refused"]), networks(proxy["to"])
    assert not any(item.version == other.version and item.overlaps(other) for item in refused for other in to)
    # Nothing of the perimeter, of the host itself or of the cloud's metadata is a destination.
    inner = [item[key] for item in oracle.intent["segments"].values() for key in ("cidr4", "cidr6") if key in item]
    inner += [*oracle.link_networks, *(str(item) for item in oracle.admin), "127.0.0.0/8", "::1", "169.254.169.254"]
    inner += ["168.63.129.16", "fd00:ec2::254", "fe80::/10", "224.0.0.0/4", "ff00::/8", "0.0.0.0/8", "::"]
    for network in networks(inner):
        assert any(network.version == item.version and network.subnet_of(item) for item in refused), network
    mapped = ipaddress.ip_network("::ffff:0:0/96")
    assert not any(item.version == 6 and item.overlaps(mapped) for item in refused | to)


def check_client(oracle: Oracle, host: str, planned: dict[str, Any]) -> None:
    sheltered = bool(oracle.proxies or oracle.servers) or oracle.bare(host)
    assert ("egress_client" in planned) == ("egress_client" in planned["roles"]) == sheltered
    if not sheltered:
        return
    client = planned["egress_client"]
    wanted = allowances(oracle, host)
    order = sorted(oracle.proxies - {host}) if wanted else []
    order = [host, *order] if wanted and host in oracle.proxies else order
    assert len(client["proxies"]) == len(order)
    for url, proxy in zip(client["proxies"], order):
        where, _colon, port = url.removeprefix("http://").rpartition(":")
        assert ipaddress.ip_address(where.strip("[]")) in oracle.shared(host, proxy)
        assert int(port) == oracle.proxy.get("port", 3128) and ("[" in url) == (where.count(":") > 1)
    inner = {item[key] for item in oracle.intent["segments"].values() for key in ("cidr4", "cidr6") if key in item}
    for name, item in oracle.intent.get("services", {}).items():
        inner |= {str(ipaddress.ip_network(text)) for text in item["to"]} if host in oracle.services[name] else set()
    assert set(client["no_proxy"]) == {
        "localhost",
        "127.0.0.0/8",
        "::1",
        oracle.domain,
        *inner,
        *oracle.link_networks,
    }


def check_routes(oracle: Oracle, host: str, planned: dict[str, Any]) -> None:
    assert ("routes" in planned) == oracle.bare(host)
    if "routes" not in planned:
        return
    segments = {
        name: networks(item[key] for key in ("cidr4", "cidr6") if key in item)
        for name, item in oracle.intent["segments"].items()
    }
    own = oracle.variables[host]["moat_segment"]
    versions = {address.version for address in oracle.addresses(host)}
    wanted: set[Network] = set()
    for _chain, _protocol, _port, scope, text in oracle.flows(host):
        network = ipaddress.ip_network(text)
        if scope.startswith("interface") or network.version not in versions:
            continue
        around = [
            other
            for cidrs in segments.values()
            for other in cidrs
            if other.version == network.version and network.subnet_of(other)
        ]
        wanted |= set(around) or {network}
    wanted -= segments[own]
    kept = [
        network
        for network in wanted
        if not any(
            other != network and other.version == network.version and network.subnet_of(other) for other in wanted
        )
    ]
    kept.sort(key=lambda network: (network.version, network))
    via = oracle.intent["segments"][own]
    assert planned["routes"] == {
        "default": False,
        "via": [{"to": str(network), "via": via[f"router{network.version}"]} for network in kept],
    }


def check_names(oracle: Oracle, host: str, planned: dict[str, Any]) -> None:
    assert ("resolvers" in planned) == bool(oracle.servers)
    if oracle.servers:
        order = sorted(oracle.servers, key=lambda name: (name != host, name))
        assert planned["resolvers"] == [
            str(item)
            for place in (0, 1)
            for name in order
            for item in list(oracle.shared(host, name))[place : place + 1]
        ]
    assert ("private_dns" in planned) == ("private_dns" in planned["roles"]) == (host in oracle.servers)
    if "private_dns" not in planned:
        return
    dns = planned["private_dns"]
    assert dns["domain"] == oracle.domain
    assert dns["addresses"] == [str(address) for address in oracle.addresses(host)]
    everyone = {f"{item}/{item.max_prefixlen}" for name in oracle.hosts for item in oracle.addresses(name)}
    assert set(dns["clients"]) == everyone and len(dns["clients"]) == len(everyone)
    forward = oracle.dns.get("forward")
    assert (dns["forward"] is None) == (forward is None)
    if forward is not None:
        asking = {str(item) for name in oracle.selected(forward["for"]) for item in oracle.addresses(name)}
        assert dns["forward"]["to"] == forward["to"] and set(dns["forward"]["for"]) == asking
        assert not any(oracle.is_gateway(name) for name in oracle.selected(forward["for"]))
    wanted = {
        (f"{model}.model.{oracle.domain}", str(address), False)
        for model, hosts in oracle.serving.items()
        for name in hosts
        for address in oracle.links(name)
    }
    for name in oracle.hosts:
        if oracle.is_gateway(name):
            wanted |= {(f"{name}.gateway.{oracle.domain}", str(address), True) for address in oracle.links(name)}
    wanted |= {(f"{oracle.ca}.ca.{oracle.domain}", str(address), True) for address in oracle.addresses(oracle.ca)}
    found = [(item["name"], address, item["reverse"]) for item in dns["records"] for address in item["addresses"]]
    assert set(found) == wanted and len(found) == len(wanted)
    # One name in reverse for an address.
    owners = [address for _name, address, reverse in found if reverse]
    assert len(owners) == len(set(owners))
