"""The egress proxy as the hosts that may use it, and those that may not, see it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.behaviour.asking import At, Client, clients


@pytest.fixture(scope="module")
def client(plan: Any, at: At) -> Client:
    """A client with two names for TLS, one of them for plain HTTP too, where another client has a name that it has not."""
    for found in clients(plan, at):
        if len(found.names(443)) > 1 and set(found.names(80)) & set(found.names(443)):
            return found
    raise LookupError("no host of the plan may reach two names at 443 and one of them at 80")


@pytest.fixture(scope="module")
def name(client: Client) -> tuple[str, str]:
    return next(item for item in client.names(443) if item in client.names(80))


@pytest.fixture(scope="module")
def second(client: Client, name: tuple[str, str]) -> tuple[str, str]:
    return next(item for item in client.names(443) if item != name)


def test_listed_names_are_reached_on_every_address(
    client: Client, name: tuple[str, str], second: tuple[str, str]
) -> None:
    client.expect(
        [
            *((client.case("tls", name[0], proxy=address), name[1]) for address in client.proxy["addresses"]),
            (client.case("http", name[0], 80), name[1]),
            (client.case("tls", second[0]), second[1]),
            (client.case("tls", name[0].upper(), sni=name[0]), name[1]),
            (client.case("tls", f"{name[0]}.", sni=name[0]), name[1]),
        ],
    )


def test_names_ports_and_methods_that_are_not_listed_are_refused(client: Client, name: tuple[str, str]) -> None:
    host, rule = name
    client.expect(
        [
            (client.case("tls", host), rule),
            (client.case("tls", f"x{host}"), "deny-name"),
            (client.case("tls", f"{host}.example.net"), "deny-name"),
            (client.case("http", f"x{host}", 80), "deny-name"),
            (client.case("tls", host, 8443), "deny-port"),
            (client.case("http", host, 8080), "deny-port"),
            *(
                (client.case("http", host, 80, method=method), "deny-method")
                for method in ("TRACE", "PURGE", "OPTIONS")
            ),
            *(
                (client.case("http", host, 80, url=f"{scheme}://{host}/"), "deny-protocol")
                for scheme in ("ftp", "https")
            ),
            (client.case("http", host, 80, url=f"http://{host}/squid-internal-mgr/info"), "deny-protocol"),
            (client.case("http", host, 80, url=f"http://{host}@x{host}/"), "deny-name"),
            (client.case("http", host, 80, url="/"), "deny-malformed"),
            (client.case("http", host, 80), rule),
        ],
    )


def test_each_source_has_its_own_list(plan: Any, at: At) -> None:
    every = clients(plan, at)
    for one in every:
        for other in every:
            own = {name for name, _rule in one.names(443)}
            for name, rule in other.names(443):
                if one.proxy_host == other.proxy_host and name not in own:
                    other.expect([(other.case("tls", name), rule)])
                    one.expect([(one.case("tls", name), "deny-name")])
                    return
    raise LookupError("all hosts of the plan have the same list")


def test_a_host_outside_the_plan_is_refused(plan: Any, client: Client, name: tuple[str, str]) -> None:
    """The proxy's own host, from its loopback address, stands for any source that has no list."""
    sources = {address for source in client.proxy["sources"] for address in source["addresses"]}
    stranger = "127.0.0.1"
    assert stranger not in sources
    script = (
        "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.settimeout(5); "
        f"s.connect(('{client.proxy['addresses'][0]}', {client.proxy['port']})); "
        f"s.sendall(b'CONNECT {name[0]}:443 HTTP/1.1\\r\\n\\r\\n'); print(s.getsockname()[1], s.recv(100).split()[1].decode())"
    )
    after = client.cursor()
    port, status = client.at(client.proxy_host).check_output(f'python3 -c "{script}"').split()
    time.sleep(0.3)
    rules = [line["rule"] for line in client.log(after) if line["source_port"] == int(port)]
    assert (status, rules) == ("403", ["deny-source"])


def test_reloads_refuse_no_allowed_request(client: Client, name: tuple[str, str]) -> None:
    """10 reloads while a client asks without pause, in TLS and in plain HTTP, each time over a new connection."""
    proxy = client.at(client.proxy_host)
    proxy.check_output(
        "systemd-run -q -u moat-probe-reload sh -c 'for i in $(seq 10); do systemctl reload moat-egress-proxy; done'"
    )
    results: list[tuple[bool, str, dict[str, Any]]] = []
    while proxy.run("systemctl is-active moat-probe-reload").stdout.strip() == "active":
        results += client.ask([client.case(kind, name[0], port) for kind, port in (("tls", 443), ("http", 80))] * 20)
    assert len(results) > 100
    assert [item for item in results if item[:2] != (True, name[1])] == []
