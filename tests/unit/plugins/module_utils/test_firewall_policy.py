# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import sys
from ipaddress import ip_address

import pytest
from ansible_collections.moat.inference.plugins.module_utils import firewall_policy as policies

SSH = {
    "id": "in-admin-ssh",
    "chain": "input",
    "protocol": "tcp",
    "ports": [22],
    "peers4": ["10.90.0.0/28"],
    "peers6": ["fd00:90::/124"],
    "admin": True,
}
LOCAL = {"id": "local-batch", "chain": "local", "protocol": "tcp", "ports": [8081], "users": ["batch"]}
SEGMENT = {
    "name": "app",
    "interface": None,
    "addresses": ["10.110.0.11", "fd00:110::11"],
    "networks": ["10.110.0.0/24", "fd00:110::/64"],
}
INTERFACES = {"10.110.0.11": "eth0", "fd00:110::11": "eth0", "10.90.0.131": "eth1"}
USERS = {"batch": 990}


def read(rules=(SSH,), extra=(), segments=(SEGMENT,), interfaces=None, rate="10/minute", accept=False):
    options = {
        "rules": list(rules),
        "extra_rules": list(extra),
        "segments": list(segments),
        "interfaces": INTERFACES if interfaces is None else interfaces,
        "log_rate": rate,
    }
    return policies.read_policy(options, USERS.get, accept)


def faults(**options):
    with pytest.raises(policies.PolicyError) as error:
        read(**options)
    return error.value.faults


def test_a_whole_policy_is_read():
    policy = read([SSH, {**SSH, "id": "in-link", "segment": "app"}, LOCAL])
    assert [rule.id for rule in policy.rules] == ["in-admin-ssh", "in-link", "local-batch"]
    assert policy.rules[1].interface == "eth0"
    assert policy.rules[2].uids == (990,)
    assert policy.segments[0].interface == "eth0"
    assert policy.extra == ()
    assert [str(network) for network in policy.rules[0].family(6)] == ["fd00:90::/124"]


def test_all_faults_come_at_once():
    found = faults(rules=[{**SSH, "ports": [0]}, {**LOCAL, "users": ["nobody-here"]}], rate="often")
    assert len(found) == 3
    assert found[0].startswith("rules[0] (in-admin-ssh).ports: 0 is no port")
    assert "has no user 'nobody-here'" in found[1] and "create the user" in found[1]
    assert found[2].startswith("log_rate: 'often' is no rate")


@pytest.mark.parametrize(
    ("change", "key", "word"),
    [
        ({"peers4": ["0.0.0.0/0"]}, ".peers4", "everybody"),
        ({"peers6": ["::/0"]}, ".peers6", "everybody"),
        ({"peers4": ["0.0.0.0/1", "128.0.0.0/1"]}, ".peers4", "everybody"),
        ({"peers4": ["10.90.0.1/28"]}, ".peers4[0]", "'10.90.0.0/28'"),
        ({"peers4": ["fd00::1"]}, ".peers4[0]", "move it to peers6"),
        ({"peers4": ["ten"]}, ".peers4[0]", "is no network"),
        ({"peers4": [], "peers6": []}, "", "neither peers nor users"),
        ({"ports": []}, ".ports", "is empty"),
        ({"ports": [70000]}, ".ports", "1 to 65535"),
        ({"id": "In Admin"}, ".id", "is no id"),
        ({"id": 'x" accept'}, ".id", "is no id"),
        ({"id": "allow-all"}, ".id", "choose another"),
        ({"id": "extra-x"}, ".id", "choose another"),
        ({"segment": "nowhere"}, ".segment", "there are: app"),
        ({"segment": "app", "interface": "eth1"}, "", "keep one"),
        ({"interface": "eth*"}, ".interface", "is no interface name"),
        ({"interface": 'eth0" accept'}, ".interface", "is no interface name"),
        ({"interface": "lo"}, ".interface", "chain local"),
        ({"users": ["batch"]}, "", "no users"),
        ({"chain": "local", "admin": False}, "", "no peers"),
        ({"listeners": ["batch"]}, ".listeners", "no local users"),
    ],
)
def test_a_bad_rule_is_refused_by_its_key(change, key, word):
    rule = {**SSH, **change}
    (fault,) = faults(rules=[rule])
    assert fault.startswith("rules[0] ({}){}: ".format(rule["id"], key))
    assert word in fault


def test_a_local_rule_is_about_loopback_only():
    (fault,) = faults(rules=[{**LOCAL, "segment": "app"}])
    assert "chain local" in fault


def test_root_answers_at_a_local_port_unless_others_are_named():
    policy = read([SSH, LOCAL, {**LOCAL, "id": "local-other", "listeners": ["batch"]}])
    assert [rule.listeners for rule in policy.of_chain("local")] == [(0,), (990,)]
    (fault,) = faults(rules=[{**LOCAL, "listeners": ["nobody-here"]}])
    assert fault.startswith("rules[0] (local-batch).listeners: ")


def test_an_id_is_unique_over_plan_and_hatch():
    (fault,) = faults(rules=[SSH, SSH])
    assert fault.startswith("rules[1] (in-admin-ssh).id: ")
    (fault,) = faults(extra=[{**SSH, "id": "x", "reason": "a"}, {**SSH, "id": "extra-x", "reason": "b"}])
    assert fault.startswith("extra_rules[1] (extra-x).id: ")


def test_an_extra_rule_shows_by_prefix_and_reason():
    policy = read(extra=[{**SSH, "id": "backup", "reason": " until the plan has it "}])
    assert [(rule.id, rule.reason) for rule in policy.extra] == [("extra-backup", "until the plan has it")]


@pytest.mark.parametrize(
    "change", [{"reason": " "}, {"peers4": ["0.0.0.0/0"]}, {"peers6": ["::/0"]}, {"peers4": [], "peers6": []}]
)
def test_an_extra_rule_cannot_open_everything(change):
    (fault,) = faults(extra=[{**SSH, "id": "x", "reason": "why", **change}])
    assert fault.startswith("extra_rules[0] (x)")


def test_a_segment_is_found_by_its_addresses_however_they_are_written():
    segment = {**SEGMENT, "addresses": ["fd00:0110:0:0::0011"]}
    assert read(segments=[segment]).segments[0].interface == "eth0"


@pytest.mark.parametrize(
    ("segment", "interfaces", "word"),
    [
        (SEGMENT, {"10.110.0.11": "eth0"}, "no interface of this host has fd00:110::11"),
        (SEGMENT, {"10.110.0.11": "eth0", "fd00:110::11": "eth1"}, "several interfaces (eth0, eth1)"),
        ({**SEGMENT, "addresses": []}, {}, "neither an interface nor addresses"),
        ({**SEGMENT, "interface": "lo"}, {}, "loopback"),
        ({**SEGMENT, "name": "a b"}, None, "is no segment name"),
        ({**SEGMENT, "networks": ["0.0.0.0/0"]}, None, "everybody"),
    ],
)
def test_a_bad_segment_is_refused(segment, interfaces, word):
    (fault,) = faults(segments=[segment], interfaces=interfaces)
    assert fault.startswith("segments[0]")
    assert word in fault


def test_a_named_interface_needs_no_address():
    assert read(segments=[{**SEGMENT, "interface": "vlan120"}], interfaces={}).segments[0].interface == "vlan120"


def test_a_missing_user_admits_nobody_where_it_is_accepted():
    policy = read([SSH, {**LOCAL, "users": ["batch", "later"]}], accept=True)
    assert policy.missing_users == ("later",)
    assert policy.rules[1].uids == (990,)


@pytest.mark.parametrize(
    ("source", "port", "interface", "admitted"),
    [
        ("10.90.0.1", 22, None, True),
        ("10.90.0.1", 22, "eth1", True),
        ("10.90.0.16", 22, None, False),
        ("10.90.0.1", 2222, None, False),
        ("fd00:90::1", 22, None, True),
        ("fd00:90::10", 22, None, False),
        ("127.0.0.1", 22, None, True),
        ("10.110.0.5", 22, "eth0", True),
        ("10.110.0.5", 22, "eth1", False),
    ],
)
def test_admission_of_the_operators_connection(source, port, interface, admitted):
    policy = read([{**SSH, "peers4": ["10.90.0.0/28", "10.110.0.5"]}])
    assert policy.admits(ip_address(source), port, interface) is admitted


def test_admission_by_interface_and_protocol():
    policy = read([{**SSH, "interface": "eth1"}, {**SSH, "id": "u", "protocol": "udp", "ports": [53], "admin": False}])
    assert policy.admits(ip_address("10.90.0.1"), 22, "eth1")
    assert not policy.admits(ip_address("10.90.0.1"), 22, "eth0")
    assert not policy.admits(ip_address("10.90.0.1"), 53, None)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("10.90.0.1 51000 10.90.0.131 22", ("10.90.0.1", 22, "10.90.0.131")),
        ("::ffff:10.90.0.1 51000 ::ffff:10.90.0.131 22", ("10.90.0.1", 22, "10.90.0.131")),
        ("fe80::1%eth1 51000 fe80::2%eth1 22", ("fe80::1", 22, "fe80::2")),
        ("", None),
        ("10.90.0.1 51000", None),
        ("somewhere 1 else 22", None),
    ],
)
def test_ssh_connection_is_read(text, ends):
    found = policies.read_connection(text)
    assert (None if found is None else (str(found[0]), found[1], str(found[2]))) == ends


def test_established_connections_are_read_from_proc():
    def word(address):
        packed = ip_address(address).packed
        return "".join(f"{int.from_bytes(packed[i : i + 4], sys.byteorder):08X}" for i in range(0, len(packed), 4))

    head = "  sl  local_address rem_address   st tx_queue rx_queue\n"
    tcp = (
        head
        + f"   0: {word('0.0.0.0')}:0016 {word('0.0.0.0')}:0000 0A 0\n"
        + f"   1: {word('10.90.0.131')}:0016 {word('10.90.0.1')}:C738 01 0\n"
    )
    tcp6 = head + f"   0: {word('::ffff:10.90.0.131')}:0016 {word('::ffff:10.90.0.2')}:0400 01 0\n"
    found = [(str(a), b, str(c), d) for a, b, c, d in policies.established([tcp, tcp6])]
    assert found == [("10.90.0.1", 51000, "10.90.0.131", 22), ("10.90.0.2", 1024, "10.90.0.131", 22)]


def test_without_a_rule_of_the_operators_nobody_could_repair_the_host():
    (fault,) = faults(rules=[{**SSH, "admin": False}])
    assert fault.startswith("rules: ") and "admin: true" in fault


@pytest.mark.parametrize("change", [{"chain": "output"}, {"protocol": "udp"}])
def test_the_operator_comes_in_by_tcp(change):
    assert any(".admin: is for TCP rules of chain input" in fault for fault in faults(rules=[{**SSH, **change}]))


def test_a_rule_that_drops_is_before_all_that_admit():
    cut = {
        **SSH,
        "id": "cut",
        "peers4": ["10.90.0.1/32"],
        "peers6": [],
        "admin": False,
        "verdict": "drop",
        "reason": "why",
    }
    policy = read(extra=[cut])
    assert [rule.id for rule in policy.of_chain("input", drop=True)] == ["extra-cut"]
    assert not policy.admits(ip_address("10.90.0.1"), 22, None)
    assert policy.admits(ip_address("10.90.0.2"), 22, None)


def test_a_local_port_has_nothing_to_drop():
    (fault,) = faults(extra=[{**LOCAL, "verdict": "drop", "reason": "why"}])
    assert ".verdict: drop is for the chains" in fault


def test_addresses_are_looked_up_in_networks_of_every_length():
    networks = policies.Networks.of([policies.ip_network(text) for text in ("10.0.0.0/8", "192.0.2.1", "fd00::/64")])
    inside = ("10.0.0.0", "10.255.255.255", "192.0.2.1", "fd00::ffff")
    outside = ("9.255.255.255", "11.0.0.0", "192.0.2.2", "fd00:0:0:1::", "::", "0.0.0.0", "::ffff:10.0.0.1")
    for known in (networks, policies.Networks.of_plain(networks.plain())):
        assert [ip_address(text) in known for text in inside] == [True] * len(inside)
        assert [ip_address(text) in known for text in outside] == [False] * len(outside)
    assert ip_address("10.0.0.1") not in policies.Networks.of([])


@pytest.mark.parametrize(
    "text", ["010.0.0.1", "10.0.1", "10.0.0.1\0", "10.0.0.256", "", "\N{DEGREE SIGN}", "1.2.3.4%eth0"]
)
def test_what_only_looks_like_an_address_is_no_network(text):
    (fault,) = faults(rules=[{**SSH, "peers4": [text]}])
    assert fault.startswith("rules[0] (in-admin-ssh).peers4[0]: ") and "is no network" in fault


def test_a_single_host_is_the_network_of_its_length():
    policy = read([{**SSH, "peers4": ["10.90.0.2", "10.90.0.1/32"], "peers6": ["fd00:90::0:1"]}])
    assert [str(network) for network in policy.rules[0].peers] == ["10.90.0.2/32", "10.90.0.1/32", "fd00:90::1/128"]
    assert policy.rules[0].hosts(4) == ("10.90.0.1", "10.90.0.2")
    assert policy.rules[0].hosts(6) == ("fd00:90::1",)
    assert read([SSH]).rules[0].hosts(4) == ()


def test_a_rate_is_for_rules_that_let_others_in():
    rated = {**SSH, "id": "in-proxy", "ports": [3128], "admin": False, "rate": "100/second"}
    assert read([SSH, rated]).rules[1].rate == "100/second"
    assert read([SSH, {**rated, "rate": None}]).rules[1].rate == ""
    for change, word in (
        ({"rate": "0/second"}, "no rate"),
        ({"rate": "100"}, "no rate"),
        ({"rate": "1/day"}, "no rate"),
        ({"chain": "output"}, "chain input"),
        ({"admin": True}, "operator"),
    ):
        (fault,) = faults(rules=[SSH, {**rated, **change}])
        assert fault.startswith("rules[1] (in-proxy).rate: ") and word in fault
