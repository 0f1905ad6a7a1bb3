"""Ways out, names and routes of the sample, by hand."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import SCHEMA, Plan
from ansible_collections.moat.inference.plugins.module_utils.perimeter.special import public_networks
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.oracle import check_plan
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import (
    REMOVE,
    P,
    compiled,
    out,
    sample,
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compiled(out())


def rules(plan: Plan, host: str) -> dict[str, dict[str, Any]]:
    return {rule["id"]: rule for rule in plan.host(host)["firewall"]["rules"]}


def new_rules(plan: Plan, host: str) -> set[str]:
    return {name for name in rules(plan, host) if any(f"-{word}" in name for word in WORDS)}


WORDS = ("egress", "internet", "resolver", "parent", "dns", "forward")
DNS = {"out-dns-tcp", "out-dns-udp"}
SERVED = {*DNS, "in-dns-tcp", "in-dns-udp", "out-forward-tcp", "out-forward-udp"}
PROXY = {"in-egress", "out-resolver-tcp", "out-resolver-udp", "out-internet"}


def test_without_the_new_keys_a_plan_is_what_it_was() -> None:
    """From before there were any. Whoever raises the schema knows that plans change, and writes the new values here."""
    found = compiled()
    assert SCHEMA == 2
    assert found.digest == "5904580b2bcfc9c5aee217e947926307b7b76457ca8c6aafde78cae8e3e6ac6f"
    text = json.dumps(found.to_dict()).encode()
    assert hashlib.sha256(text).hexdigest() == "91b3e6e1ed446b4ea214f60f70123f011e2aac2e9bf4664350626a4ead7bc1e7"
    explicit: dict[str, Any] = {
        f"{P}.egress": [],
        f"{P}.proxy": None,
        f"{P}.dns": None,
        f"{P}.segments.app.default_route": True,
    }
    assert compiled(explicit).to_dict() == found.to_dict()


def test_roles_in_order_of_application(plan: Plan) -> None:
    assert plan.host("egress1")["roles"] == ["firewall", "egress_proxy", "egress_client"]
    assert plan.host("dns1")["roles"] == ["firewall", "egress_client", "private_dns"]
    assert plan.host("ca1")["roles"] == ["firewall", "egress_client", "ca"]
    assert plan.host("app2")["roles"] == ["firewall", "egress_client"]
    assert plan.host("gpu1")["roles"][:3] == ["firewall", "egress_client", "private_link"]
    shared = compiled(out({f"{P}.dns.hosts": ["ca1", "egress1"]}))
    assert shared.host("ca1")["roles"] == ["firewall", "egress_client", "private_dns", "ca"]
    assert shared.host("egress1")["roles"] == ["firewall", "egress_proxy", "egress_client", "private_dns"]


def test_rules_that_every_host_gets(plan: Plan) -> None:
    assert new_rules(plan, "gpu1") == {*DNS, "out-egress"}
    assert new_rules(plan, "app2") == new_rules(plan, "ca1") == DNS
    assert new_rules(plan, "egress1") == {*DNS, *PROXY, "out-egress"}
    assert new_rules(plan, "egress2") == {*DNS, *PROXY}
    assert new_rules(plan, "dns1") == SERVED


def test_rules_of_a_source_and_its_proxy(plan: Plan) -> None:
    assert rules(plan, "gpu1")["out-egress"] == {
        "id": "out-egress",
        "chain": "output",
        "protocol": "tcp",
        "ports": [3128],
        "peers4": ["10.130.0.10/32", "10.130.0.11/32"],
        "peers6": ["fd00:130::10/128", "fd00:130::11/128"],
        "comment": "what may leave, by name, through the proxy",
    }
    found = rules(plan, "egress1")
    assert found["in-egress"]["chain"] == "input" and found["in-egress"]["ports"] == [3128]
    assert found["in-egress"]["peers4"] == ["10.110.0.11/32", "10.120.0.11/32", "10.120.0.12/32"]
    assert found["out-egress"]["peers4"] == ["10.130.0.11/32"]
    assert found["out-internet"]["ports"] == [443, 8443]
    assert found["out-internet"]["peers4"] == ["203.0.113.0/24"]
    assert found["out-internet"]["peers6"] == ["2001:db8:9::/48"]
    for protocol in ("tcp", "udp"):
        rule = found[f"out-resolver-{protocol}"]
        assert (rule["protocol"], rule["ports"], rule["peers4"]) == (protocol, [53], ["203.0.113.53/32"])


def test_rules_of_a_name_server(plan: Plan) -> None:
    for protocol in ("tcp", "udp"):
        found = rules(plan, "dns1")
        assert found[f"in-dns-{protocol}"]["protocol"] == protocol and found[f"in-dns-{protocol}"]["ports"] == [53]
        assert "10.140.0.53/32" not in found[f"in-dns-{protocol}"]["peers4"]
        assert len(found[f"in-dns-{protocol}"]["peers4"]) == len(plan.hosts) - 1
        assert found[f"out-forward-{protocol}"]["peers4"] == ["203.0.113.53/32"]
        assert rules(plan, "gpu1")[f"out-dns-{protocol}"]["peers6"] == ["fd00:140::53/128", "fd00:140::54/128"]


def test_the_proxy_itself(plan: Plan) -> None:
    proxy = plan.host("egress1")["egress_proxy"]
    assert [source["name"] for source in proxy["sources"]] == ["app1", "egress1", "gpu1", "gpu2"]
    assert proxy["sources"][0] == {
        "name": "app1",
        "addresses": ["10.110.0.11", "fd00:110::11"],
        "allow": [{"host": "*.example.net", "ports": [443, 8443], "rule": "egress-1"}],
    }
    assert (proxy["port"], proxy["upload_limit"], proxy["parents"]) == (3128, "10 MB", [])
    assert proxy["to"] == ["203.0.113.0/24", "2001:db8:9::/48"]
    assert "203.0.113.0/24" not in proxy["refused"] and "198.51.100.0/24" in proxy["refused"]
    assert {"10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "fc00::/7", "fe80::/10"} <= set(proxy["refused"])


def test_a_proxy_to_all_that_is_public() -> None:
    found = compiled(out({f"{P}.proxy.to": REMOVE}))
    check_plan(*sample(out({f"{P}.proxy.to": REMOVE})), found.to_dict())
    texts = [network.text for network in public_networks()]
    assert found.host("egress1")["egress_proxy"]["to"] == texts
    rule = rules(found, "egress1")["out-internet"]
    assert rule["peers4"] + rule["peers6"] == texts
    assert "egress1 may reach every public network on tcp 443 and 8443 [out-internet]." in found.words("egress1")


def test_a_proxy_with_parents_reaches_them_only() -> None:
    parents: list[dict[str, Any]] = [
        {"address": "10.0.0.1", "port": 8080},
        {"address": "10.0.0.2"},
        {"address": "fd00:1::1"},
    ]
    edits = out({f"{P}.proxy.parents": parents})
    found = compiled(edits)
    check_plan(
        *sample({**edits, f"{P}.proxy.parents": [{"port": 3128, **parent} for parent in parents]}), found.to_dict()
    )
    outward = {name: rule for name, rule in rules(found, "egress1").items() if "parent" in name or "internet" in name}
    assert {name: (rule["peers4"], rule["peers6"]) for name, rule in outward.items()} == {
        "out-parent-3128": (["10.0.0.2/32"], ["fd00:1::1/128"]),
        "out-parent-8080": (["10.0.0.1/32"], []),
    }


def test_a_proxy_that_nobody_uses_opens_nothing() -> None:
    found = compiled(out({f"{P}.egress": REMOVE}))
    assert new_rules(found, "egress1") == {*DNS, "out-resolver-tcp", "out-resolver-udp"}
    assert found.host("gpu1")["egress_client"]["proxies"] == []
    assert found.host("egress1")["egress_proxy"]["sources"] == []


def test_what_a_client_is_told(plan: Plan) -> None:
    client = plan.host("gpu1")["egress_client"]
    assert client["proxies"] == ["http://10.130.0.10:3128", "http://10.130.0.11:3128"]
    assert {"localhost", "inference.internal", "10.120.0.0/24", "100.64.0.0/10", "10.150.0.1/32"} <= set(
        client["no_proxy"]
    )
    assert plan.host("app2")["egress_client"]["proxies"] == []
    assert plan.host("gpu1")["resolvers"] == ["10.140.0.53", "10.140.0.54", "fd00:140::53", "fd00:140::54"]
    assert plan.host("dns2")["resolvers"][0] == "10.140.0.54"
    swapped = compiled(out({f"{P}.egress.1.from": "egress2"}))
    assert swapped.host("egress2")["egress_client"]["proxies"][0] == "http://10.130.0.11:3128"


def test_a_proxy_over_ipv6() -> None:
    edits = out({"hosts.gpu2.moat_address4": REMOVE, f"{P}.segments.inference.default_route": REMOVE})
    found = compiled(edits)
    assert found.host("gpu2")["egress_client"]["proxies"] == [
        "http://[fd00:130::10]:3128",
        "http://[fd00:130::11]:3128",
    ]
    assert found.host("gpu2")["resolvers"] == ["fd00:140::53", "fd00:140::54"]
    assert "routes" not in found.host("gpu2")


def test_routes_are_to_what_the_rules_name(plan: Plan) -> None:
    assert "routes" not in plan.host("app1")
    routes = plan.host("gpu1")["routes"]
    assert routes["default"] is False
    assert [(route["to"], route["via"]) for route in routes["via"]] == [
        ("10.90.0.0/28", "10.120.0.254"),
        ("10.110.0.0/24", "10.120.0.254"),
        ("10.130.0.0/24", "10.120.0.254"),
        ("10.140.0.0/24", "10.120.0.254"),
        ("10.150.0.1/32", "10.120.0.254"),
        ("fd00:90::/124", "fd00:120::254"),
        ("fd00:110::/64", "fd00:120::254"),
        ("fd00:130::/64", "fd00:120::254"),
        ("fd00:140::/64", "fd00:120::254"),
    ]


def test_routes_without_a_proxy_or_names() -> None:
    edits = {
        f"{P}.segments.app.router4": "10.110.0.254",
        f"{P}.segments.app.router6": "fd00:110::254",
        f"{P}.segments.app.default_route": False,
        f"{P}.services": {},
    }
    found = compiled(edits)
    check_plan(*sample(edits), found.to_dict())
    assert found.host("app2")["roles"] == ["firewall", "egress_client"]
    assert [route["to"] for route in found.host("app2")["routes"]["via"]] == ["10.90.0.0/28", "fd00:90::/124"]
    assert found.host("ca1")["roles"] == ["firewall", "ca"]
    # the gateway's segment and the authority's, for the client alone
    assert {"10.120.0.0/24", "10.140.0.0/24"} < {route["to"] for route in found.host("app1")["routes"]["via"]}


def test_a_proxy_without_a_default_route_has_routes_to_where_it_may_go() -> None:
    edge = {"router4": "10.130.0.254", "router6": "fd00:130::254", "default_route": False}
    edits = out({f"{P}.segments.edge.{key}": value for key, value in edge.items()})
    found = compiled(edits)
    check_plan(*sample(edits), found.to_dict())
    assert {"203.0.113.0/24", "2001:db8:9::/48"} <= {route["to"] for route in found.host("egress1")["routes"]["via"]}


def test_a_connector_finds_each_gateway_by_name(plan: Plan) -> None:
    records = {item["name"]: item["addresses"] for item in plan.host("dns1")["private_dns"]["records"]}
    found = 0
    for host in ("app1", "app3"):
        made = plan.host(host)
        assert made["resolvers"]
        for backend in (b for client in made["connector"] for model in client["models"] for b in model["backends"]):
            assert records[backend["server_name"]] == backend["addresses"]
            found += 1
    assert found


def test_names(plan: Plan) -> None:
    dns = plan.host("dns1")["private_dns"]
    records = {record["name"]: record for record in dns["records"]}
    links = sorted(address for name in ("gpu1", "gpu2") for address in plan.hosts[name].link)
    assert records["xray-7b.model.inference.internal"] == {
        "name": "xray-7b.model.inference.internal",
        "addresses": [address.text for address in links],
        "reverse": False,
    }
    assert records["gpu1.gateway.inference.internal"]["addresses"][0] == "100.120.0.11"
    assert records["gpu1.gateway.inference.internal"]["reverse"] is True
    assert records["ca1.ca.inference.internal"]["addresses"] == ["10.140.0.10", "fd00:140::10"]
    assert dns["forward"] == {"to": ["203.0.113.53"], "for": ["10.110.0.12", "fd00:110::12"]}
    assert "10.120.0.11/32" in dns["clients"] and "10.110.0.66/32" not in dns["clients"]
    assert compiled(out({f"{P}.dns.forward": REMOVE})).host("dns1")["private_dns"]["forward"] is None


@pytest.mark.parametrize(
    ("name", "expect", "rule"),
    [
        ("gpu1 egress1 10.130.0.10 3128", "allow", "in-egress"),
        ("gpu1 egress2 fd00:130::11 3128", "allow", "in-egress"),
        ("app2 egress1 10.130.0.10 3128", "deny", "deny-output"),
        ("dns1 egress1 10.130.0.10 3128", "deny", "deny-output"),
        ("intruder egress1 10.130.0.10 3128", "deny", "deny-input"),
        ("egress1 egress2 10.130.0.11 3128", "allow", "in-egress"),
        ("app2 dns1 10.140.0.53 53", "allow", "in-dns-tcp"),
        ("egress1 dns2 fd00:140::54 53", "allow", "in-dns-tcp"),
        ("dns1 dns2 10.140.0.54 53", "allow", "in-dns-tcp"),
        ("intruder dns1 10.140.0.53 53", "deny", "deny-input"),
        ("station dns1 10.140.0.53 53", "deny", "deny-input"),
        ("gpu1 dns1 10.140.0.53 22", "deny", "deny-output"),
    ],
)
def test_expected_cells(plan: Plan, name: str, expect: str, rule: str) -> None:
    row = plan.cells(name.split(" ", maxsplit=1)[0])
    found = [(cell["expect"], cell["rule"]) for cell in row if cell["id"] == name]
    assert found == [(expect, rule)]


def test_every_rule_and_entry_is_named_in_the_words(plan: Plan) -> None:
    parents = out({f"{P}.proxy.parents": [{"address": "10.0.0.1"}]})
    for found in (plan, compiled(parents), compiled(out({f"{P}.dns.forward": REMOVE}))):
        for name in found.hosts:
            text = "\n".join(found.words(name))
            for rule in found.host(name)["firewall"]["rules"]:
                assert rule["id"] in text, (name, rule["id"])
    lines = "\n".join(plan.words("gpu1"))
    assert (
        "gpu1 may reach packages.example.org on tcp 443 through the proxy of egress1 and egress2 [out-egress, egress-0]."
        in lines
    )
    assert "gpu1 has no default route; its routes: 10.90.0.0/28 by 10.120.0.254," in lines
    assert "dns1 asks 203.0.113.53 for all other names" in "\n".join(plan.words("dns1"))


def test_an_entry_more_changes_no_other_entry(plan: Plan) -> None:
    """The log's names of entries are their places in the list: one more at its end renames none."""
    more = compiled(out({f"{P}.egress.2": {"from": "app2", "host": "time.example.org"}}))
    before, after = (item.host("egress1")["egress_proxy"]["sources"] for item in (plan, more))
    assert [source for source in after if source["name"] != "app2"] == before
    assert more.digest != plan.digest
    assert rules(more, "gpu1") == rules(plan, "gpu1")
