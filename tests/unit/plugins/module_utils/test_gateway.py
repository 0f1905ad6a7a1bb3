from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gateway, gateway_inputs

SETTINGS: dict[str, Any] = {
    "port": 8443,
    "addresses": ["100.120.0.11", "fd00:200:0::0b"],
    "certificate": "gateway",
    "models": [
        {"name": "xray-7b", "prefix": "/xray-7b", "socket": "/run/moat-model/xray-7b/engine.sock"},
        {"name": "notes-1b", "prefix": "/notes", "socket": "/run/moat-model/notes-1b/engine.sock"},
    ],
    "clients": [
        {
            "name": "portal",
            "addresses": ["100.110.0.11", "FD00:200::C"],
            "models": ["xray-7b"],
            "limits": {"requests_per_second": 20, "burst": 40, "concurrent": 16},
        },
        {
            "name": "batch",
            "addresses": ["100.110.0.13"],
            "models": ["notes-1b"],
            "limits": {"requests_per_second": 3, "burst": 10, "concurrent": 2},
        },
    ],
    "endpoints": [{"path": "/v1/models", "methods": ["GET"]}, {"path": "/v1/files", "methods": ["GET", "POST"]}],
    "metrics": {"port": 9101, "addresses": ["10.120.0.11"], "peers": ["10.90.0.0/28", "fd00:90::/124"]},
    "connections": 4096,
    "threads": 4,
    "timeout": 3600,
    "drain_timeout": 1800,
}


def settings(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SETTINGS), **changes}


def client(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SETTINGS["clients"][0]), **changes}


def pairs(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def section(text: str, head: str) -> list[str]:
    lines = text.splitlines()
    start = lines.index(head) + 1
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("    ")), len(lines))
    return [line.strip() for line in lines[start:end]]


def test_the_example_has_no_fault() -> None:
    assert gateway_inputs.faults(gateway_inputs.normalised(SETTINGS)) == []


def test_maps_hold_what_was_declared_and_nothing_else() -> None:
    maps = {name: pairs(text) for name, text in gateway.maps(SETTINGS).items()}
    assert maps["clients.map"] == {"portal": "portal", "batch": "batch"}
    assert set(maps["grants.map"]) == {"portal@xray-7b", "batch@notes-1b"}
    # addresses in the form in which HAProxy writes a source address
    assert set(maps["addresses.map"]) == {"portal@100.110.0.11", "portal@fd00:200::c", "batch@100.110.0.13"}
    assert maps["models.map"] == {"xray-7b": "xray-7b", "notes": "notes-1b"}
    assert maps["paths.map"] == {
        "/xray-7b/ready": "ready",
        "/notes/ready": "ready",
        "/xray-7b/v1/models": "/v1/models",
        "/xray-7b/v1/files": "/v1/files",
        "/notes/v1/models": "/v1/models",
        "/notes/v1/files": "/v1/files",
    }
    assert set(maps["requests.map"]) == {"GET@ready", "GET@/v1/models", "GET@/v1/files", "POST@/v1/files"}
    assert maps["methods.map"] == {"ready": "GET", "/v1/models": "GET", "/v1/files": "GET,POST"}
    assert maps["limits.map"] == {"portal": "2000/40/16/2", "batch": "3334/10/2/4"}


@pytest.mark.parametrize(
    ("rate", "burst", "expected"),
    [
        (20, 40, (2000, 40, 1, 2)),
        (1, 1, (1000, 1, 1, 1)),
        (1, 600, (600000, 600, 1, 600)),
        (3, 10, (3334, 10, 1, 4)),
        # less than a millisecond's worth: the shortest window there is, at the same rate
        (1000000, 1, (1, 1000, 1, 1)),
    ],
)
def test_window_holds_rate_and_burst(rate: int, burst: int, expected: tuple[int, ...]) -> None:
    limits = {"requests_per_second": rate, "burst": burst, "concurrent": 1}
    window, count, concurrent, wait = gateway.limits_of({"limits": limits})
    assert (window, count, concurrent, wait) == expected
    assert count * 1000 <= rate * window


def test_each_window_has_one_table_and_one_rule() -> None:
    same = client(name="twin", limits={"requests_per_second": 10, "burst": 20, "concurrent": 1})
    text = gateway.configuration(settings(clients=[*SETTINGS["clients"], same]))
    assert sorted(re.findall(r"^backend (limits-\d+)$", text, re.M)) == ["limits-2000", "limits-3334"]
    assert sorted(re.findall(r"track-sc0 var\(txn.client\) table (\S+)", text)) == ["limits-2000", "limits-3334"]
    assert "size 18 " in section(text, "backend limits-2000")[0]


def test_listeners_are_those_addresses_with_mutual_tls() -> None:
    text = gateway.configuration(SETTINGS)
    binds = [line for line in text.splitlines() if line.strip().startswith("bind ")]
    assert [line.split()[1] for line in binds] == [
        "ipv4@100.120.0.11:8443",
        "ipv6@[fd00:200::b]:8443",
        "ipv4@10.120.0.11:9101",
    ]
    for line in binds[:2]:
        assert "ca-file /etc/moat/tls/gateway/root.pem verify required ssl-min-ver TLSv1.3 no-tls-tickets" in line
        assert "crt-ignore-err" not in line and "ca-ignore-err" not in line
    assert "tune.ssl.cachesize 0" in text


def test_every_rule_of_the_order_comes_before_the_request_is_forwarded() -> None:
    lines = section(gateway.configuration(SETTINGS), "frontend gateway")
    order = [
        next(i for i, line in enumerate(lines) if f"str({rule})" in line)
        for rule in (
            "deny-identity",
            "deny-address",
            "deny-path",
            "deny-model",
            "deny-method",
            "deny-concurrent",
            "deny-rate",
        )
    ]
    assert order == sorted(order)
    forward = next(i for i, line in enumerate(lines) if line.startswith("use_backend"))
    assert order[-1] < forward and forward == len(lines) - 1
    set_client = lines.index("http-request set-header X-Moat-Client %[var(txn.client)]")
    assert lines.index("http-request del-header x-moat- -m beg") < set_client < forward
    assert "http-request del-header authorization" in lines


def test_every_refusal_is_answered() -> None:
    lines = section(gateway.configuration(SETTINGS), "frontend gateway")
    for index, line in enumerate(lines):
        found = re.match(r"http-request set-var\(txn.rule\) str\((deny-[a-z]+)\) (if|unless) ", line)
        if found:
            assert (
                lines[index + 1] == f"http-request use-service lua.moat_refuse if {{ var(txn.rule) -m str {found[1]} }}"
            )
    assert sum("str(deny-" in line for line in lines) == 8


def test_metrics_only_where_and_for_whom_they_are_asked() -> None:
    lines = section(gateway.configuration(SETTINGS), "frontend metrics")
    assert "tcp-request connection reject unless { src 10.90.0.0/28 fd00:90::/124 }" in lines
    for without in ({}, {"port": None, "addresses": [], "peers": []}):
        assert "frontend metrics" not in gateway.files(settings(metrics=without), "", "haproxy")[-1]["content"]


def test_the_log_is_json_and_holds_nothing_that_carries_a_prompt() -> None:
    lines = section(gateway.configuration(SETTINGS), "frontend gateway")
    for name in ("log-format", "error-log-format"):
        template = next(line for line in lines if line.startswith(name + " "))[len(name) + 2 : -1]
        filled = re.sub(r"%\[[^]]*\]|%[A-Za-z]+", "1", template)
        assert json.loads(filled)["rule"]
        assert not re.search(r"query|url|capture|hdr|body|%HU|%HQ|%r\b", template)


def test_error_pages_are_openai_errors() -> None:
    lines = [line for line in section(gateway.configuration(SETTINGS), "defaults") if line.startswith("http-error ")]
    assert len(lines) == len(gateway.ERRORS)
    for line in lines:
        error = json.loads(line.split(" string ")[1].strip("'"))["error"]
        assert set(error) == {"message", "type", "param", "code"}


def test_no_model_no_client() -> None:
    empty = gateway.files(settings(models=[], clients=[], metrics={}), "", "haproxy")
    assert pairs({item["path"]: item["content"] for item in empty}["/etc/moat/gateway/clients.map"]) == {}


def test_an_identity_has_connections_of_its_own_at_an_address() -> None:
    assert pairs(gateway.maps(SETTINGS)["connections.map"]) == {"portal": "96", "batch": "68"}
    lines = section(gateway.configuration(gateway_inputs.normalised(SETTINGS)), "frontend gateway")
    track = lines.index("tcp-request session track-sc2 var(sess.caller) table callers")
    assert lines[track + 1] == "tcp-request session reject if { sc_conn_cur(2),sub(sess.most) gt 0 }"


def test_connections_of_an_address_follow_the_limits_of_all_its_identities() -> None:
    twin = client(name="twin", addresses=["100.110.0.11"])
    assert gateway_inputs.connections_per_address([SETTINGS["clients"][0], twin]) == 2 * (64 + 2 * 16)
    assert gateway_inputs.connections_per_address([]) == 64


def test_files_are_ready_for_deploy() -> None:
    files = gateway.files(SETTINGS, "-- lua", "www")
    assert files[-1]["path"] == "/etc/moat/gateway/haproxy.cfg"
    assert files[-1]["validate"] == ["/usr/sbin/haproxy", "-c", "-f", "%s"]
    assert {item["mode"] for item in files} == {"0640"} and {item["group"] for item in files} == {"www"}
    named = set(re.findall(r"/etc/moat/gateway/[a-z]+\.(?:map|lua)", files[-1]["content"]))
    assert named == {item["path"] for item in files[:-1]}


def test_text_counts_as_the_number_it_is() -> None:
    text = copy.deepcopy(SETTINGS)
    text["port"], text["threads"], text["metrics"]["port"] = "8443", "4", "9101"
    text["clients"][0]["limits"] = {"requests_per_second": "20", "burst": "40", "concurrent": "16"}
    assert gateway.files(text, "", "haproxy") == gateway.files(SETTINGS, "", "haproxy")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"port": 0}, "gateway_port is 0"),
        ({"threads": 65}, "gateway_threads is 65"),
        ({"addresses": []}, "gateway_addresses is empty"),
        ({"addresses": ["0.0.0.0"]}, "gateway_addresses has '0.0.0.0'"),
        ({"addresses": ["::"]}, "gateway_addresses has '::'"),
        ({"addresses": ["10.0.0.1/32"]}, "without a prefix length"),
        ({"addresses": ["fe80::1%eth0 ssl verify none"]}, "scoped"),
        ({"addresses": ["10.0.0.1", "10.0.0.1"]}, "'10.0.0.1' is there twice"),
        ({"certificate": "../ca"}, "gateway_certificate is '../ca'"),
        ({"models": [{"name": "X", "prefix": "/x", "socket": "/s"}], "clients": []}, "gateway_models[X].name"),
        ({"models": [{"name": "x", "prefix": "/a/b", "socket": "/s"}], "clients": []}, "gateway_models[x].prefix"),
        ({"models": [{"name": "x", "prefix": "/..", "socket": "/s"}], "clients": []}, "gateway_models[x].prefix"),
        (
            {"models": [{"name": "x", "prefix": "/x\nbind :1", "socket": "/s"}], "clients": []},
            "gateway_models[x].prefix",
        ),
        (
            {"models": [{"name": "x", "prefix": "/x", "socket": "/s check-ssl"}], "clients": []},
            "gateway_models[x].socket",
        ),
        ({"models": SETTINGS["models"] * 2}, "gateway_models: name 'xray-7b' is there twice"),
        ({"clients": [client(), client()]}, "gateway_clients: name 'portal' is there twice"),
        ({"clients": [client(name="a@b")]}, "gateway_clients[a@b].name"),
        ({"clients": [client(models=["none"])]}, "gateway_clients[portal].models has 'none'"),
        ({"clients": [client(addresses=[])]}, "gateway_clients[portal].addresses is empty"),
        ({"clients": [client(addresses=["::ffff:10.0.0.1"])]}, "mapped"),
        (
            {"clients": [client(limits={"requests_per_second": 0, "burst": 1, "concurrent": 1})]},
            "gateway_clients[portal].limits.requests_per_second is 0",
        ),
        (
            {"clients": [client(limits={"requests_per_second": 1, "burst": 1, "concurrent": 9000})]},
            "gateway_connections is 4096",
        ),
        ({"endpoints": [{"path": "/v1/../metrics", "methods": ["GET"]}]}, "gateway_endpoints[/v1/../metrics].path"),
        ({"endpoints": [{"path": "/v1/%6d", "methods": ["GET"]}]}, "without query, escapes"),
        ({"endpoints": [{"path": "/ready", "methods": ["GET"]}]}, "answered by the gateway itself"),
        ({"endpoints": [{"path": "/v1/a", "methods": []}]}, "methods is empty"),
        ({"endpoints": [{"path": "/v1/a", "methods": ["get"]}]}, "has 'get'"),
        ({"metrics": {"port": 9101, "addresses": ["10.0.0.1"], "peers": []}}, "gateway_metrics.peers is empty"),
        ({"metrics": {"port": 9101, "addresses": ["10.0.0.1"], "peers": ["::/0"]}}, "which is everybody"),
        ({"metrics": {"port": 9101, "addresses": ["10.0.0.1"], "peers": ["10.90.0.1/28"]}}, "host bits zero"),
        ({"metrics": {"port": 9101, "addresses": [], "peers": ["10.90.0.0/28"]}}, "gateway_metrics.addresses is empty"),
        ({"metrics": {"port": 8443, "addresses": ["100.120.0.11"], "peers": ["10.90.0.0/28"]}}, "on the same address"),
    ],
)
def test_each_fault_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(gateway_inputs.GatewayError, match=re.escape(words)):
        gateway.files(settings(**changes), "", "haproxy")


def test_all_faults_come_at_once() -> None:
    with pytest.raises(gateway_inputs.GatewayError) as caught:
        gateway.files(settings(port=0, addresses=[], certificate="a b"), "", "haproxy")
    for word in ("gateway_port", "gateway_addresses", "gateway_certificate"):
        assert word in str(caught.value)
