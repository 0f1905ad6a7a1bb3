"""The private link as its hosts see it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

At = Callable[[str], Any]
# a session is renewed after two minutes while it is used
RECENT = 180


@pytest.fixture(scope="module")
def links(plan: Any) -> dict[str, dict[str, Any]]:
    """The planned link of each host that has one."""
    plans = {name: plan.host(name) for name in plan.hosts}
    return {name: item["private_link"] for name, item in plans.items() if "private_link" in item["roles"]}


@pytest.fixture(scope="module")
def edge(links: dict[str, dict[str, Any]], plan: Any) -> tuple[str, str]:
    """A client host and one of its gateways."""
    client = next(name for name in sorted(links) if "connector" in plan.host(name)["roles"])
    return client, links[client]["peers"][0]["name"]


def bare(addresses: list[str]) -> list[str]:
    return [text.partition("/")[0] for text in addresses]


def connects(host: Any, address: str, port: int) -> bool:
    return bool(host.run(f"nc -z -w 3 {address} {port}").rc == 0)


def test_each_host_has_the_declared_peers_and_no_other(at: At, links: dict[str, dict[str, Any]]) -> None:
    assert len(links) > 1
    for name, link in links.items():
        interface = link["interface"]
        script = (
            f"wg show {interface} allowed-ips; echo =; wg show {interface} endpoints; echo =; "
            f"grep -A1 '^# ' /etc/wireguard/{interface}.conf; echo =; ip -j route show dev {interface}; echo =; "
            f"ip -j -6 route show dev {interface}"
        )
        allowed, endpoints, names, *routes = at(name).check_output(script).split("\n=\n")
        comments = names.split("\n")
        by_key = {
            comments[index + 1].partition(" = ")[2]: line.removeprefix("# ")
            for index, line in enumerate(comments)
            if line.startswith("# ") and index + 1 < len(comments) and comments[index + 1].startswith("PublicKey")
        }
        found = {
            by_key[key]: sorted(values.split()) for key, values in (line.split("\t") for line in allowed.splitlines())
        }
        assert found == {peer["name"]: sorted(peer["allowed_ips"]) for peer in link["peers"]}, name
        outer = {by_key[key]: value for key, value in (line.split("\t") for line in endpoints.splitlines())}
        for peer in link["peers"]:
            address = f"[{peer['endpoint']}]" if ":" in peer["endpoint"] else peer["endpoint"]
            assert outer[peer["name"]] == f"{address}:{link['port']}", name
        routed = {
            route["dst"].partition("/")[0]
            for text in routes
            for route in json.loads(text)
            if route.get("protocol") != "kernel"
        }
        assert routed == {address for peer in link["peers"] for address in bare(peer["allowed_ips"])}, name


def test_the_link_carries_and_its_handshake_is_recent(
    at: At, links: dict[str, dict[str, Any]], edge: tuple[str, str], plan: Any
) -> None:
    client, gateway = edge
    port = plan.host(gateway)["gateway"]["port"]
    for address in bare(links[gateway]["addresses"]):
        assert connects(at(client), address, port), address
    for name, other in (edge, edge[::-1]):
        interface = links[name]["interface"]
        outer = next(peer["endpoint"] for peer in links[name]["peers"] if peer["name"] == other)
        script = (
            f"key=$(wg show {interface} endpoints | grep -F '{outer}' | cut -f1); "
            f'wg show {interface} latest-handshakes | grep -F "$key" | cut -f2; date +%s'
        )
        handshake, now = (int(word) for word in at(name).check_output(script).split())
        assert 0 <= now - handshake < RECENT, name


def test_a_host_without_an_edge_has_no_link(
    at: At, links: dict[str, dict[str, Any]], edge: tuple[str, str], plan: Any
) -> None:
    client, gateway = edge
    interface, port = links[client]["interface"], plan.host(gateway)["gateway"]["port"]
    script = f"ip link show dev {interface}; systemctl is-active wg-quick@{interface}.service; test -e /etc/wireguard/{interface}.conf"
    outsiders = sorted(set(plan.hosts) - set(links))
    assert outsiders
    for part in script.split("; "):
        # positive control: the same question is answered with yes where there is a link
        assert at(client).run(part).rc == 0
        for name in outsiders:
            assert at(name).run(part).rc != 0, (name, part)
    address = bare(links[gateway]["addresses"])[0]
    assert connects(at(client), address, port)
    for name in outsiders:
        assert not connects(at(name), address, port), name


def test_a_foreign_inner_source_is_dropped(
    at: At, links: dict[str, dict[str, Any]], edge: tuple[str, str], plan: Any
) -> None:
    client, gateway = edge
    port = plan.host(gateway)["gateway"]["port"]
    target = bare(links[gateway]["addresses"])[0]
    own = bare(links[client]["addresses"])[0]
    foreign = "fd00:200::bad" if ":" in target else "100.127.255.254"
    length = 128 if ":" in target else 32
    captured = "/run/moat-test-link"
    started = (
        "systemd-run -q --collect -u moat-test-link sh -c "
        "'exec timeout 30 tcpdump -lnn -i {} tcp dst port {} > " + captured + " 2> " + captured + ".err'; "
        "for i in $(seq 50); do grep -q listening " + captured + ".err 2>/dev/null && break; sleep 0.1; done"
    )
    ended = f"sleep 0.5; systemctl stop moat-test-link; cat {captured}; rm -f {captured} {captured}.err"
    interface = links[client]["interface"]
    try:
        for name in edge:
            at(name).check_output(started.format(links[name]["interface"], port))
        at(client).run(
            f"ip address add {foreign}/{length} dev {interface}; nc -z -w 2 -s {foreign} {target} {port}; "
            f"ip address del {foreign}/{length} dev {interface}; nc -z -w 2 -s {own} {target} {port}"
        )
        sent, arrived = (at(name).run(ended).stdout for name in edge)
    finally:
        at(client).run(f"ip address del {foreign}/{length} dev {interface}")
        for name in edge:
            at(name).run(f"systemctl stop moat-test-link; rm -f {captured} {captured}.err")
    # both were sent into the tunnel; only the one with the client's own address came out of it
    assert f" {foreign}." in sent
    assert f" {own}." in sent
    assert f" {own}." in arrived
    assert f" {foreign}." not in arrived


def test_the_private_key_is_roots_alone(at: At, links: dict[str, dict[str, Any]]) -> None:
    for name, link in links.items():
        for ending in ("key", "conf"):
            path = f"/etc/wireguard/{link['interface']}.{ending}"
            host = at(name)
            assert host.check_output(f"stat -c '%a %U:%G' {path}") == "600 root:root", (name, path)
            assert host.run(f"test -s {path}").rc == 0
            assert host.run(f"runuser -u nobody -- cat {path}").rc != 0
        # positive control: nobody may read what is public
        assert at(name).run("runuser -u nobody -- cat /etc/os-release").rc == 0


def test_a_link_that_is_taken_away_comes_back(
    at: At, links: dict[str, dict[str, Any]], edge: tuple[str, str], plan: Any
) -> None:
    client, gateway = edge
    interface, port = links[client]["interface"], plan.host(gateway)["gateway"]["port"]
    address = bare(links[gateway]["addresses"])[0]
    index = f"ip -j link show dev {interface} | jq .[0].ifindex"
    before = at(client).check_output(index)
    at(client).check_output(f"ip link delete dev {interface}")
    deadline = time.monotonic() + 15
    while not connects(at(client), address, port):
        assert time.monotonic() < deadline, "the link did not come back"
    assert at(client).check_output(index) != before


def test_boot_loads_the_link_that_runs(at: At, links: dict[str, dict[str, Any]]) -> None:
    for name, link in links.items():
        interface = link["interface"]
        script = (
            f"sed -n 's/^PublicKey = //p' /etc/wireguard/{interface}.conf | sort; echo ---; "
            f"wg show {interface} peers | sort; echo ---; "
            f"wg pubkey < /etc/wireguard/{interface}.key; echo ---; wg show {interface} public-key; echo ---; "
            f"systemctl is-enabled wg-quick@{interface}.service; echo ---; ls -A /run/moat/pending/private_link"
        )
        parts = [part.strip() for part in at(name).run(script).stdout.split("---\n")]
        booted, running, key, live_key, enabled, waiting = parts
        assert booted and booted == running, name
        assert key == live_key, name
        assert enabled == "enabled", name
        # a change that was taken back leaves what became of it, and no key
        assert set(waiting.split()) <= {"outcome", "token", "undo"}, name
