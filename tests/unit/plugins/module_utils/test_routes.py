# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import copy
import ipaddress

import pytest
from ansible_collections.moat.inference.plugins.module_utils import routes, routes_commands
from ansible_collections.moat.inference.plugins.module_utils.routes import Desired, Kernel, RoutesError, Via

# as ip(8) of iproute2 6.1 lists them with -j -d
LOCAL = {"priority": 0, "src": "all", "table": "local", "protocol": "kernel"}
MAIN = {"priority": 32766, "src": "all", "table": "main", "protocol": "kernel"}
DEFAULT = {
    "type": "unicast", "dst": "default", "gateway": "10.41.0.1", "dev": "eth0", "protocol": "boot", "scope": "global", "flags": []
}  # fmt: skip
NEAR = {
    "type": "unicast",
    "dst": "10.41.0.0/24",
    "dev": "eth0",
    "protocol": "kernel",
    "scope": "link",
    "prefsrc": "10.41.0.11",
    "flags": [],
}
OWN = {
    "type": "local",
    "dst": "10.41.0.11",
    "dev": "eth0",
    "table": "local",
    "protocol": "kernel",
    "scope": "host",
    "flags": [],
}
LINK = {"type": "unicast", "dst": "100.64.0.2", "dev": "moat0", "protocol": "boot", "scope": "link", "flags": []}
MANY = {
    "type": "unicast", "dst": "198.51.100.0/24", "protocol": "boot", "scope": "global", "flags": [],
    "nexthops": [{"gateway": "10.41.0.12", "dev": "eth0", "weight": 2, "flags": []}, {"gateway": "10.41.0.13", "dev": "eth0", "weight": 1, "flags": []}],
}  # fmt: skip
NEAR6 = {
    "type": "unicast",
    "dst": "fd00:41::/64",
    "dev": "eth0",
    "protocol": "kernel",
    "scope": "global",
    "metric": 256,
    "flags": [],
    "pref": "medium",
}
RA = {
    "type": "unicast", "dst": "default", "gateway": "fe80::1", "dev": "eth0", "protocol": "ra", "scope": "global", "metric": 1024,
    "flags": [], "expires": 99, "pref": "medium",
}  # fmt: skip
VIA = [
    {"to": "10.50.0.0/16", "via": "10.41.0.12"},
    {"to": "10.41.0.0/28", "via": "10.41.0.12"},
    {"to": "fd00:50::/64", "via": "fd00:41::c"},
]


def kernels(*more4, rules4=()):
    return {
        4: Kernel([LOCAL, *rules4, MAIN], [DEFAULT, NEAR, OWN, LINK, MANY, *more4]),
        6: Kernel([LOCAL, MAIN], [NEAR6, RA]),
    }


class Model:
    """Carries the commands out on lists, as the kernel does."""

    def __init__(self, start):
        self.rules = {family: [dict(rule) for rule in kernel.rules] for family, kernel in start.items()}
        self.routes = {family: [dict(item) for item in kernel.routes] for family, kernel in start.items()}

    def kernels(self):
        return {
            family: Kernel(sorted(self.rules[family], key=lambda rule: rule["priority"]), self.routes[family])
            for family in self.rules
        }

    def run(self, argv):
        family, what, verb, words = int(argv[1][1:]), argv[2], argv[3], argv[4:]
        if what == "rule":
            values = (
                dict(zip(words[::2], words[1::2]))
                if "unreachable" not in words
                else {"pref": words[1], "protocol": words[4]}
            )
            rule = {"priority": int(values["pref"]), "src": "all"}
            if "lookup" in values:
                rule["table"] = values["lookup"]
            else:
                rule["action"] = "unreachable"
            if "suppress_prefixlength" in values:
                rule["suppress_prefixlen"] = int(values["suppress_prefixlength"])
            rule["protocol"] = values["protocol"]
            if verb == "add":
                assert rule not in self.rules[family]
                self.rules[family].append(rule)
            elif rule not in self.rules[family]:
                return 2
            else:
                self.rules[family].remove(rule)
            return 0
        head, _sep, tail = " ".join(words).partition(" nexthop ")
        pairs = head.split()[1:]
        values = dict(zip(pairs[::2], pairs[1::2]))
        item = {"type": "unicast", "dst": words[0], "flags": []}
        item.update({"gateway": values["via"]} if "via" in values else {})
        for key in ("dev", "protocol", "scope", "prefsrc"):
            item.update({key: values[key]} if key in values else {})
        item.update({"metric": int(values["metric"])} if "metric" in values else {})
        item.update({"expires": int(values["expires"])} if "expires" in values else {})
        if family == 6:
            item.setdefault("metric", 1024)
            item["pref"] = "medium"
        if values["table"] != "main":
            item["table"] = values["table"]
            item.setdefault("dev", "eth0")
        if tail:
            item["nexthops"] = []
            for hop in tail.split(" nexthop "):
                part = hop.split()
                named = dict(zip(part[::2], part[1::2]))
                item["nexthops"].append(
                    {"gateway": named["via"], "dev": named["dev"], "weight": int(named.get("weight", 1)), "flags": []}
                )

        def key(one):
            return str(routes.destination(one, family)), one.get("metric"), one.get("table", "main")

        same = [one for one in self.routes[family] if key(one) == key(item)]
        if verb == "delete":
            if "gateway" in item:
                same = [one for one in same if one.get("gateway") == item["gateway"]]
            if not same:
                return 2
            self.routes[family].remove(same[0])
            return 0
        if same and verb == "add":
            return 2
        for one in same[:1]:
            self.routes[family].remove(one)
        self.routes[family].append(item)
        return 0


def seen(found):
    """What there is, whatever its order, and however a network is written."""
    texts = {
        family: sorted(routes.words(item) + str(item.get("table")) for item in kernel.routes)
        for family, kernel in found.items()
    }
    return texts, {family: list(kernel.rules) for family, kernel in found.items()}


def normal(start):
    """Single addresses as networks, as the commands write them."""
    found = copy.deepcopy(start)
    for family, kernel in found.items():
        for item in kernel.routes:
            item["dst"] = item["dst"] if item["dst"] == "default" else str(routes.destination(item, family))
    return found


@pytest.mark.parametrize("length", range(20))
def test_forward_gets_there_and_back_returns_from_everywhere(length):
    drift = [
        {
            "type": "unicast",
            "dst": "10.50.0.0/16",
            "gateway": "10.41.0.13",
            "dev": "eth0",
            "table": "188",
            "protocol": "boot",
            "flags": [],
        },
        {
            "type": "unicast",
            "dst": "10.60.0.0/16",
            "gateway": "10.41.0.13",
            "dev": "eth0",
            "table": "188",
            "protocol": "boot",
            "flags": [],
        },
    ]
    wrong = {"priority": routes.NOTHING, "src": "all", "table": "main", "protocol": "static"}
    start = normal(kernels(*drift, rules4=[wrong]))
    target = routes.desired(VIA, [], start)
    delta = routes.compare(start, target, {})
    model, commands = Model(start), routes_commands.forward(delta)
    assert len(commands) < 20
    for argv in commands[:length]:
        assert model.run(argv) == 0, argv
    if length >= len(commands):
        assert not routes.compare(model.kernels(), target, {}).changed
        assert seen(model.kernels())[1][4] == [LOCAL, *(routes.made_rule(n, 4) for n in (10188, 10189, 10190)), MAIN]
    for argv, maybe in routes_commands.back(delta):
        if not (argv[2:4] == ["rule", "add"] and wrong in model.rules[4]):
            assert model.run(argv) == 0 or maybe, argv
    assert seen(model.kernels()) == seen(start)


def test_a_planned_destination_has_a_way_at_every_moment():
    start = kernels()
    delta = routes.compare(start, routes.desired(VIA, [], start), {})
    commands = [" ".join(argv) for argv in routes_commands.forward(delta)]
    first_rule = next(i for i, text in enumerate(commands) if " rule " in text)
    last_route = max(i for i, text in enumerate(commands) if " route replace " in text)
    gone = min(i for i, text in enumerate(commands) if " route delete " in text)
    assert last_route < first_rule < gone
    assert "unreachable" in [text for text in commands if "-4 rule" in text][-1]


def test_what_lies_within_a_network_of_the_host_is_left_out():
    target = routes.desired(VIA, [], kernels())
    assert [str(route) for route in target.routes] == ["10.50.0.0/16 via 10.41.0.12", "fd00:50::/64 via fd00:41::c"]
    (text,) = target.left_out
    assert "10.41.0.0/28" in text


@pytest.mark.parametrize(
    ("via", "said"),
    [
        ({"to": "10.50.0.0/16", "via": "10.99.0.1"}, "in no network of this host"),
        ({"to": "10.50.0.0/16", "via": "10.41.0.11"}, "an address of this host itself"),
    ],
)
def test_a_router_that_is_not_there_is_refused(via, said):
    with pytest.raises(RoutesError, match=said):
        routes.desired([via], [], kernels())


def test_a_family_that_the_host_has_not_is_refused():
    with pytest.raises(RoutesError, match="no IPv6"):
        routes.desired(VIA, [], {4: kernels()[4]})


def test_an_operator_keeps_a_route_until_the_plan_covers_it():
    operator = Via("192.0.2.7/32", "10.41.0.1", "eth0")
    source = ipaddress.ip_address("192.0.2.7")
    assert not routes.covers(source, routes.desired(VIA, [], kernels()), kernels())
    kept = routes.desired(VIA, [operator], kernels())
    assert kept.kept == [operator] and operator in kept.routes
    assert routes.covers(source, kept, kernels())
    planned = routes.desired([*VIA, {"to": "192.0.2.0/24", "via": "10.41.0.12"}], [operator], kernels())
    assert not planned.kept
    for near in ("10.41.0.9", "10.50.1.1", "fd00:41::9", "fe80::1", "127.0.0.1"):
        assert routes.covers(ipaddress.ip_address(near), routes.desired(VIA, [], kernels()), kernels())


def test_the_route_that_serves_an_operator_is_by_a_gateway():
    said = '[{"dst":"192.0.2.7","gateway":"10.41.0.1","dev":"eth0","prefsrc":"10.41.0.11","flags":[]}]'
    assert routes.host_route(ipaddress.ip_address("192.0.2.7"), said) == Via("192.0.2.7/32", "10.41.0.1", "eth0")
    assert routes.host_route(ipaddress.ip_address("192.0.2.7"), '[{"dst":"192.0.2.7","dev":"eth0"}]') is None
    assert routes.host_route(ipaddress.ip_address("192.0.2.7"), "") is None


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "drift"),
        ({"dst": "0.0.0.0/1"}, "drift"),
        ({"dst": "8.8.8.0/24"}, "drift"),
        ({"dst": "8.8.8.0/24", "protocol": "dhcp"}, "drift"),
        ({"protocol": "dhcp"}, "idle"),
        ({"dst": "8.8.8.0/24", "protocol": "bird"}, "foreign"),
        ({"protocol": "bird"}, "idle"),
        ({"dst": "10.244.1.0/24", "dev": "flannel.1"}, "foreign"),
        ({"dst": "8.8.8.0/24", "protocol": "kernel"}, ""),
        ({"type": "unreachable", "gateway": None}, ""),
        ({"gateway": None, "dev": "ppp0"}, "drift"),
        ({"dst": "100.64.0.2", "gateway": None, "dev": "moat0"}, ""),
        ({"dst": "172.17.0.0/16", "gateway": None, "dev": "docker0"}, ""),
        ({"dst": "224.0.0.0/4", "gateway": None}, ""),
    ],
)
def test_routes_of_the_main_table_are_told_apart(change, verdict):
    assert routes.is_drift({**DEFAULT, **change}, 4, {"flannel.1": "vxlan"}) == verdict


def test_a_default_route_of_ipv6_has_other_lengths():
    item = {**RA, "protocol": "static"}
    assert [routes.is_drift({**item, "dst": dst}, 6, {}) for dst in ("default", "2000::/3", "fd00:9::/64")] == [
        "drift"
    ] * 3
    assert routes.is_default(ipaddress.ip_network("2000::/3"))
    assert not routes.is_default(ipaddress.ip_network("fc00::/7"))
    assert not routes.is_default(ipaddress.ip_network("224.0.0.0/4"))


@pytest.mark.parametrize(
    ("rule", "route", "refused"),
    [
        ({"priority": 500, "src": "all", "table": "77"}, {**DEFAULT, "table": "77"}, True),
        ({"priority": 500, "src": "all", "table": "77"}, {**NEAR, "table": "77"}, False),
        ({"priority": 500, "src": "all", "table": "77"}, {**DEFAULT, "table": "78"}, False),
        ({"priority": 500, "src": "all", "table": "main"}, NEAR, True),
        ({"priority": 500, "src": "all", "table": "main", "suppress_prefixlen": 0}, NEAR, False),
        ({"priority": 20000, "src": "all", "table": "77"}, {**DEFAULT, "table": "77"}, False),
        ({"priority": 1000, "src": "all", "l3mdev": None}, NEAR, False),
    ],
)
def test_a_rule_that_comes_first_and_leads_out_is_refused(rule, route, refused):
    faults = routes.conflicts(kernels(route, rules4=[rule]))
    assert len(faults) == refused
    for fault in faults:
        assert "remove it" in fault


def test_a_host_with_its_default_route_again():
    start = kernels()
    delta = routes.compare(start, routes.desired(VIA, [], start), {})
    model = Model(start)
    for argv in routes_commands.forward(delta):
        assert model.run(argv) == 0
    back = routes.compare(model.kernels(), Desired(False), {}, delta.main_removed)
    for argv in routes_commands.forward(back):
        assert model.run(argv) == 0, argv
    assert seen(model.kernels())[1] == seen(start)[1]
    assert seen(normal(model.kernels()))[0] == seen(normal(start))[0]
    assert not routes.compare(model.kernels(), Desired(False), {}, delta.main_removed).changed


def test_a_listed_route_is_written_as_it_was():
    item = {
        **DEFAULT,
        "metric": 5,
        "metrics": [{"mtu": 1400}],
        "flags": ["onlink", "linkdown"],
        "prefsrc": "10.41.0.11",
    }
    said = "ip -4 route replace default via 10.41.0.1 dev eth0 onlink protocol boot scope global metric 5 src 10.41.0.11 table main mtu 1400"
    assert " ".join(routes_commands.route_argv("replace", 4, item)) == said
    mixed = {"dst": "192.0.2.0/24", "via": {"family": "inet6", "host": "fe80::1"}, "dev": "eth0"}
    assert "via inet6 fe80::1 dev eth0" in " ".join(routes_commands.route_argv("add", 4, mixed))
    many = " ".join(routes_commands.route_argv("replace", 4, MANY))
    assert many.endswith("table main nexthop via 10.41.0.12 dev eth0 weight 2 nexthop via 10.41.0.13 dev eth0")
    assert "expires 99" in " ".join(routes_commands.route_argv("replace", 6, RA))
    assert "unreachable" in routes_commands.route_argv("add", 4, {"type": "unreachable", "dst": "192.0.2.0/24"})


@pytest.mark.parametrize(
    ("default", "via", "said"),
    [
        (False, [{"to": "10.50.0.1/16", "via": "10.41.0.12"}], "has host bits set"),
        (False, [{"to": "10.50.0.0/16", "via": "router"}], "write the address of the router"),
        (False, [{"to": "10.50.0.0/16", "via": "fd00::1"}], "of two families"),
        (False, [{"to": "0.0.0.0/0", "via": "10.41.0.12"}], "is a default route"),
        (False, [VIA[0], VIA[0]], "is there twice"),
        (True, VIA, "needs none"),
    ],
)
def test_options_that_cannot_be_had_are_named(default, via, said):
    (fault,) = routes.option_faults(default, via)
    assert said in fault


def test_good_options_have_no_fault():
    assert routes.option_faults(False, VIA) == routes.option_faults(True, []) == []


def test_the_diff_shows_before_and_after():
    start = kernels()
    delta = routes.compare(start, routes.desired(VIA, [], start), {})
    before, after = routes_commands.shown(start), routes_commands.shown(routes_commands.after(start, delta))
    assert "default via 10.41.0.1" in before and "10.41.0.1 " not in after
    assert "10.50.0.0/16 via 10.41.0.12 proto kernel table 188" in after
    assert "rule pref 10190 unreachable" in after
    assert "default via fe80::1 dev eth0 proto ra" in after and delta.idle
