"""Ways in which a planner could be wrong: the oracle has to see each of them, or the properties prove nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils.perimeter import cells as cells_module
from ansible_collections.moat.inference.plugins.module_utils.perimeter import egress as egress_module
from ansible_collections.moat.inference.plugins.module_utils.perimeter import flows, names, naming
from ansible_collections.moat.inference.plugins.module_utils.perimeter import plan as plan_module
from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import parse_network
from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import compile_intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.egress import Egresses
from ansible_collections.moat.inference.plugins.module_utils.perimeter.naming import Naming
from ansible_collections.moat.inference.plugins.module_utils.perimeter.plan import Planner
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.oracle import Oracle, check_plan
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import out, sample


def widened(found: Callable[..., Any]) -> Callable[..., Any]:
    def wide(text: str) -> str:
        network = ipaddress.ip_network(text)
        return str(network.supernet() if network.prefixlen == network.max_prefixlen else network)

    return lambda networks: found((family, wide(text)) for family, text in networks)


def unscoped(found: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **_scope: found(*arguments)


def one_port_more(found: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, chain, protocol, ports, *more, **scope: found(
        name, chain, protocol, [*ports, 1], *more, **scope
    )


def one_for_each_peer(found: Callable[..., Any]) -> Callable[..., Any]:
    """One rule for each other end, as many as there are."""

    def many(self: Planner, host: Any) -> Any:
        for item in found(self, host):
            for family in ("peers4", "peers6"):
                for index, peer in enumerate(item[family]):
                    rule_id = f"{item['id']}-{family}-{index}"
                    yield {**item, "id": rule_id, "peers4": [], "peers6": [], family: [peer]}

    return many


def other_peers(change: Callable[[list[Any]], list[Any]]) -> Callable[[Any], Any]:
    """A private link whose configuration has other peers than the rest of the plan."""

    def mutation(found: Callable[..., Any]) -> Callable[..., Any]:
        def changed(self: Planner, host: Any) -> Any:
            link = found(self, host)
            return {**link, "peers": change(link["peers"])}

        return changed

    return mutation


def administration(mark: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Any], Any]:
    """Rules of which others than those for administration are marked as such, or not even these."""
    return lambda found: lambda self, host: [mark(item) for item in found(self, host)]


MUTATIONS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "every link address may reach the gateway": (
        Planner,
        "of_links",
        lambda found: lambda self, _others: found(self, self.hosts),
    ),
    "every host may open the link": (
        Planner,
        "of_hosts",
        lambda found: lambda self, host, _others: found(self, host, self.hosts),
    ),
    "every host is a peer": (Planner, "peers", lambda _found: lambda self, host: sorted(set(self.hosts) - {host})),
    "no host is a peer": (Planner, "peers", lambda _found: lambda self, host: []),
    "the link has a peer too few": (Planner, "_private_link", other_peers(lambda peers: peers[1:])),
    "the link has a peer too many": (
        Planner,
        "_private_link",
        other_peers(lambda peers: [*peers, {**peers[0], "name": "app2"}]),
    ),
    "every peer has rules of its own": (Planner, "_link_rules", one_for_each_peer),
    "every rule is for administration": (Planner, "_rules", administration(lambda item: {**item, "admin": True})),
    "no rule is for administration": (
        Planner,
        "_rules",
        administration(lambda item: {key: value for key, value in item.items() if key != "admin"}),
    ),
    "no peer has rules": (Planner, "_link_rules", lambda _found: lambda self, host: []),
    "peers come in any order and twice": (
        flows,
        "of_addresses",
        lambda _found: (
            lambda addresses: flows.by_family(
                (address.family, address.host_network()) for address in [*addresses][::-1] * 2
            )
        ),
    ),
    "every client may use every gateway": (
        Planner,
        "clients_at",
        lambda _found: (
            lambda self, host: {
                name: (client, list(self.models_on[host])) for name, client in self.intent.clients.items()
            }
        ),
    ),
    "every model of a gateway is open to its clients": (
        Planner,
        "clients_at",
        lambda found: (
            lambda self, host: {
                name: (client, list(self.models_on[host])) for name, (client, _models) in found(self, host).items()
            }
        ),
    ),
    "a client is routed to every gateway": (
        Planner,
        "gateways_of",
        lambda _found: lambda self, client: sorted(self.models_on),
    ),
    "every host holds a certificate": (Planner, "holds_certificate", lambda _found: lambda self, host: True),
    "single addresses become networks": (flows, "by_family", widened),
    "rules lose their segment and interface": (flows, "rule", unscoped),
    "rules have a port too many": (flows, "rule", one_port_more),
    "a gateway certifies every model": (
        Planner,
        "_certificate",
        lambda found: (
            lambda self, host: [
                {**item, "dns": [*item["dns"], "notes-1b.model.inference.internal"]} for item in found(self, host)
            ]
        ),
    ),
    "cells expect what no rule admits": (cells_module, "admitting", lambda _found: lambda *_arguments: "in-admin-ssh"),
    "cells expect less than the rules admit": (cells_module, "admitting", lambda _found: lambda *_arguments: None),
}


def in_part(part: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What a role is handed, with one key of it changed."""
    return lambda found: lambda *arguments: {**found(*arguments), part: change(found(*arguments)[part])}


def without_rules(*gone: str) -> Callable[[Any], Any]:
    return lambda found: lambda self, host: [item for item in found(self, host) if item["id"] not in gone]


def other_rules(rule_id: str, change: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda found: (
        lambda self, host: [{**item, **change} if item["id"] == rule_id else item for item in found(self, host)]
    )


def rerouted(change: Callable[[list[Any]], list[Any]]) -> Callable[[Any], Any]:
    return lambda found: lambda *arguments: {**found(*arguments), "via": change(found(*arguments)["via"])}


WAYS_OUT: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "every host may use the proxy": (
        Egresses,
        "sources_of",
        lambda _found: lambda self, host: sorted(self.planner.hosts) if host in self.proxies else [],
    ),
    "no host may use the proxy": (Egresses, "sources_of", lambda _found: lambda self, host: []),
    "every host is told of the proxy": (Egresses, "proxies_of", lambda _found: lambda self, host: list(self.proxies)),
    "a proxy uses the others first": (
        Egresses,
        "proxies_of",
        lambda found: lambda self, host: sorted(found(self, host), reverse=True),
    ),
    "no host is told of the proxy": (Egresses, "proxies_of", lambda _found: lambda self, host: []),
    "a source may use every port": (
        Egresses,
        "_source",
        in_part("allow", lambda allow: [{**item, "ports": [*item["ports"], 8080]} for item in allow]),
    ),
    "a source has a name too many": (
        Egresses,
        "proxy",
        in_part(
            "sources",
            lambda sources: [
                {**item, "allow": [*item["allow"], {"host": "example.com", "ports": [443], "rule": "egress-9"}]}
                for item in sources
            ],
        ),
    ),
    "a source has another's addresses": (
        Egresses,
        "proxy",
        in_part("sources", lambda sources: [{**item, "addresses": sources[0]["addresses"]} for item in sources]),
    ),
    "the log has another rule": (names, "egress_rule", lambda found: lambda index: found(index + 1)),
    "the proxy goes anywhere": (
        egress_module,
        "destinations",
        lambda _found: lambda _proxy: (parse_network("0.0.0.0/0"), parse_network("::/0")),
    ),
    "the proxy refuses nothing": (Egresses, "proxy", in_part("refused", lambda _refused: [])),
    "the proxy may go to this host": (
        Egresses,
        "proxy",
        in_part("refused", lambda refused: [text for text in refused if text != "127.0.0.0/8"]),
    ),
    "the proxy refuses where it may go": (
        Egresses,
        "proxy",
        in_part("refused", lambda refused: [*refused, "203.0.0.0/8"]),
    ),
    "the proxy refuses all of IPv4": (
        Egresses,
        "proxy",
        in_part("refused", lambda refused: [*refused, "::ffff:0:0/96"]),
    ),
    "the proxy may not go out": (Egresses, "rules", without_rules("out-internet")),
    "the proxy may go out by any peer": (Egresses, "rules", other_rules("out-internet", {"peers4": ["0.0.0.0/0"]})),
    "the proxy may go out to any port": (Egresses, "rules", other_rules("out-internet", {"ports": [22, 443, 8443]})),
    "the proxy may not resolve": (Egresses, "rules", without_rules("out-resolver-udp")),
    "the proxy admits nobody": (Egresses, "rules", without_rules("in-egress")),
    "the proxy admits administration": (Egresses, "rules", other_rules("in-egress", {"peers4": ["10.90.0.0/28"]})),
    "a source may not reach the proxy": (Egresses, "rules", without_rules("out-egress")),
    "the private network goes by the proxy": (Egresses, "client", in_part("no_proxy", lambda found: found[:4])),
    "names may be asked of anyone": (Naming, "rules", other_rules("out-dns-udp", {"peers4": ["0.0.0.0/0"]})),
    "names may be asked over TLS": (Naming, "rules", other_rules("out-dns-tcp", {"ports": [53, 853]})),
    "names may be asked by anyone": (Naming, "rules", other_rules("in-dns-udp", {"peers4": ["10.0.0.0/8"]})),
    "names may not be asked": (Naming, "rules", without_rules("in-dns-udp")),
    "names are not forwarded": (Naming, "rules", without_rules("out-forward-udp")),
    "every host is a name server": (Naming, "is_server", lambda _found: lambda self, host: True),
    "other names are resolved for all": (
        Naming,
        "server",
        in_part("forward", lambda forward: {**forward, "for": ["10.110.0.12", "fd00:110::12", "10.120.0.11"]}),
    ),
    "anyone may ask a name server": (
        Naming,
        "server",
        in_part("clients", lambda clients: [*clients, "10.110.0.66/32"]),
    ),
    "a name is missing": (Naming, "server", in_part("records", lambda records: records[1:])),
    "a name has segment addresses": (
        Naming,
        "server",
        in_part("records", lambda records: [{**item, "addresses": ["10.120.0.11"]} for item in records]),
    ),
    "every name answers in reverse": (
        Naming,
        "server",
        in_part("records", lambda records: [{**item, "reverse": True} for item in records]),
    ),
    "resolvers in another order": (
        Naming,
        "resolvers",
        lambda found: lambda self, host: found(self, host)[::-1],
    ),
    "resolvers are not told": (Naming, "resolvers", lambda _found: lambda self, host: []),
    "a record without order": (
        naming,
        "record",
        lambda found: lambda name, _addresses, reverse: found(name, [], reverse),
    ),
    "a route is missing": (plan_module, "host_routes", rerouted(lambda via: via[1:])),
    "a route too many": (
        plan_module,
        "host_routes",
        rerouted(lambda via: [*via, {"to": "203.0.113.0/24", "via": "10.120.0.254"}]),
    ),
    "a default route after all": (
        plan_module,
        "host_routes",
        rerouted(lambda via: [{"to": "0.0.0.0/0", "via": "10.120.0.254"}, *via]),
    ),
    "a route by another router": (
        plan_module,
        "host_routes",
        rerouted(lambda via: [{**route, "via": "10.120.0.253"} for route in via]),
    ),
    "routes in another order": (plan_module, "host_routes", rerouted(lambda via: via[::-1])),
    "nobody is sheltered": (Planner, "is_sheltered", lambda _found: lambda self, host: False),
    "cells expect that anyone uses the proxy": (
        cells_module,
        "admitting",
        lambda found: lambda *arguments: "in-egress" if arguments[3] == 3128 else found(*arguments),
    ),
    "cells expect that nobody asks for names": (
        cells_module,
        "admitting",
        lambda found: lambda *arguments: None if arguments[3] == 53 else found(*arguments),
    ),
}


@pytest.mark.parametrize("mutation", sorted(WAYS_OUT))
def test_the_oracle_sees_wrong_ways_out(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    intent, inventory = sample(out())
    check_plan(intent, inventory, compile_intent(intent, inventory).to_dict())
    where, name, change = WAYS_OUT[mutation]
    monkeypatch.setattr(where, name, change(getattr(where, name)))
    with pytest.raises(AssertionError):
        check_plan(intent, inventory, compile_intent(intent, inventory).to_dict(words=False))


@pytest.mark.parametrize("mutation", sorted(MUTATIONS))
def test_the_oracle_sees_a_planner_that_is_wrong(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    intent, inventory = sample()
    check_plan(intent, inventory, compile_intent(intent, inventory).to_dict())
    where, name, change = MUTATIONS[mutation]
    monkeypatch.setattr(where, name, change(getattr(where, name)))
    with pytest.raises(AssertionError):
        check_plan(intent, inventory, compile_intent(intent, inventory).to_dict(words=False))


def test_the_oracle_knows_the_sample() -> None:
    """The reading that all properties rest on, once by hand."""
    oracle = Oracle(*sample())
    assert oracle.edges == {
        ("portal", "app1", "xray-7b", "gpu1"),
        ("portal", "app1", "xray-7b", "gpu2"),
        ("batch", "app3", "notes-1b", "gpu1"),
    }
    assert [str(address) for address in oracle.links("gpu1")][:1] == ["100.120.0.11"]
    assert ("input", "tcp", 8443, "interface moat0", "100.110.0.11/32") in oracle.flows("gpu2")
    assert ("input", "tcp", 8443, "interface moat0", "100.110.0.13/32") not in oracle.flows("gpu2")
