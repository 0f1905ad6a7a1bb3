# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import copy
import json
import re
from ipaddress import ip_address, ip_network

import pytest
from ansible_collections.moat.inference.plugins.module_utils import firewall_nft as nft
from ansible_collections.moat.inference.plugins.module_utils.firewall_policy import Policy, Rule, Segment


def nets(*texts):
    return tuple(ip_network(text) for text in texts)


SSH = Rule("in-admin-ssh", "input", "tcp", (22,), nets("10.90.0.0/28", "fd00:90::/124"), comment="administration")
LINK = Rule("out-link", "output", "udp", (51820,), nets("10.120.0.11", "10.120.0.12"), "eth0")
PUBLISHED = Rule("extra-web", "forward", "tcp", (80, 443), nets("10.1.0.0/16"), reason="a\nnew line")
LOCAL = Rule("local-batch", "local", "tcp", (8081,), uids=(990, 991))
SEGMENT = Segment("app", "eth0", nets("10.110.0.0/24", "fd00:110::/64"))
POLICY = Policy((SEGMENT,), (SSH, LINK, PUBLISHED, LOCAL), "6/minute")


def chain(text, name):
    body = re.search(rf"\tchain {name} {{\n(.*?)\n\t}}\n", text, re.S)
    assert body, name
    return [line.strip() for line in body.group(1).splitlines()]


def test_only_the_own_table_is_touched():
    text = nft.ruleset(POLICY)
    assert set(re.findall(r"\btable \w+ \w+", text)) == {"table inet moat"}
    assert text.index("table inet moat\n") < text.index("delete table inet moat\n") < text.index("table inet moat {")
    assert "flush ruleset" not in text and "destroy" not in text


@pytest.mark.parametrize("hook", ["input", "forward", "output"])
@pytest.mark.parametrize("policy", [POLICY, Policy((), (), "6/minute")])
def test_every_hook_drops_by_default_and_says_so(hook, policy):
    lines = chain(nft.ruleset(policy), hook)
    assert lines[0] == f"type filter hook {hook} priority filter; policy drop;"
    assert lines[-1] == f'counter drop comment "deny-{hook}"'
    assert lines[-2].startswith(f'limit rate 6/minute burst 5 packets log prefix "moat deny-{hook} "')


def test_every_verdict_has_a_counter_and_an_id_and_no_limit():
    for line in nft.ruleset(POLICY).splitlines():
        if re.search(r"\b(accept|drop|reject)\b", line) and "policy" not in line:
            assert " counter " in f" {line.strip()} "
            assert re.search(r'comment "[a-z0-9-]+"$', line)
            assert "limit rate" not in line


def test_every_deny_is_logged_under_the_same_match():
    for name in ("input", "forward", "output", "local", "spoof"):
        lines = chain(nft.ruleset(POLICY), name)
        denies = [line for line in lines if re.search(r"\b(drop|reject)\b", line) and "policy" not in line]
        assert denies
        for deny in denies:
            log = lines[lines.index(deny) - 1]
            deny_id = re.search(r'comment "(.*)"', deny).group(1)
            assert f'log prefix "moat {deny_id} "' in log
            assert log.split("limit rate")[0] == deny.split("counter")[0]


def test_interfaces_are_named_late_and_no_source_port_admits():
    text = nft.ruleset(POLICY)
    assert not re.search(r"\b[io]if\b", text)
    assert not [line for line in text.splitlines() if "sport" in line and "accept" in line]


def test_rules_become_sets_and_lines():
    text = nft.ruleset(POLICY)
    assert 'ip saddr @in-admin-ssh_4 tcp dport 22 counter accept comment "in-admin-ssh"' in chain(text, "input")
    assert 'ip6 saddr @in-admin-ssh_6 tcp dport 22 counter accept comment "in-admin-ssh"' in chain(text, "input")
    assert 'oifname "eth0" ip daddr @out-link_4 udp dport 51820 counter accept comment "out-link"' in chain(
        text, "output"
    )
    assert "out-link_6" not in text
    asked = "ip saddr @extra-web_4 meta l4proto tcp ct original proto-dst {} counter accept"
    assert [asked.format(port) in text for port in (80, 443)] == [True, True]
    assert "elements = { 10.120.0.11/32, 10.120.0.12/32 }" in text
    assert "# reason: a new line" in chain(text, "forward")


def test_a_local_port_is_for_its_users_and_comes_before_loopback():
    lines = chain(nft.ruleset(POLICY), "local")
    admit = lines.index('tcp dport 8081 meta skuid { 990, 991 } counter accept comment "local-batch"')
    deny = lines.index('tcp dport 8081 counter reject with tcp reset comment "deny-local-batch"')
    assert admit < deny < len(lines) - 1
    assert lines[-1] == 'oifname "lo" counter accept comment "allow-loopback-output"'
    assert chain(nft.ruleset(POLICY), "output")[1] == 'oifname "lo" jump local'


def test_nobody_but_its_listeners_answers_at_a_local_port():
    lines = chain(nft.ruleset(POLICY), "local")
    first = 'tcp sport 8081 tcp flags & syn == syn meta skuid != 0 counter drop comment "deny-listener-local-batch"'
    # an answer belongs to a tracked flow already
    assert lines.index(first) < lines.index('ct state established counter accept comment "allow-established-local"')
    text = nft.ruleset(Policy((), (Rule("local-x", "local", "udp", (53,), uids=(5,), listeners=(6, 7)),), "1/hour"))
    assert 'udp sport 53 meta skuid != { 6, 7 } counter drop comment "deny-listener-local-x"' in chain(text, "local")


def test_a_local_rule_without_users_admits_nobody():
    text = nft.ruleset(Policy((), (Rule("local-x", "local", "udp", (53,)),), "1/hour"))
    assert "skuid {" not in text and 'accept comment "local-x"' not in text
    assert 'udp dport 53 counter reject with icmpx port-unreachable comment "deny-local-x"' in text


def test_neighbour_discovery_needs_hop_limit_255_and_no_segment_has_routers():
    text = nft.ruleset(POLICY)
    lines = [line for line in text.splitlines() if "nd-" in line]
    assert len(lines) == 3
    assert all("ip6 hoplimit 255" in line for line in lines)
    assert next(line for line in lines if "nd-router-advert" in line).strip().startswith('iifname != "eth0" ')
    assert "nd-redirect" not in text


def test_a_segments_addresses_come_by_its_interface_only():
    text = nft.ruleset(POLICY)
    assert 'iifname != "eth0" ip saddr 10.110.0.0/24 counter drop comment "deny-spoof-app-4"' in chain(text, "spoof")
    for name in ("input", "forward"):
        lines = chain(text, name)
        assert lines.index("jump spoof") < next(i for i, line in enumerate(lines) if "ct state established" in line)


def test_the_closed_ruleset_only_adds():
    text = nft.closed()
    assert "delete" not in text and "flush" not in text
    assert text.count("policy drop;") == 3
    assert "accept" not in text


def test_elements_change_in_one_transaction():
    text = nft.elements_change(POLICY, ["in-admin-ssh_6", "out-link_4"])
    assert text.splitlines() == [
        "flush set inet moat in-admin-ssh_6",
        "add element inet moat in-admin-ssh_6 { fd00:90::/124 }",
        "flush set inet moat out-link_4",
        "add element inet moat out-link_4 { 10.120.0.11/32, 10.120.0.12/32 }",
    ]


def test_only_admitted_connections_are_handed_over():
    server = ip_address("10.90.0.131")
    connections = [
        (ip_address("10.90.0.1"), 50000, server, 22),
        (ip_address("10.90.0.1"), 50000, server, 22),
        (ip_address("10.90.0.99"), 50001, server, 22),
        (ip_address("10.90.0.1"), 50002, server, 80),
        (ip_address("127.0.0.1"), 50003, ip_address("127.0.0.1"), 22),
        (ip_address("fd00:90::1"), 50004, ip_address("fd00:90::131"), 22),
    ]
    assert nft.handover(POLICY, connections).splitlines() == [
        "add element inet moat handover_4 { 10.90.0.1 . 50000 }",
        "add element inet moat handover_6 { fd00:90::1 . 50004 }",
    ]


def rule(handle, comment, verdict="accept"):
    return {
        "rule": {
            "family": "inet",
            "table": "moat",
            "chain": "input",
            "handle": handle,
            "comment": comment,
            "expr": [{"counter": {"packets": handle, "bytes": handle}}, {verdict: None}],
        }
    }


LISTED = [
    {"metainfo": {"version": "1.0.6"}},
    {"table": {"family": "inet", "name": "moat", "handle": 2}},
    {
        "set": {
            "family": "inet",
            "name": "a_4",
            "table": "moat",
            "handle": 4,
            "flags": ["interval"],
            "elem": ["10.0.0.1"],
        }
    },
    {
        "set": {
            "family": "inet",
            "name": "handover_4",
            "table": "moat",
            "handle": 5,
            "timeout": 300,
            "elem": [{"elem": {"val": "10.0.0.9", "expires": 7}}],
        }
    },
    {"chain": {"family": "inet", "table": "moat", "name": "input", "handle": 1, "hook": "input", "policy": "drop"}},
    rule(6, "one"),
    rule(7, "two"),
]


def listing(items):
    return nft.parse_listing(json.dumps({"nftables": items}))


def changed(index, path, value):
    items = copy.deepcopy(LISTED)
    inner = items[index]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return items


def test_handles_counters_and_what_expires_are_no_difference():
    items = copy.deepcopy(LISTED)
    for item in items[1:]:
        (value,) = item.values()
        value["handle"] += 40
    items[3]["set"]["elem"] = []
    items[5]["rule"]["expr"][0]["counter"] = None
    assert nft.compare(listing(items), listing(LISTED)) == nft.Difference("none")


def test_order_of_sets_and_chains_is_no_difference_but_of_rules_is():
    assert nft.compare(listing([*LISTED[:2], *reversed(LISTED[2:5]), *LISTED[5:]]), listing(LISTED)).kind == "none"
    assert nft.compare(listing([*LISTED[:5], LISTED[6], LISTED[5]]), listing(LISTED)).kind == "table"


@pytest.mark.parametrize(
    "items",
    [
        LISTED[:-1],
        [*LISTED, rule(9, "three")],
        [*LISTED[:5], rule(8, "zero"), *LISTED[5:]],
        changed(1, ("table", "flags"), "dormant"),
        changed(2, ("set", "flags"), ["interval", "timeout"]),
        changed(4, ("chain", "policy"), "accept"),
        changed(5, ("rule", "expr"), [{"counter": None}, {"drop": None}]),
        changed(5, ("rule", "comment"), "other"),
        [*LISTED, {"chain": {"family": "inet", "table": "moat", "name": "more", "handle": 9}}],
        [*LISTED[:2], *LISTED[3:]],
        [*LISTED, {"map": {"family": "inet", "table": "moat", "name": "m", "handle": 9, "elem": []}}],
    ],
)
def test_every_change_by_hand_is_a_difference_of_the_table(items):
    assert nft.compare(listing(items), listing(LISTED)) == nft.Difference("table")


@pytest.mark.parametrize("members", [["10.0.0.1", "10.0.0.2"], [], ["10.0.0.3"]])
def test_other_elements_are_a_difference_of_elements(members):
    items = changed(2, ("set", "elem"), members)
    assert nft.compare(listing(items), listing(LISTED)) == nft.Difference("elements", ("a_4",))


def test_no_table_is_a_difference_of_the_table():
    assert nft.compare(None, listing(LISTED)) == nft.Difference("table")


def test_the_diff_shows_nothing_that_expires():
    kept = "\tset a_4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }\n\t}\n"
    head = "\tset handover_4 {\n\t\ttype ipv4_addr . inet_service\n\t\ttimeout 5m\n"
    members = "\t\telements = { 10.0.0.9 . 5 expires 4m,\n\t\t\t     10.0.0.9 . 6 expires 4m }\n"
    assert nft.without_transient(kept + head + members + "\t}\n") == kept + head + "\t}\n"
