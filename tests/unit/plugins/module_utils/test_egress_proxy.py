# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import copy
import json
import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import egress_proxy, egress_proxy_inputs

SETTINGS: dict[str, Any] = {
    "port": 3128,
    "addresses": ["10.130.0.10", "FD00:130:0::10"],
    "sources": [
        {
            "name": "gpu1",
            "addresses": ["10.120.0.11", "fd00:120::11"],
            "allow": [
                {"host": "*.wild.example.org", "ports": [443], "rule": "egress-1"},
                {"host": "packages.example.org", "ports": [443, 80], "rule": "egress-0"},
            ],
        },
        {
            "name": "gpu2",
            "addresses": ["10.120.0.12"],
            "allow": [{"host": "Packages.example.org", "ports": [80, 443], "rule": "egress-0"}],
        },
        {"name": "idle", "addresses": ["10.120.0.13"], "allow": []},
    ],
    "to": ["203.0.113.0/24", "2001:db8:113::/64"],
    "refused": [],
    "resolvers": ["203.0.113.53"],
    "parents": [],
    "upload_limit": "10 MB",
    "connections": 64,
    "workers": 2,
    "extra_config": "",
}


def settings(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SETTINGS), **changes}


def written(**changes: Any) -> list[str]:
    (file,) = egress_proxy.files(settings(**changes), "proxy")
    return str(file["content"]).splitlines()


def faults(**changes: Any) -> list[str]:
    return egress_proxy_inputs.faults(egress_proxy_inputs.normalised(settings(**changes)))


def refused(text: str, to: list[str], more: list[str] | None = None) -> bool:
    address = ip_address(text)
    networks = map(ip_network, egress_proxy.beyond(to, more or []))
    return any(address in network for network in networks if network.version == address.version)


def test_one_way_for_all_who_share_it_and_names_before_wildcards() -> None:
    ways = egress_proxy.ways(egress_proxy_inputs.normalised(SETTINGS)["sources"])
    assert [(way.rule, way.host, way.ports) for way in ways] == [
        ("egress-0", "packages.example.org", (80, 443)),
        ("egress-1", "*.wild.example.org", (443,)),
    ]
    assert ways[0].sources == ("10.120.0.11", "10.120.0.12", "fd00:120::11")
    assert ways[1].sources == ("10.120.0.11", "fd00:120::11")


def test_a_rule_with_other_ports_at_another_host_is_a_way_of_its_own() -> None:
    allow = {"host": "packages.example.org", "rule": "egress-0"}
    sources = [
        {"name": "a", "addresses": ["10.0.0.1"], "allow": [{**allow, "ports": [443]}]},
        {"name": "b", "addresses": ["10.0.0.2"], "allow": [{**allow, "ports": [80]}]},
    ]
    assert [(way.ports, way.sources) for way in egress_proxy.ways(sources)] == [
        ((443,), ("10.0.0.1",)),
        ((80,), ("10.0.0.2",)),
    ]


@pytest.mark.parametrize(
    ("host", "matched", "others"),
    [
        (
            "packages.example.org",
            ["packages.example.org"],
            [
                "xpackages.example.org",
                "packages.example.org.evil",
                "packagesxexample.org",
                "*.example.org",
                "x.packages.example.org",
            ],
        ),
        (
            "*.example.org",
            ["a.example.org", "a.b.example.org"],
            ["example.org", ".example.org", "aexample.org", "*.example.org"],
        ),
    ],
)
def test_a_name_is_matched_as_a_whole(host: str, matched: list[str], others: list[str]) -> None:
    pattern = re.compile(egress_proxy.pattern(host), re.IGNORECASE)
    assert all(pattern.search(name) for name in matched)
    assert not any(pattern.search(name) for name in others)


@pytest.mark.parametrize(
    "text",
    [
        "203.0.113.81",
        "3405803857",
        "0xcb007151",
        "0XCB007151",
        "0313.0.0161.0121",
        "203.0.29009",
        "203.0.113.81.",
        "127.1",
        "a.0x7f",
        "1",
        "[2001:db8::1]",
        "::1",
    ],
)
def test_every_notation_of_an_address_is_seen(text: str) -> None:
    line = next(line for line in written() if line.startswith("acl literal "))
    patterns = line.partition(" -i ")[2].split()
    assert any(re.search(item, text, re.IGNORECASE) for item in patterns)
    assert not any(re.search(item, name) for item in patterns for name in ("a1.example.org", "0x.example.org", "1.org"))


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "203.0.113.9",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "64:ff9b::a00:1",
        "2002:a00:1::1",
        "2001::1",
        "2001:db8::1",
        "2620:4f:8000::1",
        "ff02::1",
        # where Azure hands out credentials: it lies among public addresses
        "168.63.129.16",
    ],
)
def test_by_default_only_public_addresses_are_reached(text: str) -> None:
    assert refused(text, [])


@pytest.mark.parametrize(
    "text", ["1.1.1.1", "168.63.129.15", "172.32.0.1", "223.255.255.255", "2606:4700::1111", "2a00:1450::1"]
)
def test_public_addresses_are_reached(text: str) -> None:
    assert not refused(text, [])
    assert refused(text, ["203.0.113.0/24", "2001:db8:113::/64"])
    assert refused(text, [], [f"{text}/{32 if '.' in text else 128}"])


def test_what_is_named_is_reached_and_nothing_else() -> None:
    to = ["203.0.113.0/24", "10.50.0.0/24"]
    assert not refused("203.0.113.81", to) and not refused("10.50.0.9", to)
    assert refused("10.50.1.1", to) and refused("2606:4700::1111", to)
    assert refused("203.0.113.7", to, ["203.0.113.0/29"])


@pytest.mark.parametrize("to", [[], ["203.0.113.0/24"], ["2001:db8:113::/64"], ["0.0.0.0/0", "::/0"]])
def test_no_network_stands_for_all_of_ipv4(to: list[str]) -> None:
    """Squid keeps 10.0.0.1 as ::ffff:10.0.0.1, and would find it in ::/3."""
    networks = [ip_network(item) for item in egress_proxy.beyond(to, ["::/1"])]
    assert not any(network.overlaps(ip_network("::ffff:0:0/96")) for network in networks if network.version == 6)
    for version in (4, 6):
        own = [network for network in networks if network.version == version]
        assert all(not a.overlaps(b) for i, a in enumerate(own) for b in own[i + 1 :]), (
            "Squid drops one of two that overlap"
        )


def test_nothing_is_let_through_by_default() -> None:
    lines = written()
    access = [line for line in lines if line.startswith("http_access ")]
    assert access[-1] == "http_access deny all"
    assert [line for line in lines if line.startswith("miss_access ")] == [
        "miss_access allow allowed",
        "miss_access deny all",
    ]
    assert [line for line in lines if line.startswith("ssl_bump ")][-1] == "ssl_bump terminate all"
    assert not [line for line in lines if re.match(r"ssl_bump (bump|stare|none)", line)]


def test_a_name_is_resolved_only_when_it_is_listed() -> None:
    access = [line for line in written() if line.startswith("http_access ")]
    first = next(index for index, line in enumerate(access) if " beyond" in line)
    assert access.index("http_access deny !listed refuse-name") < first
    assert all(" -n " in line for line in written() if "dstdom" in line)


def test_every_refusal_comes_with_its_rule() -> None:
    lines = written()
    for line in lines:
        if line.startswith("http_access deny ") and not line.endswith((" !all", " deny all")):
            reason = line.rpartition(" refuse-")[2]
            assert f"acl refuse-{reason} annotate_transaction verdict=deny rule=deny-{reason}" in lines


def test_tls_passes_only_with_the_name_of_the_rule_that_let_connect_through() -> None:
    lines = written()
    assert "ssl_bump splice way-0 sni-0 passed" in lines
    assert r"acl sni-0 ssl::server_name_regex --client-requested -i ^packages\.example\.org$" in lines
    # --client-requested takes the name in CONNECT when TLS names none
    assert lines.index("ssl_bump terminate read-sni no-sni refuse-sni") < lines.index(
        "ssl_bump splice way-0 sni-0 passed"
    )


def test_the_log_is_json() -> None:
    formats = [line.split(" ", 2) for line in written() if line.startswith("logformat ")]
    assert {name for _word, name, _text in formats} == {"http", "tunnel", "malformed", "upload"}
    for _word, _name, text in formats:
        fields = json.loads(re.sub(r':%[^",}]+', ":1", text))
        assert {"time", "rule", "verdict", "source", "address", "host", "port", "sni"} <= set(fields)
        # what a client can choose is escaped
        assert fields["method"].startswith("%#") and fields["host"].startswith("%#") and fields["sni"].startswith("%#")


def test_parents_are_the_only_way_when_there_are_any() -> None:
    assert "never_direct allow beyond" in written()
    lines = written(parents=[{"address": "fd00::1"}, {"address": "10.0.0.1", "port": "8080"}])
    assert "never_direct allow all" in lines and "never_direct allow beyond" not in lines
    peers = [line for line in lines if line.startswith("cache_peer ")]
    assert peers[0].startswith("cache_peer fd00::1 parent 3128 0 ") and peers[1].startswith(
        "cache_peer 10.0.0.1 parent 8080 0 "
    )


def test_what_is_empty_or_null_is_left_out() -> None:
    lines = written(upload_limit=None, extra_config=None, parents=None, refused=None)
    assert not [line for line in lines if line.startswith(("request_body_max_size", "cache_peer"))]
    assert "request_body_max_size 10 MB" in written()
    assert written(extra_config="via on\n")[-1] == "via on"


def test_the_file_is_checked_before_it_is_used() -> None:
    (file,) = egress_proxy.files(settings(), "squid")
    assert (file["mode"], file["group"]) == ("0640", "squid")
    assert file["validate"][:2] == ["/bin/sh", "-c"] and "%s" in file["validate"]
    assert "squid -k parse" in file["validate"][2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"port": 443}, "egress_proxy_port is 443"),
        ({"workers": 1}, "egress_proxy_workers is 1"),
        ({"connections": 0}, "egress_proxy_connections is 0"),
        ({"addresses": []}, "egress_proxy_addresses is empty"),
        ({"addresses": ["0.0.0.0"]}, "egress_proxy_addresses has '0.0.0.0'"),
        ({"resolvers": []}, "egress_proxy_resolvers is empty"),
        ({"resolvers": ["dns.example.org"]}, "egress_proxy_resolvers has 'dns.example.org'"),
        ({"to": ["203.0.113.1/24"]}, "egress_proxy_to has '203.0.113.1/24'"),
        ({"upload_limit": "10"}, "egress_proxy_upload_limit is '10'"),
        ({"parents": [{"address": "proxy.example.org"}]}, r"egress_proxy_parents\[0\].address"),
        ({"parents": [{"address": "10.0.0.1", "port": 70000}]}, r"egress_proxy_parents\[0\].port has 70000"),
    ],
)
def test_faults_name_the_key(changes: dict[str, Any], words: str) -> None:
    found = faults(**changes)
    assert len(found) == 1 and re.search(words, found[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "gpu1\nacl x"}, "write the name of a host"),
        ({"name": "gpu2"}, "gpu2 is there twice"),
        ({"addresses": ["10.120.0.12"]}, "has 10.120.0.12, which"),
        ({"allow": [{"host": "203.0.113.1", "rule": "egress-0"}]}, "never an address"),
        ({"allow": [{"host": "a.example.0x1", "rule": "egress-0"}]}, "never an address"),
        ({"allow": [{"host": "example", "rule": "egress-0"}]}, "write a name such as"),
        ({"allow": [{"host": "*.*.example.org", "rule": "egress-0"}]}, "write a name such as"),
        ({"allow": [{"host": "a.example.org", "rule": "deny-name"}]}, "not one of a refusal"),
        ({"allow": [{"host": "a.example.org", "rule": "egress-0", "ports": [0]}]}, "from 1 to 65535"),
    ],
)
def test_faults_of_sources_name_the_source(changes: dict[str, Any], words: str) -> None:
    sources = copy.deepcopy(SETTINGS["sources"])
    sources[0].update(changes)
    assert any(words in fault for fault in faults(sources=sources))


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(egress_proxy_inputs.EgressProxyError, match=r"(?s)egress_proxy_port.*egress_proxy_to"):
        egress_proxy.files(settings(port=1, to=["x"]))


def test_the_example_has_no_fault() -> None:
    assert faults() == []
