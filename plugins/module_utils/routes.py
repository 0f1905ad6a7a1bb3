# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Routes of a host as values: what the plan asks for, what the kernel has, and what is between the two.

The planned routes have a table of their own, and three rules of policy routing hold whatever is added to the main table later: main, but for its
default routes; the planned routes; nothing else.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Item = Mapping[str, Any]  # a route or rule as ip(8) lists it

FAMILIES = (4, 6)
TABLE = "188"
MAIN, PLANNED, NOTHING = 10188, 10189, 10190
# A default route in halves or quarters, and 2000::/3, is one as well; the widest network that a site may have is 10.0.0.0/8 or fc00::/7.
DEFAULT_LENGTH = {4: 3, 6: 6}
# systemd-networkd removes rules and routes that it has not made, but for those of protocol kernel (ManageForeignRoutingPolicyRules=).
PROTOCOL = "kernel"
# What a client of the network keeps putting back. Its default routes are without effect, so they may stay.
RENEWED = ("dhcp", "ra")
# Routes of a routing daemon are its own: it would put them back at once.
DAEMONS = ("babel", "bgp", "bird", "eigrp", "gated", "isis", "keepalived", "openr", "ospf", "rip", "zebra")
# Networks of containers that span hosts: inside the encapsulation a gateway is another host.
OVERLAYS = ("geneve", "ipip", "vxlan")


class RoutesError(ValueError):
    """The routes cannot be had; says all that is wrong."""


@dataclass(frozen=True)
class Via:
    """One route of the host's own table. dev is empty where the kernel finds it by the gateway."""

    to: str
    via: str
    dev: str = ""

    @property
    def family(self) -> int:
        return ipaddress.ip_network(self.to).version

    def __str__(self) -> str:
        return f"{self.to} via {self.via}" + (f" dev {self.dev}" if self.dev else "")

    def argv(self, verb: str) -> list[str]:
        """The command that has it, or has it no more."""
        words = ["ip", f"-{self.family}", "route", verb, self.to, "via", self.via]
        return [*words, *(["dev", self.dev] if self.dev else []), "table", TABLE, "protocol", PROTOCOL]


@dataclass(frozen=True)
class Kernel:
    """What the kernel has of one family."""

    rules: Sequence[Item]
    routes: Sequence[Item]  # of all tables


@dataclass
class Desired:
    """What the host shall have."""

    held: bool  # whether the rules are there
    routes: list[Via] = field(default_factory=list)
    kept: list[Via] = field(default_factory=list)  # of them, those that are not the plan's
    left_out: list[str] = field(default_factory=list)


@dataclass
class Delta:
    """What has to change. Lists of (family, item)."""

    rules_removed: list[tuple[int, Item]] = field(default_factory=list)
    rules_added: list[tuple[int, int]] = field(default_factory=list)
    routes_removed: list[tuple[int, Item]] = field(default_factory=list)
    routes_added: list[Via] = field(default_factory=list)
    main_removed: list[tuple[int, Item]] = field(default_factory=list)
    main_added: list[tuple[int, Item]] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)  # default routes without effect
    foreign: list[str] = field(default_factory=list)  # routes that are no drift, and not the plan's

    @property
    def changed(self) -> bool:
        return bool(
            self.rules_removed
            or self.rules_added
            or self.routes_removed
            or self.routes_added
            or self.main_removed
            or self.main_added
        )

    def reasons(self) -> list[str]:
        """Why the kernel is changed."""
        found = [f"IPv{family} rule {rule['priority']} is not the planned one" for family, rule in self.rules_removed]
        found += [f"IPv{family} rule {number} is missing" for family, number in self.rules_added]
        found += [f"route {words(item)} is not in the plan" for _family, item in self.routes_removed]
        found += [f"route {route} is missing" for route in self.routes_added]
        found += [f"route {words(item)} of the main table is not in the plan" for _family, item in self.main_removed]
        return found + [f"the host's own route {words(item)} is missing" for _family, item in self.main_added]


def parse(text: str) -> list[Item]:
    """Read what `ip -j` says; nothing where it said nothing."""
    found = json.loads(text or "[]")
    return [item for item in found if item]


def destination(item: Item, family: int) -> Network:
    """The network of a listed route."""
    text = item.get("dst", "default")
    if text == "default":
        text = {4: "0.0.0.0/0", 6: "::/0"}[family]
    return ipaddress.ip_network(text, strict=False)


def is_default(network: Network) -> bool:
    """Whether the rules leave out a route of the main table."""
    return network.prefixlen <= DEFAULT_LENGTH[network.version]


def hops(item: Item) -> list[Item]:
    """Gateway and interface of each way that a route has."""
    return list(item.get("nexthops") or [item])


def gateway(hop: Item) -> str:
    """The gateway's address, empty on the link itself."""
    return str(hop.get("gateway") or (hop.get("via") or {}).get("host", ""))


def unicast(item: Item) -> bool:
    return bool(item.get("type", "unicast") == "unicast")


def in_table(kernel: Kernel, table: str) -> list[Item]:
    """The routes of one table."""
    return [item for item in kernel.routes if str(item.get("table", "main")) == table]


def connected(kernels: Mapping[int, Kernel]) -> list[Network]:
    """Networks that the host reaches without a gateway."""
    found = []
    for family, kernel in kernels.items():
        for item in in_table(kernel, "main"):
            near = all(not gateway(hop) and hop.get("dev") not in (None, "lo") for hop in hops(item))
            if unicast(item) and near and not is_default(destination(item, family)):
                found.append(destination(item, family))
    return found


def within(network: Network, others: Iterable[Network]) -> bool:
    """Whether one of the others holds all of network."""
    return any(network.network_address in other and network.prefixlen >= other.prefixlen for other in others)


def option_faults(default: bool, via: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name every option that no host could carry out, with its remedy."""
    faults, seen = [], set()
    for index, route in enumerate(via):
        key = f"via[{index}]"
        try:
            to = ipaddress.ip_network(route["to"])
        except ValueError as error:
            faults.append(f"{key}.to: {error}; write a network such as 10.110.0.0/24")
            continue
        try:
            router = ipaddress.ip_address(route["via"])
        except ValueError as error:
            faults.append(f"{key}.via: {error}; write the address of the router")
            continue
        if to.version != router.version:
            faults.append(
                f"{key}: {route['to']} and {route['via']} are of two families; write a router of the same one"
            )
        if to.prefixlen == 0:
            faults.append(f"{key}.to: {route['to']} is a default route; set default to true, or name the networks")
        if to in seen:
            faults.append(f"{key}.to: {route['to']} is there twice; remove one of the two")
        seen.add(to)
    if default and via:
        faults.append("via: a host with its default route needs none; leave it out, or set default to false")
    return faults


def desired(
    via: Sequence[Mapping[str, Any]], kept: Sequence[Via], kernels: Mapping[int, Kernel], strict: bool = True
) -> Desired:
    """What the host shall have without a default route; raises RoutesError when a router is not there.

    kept are routes to where an operator came from. One that the plan or a network of the host covers by now is dropped.
    """
    near, found, faults = connected(kernels), Desired(True), []
    own = {
        destination(item, family).network_address
        for family, kernel in kernels.items()
        for item in in_table(kernel, "local")
        if item.get("type") == "local"
    }
    for index, item in enumerate(via):
        to, router = ipaddress.ip_network(item["to"]), ipaddress.ip_address(item["via"])
        if to.version not in kernels:
            faults.append(f"via[{index}]: this host has no IPv{to.version}; leave {to} out")
        elif within(to, near):
            found.left_out.append(f"{to}: within a network that the host is connected to")
        elif router in own:
            faults.append(f"via[{index}].via: {router} is an address of this host itself; name the router")
        elif strict and not within(ipaddress.ip_network(router), near):
            faults.append(
                f"via[{index}].via: {router} is in no network of this host; correct it, or bring the interface up"
            )
        else:
            found.routes.append(Via(str(to), str(router)))
    if faults:
        raise RoutesError("; ".join(faults))
    covered = [*near, *(ipaddress.ip_network(route.to) for route in found.routes)]
    for route in kept:
        if route.family in kernels and not within(ipaddress.ip_network(route.to), covered):
            found.kept.append(route)
    found.routes += found.kept
    return found


def covers(source: Address, target: Desired, kernels: Mapping[int, Kernel]) -> bool:
    """Whether the host still has a way to an address."""
    if source.is_loopback or source.is_link_local:
        return True
    ways = [*connected(kernels), *(ipaddress.ip_network(route.to) for route in target.routes)]
    return within(ipaddress.ip_network(source), ways)


def host_route(source: Address, text: str) -> Via | None:
    """The route that serves an address now, of `ip -j route get`; None when no gateway does."""
    found = parse(text)
    router = gateway(found[0]) if found else ""
    return Via(str(ipaddress.ip_network(source)), router, str(found[0].get("dev", ""))) if router else None


def rule_words(number: int, family: int) -> list[str]:
    """One of the three rules, as arguments of ip(8)."""
    what = {
        MAIN: ["lookup", "main", "suppress_prefixlength", str(DEFAULT_LENGTH[family])],
        PLANNED: ["lookup", TABLE],
        NOTHING: ["unreachable"],
    }
    return ["pref", str(number), *what[number], "protocol", PROTOCOL]


def rule_argv(verb: str, number: int, family: int) -> list[str]:
    return ["ip", f"-{family}", "rule", verb, *rule_words(number, family)]


def made_rule(number: int, family: int) -> Item:
    """A rule of ours as ip(8) lists it."""
    what: dict[int, dict[str, Any]] = {
        MAIN: {"table": "main", "suppress_prefixlen": DEFAULT_LENGTH[family]},
        PLANNED: {"table": TABLE},
        NOTHING: {"action": "unreachable"},
    }
    return {"priority": number, "src": "all", **what[number], "protocol": PROTOCOL}


def is_rule(rule: Item, number: int, family: int) -> bool:
    """Whether a listed rule is the one of that number."""
    return dict(rule) == made_rule(number, family)


def conflicts(kernels: Mapping[int, Kernel]) -> list[str]:
    """Name every rule of somebody else that comes first and leads to a gateway, with its remedy."""
    faults = []
    for family, kernel in kernels.items():
        for rule in kernel.rules:
            table, suppressed = str(rule.get("table", "")), rule.get("suppress_prefixlen", -1)
            if rule["priority"] > NOTHING or rule["priority"] in (MAIN, PLANNED, NOTHING) or table in ("", "local"):
                continue
            if table == "main" and suppressed >= 0:
                continue  # what else the main table has is judged below
            for item in in_table(kernel, table):
                network = destination(item, family)
                out = is_default(network) or any(gateway(hop) for hop in hops(item))
                if unicast(item) and out and network.prefixlen > suppressed:
                    faults.append(
                        f"the IPv{family} rule {rule['priority']} (table {table}) comes first and leads to {words(item)};"
                        " remove it with what made it, or leave the host its default route"
                    )
                    break
    return faults


def is_drift(item: Item, family: int, kinds: Mapping[str, str]) -> str:
    """What a route of the main table is: drift, idle (without effect), foreign (named only), or empty (nothing to say)."""
    network, protocol = destination(item, family), str(item.get("protocol", ""))
    far = any(gateway(hop) for hop in hops(item))
    if not unicast(item) or (protocol == "kernel" and not is_default(network)):
        return ""
    if is_default(network):
        if any(hop.get("dev") == "lo" for hop in hops(item)):
            return ""
        return "idle" if protocol in RENEWED or protocol in DAEMONS else "drift"
    if not far:
        return ""
    overlay = all(kinds.get(str(hop.get("dev"))) in OVERLAYS for hop in hops(item))
    return "foreign" if protocol in DAEMONS or overlay else "drift"


def _planned(item: Item, family: int) -> Via | None:
    """A listed route of the own table as a value; None when the module could not have made it."""
    router = gateway(item)
    if not unicast(item) or item.get("nexthops") or not router or item.get("metric", 1024) != 1024:
        return None
    return Via(str(destination(item, family)), router, str(item.get("dev", "")))


def compare(
    kernels: Mapping[int, Kernel], target: Desired, kinds: Mapping[str, str], own: Sequence[tuple[int, Item]] = ()
) -> Delta:
    """What the kernel needs. kinds: interface -> its kind. own: what was removed from the main table, to be put back without rules."""
    delta = Delta()
    missing = list(target.routes)
    for family, kernel in kernels.items():
        _compare_rules(delta, kernel, target, family)
        for item in in_table(kernel, TABLE):
            found = _planned(item, family)
            wanted = next((route for route in missing if found is not None and _same(route, found)), None)
            if wanted is None:
                delta.routes_removed.append((family, item))
            else:
                missing.remove(wanted)
        for item in in_table(kernel, "main") if target.held else ():
            verdict = is_drift(item, family, kinds)
            if verdict == "drift":
                delta.main_removed.append((family, item))
            elif verdict:
                (delta.idle if verdict == "idle" else delta.foreign).append(words(item))
    delta.routes_added = missing
    if not target.held:
        for family, item in own:
            if family in kernels and not any(_alike(item, other) for other in in_table(kernels[family], "main")):
                delta.main_added.append((family, item))
    return delta


def _compare_rules(delta: Delta, kernel: Kernel, target: Desired, family: int) -> None:
    for number in (MAIN, PLANNED, NOTHING):
        found = [rule for rule in kernel.rules if rule["priority"] == number]
        right = [rule for rule in found if target.held and is_rule(rule, number, family)]
        delta.rules_removed += [(family, rule) for rule in found if rule not in right]
        if target.held and not right:
            delta.rules_added.append((family, number))


def _same(wanted: Via, found: Via) -> bool:
    """Whether a listed route is the wanted one, which may leave the interface to the kernel."""
    return (wanted.to, wanted.via) == (found.to, found.via) and wanted.dev in ("", found.dev)


def _alike(item: Item, other: Item) -> bool:
    keys = ("dst", "gateway", "via", "dev", "metric", "nexthops")
    return all(item.get(key) == other.get(key) for key in keys)


def words(item: Item) -> str:
    """A listed route in the words of ip(8), for people."""
    found = [str(item.get("dst", "default"))]
    for hop in hops(item):
        found += ["via", gateway(hop)] if gateway(hop) else []
        found += ["dev", str(hop["dev"])] if "dev" in hop else []
    return " ".join([*found, *(["proto", str(item["protocol"])] if "protocol" in item else [])])
