"""The plan of the sample, by hand, and what becomes of hosts with one address family."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import Plan, compile_intent
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.oracle import check_plan
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import (
    REMOVE,
    P,
    compiled,
    sample,
)

NAMES = ("ca1", "gpu1", "gpu2", "app1", "app2", "app3")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compiled()


def rules(plan: Plan, host: str) -> dict[str, dict[str, Any]]:
    return {rule["id"]: rule for rule in plan.host(host)["firewall"]["rules"]}


def test_roles_in_order_of_application(plan: Plan) -> None:
    assert {name: plan.host(name)["roles"] for name in NAMES} == {
        "ca1": ["firewall", "ca"],
        "gpu1": ["firewall", "private_link", "certificate", "model_server", "gateway"],
        "gpu2": ["firewall", "private_link", "certificate", "model_server", "gateway"],
        "app1": ["firewall", "private_link", "certificate", "connector"],
        "app2": ["firewall"],
        "app3": ["firewall", "private_link", "certificate", "connector"],
    }
    assert plan.by_role(NAMES)["gateway"] == ["gpu1", "gpu2"]
    for name in NAMES:
        parts = {"certificate_ca": "certificate"}
        assert {parts.get(key, key) for key in plan.host(name)} - {"name", "segment", "roles"} == set(
            plan.host(name)["roles"]
        )


def test_rules_of_a_gateway(plan: Plan) -> None:
    found = rules(plan, "gpu1")
    assert sorted(found) == [
        "in-admin-metrics",
        "in-admin-ssh",
        "in-gateway",
        "in-link",
        "out-ca",
        "out-link",
        "out-service-dns",
    ]
    links = [plan.hosts[name].link[1] for name in ("app1", "app3")]
    assert found["in-gateway"] == {
        "id": "in-gateway",
        "chain": "input",
        "interface": "moat0",
        "protocol": "tcp",
        "ports": [8443],
        "peers4": ["100.110.0.11/32", "100.110.0.13/32"],
        "peers6": [f"{address.text}/128" for address in sorted(links)],
        "comment": "client hosts to the gateway",
    }
    link = {
        "protocol": "udp",
        "ports": [51820],
        "segment": "inference",
        "peers4": ["10.110.0.11/32", "10.110.0.13/32"],
        "peers6": ["fd00:110::11/128", "fd00:110::13/128"],
        "comment": "private link with the client hosts",
    }
    assert found["in-link"] == {"id": "in-link", "chain": "input", **link}
    assert found["out-link"] == {"id": "out-link", "chain": "output", **link}
    assert found["in-admin-ssh"]["admin"] is True and found["in-admin-ssh"]["ports"] == [22]
    assert found["out-ca"]["peers4"] == ["10.140.0.10/32"] and found["out-ca"]["chain"] == "output"


def test_rules_of_an_app_host(plan: Plan) -> None:
    found = rules(plan, "app3")
    assert found["local-connector-batch"]["users"] == ["batch", "cron"]
    assert found["local-connector-batch"]["chain"] == "local" and found["local-connector-batch"]["ports"] == [8081]
    assert found["out-gateway"]["peers4"] == ["100.120.0.11/32"] and found["out-gateway"]["chain"] == "output"
    assert found["in-link"]["segment"] == found["out-link"]["segment"] == "app"
    assert found["in-link"]["comment"] == "private link with the gateways"
    assert "in-gateway" not in found
    assert sorted(rules(plan, "app2")) == ["in-admin-ssh", "out-service-dns"]


def test_what_gateway_and_connector_are_handed(plan: Plan) -> None:
    gateway = plan.host("gpu1")["gateway"]
    assert gateway["models"] == [
        {"name": "notes-1b", "prefix": "/notes-1b", "socket": "/run/moat-model/notes-1b/engine.sock"},
        {"name": "xray-7b", "prefix": "/xray-7b", "socket": "/run/moat-model/xray-7b/engine.sock"},
    ]
    assert [client["name"] for client in gateway["clients"]] == ["batch", "portal"]
    assert gateway["clients"][0]["limits"] == {"requests_per_second": 10, "burst": 20, "concurrent": 8}
    assert gateway["metrics"]["addresses"] == ["10.120.0.11", "fd00:120::11"]
    (connector,) = plan.host("app1")["connector"]
    assert connector["port"] is None and connector["socket"] == "/run/moat-connector/portal.sock"
    assert [backend["name"] for backend in connector["models"][0]["backends"]] == ["gpu1", "gpu2"]
    assert plan.host("app1")["certificate_ca"] == {"url": "https://10.140.0.10:9443", "host": "ca1"}
    assert plan.host("ca1")["ca"]["dns_names"] == ["ca1.ca.inference.internal", "10.140.0.10", "fd00:140::10"]
    assert plan.host("gpu1")["model_server"][0]["engine_args"] == ["--max-model-len", "512"]


def cell(plan: Plan, name: str) -> dict[str, Any]:
    return next(item for item in plan.cells(name.split(" ", maxsplit=1)[0]) if item["id"] == name)


@pytest.mark.parametrize(
    ("name", "expect", "rule"),
    [
        ("app1 gpu1 100.120.0.11 8443", "allow", "in-gateway"),
        ("app1 gpu1 100.120.0.11 8443 portal xray-7b", "allow", "in-gateway"),
        ("app1 gpu1 100.120.0.11 8443 nobody xray-7b", "deny", "deny-identity"),
        ("app1 gpu1 100.120.0.11 8443 portal notes-1b", "deny", "deny-request"),
        ("app1 gpu1 10.120.0.11 22", "deny", "deny-output"),
        ("app1 gpu1 10.120.0.11 8443", "closed", "deny-output"),
        ("app1 ca1 10.140.0.10 9443", "allow", "in-ca-clients"),
        ("app1 ca1 fd00:140::10 9443", "allow", "in-ca-clients"),
        ("app2 gpu1 100.120.0.11 8443", "deny", "deny-output"),
        ("app2 gpu1 100.120.0.11 8443 nobody xray-7b", "deny", "deny-output"),
        ("app3 gpu2 100.120.0.12 8443 batch xray-7b", "deny", "deny-output"),
        ("gpu1 gpu2 10.120.0.12 8000", "closed", "deny-output"),
        ("intruder gpu1 10.120.0.11 22", "deny", "deny-input"),
        ("intruder gpu1 10.120.0.11 9101", "deny", "deny-input"),
        ("intruder gpu1 10.120.0.11 8000", "closed", "deny-input"),
        ("intruder gpu1 fd00:120::11 8443", "closed", "deny-input"),
        ("intruder gpu1 100.120.0.11 8443", "deny", "deny-input"),
        ("intruder ca1 10.140.0.10 9443", "deny", "deny-input"),
        ("station gpu1 10.120.0.11 22", "allow", "in-admin-ssh"),
        ("station gpu1 10.120.0.11 9101", "allow", "in-admin-metrics"),
        ("station ca1 10.140.0.10 9443", "deny", "deny-input"),
    ],
)
def test_expected_cells(plan: Plan, name: str, expect: str, rule: str) -> None:
    found = cell(plan, name)
    assert (found["expect"], found["rule"]) == (expect, rule)


def test_a_request_with_an_identity_names_its_certificate(plan: Plan) -> None:
    found = cell(plan, "app1 gpu1 100.120.0.11 8443 portal xray-7b")
    assert (found["identity"], found["client"], found["certificate"]) == ("own", "portal", "connector-portal")
    assert found["path"] == "/xray-7b/v1/models"
    found = cell(plan, "app1 gpu1 100.120.0.11 8443 nobody xray-7b")
    assert (found["identity"], found["client"], found["certificate"]) == ("none", None, None)


FAMILIES = {"IPv4 only": "moat_address6", "IPv6 only": "moat_address4", "dual": ""}


@pytest.mark.parametrize("title", sorted(FAMILIES))
def test_every_family(title: str) -> None:
    hosts = (*NAMES, "intruder")
    edits = {f"hosts.{name}.{FAMILIES[title]}": REMOVE for name in hosts if FAMILIES[title]}
    edits["hosts.station"] = {}
    found = compiled(edits)
    check_plan(*sample(edits), found.to_dict())
    peer = found.host("app1")["private_link"]["peers"][0]
    url = found.host("app1")["certificate_ca"]["url"]
    if title == "IPv6 only":
        assert peer["endpoint"] == "fd00:120::11" and url == "https://[fd00:140::10]:9443"
    else:
        assert peer["endpoint"] == "10.120.0.11" and url == "https://10.140.0.10:9443"
    # the private link always has both
    assert len(peer["allowed_ips"]) == 2 and peer["allowed_ips"][1].startswith("fd00:200::")
    segment_cells = [item for item in found.cells("app1") if item["address"].startswith(("10.", "fd00:1"))]
    wanted = {"IPv4 only": {4}, "IPv6 only": {6}, "dual": {4, 6}}[title]
    assert {item["family"] for item in segment_cells} == wanted


def test_a_host_of_one_family_among_others() -> None:
    edits = {
        "hosts.app1.moat_address6": REMOVE,
        "hosts.gpu2.moat_address4": REMOVE,
        "hosts.gpu2.moat_address6": "fd00:120::12",
    }
    edits[f"{P}.models.xray-7b.hosts"] = "gpu1"
    found = compiled(edits)
    check_plan(*sample(edits), found.to_dict())
    link = next(rule for rule in found.host("gpu1")["firewall"]["rules"] if rule["id"] == "in-link")
    assert link["peers4"] == ["10.110.0.11/32", "10.110.0.13/32"] and link["peers6"] == ["fd00:110::13/128"]


def test_link_addresses_by_hand() -> None:
    found = compiled({"hosts.app2.moat_link_address4": "100.64.7.7", "hosts.app2.moat_link_address6": "fd00:200::7"})
    assert [address.text for address in found.hosts["app2"].link] == ["100.64.7.7", "fd00:200::7"]
    assert found.hosts["app1"].link[0].text == "100.110.0.11"


def test_a_client_more_is_a_peer_more_and_no_rule_more(plan: Plan) -> None:
    """notes-1b is on gpu1 only; now portal's host comes to it a second time, and batch's host comes to gpu2."""
    edits = {
        f"{P}.clients.notes": {"hosts": ["app1", "app3"], "users": ["notes"], "port": 8090, "models": ["notes-1b"]},
        f"{P}.clients.images": {"hosts": "app3", "users": ["images"], "models": ["xray-7b"]},
    }
    grown = compiled(edits)
    for host in ("ca1", "gpu1", "app2"):
        assert grown.host(host)["firewall"] == plan.host(host)["firewall"], host
    assert [rule["id"] for rule in grown.host("gpu2")["firewall"]["rules"]] == list(rules(plan, "gpu2"))
    changed = [
        (name, key, rule[key])
        for name, rule in rules(grown, "gpu2").items()
        for key in rule
        if rule[key] != rules(plan, "gpu2")[name][key]
    ]
    links = sorted(plan.hosts[name].link[1] for name in ("app1", "app3"))
    outer4, outer6 = ["10.110.0.11/32", "10.110.0.13/32"], ["fd00:110::11/128", "fd00:110::13/128"]
    assert changed == [
        ("in-gateway", "peers4", ["100.110.0.11/32", "100.110.0.13/32"]),
        ("in-gateway", "peers6", [f"{address.text}/128" for address in links]),
        ("in-link", "peers4", outer4),
        ("in-link", "peers6", outer6),
        ("out-link", "peers4", outer4),
        ("out-link", "peers6", outer6),
    ]
    # its own hosts: a port of the loopback is a rule, and nothing else is new
    for host in ("app1", "app3"):
        assert set(rules(grown, host)) - set(rules(plan, host)) == {"local-connector-notes"}
    intent, inventory = sample(edits)
    for name in ("notes", "images"):
        del intent["clients"][name]
    assert compile_intent(intent, inventory).to_dict() == plan.to_dict()


def test_a_gateway_without_a_client_has_no_link_rules() -> None:
    found = compiled({f"{P}.clients": {}, f"{P}.tests": []})
    assert list(rules(found, "gpu1")) == ["in-admin-metrics", "in-admin-ssh", "out-ca", "out-service-dns"]


def test_a_family_without_an_address_has_no_peers() -> None:
    edits = {f"hosts.{name}.moat_address6": REMOVE for name in ("app1", "app3")}
    found = rules(compiled(edits), "gpu1")
    for rule_id in ("in-link", "out-link"):
        assert found[rule_id]["peers4"] == ["10.110.0.11/32", "10.110.0.13/32"] and found[rule_id]["peers6"] == []


def test_long_names_keep_their_rules_apart() -> None:
    names = [f"{'c' * 55}-{index}" for index in range(2)]
    edits = {
        f"{P}.clients.{name}": {"hosts": "app2", "users": ["a"], "port": 9000 + index, "models": ["xray-7b"]}
        for index, name in enumerate(names)
    }
    edits_plan = compiled(edits)
    check_plan(*sample(edits), edits_plan.to_dict())
    local = [name for name in rules(edits_plan, "app2") if name.startswith("local-connector-")]
    assert len(local) == 2 and all(len(name) <= 48 for name in local)


def test_words_name_who_what_and_the_rules(plan: Plan) -> None:
    lines = "\n".join(plan.words("gpu1"))
    assert "client portal on app1 may use model xray-7b of gpu1, at most 20 requests/s, burst 40, 16 at once" in lines
    assert "client batch on app3 may use model notes-1b of gpu1, at most" in lines
    assert lines.count("[in-link, out-link, in-gateway]") == 2
    assert "Everything else to, from and through gpu1 is denied, IPv4 and IPv6." in lines
    lines = "\n".join(plan.words("app3"))
    assert "client batch on app3 may use model notes-1b of gpu1 [in-link, out-link, out-gateway]." in lines
    assert "http://127.0.0.1:8081; other users may not [local-connector-batch]" in lines
    assert "the gateways (10.120.0.11/32" in "\n".join(plan.words("ca1"))


def test_every_rule_is_named_in_the_words(plan: Plan) -> None:
    for name in NAMES:
        text = "\n".join(plan.words(name))
        for rule in plan.host(name)["firewall"]["rules"]:
            assert rule["id"] in text, (name, rule["id"])


def test_a_long_list_is_cut_with_its_length() -> None:
    edits = {f"hosts.app{i}": {"moat_segment": "app", "moat_address4": f"10.110.0.{i}"} for i in range(20, 30)}
    edits[f"{P}.clients.portal.hosts"] = ["app1", *(f"app{i}" for i in range(20, 30))]
    assert any("and 5 more" in line for line in compiled(edits).words("gpu1"))
