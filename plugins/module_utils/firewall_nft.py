# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The table of the firewall module in the language of nft(8), and its comparison with what the kernel has."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.firewall_policy import (
    Address,
    Policy,
    Rule,
)

TABLE = "inet moat"
FAMILIES = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))
HOOKS = ("input", "forward", "output")
HANDOVER = "handover"
# Errors about a flow, packet-too-big among them; nothing else may open a port by being related. A flow is confirmed once its first packet has
# passed every chain: without it the kernel could answer what a route discards, since no chain sees that packet.
ERRORS = "ct state related ct status confirmed meta l4proto { icmp, icmpv6 }"
# a rule of the text: what it matches, its counter, its verdict, its comment
COUNTED = re.compile(r'^(\t\t.*\bcounter)( .* comment "([^"]+)")$')
CHAIN = re.compile(r"\tchain (\S+) \{")
REFERENCE = re.compile(r"@([\w-]+)")
TRANSIENT = re.compile(r"(\ttimeout \S+\n)\t\telements = \{[^}]*\}\n")
# destroy would say it in one line, but nft 1.0.6 does not know it
DELETE = f"table {TABLE}\ndelete table {TABLE}\n"
HEAD = "# Managed by moat.inference.\n"
# of new connections that a peer may open at once, in seconds of its rate
BURST = 5


# chain, comment, sets that it looks into, position among those that have all this in common
CounterKey = tuple[str, str, tuple[str, ...], int]


@dataclass(frozen=True)
class Difference:
    """What separates the kernel from the candidate: nothing, elements of some sets, or the table."""

    kind: str
    sets: tuple[str, ...] = ()


@dataclass
class Listing:
    """A table as the kernel lists it, without handles and what expires by itself. Counters are kept apart."""

    objects: dict[tuple[str, str], Any]
    rules: dict[str, list[Any]]
    elements: dict[str, list[Any]]
    counters: dict[CounterKey, tuple[int, int]] = field(default_factory=dict)


def minimal(policy: Policy) -> str:
    """One line for a host that has no other table: closed but for administration, and without counters or logs."""

    def chain(hook: str, lines: Iterable[str]) -> str:
        inner = "; ".join([f"type filter hook {hook} priority filter", "policy drop", *lines])
        return f"chain {hook} {{ {inner}; }}"

    tracked = ["ct state established accept", f"{ERRORS} accept"]
    received = [
        'iifname "lo" accept',
        *tracked,
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
        f"{_not_segments(policy)}icmpv6 type nd-router-advert ip6 hoplimit 255 accept",
    ]
    for rule in policy.of_chain("input"):
        on = f'iifname "{rule.interface}" ' if rule.interface else ""
        for version, proto, _kind in FAMILIES:
            if rule.admin and rule.family(version):
                peers = f"{proto} saddr {{ {', '.join(rule.members(version))} }}"
                received.append(f"{on}{peers} tcp dport {_values(rule.ports)} accept")
    sent = [
        'oifname "lo" accept',
        *tracked,
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } ip6 hoplimit 255 accept",
    ]
    chains = (chain("input", received), chain("forward", []), chain("output", sent))
    # nft reads the end of a line, or this, after every block
    return f"table {TABLE} {{ {'; '.join(chains)}; }}"


def with_checksum(text: str) -> str:
    """A ruleset as it lies on disk: the unit loads it only when its first line is the SHA-256 of the rest."""
    return f"# sha256 {hashlib.sha256(text.encode('utf-8')).hexdigest()}\n{text}"


def ruleset(policy: Policy) -> str:
    """The whole ruleset, one transaction."""
    return _ruleset(policy, True)


def candidate(policy: Policy) -> str:
    """The ruleset to compare with, but for the members of sets; complete() adds them, in no time at any size."""
    return _ruleset(policy, False)


def _ruleset(policy: Policy, members: bool) -> str:
    rated = any(rule.rate for rule in policy.of_chain("input"))
    chains = [
        *([_chain("rate", _deny(policy, "deny-rate"))] if rated else []),
        _chain("input", _input(policy)),
        _chain("forward", _forward(policy)),
        _chain("output", _output(policy)),
        _chain("local", _local(policy)),
        _chain("spoof", _spoof(policy)),
    ]
    return f"{HEAD}{DELETE}table {TABLE} {{\n" + "\n".join([*_sets(policy, members), *chains]) + "}\n"


def set_name(rule: Rule, version: int) -> str:
    """The name of a rule's set."""
    return f"{rule.id}_{version}"


def _rate_set(rule: Rule, version: int) -> str:
    """The name of the set that has a measure for each peer of a rule with a rate."""
    return f"{rule.id}_rate_{version}"


def elements_change(policy: Policy, names: Sequence[str], live: Listing | None = None) -> str:
    """One transaction that gives the named sets their elements.

    What differs from live is added and deleted in a set of single hosts. The elements of any other set are replaced, since those
    that the kernel merged cannot be deleted singly.
    """
    lines = []
    for rule in policy.rules:
        for version, _proto, _type in FAMILIES:
            name = set_name(rule, version)
            if name not in names:
                continue
            before = live.elements.get(name, []) if live else []
            after = rule.hosts(version)
            if before and after and all(isinstance(member, str) for member in before):
                lines += [
                    _element("delete", name, sorted(set(before).difference(after))),
                    _element("add", name, sorted(set(after).difference(before))),
                ]
            else:
                lines += [f"flush set {TABLE} {name}\n", _element("add", name, rule.members(version))]
    return "".join(lines)


def elements_undo(live: Listing, names: Sequence[str]) -> str:
    """One transaction that gives the named sets back the elements of live."""
    lines = []
    for name in names:
        lines += [f"flush set {TABLE} {name}\n", _element("add", name, [_member(item) for item in live.elements[name]])]
    return "".join(lines)


def _element(verb: str, name: str, members: Sequence[str]) -> str:
    return f"{verb} element {TABLE} {name} {{ {', '.join(members)} }}\n" if members else ""


def _member(item: Any) -> str:
    """An element of the JSON listing in the language of nft."""
    if not isinstance(item, dict):
        return str(item)
    if "elem" in item:
        return _member(item["elem"]["val"])
    if "prefix" in item:
        return f"{item['prefix']['addr']}/{item['prefix']['len']}"
    return "-".join(_member(end) for end in item["range"])


def handover(policy: Policy, connections: Iterable[tuple[Address, int, Address, int]]) -> str:
    """Elements for the connections that the rules admit, so that they survive the moment in which tracking begins."""
    lines = []
    for client, client_port, _server, port in connections:
        if not client.is_loopback and policy.admits(client, port, None):
            lines.append(f"add element {TABLE} {HANDOVER}_{client.version} {{ {client} . {client_port} }}\n")
    return "".join(sorted(set(lines)))


def _sets(policy: Policy, members: bool) -> Iterable[str]:
    for rule in policy.rules:
        for version, _proto, kind in FAMILIES:
            if not rule.family(version):
                continue
            # a set of single hosts is a hash table in the kernel, which is built and listed in half the time
            flags = "" if rule.hosts(version) else "\t\tflags interval\n\t\tauto-merge\n"
            inside = f"\t\telements = {{ {', '.join(rule.members(version))} }}\n" if members else ""
            yield f"\tset {set_name(rule, version)} {{\n\t\ttype {kind}\n{flags}{inside}\t}}\n"
            if rule.rate:
                yield (
                    f"\tset {_rate_set(rule, version)} {{\n\t\ttype {kind}\n\t\tsize 65535\n"
                    "\t\tflags dynamic,timeout\n\t\ttimeout 1m\n\t}\n"
                )
    for version, _proto, kind in FAMILIES:
        yield f"\tset {HANDOVER}_{version} {{\n\t\ttype {kind} . inet_service\n\t\tflags timeout\n\t\ttimeout 5m\n\t}}\n"


def _chain(name: str, lines: Iterable[str]) -> str:
    head = [f"type filter hook {name} priority filter; policy drop;"] if name in HOOKS else []
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in [*head, *lines]) + "\t}\n"


def _allow(name: str, match: str) -> str:
    return f'{match} counter accept comment "{name}"'


def _deny(policy: Policy, name: str, match: str = "", verdict: str = "drop", flags: str = "") -> list[str]:
    """The limit is on the log alone: every packet is counted and refused."""
    prefix = f"{match} " if match else ""
    return [
        f'{prefix}limit rate {policy.log_rate} burst 5 packets log prefix "moat {name} " level info{flags}',
        f'{prefix}counter {verdict} comment "{name}"',
    ]


def _tracked(hook: str) -> list[str]:
    return [
        _allow(f"allow-established-{hook}", "ct state established"),
        _allow(f"allow-errors-{hook}", ERRORS),
    ]


def _input(policy: Policy) -> Iterable[str]:
    yield _allow("allow-loopback-input", 'iifname "lo"')
    yield from _drops(policy, "input", "iifname", "saddr")
    # before the tracked flows, or a packet that fits one would pass by any interface
    yield "jump spoof"
    yield from _tracked("input")
    yield _allow("allow-neighbours-input", "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255")
    yield _allow("allow-routers-input", f"{_not_segments(policy)}icmpv6 type nd-router-advert ip6 hoplimit 255")
    yield _allow("allow-multicast-input", "ip6 saddr fe80::/10 icmpv6 type mld-listener-query ip6 hoplimit 1")
    yield from _deny(policy, "deny-invalid-input", "ct state invalid")
    for rule in policy.of_chain("input"):
        match = f"{rule.protocol} dport {_values(rule.ports)}"
        yield from _rated(rule, match)
        yield from _accepts(rule, "iifname", "saddr", match)
    yield from _deny(policy, "deny-input")


def _forward(policy: Policy) -> Iterable[str]:
    yield from _drops(policy, "forward", "iifname", "saddr")
    yield "jump spoof"
    yield from _tracked("forward")
    yield from _deny(policy, "deny-invalid-forward", "ct state invalid")
    for rule in policy.of_chain("forward"):
        # the port that was asked for, before a container engine translated it; nft 1.0.6 cannot read its own listing of a set of these
        asked = [f"meta l4proto {rule.protocol} ct original proto-dst {port}" for port in rule.ports]
        yield from _accepts(rule, "iifname", "saddr", *asked)
    yield from _deny(policy, "deny-forward")


def _output(policy: Policy) -> Iterable[str]:
    yield 'oifname "lo" jump local'
    yield from _drops(policy, "output", "oifname", "daddr")
    yield from _tracked("output")
    yield _allow(
        "allow-neighbours-output",
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } ip6 hoplimit 255",
    )
    yield _allow(
        "allow-multicast-output",
        "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } ip6 hoplimit 1",
    )
    for version, proto, _kind in FAMILIES:
        yield _allow(
            f"allow-handover-{version}", f"{proto} daddr . tcp dport @{HANDOVER}_{version} tcp flags & syn == 0"
        )
    yield from _deny(policy, "deny-invalid-output", "ct state invalid")
    for rule in policy.of_chain("output"):
        yield from _accepts(rule, "oifname", "daddr", f"{rule.protocol} dport {_values(rule.ports)}")
    yield from _deny(policy, "deny-output", flags=" flags skuid")


def _local(policy: Policy) -> Iterable[str]:
    rules = policy.of_chain("local")
    for rule in rules:
        # A port that nobody has is free for anyone to take, and what is meant for its server would come to them. All of the
        # handshake is asked for, as two that connect to each other need no listener.
        flags = " tcp flags & syn == syn" if rule.protocol == "tcp" else ""
        match = f"{rule.protocol} sport {_values(rule.ports)}{flags} meta skuid != {_values(rule.listeners)}"
        yield from _deny(policy, f"deny-listener-{rule.id}", match, flags=" flags skuid")
    if rules:
        # a socket without its process has no user any more, so only the first packet is asked for it
        yield from _tracked("local")
    for rule in rules:
        if rule.uids:
            match = f"{rule.protocol} dport {_values(rule.ports)} meta skuid {_values(rule.uids)}"
            yield from _described(rule, [_allow(rule.id, match)])
    for rule in rules:
        verdict = "reject with tcp reset" if rule.protocol == "tcp" else "reject with icmpx port-unreachable"
        match = f"{rule.protocol} dport {_values(rule.ports)}"
        yield from _deny(policy, f"deny-{rule.id}", match, verdict, " flags skuid")
    yield _allow("allow-loopback-output", 'oifname "lo"')


def _spoof(policy: Policy) -> Iterable[str]:
    """A segment's addresses come from its interface only."""
    for segment in policy.segments:
        for version, proto, _kind in FAMILIES:
            networks = [str(network) for network in segment.networks if network.version == version]
            if networks:
                match = f'iifname != "{segment.interface}" {proto} saddr {_values(networks)}'
                yield from _deny(policy, f"deny-spoof-{segment.name}-{version}", match)


def _drops(policy: Policy, chain: str, interface: str, address: str) -> Iterable[str]:
    """What is refused whatever else admits it, tracked flows too."""
    for rule in policy.of_chain(chain, drop=True):
        on = f'{interface} "{rule.interface}" ' if rule.interface else ""
        ports = [f"{rule.protocol} dport {_values(rule.ports)}"]
        if chain == "forward":
            ports = [f"meta l4proto {rule.protocol} ct original proto-dst {port}" for port in rule.ports]
        for version, proto, _kind in FAMILIES:
            if rule.family(version):
                for match in ports:
                    line = f"{on}{proto} {address} @{set_name(rule, version)} {match}"
                    yield from _described(rule, _deny(policy, rule.id, line))


def _rated(rule: Rule, ports: str) -> Iterable[str]:
    """Each address has its own measure, so that whoever asks too often is refused and nobody else."""
    on = f'iifname "{rule.interface}" ' if rule.interface else ""
    number = rule.rate.partition("/")[0]
    for version, proto, _kind in FAMILIES:
        if rule.rate and rule.family(version):
            limit = f"limit rate over {rule.rate} burst {int(number) * BURST} packets"
            measure = f"update @{_rate_set(rule, version)} {{ {proto} saddr {limit} }}"
            yield f"{on}{proto} saddr @{set_name(rule, version)} {ports} {measure} jump rate"


def _accepts(rule: Rule, interface: str, address: str, *ports: str) -> Iterable[str]:
    on = f'{interface} "{rule.interface}" ' if rule.interface else ""
    lines = [
        _allow(rule.id, f"{on}{proto} {address} @{set_name(rule, version)} {match}")
        for version, proto, _kind in FAMILIES
        if rule.family(version)
        for match in ports
    ]
    return _described(rule, lines)


def _described(rule: Rule, lines: Sequence[str]) -> list[str]:
    words = [rule.comment] if rule.comment else []
    if rule.reason:
        words.append("reason: " + " ".join(rule.reason.split()))
    return [*(["# " + "; ".join(words)] if words else []), *lines]


def _values(values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else "{ " + ", ".join(texts) + " }"


def _not_segments(policy: Policy) -> str:
    """Nobody on a segment may become this host's router."""
    names = sorted({segment.interface for segment in policy.segments})
    return "iifname != {} ".format(_values([f'"{name}"' for name in names])) if names else ""


def without_transient(text: str) -> str:
    """The text of a listing without the elements of sets with a timeout."""
    return TRANSIENT.sub(r"\1", text)


def parse_listing(text: str) -> Listing:
    """Parse `nft -j list table` (libnftables-json(5)); with -s there are no counters."""
    listing = Listing({}, {}, {})
    seen: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
    for item in json.loads(text)["nftables"]:
        (kind, value), *_rest = item.items()
        if kind == "metainfo":
            continue
        if kind == "rule":
            _count(listing, seen, value)
            listing.rules.setdefault(value["chain"], []).append(_without_state(value))
            continue
        # the members of a set are many, and have no state unless they are more than a value
        members = value.pop("elem", [])
        value = _without_state(value)
        if kind in ("set", "map"):
            # an element of a set with a timeout leaves by itself
            listing.elements[value["name"]] = (
                [] if "timeout" in value else [m if isinstance(m, str) else _without_state(m) for m in members]
            )
        listing.objects[kind, value["name"]] = value
    return listing


def _count(listing: Listing, seen: Counter[tuple[str, str, tuple[str, ...]]], rule: Any) -> None:
    """Keep a rule's counter under what it is known by in a text, too."""
    counter = next((part["counter"] for part in rule["expr"] if isinstance(part.get("counter"), dict)), None)
    if counter is None or not rule.get("comment"):
        return
    texts = (str(part["match"].get("right")) for part in rule["expr"] if isinstance(part.get("match"), dict))
    key = (str(rule["chain"]), str(rule["comment"]), tuple(text[1:] for text in texts if text.startswith("@")))
    listing.counters[(*key, seen[key])] = (int(counter.get("packets", 0)), int(counter.get("bytes", 0)))
    seen[key] += 1


def carry_counters(text: str, live: Listing | None) -> str:
    """Return a ruleset with the present values of the counters of rules that stay."""
    if live is None or not live.counters:
        return text
    seen: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
    chain = ""
    lines = text.split("\n")
    for index, line in enumerate(lines):
        head = CHAIN.match(line)
        if head:
            chain = head.group(1)
        counted = COUNTED.match(line) if chain else None
        if counted:
            match, rest, comment = counted.groups()
            key = (chain, comment, tuple(REFERENCE.findall(match)))
            packets, size = live.counters.get((*key, seen[key]), (0, 0))
            seen[key] += 1
            lines[index] = f"{match} packets {packets} bytes {size}{rest}"
    return "\n".join(lines)


def _without_state(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: None if key == "counter" and isinstance(inner, dict) else _without_state(inner)
            for key, inner in value.items()
            if key not in ("handle", "expires", "packets", "bytes")
        }
    return [_without_state(inner) for inner in value] if isinstance(value, list) else value


def complete(listing: Listing, policy: Policy) -> Listing:
    """Return the listing of candidate() with the members of sets."""
    members: dict[str, list[Any]] = {
        set_name(rule, version): rule.members(version)
        for rule in policy.rules
        for version, _proto, _kind in FAMILIES
        if rule.family(version)
    }
    return replace(listing, elements={**listing.elements, **members})


def compare(live: Listing | None, candidate: Listing) -> Difference:
    """Return what has to be loaded to make live into candidate."""
    if live is None or live.objects != candidate.objects or live.rules != candidate.rules:
        return Difference("table")
    names = tuple(sorted(name for name, members in candidate.elements.items() if _differ(live.elements[name], members)))
    return Difference("elements", names) if names else Difference("none")


def _differ(live: list[Any], members: list[Any]) -> bool:
    """Whether two sets have other members; how they are cut up and their order say nothing."""
    if any(isinstance(item, dict) and not {"prefix", "range"} & set(item) for item in [*live, *members]):
        return live != members
    # no member lies in another of its set, so those in common can be left out
    texts, wanted = {_member(item) for item in live}, {_member(item) for item in members}
    gone, come = texts - wanted, wanted - texts
    if not gone or not come or not any("/" in text or "-" in text for text in [*gone, *come]):
        return bool(gone or come)
    return _ranges(gone) != _ranges(come)


def _ranges(members: Iterable[str]) -> list[list[int]]:
    """First and last address of what members make up together."""
    merged: list[list[int]] = []
    for first, last in sorted(_range(member) for member in members):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return merged


def _range(member: str) -> tuple[int, int]:
    if "/" in member:
        network = ip_network(member)
        return int(network.network_address), int(network.broadcast_address)
    first, _dash, last = member.partition("-")
    return int(ip_address(first)), int(ip_address(last or first))
