# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands that change rules and routes, and those that take it back: argv lists, so that a script can run them without Ansible."""

from __future__ import annotations

from collections.abc import Mapping

from ansible_collections.moat.inference.plugins.module_utils.routes import (
    MAIN,
    NOTHING,
    PLANNED,
    PROTOCOL,
    TABLE,
    Delta,
    Item,
    Kernel,
    destination,
    gateway,
    hops,
    in_table,
    is_default,
    made_rule,
    rule_argv,
    unicast,
    words,
)


def route_argv(verb: str, family: int, item: Item) -> list[str]:
    """The command that adds, replaces or deletes a listed route."""
    argv = ["ip", f"-{family}", "route", verb]
    argv += [] if unicast(item) else [str(item["type"])]
    argv.append(str(item.get("dst", "default")))
    argv += _hop_words(item) if not item.get("nexthops") else []
    for key, word in (
        ("protocol", "protocol"),
        ("scope", "scope"),
        ("metric", "metric"),
        ("prefsrc", "src"),
        ("tos", "tos"),
    ):
        if item.get(key) not in (None, ""):
            argv += [word, str(item[key])]
    argv += ["table", str(item.get("table", "main"))]
    if verb == "delete":
        return argv
    argv += ["expires", str(item["expires"])] if item.get("expires") else []
    for metrics in item.get("metrics") or []:
        for name, value in metrics.items():
            argv += [name, str(value)]
    argv += ["pref", str(item["pref"])] if item.get("pref") not in (None, "", "medium") else []
    for hop in item.get("nexthops") or []:
        argv += ["nexthop", *_hop_words(hop), *(["weight", str(hop["weight"])] if hop.get("weight", 1) > 1 else [])]
    return argv


def _hop_words(hop: Item) -> list[str]:
    found = []
    if gateway(hop):
        found += ["via", *([str(hop["via"]["family"])] if hop.get("via") else []), gateway(hop)]
    found += ["dev", str(hop["dev"])] if hop.get("dev") else []
    return found + (["onlink"] if "onlink" in (hop.get("flags") or []) else [])


def rule_restore(verb: str, family: int, rule: Item) -> list[str]:
    """The command that adds or deletes a listed rule at a number of ours."""
    argv = ["ip", f"-{family}", "rule", verb, "pref", str(rule["priority"])]
    if rule.get("src", "all") != "all":
        argv += ["from", f"{rule['src']}/{rule['srclen']}" if "srclen" in rule else str(rule["src"])]
    if rule.get("dst"):
        argv += ["to", f"{rule['dst']}/{rule['dstlen']}" if "dstlen" in rule else str(rule["dst"])]
    for key, word in (("iif", "iif"), ("oif", "oif"), ("fwmark", "fwmark")):
        argv += [word, str(rule[key])] if rule.get(key) else []
    argv += ["lookup", str(rule["table"])] if rule.get("table") else [str(rule.get("action", "unreachable"))]
    if rule.get("suppress_prefixlen", -1) >= 0:
        argv += ["suppress_prefixlength", str(rule["suppress_prefixlen"])]
    return [*argv, *(["protocol", str(rule["protocol"])] if rule.get("protocol") else [])]


def forward(delta: Delta) -> list[list[str]]:
    """The commands of a change, in an order in which every planned destination keeps a way at every moment."""
    return [
        *(route.argv("replace") for route in delta.routes_added),
        *(route_argv("add", family, item) for family, item in delta.main_added),
        *(rule_restore("delete", family, rule) for family, rule in delta.rules_removed),
        *(rule_argv("add", number, family) for family, number in delta.rules_added),
        *(
            route_argv("delete", family, item)
            for family, item in delta.routes_removed
            if not _replaced(item, family, delta)
        ),
        *(route_argv("delete", family, item) for family, item in delta.main_removed),
    ]


def _replaced(item: Item, family: int, delta: Delta) -> bool:
    """Whether `ip route replace` has already taken a route's place: same destination, same metric."""
    plain = "metric" not in item or (family == 6 and item["metric"] == 1024)
    return plain and any(str(destination(item, family)) == route.to for route in delta.routes_added)


def back(delta: Delta) -> list[tuple[list[str], bool]]:
    """The commands of the way back, each with whether there may be nothing for it to do, for the way there may have ended before it."""
    return [
        *((route_argv("replace", family, item), False) for family, item in delta.main_removed),
        *((route_argv("replace", family, item), False) for family, item in delta.routes_removed),
        *((rule_restore("add", family, rule), True) for family, rule in delta.rules_removed),
        # the rule that refuses goes first
        *((rule_argv("delete", number, family), True) for family, number in reversed(delta.rules_added)),
        *((route.argv("delete"), True) for route in delta.routes_added),
        *((route_argv("delete", family, item), True) for family, item in delta.main_added),
    ]


def shown(kernels: Mapping[int, Kernel]) -> str:
    """Rules and routes as text for a diff."""
    lines = []
    for family, kernel in kernels.items():
        lines += [f"IPv{family}"]
        for rule in kernel.rules:
            if rule["priority"] in (MAIN, PLANNED, NOTHING):
                lines.append("  rule " + " ".join(rule_restore("", family, rule)[4:]))
        lines += sorted(f"  {words(item)} table {TABLE}" for item in in_table(kernel, TABLE))
        lines += sorted(
            f"  {words(item)}"
            for item in in_table(kernel, "main")
            if is_default(destination(item, family)) or any(gateway(hop) for hop in hops(item))
        )
    return "".join(f"{line}\n" for line in lines)


def after(kernels: Mapping[int, Kernel], delta: Delta) -> dict[int, Kernel]:
    """What the kernel has once a change is made, for the diff."""
    found = {}
    for family, kernel in kernels.items():
        rules = [rule for rule in kernel.rules if (family, rule) not in delta.rules_removed]
        rules += [made_rule(number, family) for at, number in delta.rules_added if at == family]
        gone = [item for at, item in [*delta.routes_removed, *delta.main_removed] if at == family]
        routes = [item for item in kernel.routes if item not in gone]
        routes += [item for at, item in delta.main_added if at == family]
        routes += [
            {
                "dst": route.to,
                "gateway": route.via,
                "table": TABLE,
                "protocol": PROTOCOL,
                **({"dev": route.dev} if route.dev else {}),
            }
            for route in delta.routes_added
            if route.family == family
        ]
        found[family] = Kernel(sorted(rules, key=lambda rule: int(rule["priority"])), routes)
    return found
