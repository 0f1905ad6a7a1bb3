"""No way out but the proxy, no names but the resolver's: as a host's own programs see it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

Data = dict[str, Any]
At = Callable[[str], Any]
# documentation addresses, which are only looked up here
OUTSIDE = ("203.0.113.80", "2001:db8:113::80", "198.51.100.1")
ENVIRONMENT = "set -a; . /etc/moat/egress/environment; set +a; "


@pytest.fixture(scope="module")
def plans(plan: Any) -> dict[str, Data]:
    """The plan of each host that is no way out itself."""
    found = {name: plan.host(name) for name in plan.hosts}
    return {
        name: item
        for name, item in found.items()
        if "egress_client" in item["roles"] and "egress_proxy" not in item["roles"]
    }


@pytest.fixture(scope="module")
def held(plans: dict[str, Data]) -> list[str]:
    """Hosts without a default route."""
    return [name for name, item in plans.items() if "routes" in item]


@pytest.fixture(scope="module")
def reachable(plan: Any) -> dict[str, tuple[str, int]]:
    """By host, a name and port that the proxy lets it reach in plain HTTP."""
    found: dict[str, tuple[str, int]] = {}
    for name in plan.hosts:
        for source in plan.host(name).get("egress_proxy", {}).get("sources", []):
            for entry in source["allow"]:
                if 80 in entry["ports"] and not entry["host"].startswith(("*", ".")):
                    found.setdefault(source["name"], (entry["host"], 80))
    return found


def ways(host: Any, addresses: list[str]) -> dict[str, str]:
    """What the kernel says of the way to each address, empty for none."""
    lines = [f'echo "{address} $(ip route get {address} 2>/dev/null | head -1)"' for address in addresses]
    said = host.run("; ".join(lines)).stdout.splitlines()
    return {address: way.strip() for address, _space, way in (line.partition(" ") for line in said)}


def first(network: str) -> str:
    return str(ip_network(network)[1])


def test_a_host_without_a_default_route_reaches_its_planned_networks_only(
    at: At, plans: dict[str, Data], held: list[str]
) -> None:
    assert held
    for name in held:
        routes = {first(item["to"]): item["via"] for item in plans[name]["routes"]["via"]}
        found = ways(at(name), [*OUTSIDE, *routes])
        assert not any(found[address] for address in OUTSIDE), found
        for address, via in routes.items():
            # one within a network of the host's own needs no router
            assert f"via {via} " in found[address] or (found[address] and " via " not in found[address]), found


def test_a_default_route_that_is_added_has_no_effect(at: At, plans: dict[str, Data], held: list[str]) -> None:
    routers = {ip_address(item["via"]).version: item["via"] for item in plans[held[0]]["routes"]["via"]}
    added = "; ".join(
        f"ip -{family} route add default via {via} metric 9 proto dhcp" for family, via in routers.items()
    )
    gone = "; ".join(f"ip -{family} route delete default via {via} metric 9" for family, via in routers.items())
    host = at(held[0])
    try:
        assert host.run(f"{added}; ip route show default; ip -6 route show default").stdout.count("metric 9") == len(
            routers
        )
        assert not any(ways(host, list(OUTSIDE)).values())
        # the control: what is looked up in the main table alone, as packets with this mark are, does go by it
        marked = f"pref 9000 fwmark 0x4d6f lookup main; ip route get {OUTSIDE[0]} mark 0x4d6f; ip rule delete pref 9000"
        assert f"{OUTSIDE[0]} via {routers[4]}" in host.run(f"ip rule add {marked}").stdout
    finally:
        host.run(gone)


def test_the_rules_are_there_at_boot(at: At, held: list[str]) -> None:
    for name in held:
        said = at(name).run(
            "systemctl is-enabled moat-routes moat-routes-follow; systemctl is-active moat-routes moat-routes-follow;"
            " systemctl show -p Before --value moat-routes"
        )
        words = said.stdout.split()
        assert words[:4] == ["enabled", "enabled", "active", "active"] and "network-pre.target" in words


def test_programs_use_the_proxy_and_nothing_else(
    at: At, plans: dict[str, Data], reachable: dict[str, tuple[str, int]]
) -> None:
    assert reachable

    def ask(name: str) -> str:
        fetch = f"curl -s -o /dev/null -w '%{{http_code}} ' http://{reachable[name][0]}/"
        script = (
            f"{ENVIRONMENT}{fetch} -m 10; env -i {fetch} -m 3; echo; apt-config dump | grep '^Acquire::http::Proxy '"
        )
        return str(at(name).run("sh -c " + shlex.quote(script)).stdout)

    asking = sorted(set(reachable) & set(plans))
    with ThreadPoolExecutor(4) as pool:
        answers = dict(zip(asking, pool.map(ask, asking)))
    for name, said in answers.items():
        codes = said.splitlines()[0].split()
        assert codes[0] not in ("000", "403", "407", "502", "503") and codes[1] == "000", (name, said)
        proxies = plans[name]["egress_client"]["proxies"]
        assert (proxies[0] if len(proxies) == 1 else "moat-egress-proxy") in said


def test_a_model_server_has_no_proxy(at: At, plans: dict[str, Data]) -> None:
    models = {name: item["model_server"] for name, item in plans.items() if "model_server" in item["roles"]}
    assert models
    for name, items in models.items():
        units = " ".join(f"moat-model@{item['name']}.service" for item in items)
        said = (
            at(name)
            .run(
                f"for unit in {units}; do pid=$(systemctl show -p MainPID --value $unit); tr '\\0' '\\n' < /proc/$pid/environ | sed \"s/^/$unit /\"; done"
            )
            .stdout
        )
        assert all(f"moat-model@{item['name']}.service " in said for item in items)
        assert "proxy" not in said.lower()


def test_names_are_resolved_by_the_private_resolver(at: At, plan: Any, plans: dict[str, Data]) -> None:
    records = [record for name in plan.hosts for record in plan.host(name).get("private_dns", {}).get("records", [])]
    named = {name: item["resolvers"][:3] for name, item in plans.items() if item.get("resolvers")}
    assert records and named
    for name, resolvers in named.items():
        said = (
            at(name)
            .run(f"grep -h ^nameserver /etc/resolv.conf; getent ahosts {records[0]['name']}")
            .stdout.splitlines()
        )
        assert [line.split()[1] for line in said if line.startswith("nameserver")] == resolvers
        assert {line.split()[0] for line in said if not line.startswith("nameserver")} <= set(records[0]["addresses"])
        assert len(said) > len(resolvers), f"{name} does not resolve {records[0]['name']}"
