"""Ways in which a planner could be wrong: the oracle has to see each of them, or the properties prove nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils.perimeter import cells as cells_module
from ansible_collections.moat.inference.plugins.module_utils.perimeter import plan as plan_module
from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import compile_intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.plan import Planner
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.oracle import Oracle, check_plan
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import sample


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
        "_of_links",
        lambda found: lambda self, _others: found(self, self.hosts),
    ),
    "every host may open the link": (
        Planner,
        "_of_hosts",
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
        plan_module,
        "of_addresses",
        lambda _found: (
            lambda addresses: plan_module.by_family(
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
    "single addresses become networks": (plan_module, "by_family", widened),
    "rules lose their segment and interface": (plan_module, "rule", unscoped),
    "rules have a port too many": (plan_module, "rule", one_port_more),
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
