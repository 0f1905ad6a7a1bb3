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
    assert "elements = { 10.120.0.11, 10.120.0.12 }" in text
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


def test_elements_change_in_one_transaction():
    text = nft.elements_change(POLICY, ["in-admin-ssh_6", "out-link_4"])
    assert text.splitlines() == [
        "flush set inet moat in-admin-ssh_6",
        "add element inet moat in-admin-ssh_6 { fd00:90::/124 }",
        "flush set inet moat out-link_4",
        "add element inet moat out-link_4 { 10.120.0.11, 10.120.0.12 }",
    ]


def of_peers(*peers):
    return Policy((), (Rule("a", "input", "tcp", (22,), nets(*peers)),), "6/minute")


def live_set(*members):
    return nft.Listing({}, {}, {"a_4": list(members)})


def test_single_hosts_are_added_and_deleted_one_by_one():
    text = nft.elements_change(of_peers("10.0.0.1", "10.0.0.9", "10.0.0.10"), ["a_4"], live_set("10.0.0.1", "10.0.0.2"))
    assert text.splitlines() == [
        "delete element inet moat a_4 { 10.0.0.2 }",
        "add element inet moat a_4 { 10.0.0.10, 10.0.0.9 }",
    ]
    text = nft.elements_change(of_peers("10.0.0.1"), ["a_4"], live_set("10.0.0.1", "10.0.0.2"))
    assert text == "delete element inet moat a_4 { 10.0.0.2 }\n"


@pytest.mark.parametrize(
    ("peers", "members"),
    [
        (("10.0.0.1", "10.1.0.0/16"), ("10.0.0.1",)),  # networks
        (("10.0.0.1",), ()),  # emptied by hand
        (("10.0.0.1",), ({"elem": {"val": "10.0.0.1", "comment": "by hand"}},)),
    ],
)
def test_other_sets_are_replaced(peers, members):
    lines = nft.elements_change(of_peers(*peers), ["a_4"], live_set(*members)).splitlines()
    assert lines == ["flush set inet moat a_4", f"add element inet moat a_4 {{ {', '.join(peers)} }}"]


def test_a_set_gets_back_what_it_had():
    member = {"prefix": {"addr": "10.2.0.0", "len": 24}}
    live = live_set("10.0.0.1", member, {"range": ["10.3.0.1", "10.3.0.5"]}, {"elem": {"val": member, "comment": "x"}})
    assert nft.elements_undo(live, ["a_4"]).splitlines() == [
        "flush set inet moat a_4",
        "add element inet moat a_4 { 10.0.0.1, 10.2.0.0/24, 10.3.0.1-10.3.0.5, 10.2.0.0/24 }",
    ]
    assert nft.elements_undo(live_set(), ["a_4"]) == "flush set inet moat a_4\n"


def test_only_a_set_with_a_network_is_one_of_intervals():
    singles, mixed = nft.ruleset(of_peers("10.0.0.2", "10.0.0.1")), nft.ruleset(of_peers("10.0.0.0/24", "10.0.1.1"))
    assert "\tset a_4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1, 10.0.0.2 }\n\t}\n" in singles
    assert "\t\tflags interval\n\t\tauto-merge\n\t\telements = { 10.0.0.0/24, 10.0.1.1 }\n" in mixed


def test_what_lies_in_another_network_says_nothing_new():
    peers = ("10.0.0.0/8", "10.0.0.0/24", "10.255.255.255", "11.0.0.0", "11.0.0.0")
    assert of_peers(*peers).rules[0].members(4) == ["10.0.0.0/8", "11.0.0.0"]


def test_addresses_are_written_as_the_kernel_lists_them():
    rule = Rule("a", "input", "tcp", (22,), nets("fd00:0::0005", "::ffff:0a00:0001", "fd00::10"))
    assert rule.hosts(6) == ("::ffff:10.0.0.1", "fd00::5", "fd00::10")


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


def test_the_candidate_is_the_ruleset_without_members():
    policy = of_peers("10.0.0.0/24", "10.0.1.1")
    text = nft.candidate(policy)
    assert "elements" not in text
    assert [line for line in nft.ruleset(policy).splitlines() if "elements" not in line] == text.splitlines()
    empty = nft.Listing({}, {}, {"a_4": [], "handover_4": []})
    assert nft.complete(empty, policy).elements == {"a_4": ["10.0.0.0/24", "10.0.1.1"], "handover_4": []}


PREFIX = {"prefix": {"addr": "10.0.0.0", "len": 24}}


@pytest.mark.parametrize(
    ("peers", "members", "kind"),
    [
        (("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"), "none"),
        (("10.0.0.1", "10.0.0.2"), ("10.0.0.1", "10.0.0.3"), "elements"),
        (("10.0.0.1", "10.0.0.2"), ("10.0.0.1",), "elements"),
        (("10.0.0.1",), ({"elem": {"val": "10.0.0.1", "comment": "by hand"}},), "elements"),
        # as the kernel merges them
        (("10.0.0.0/25", "10.0.0.128/25"), (PREFIX,), "none"),
        (("10.0.0.0/24", "10.0.1.0", "10.9.0.0"), ({"range": ["10.0.0.0", "10.0.1.0"]}, "10.9.0.0"), "none"),
        (("10.0.0.0/24", "10.0.1.0"), (PREFIX,), "elements"),
        (("10.0.0.0/24",), (PREFIX, "10.0.1.0"), "elements"),
        (("10.0.0.0/24",), (), "elements"),
        (("10.0.0.0/25", "10.0.0.128/25", "10.9.0.0"), ("10.9.0.0", PREFIX), "none"),
        (("10.0.0.0/24", "10.9.0.0"), (PREFIX, "10.8.0.0"), "elements"),
        (("10.0.0.0", "10.0.0.1", "10.9.0.0/16"), ({"range": ["10.0.0.0", "10.0.0.1"]}, "10.8.0.0"), "elements"),
        (("10.0.0.0/24",), ({"concat": ["10.0.0.0", 5]},), "elements"),
    ],
)
def test_members_are_compared_by_what_they_admit(peers, members, kind):
    candidate = nft.complete(nft.Listing({}, {}, {"a_4": []}), of_peers(*peers))
    assert nft.compare(live_set(*members), candidate).kind == kind


def test_two_listings_can_be_compared_as_well():
    commented = {"elem": {"val": "10.0.0.1", "comment": "by hand"}}
    for members in ((PREFIX, "10.0.1.0"), (commented,), ()):
        assert nft.compare(live_set(*members), live_set(*members)).kind == "none"
        assert nft.compare(live_set(*members), live_set("10.7.0.0")).kind == "elements"


def counted(chain_name, comment, packets, right=None):
    expr = [{"counter": {"packets": packets, "bytes": packets * 60}}, {"accept": None}]
    if right is not None:
        expr.insert(
            0, {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": right}}
        )
    return {"rule": {"family": "inet", "table": "moat", "chain": chain_name, "comment": comment, "expr": expr}}


def test_rules_that_stay_keep_their_counters():
    live = listing(
        [
            counted("input", "in-admin-ssh", 6, "@in-admin-ssh_6"),
            counted("forward", "extra-web", 80, "@extra-web_4"),
            counted("forward", "extra-web", 443, "@extra-web_4"),
            counted("input", "deny-input", 9),
            counted("output", "gone", 7),
            {
                "rule": {
                    "family": "inet",
                    "table": "moat",
                    "chain": "input",
                    "expr": [{"counter": {"packets": 3, "bytes": 4}}],
                }
            },
        ]
    )
    text = nft.carry_counters(nft.ruleset(POLICY), live)
    tail = 'counter packets {} bytes {} accept comment "{}"'
    lines = chain(text, "input")
    # the rule of IPv4 came before that of IPv6, and is new
    assert "ip saddr @in-admin-ssh_4 tcp dport 22 " + tail.format(0, 0, "in-admin-ssh") in lines
    assert "ip6 saddr @in-admin-ssh_6 tcp dport 22 " + tail.format(6, 360, "in-admin-ssh") in lines
    assert 'counter packets 9 bytes 540 drop comment "deny-input"' in lines
    for port in (80, 443):
        match = f"ip saddr @extra-web_4 meta l4proto tcp ct original proto-dst {port} "
        assert match + tail.format(port, port * 60, "extra-web") in chain(text, "forward")
    assert 'counter packets 0 bytes 0 drop comment "deny-output"' in chain(text, "output")
    assert re.sub(r" packets \d+ bytes \d+", "", text) == nft.ruleset(POLICY)


def test_a_listing_without_counters_leaves_the_ruleset_alone():
    text = nft.ruleset(POLICY)
    assert nft.carry_counters(text, None) == text
    assert nft.carry_counters(text, nft.Listing({}, {}, {})) == text


def test_no_table_is_a_difference_of_the_table():
    assert nft.compare(None, listing(LISTED)) == nft.Difference("table")


def test_the_diff_shows_nothing_that_expires():
    kept = "\tset a_4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }\n\t}\n"
    head = "\tset handover_4 {\n\t\ttype ipv4_addr . inet_service\n\t\ttimeout 5m\n"
    members = "\t\telements = { 10.0.0.9 . 5 expires 4m,\n\t\t\t     10.0.0.9 . 6 expires 4m }\n"
    assert nft.without_transient(kept + head + members + "\t}\n") == kept + head + "\t}\n"


RATED = Rule("in-egress", "input", "tcp", (3128,), nets("10.1.0.1", "fd00::1"), "eth0", rate="100/second")


def test_a_rate_is_measured_for_each_address_before_the_rule_admits_it():
    lines = chain(nft.ruleset(Policy((), (SSH, RATED), "6/minute")), "input")
    for version, proto, own in ((4, "ip", "in-egress_rate_4"), (6, "ip6", "in-egress_rate_6")):
        match = f'iifname "eth0" {proto} saddr @in-egress_{version} tcp dport 3128'
        limit = f"update @{own} {{ {proto} saddr limit rate over 100/second burst 500 packets }}"
        measured = lines.index(f"{match} {limit} jump rate")
        assert measured < lines.index(f'{match} counter accept comment "in-egress"')
        assert measured > lines.index('ct state established counter accept comment "allow-established-input"')


def test_what_is_over_the_rate_is_counted_logged_and_dropped():
    text = nft.ruleset(Policy((), (SSH, RATED), "6/minute"))
    assert chain(text, "rate") == [
        'limit rate 6/minute burst 5 packets log prefix "moat deny-rate " level info',
        'counter drop comment "deny-rate"',
    ]
    (measures,) = re.findall(r"\tset in-egress_rate_6 {\n(.*?)\n\t}", text, re.S)
    assert measures.split() == ["type", "ipv6_addr", "size", "65535", "flags", "dynamic,timeout", "timeout", "1m"]
    assert "rate_" not in nft.ruleset(POLICY) and "chain rate" not in nft.ruleset(POLICY)
    assert "rate" not in nft.minimal(Policy((), (SSH, RATED), "6/minute"))
