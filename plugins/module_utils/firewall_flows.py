# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tracked flows that a policy does not admit any more: which they are, and their end.

The table lets the packets of tracked flows pass whatever its rules have become. So each flow is judged again by the packet that opened
it, as the chains of the table would judge that packet today.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.firewall_policy import (
    Address,
    Networks,
    Policy,
)
from ansible_collections.moat.inference.plugins.module_utils.run import Result, Runner

TCP = 6
PORTS = {TCP: "tcp", 17: "udp"}
# the ends of a flow in these states have no socket any more
OVER = ("TIME_WAIT", "CLOSE")
# the kernel takes the filter of ss(8) as a program of at most 64 KiB
CONDITIONS = 200
ANY_STATUS = range(-64, 256)

Interfaces = Mapping[Address, "frozenset[str]"]


@dataclass(frozen=True)
class Tuple:
    """One direction of a flow."""

    source: Address
    destination: Address
    source_port: int = 0
    destination_port: int = 0


@dataclass(frozen=True)
class Flow:
    """An entry of the kernel's table of flows: the direction that opened it, and the answers' after any translation."""

    protocol: int
    asked: Tuple
    answer: Tuple
    state: str = ""


@dataclass
class Cut:
    """What to end: arguments of conntrack(8), and conditions of ss(8)."""

    entries: list[list[str]] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)


def policy_json(policy: Policy) -> dict[str, Any]:
    """What a policy says of flows, as plain values."""
    return {
        "segments": [
            {"interface": item.interface, "networks": Networks.of(item.networks).plain()} for item in policy.segments
        ],
        "rules": [
            {
                "chain": rule.chain,
                "protocol": rule.protocol,
                "ports": list(rule.ports),
                "interface": rule.interface,
                "drop": rule.drop,
                "peers": rule.index.plain(),
            }
            for rule in policy.rules
            if rule.chain != "local"
        ],
    }


@lru_cache(maxsize=4096)
def _address(text: str) -> Address:
    return ip_address(text)


def parse_flow(line: str) -> Flow | None:
    """Read one line of `conntrack -L` or of /proc/net/nf_conntrack; None when it is none."""
    words = line.split()
    if words and words[0] in ("ipv4", "ipv6"):
        words = words[2:]
    found: dict[str, list[str]] = {"src": [], "dst": [], "sport": [], "dport": []}
    for word in words[2:]:
        key, equals, value = word.partition("=")
        if equals and key in found:
            found[key].append(value)
    try:
        protocol = int(words[1])
        # an unanswered flow has its ports twice as well; other protocols have none
        ports = [[int(text) for text in found[key]] or [0, 0] for key in ("sport", "dport")]
        asked, answer = (
            Tuple(_address(found["src"][i]), _address(found["dst"][i]), ports[0][i], ports[1][i]) for i in (0, 1)
        )
    except (ValueError, IndexError):
        return None
    return Flow(protocol, asked, answer, words[3] if protocol == TCP else "")


def local_addresses(text: str) -> dict[Address, frozenset[str]]:
    """Read `ip -j address`: each address, with the interfaces that a packet for it comes by.

    An address of a loopback or dummy interface may be reached by any, so it has none.
    """
    addresses: dict[Address, frozenset[str]] = {}
    for item in json.loads(text):
        flags = set(item.get("flags", ()))
        somewhere = "LOOPBACK" in flags or {"BROADCAST", "NOARP"} <= flags
        for info in item.get("addr_info", ()):
            for key in ("local", "broadcast"):
                if key in info:
                    address = _address(info[key])
                    name = frozenset(() if somewhere else (str(item["ifname"]),))
                    addresses[address] = addresses.get(address, frozenset()) | name
    return addresses


class Judge:
    """Says of a flow whether the table would let it open today."""

    def __init__(self, policy: Mapping[str, Any], addresses: Interfaces) -> None:
        self._addresses = addresses
        self._segments = [
            (item["interface"], Networks.of_plain(item["networks"])) for item in policy.get("segments", ())
        ]
        self._rules: dict[tuple[str, str, bool], list[tuple[frozenset[int], str | None, Networks]]] = {}
        for rule in policy.get("rules", ()):
            key = (rule["chain"], rule["protocol"], bool(rule["drop"]))
            known = (frozenset(rule["ports"]), rule["interface"], Networks.of_plain(rule["peers"]))
            self._rules.setdefault(key, []).append(known)

    def is_local(self, address: Address) -> bool:
        """Whether this host has an address."""
        return address in self._addresses or address.is_loopback or address.is_unspecified

    def way(self, flow: Flow) -> str:
        """The chain that saw the first packet of a flow; local when it never left the host."""
        here, there = self.is_local(flow.asked.source), self.is_local(flow.answer.source)
        if (here and there) or flow.asked.source.is_loopback or flow.asked.destination.is_loopback:
            return "local"
        if here:
            return "output"
        # nobody answers by a group's address
        return "input" if there or flow.asked.destination.is_multicast else "forward"

    def admits(self, flow: Flow) -> bool:
        """Whether the policy admits the packet that opened a flow."""
        way, asked, answer = self.way(flow), flow.asked, flow.answer
        if way == "local":
            return True
        if way == "forward":
            # the port that was asked for, before a translation
            return self._admits(way, flow.protocol, asked.source, asked.destination_port, frozenset())
        # the chains input and output see what a translation has made of the destination
        if way == "input":
            names = self._addresses.get(answer.source, frozenset())
            return self._admits(way, flow.protocol, asked.source, answer.source_port, names)
        names = self._addresses.get(asked.source, frozenset())
        if self._admits(way, flow.protocol, answer.source, answer.source_port, names):
            return True
        # A connection from before the first table is tracked from this host's next packet on, so it looks like one that this host opened.
        return flow.protocol == TCP and self._admits("input", TCP, answer.source, asked.source_port, names)

    def _admits(self, chain: str, protocol: int, peer: Address, port: int, names: frozenset[str]) -> bool:
        # by an interface that cannot be told, each rule is given the benefit of the doubt
        if chain == "input" and any(
            names and interface not in names and peer in networks for interface, networks in self._segments
        ):
            return False

        def matches(drop: bool) -> bool:
            return any(
                port in ports and (interface is None or interface in names or not (names or drop)) and peer in peers
                for ports, interface, peers in self._rules.get((chain, PORTS.get(protocol, ""), drop), ())
            )

        return not matches(True) and matches(False)


def plan(
    listings: Sequence[str], policy: Mapping[str, Any], addresses: Interfaces, connection: str = ""
) -> tuple[Cut, int]:
    """Return what to end, and how many lines of the listings could not be read.

    conntrack(8) reads the whole table for each command, so the flows of a client to a port go by one of them.
    """
    judge, spared, unread = Judge(policy, addresses), _spared(connection), 0
    groups: dict[tuple[Any, ...], tuple[list[Flow], list[Flow]]] = {}
    for listing in listings:
        for line in filter(None, map(str.strip, listing.splitlines())):
            flow = parse_flow(line)
            if flow is None:
                unread += 1
                continue
            key = (flow.protocol, flow.asked.source, flow.asked.destination, flow.asked.destination_port)
            stays = flow.asked == spared or judge.admits(flow)
            groups.setdefault(key, ([], []))[0 if stays else 1].append(flow)
    cut = Cut()
    later: list[list[str]] = []
    for stay, leave in groups.values():
        # one command may name them all as long as nobody else fits
        exact = bool(stay)
        for flow in leave if exact else leave[:1]:
            (later if flow.protocol == TCP else cut.entries).append(_entry(flow, exact))
        ends = [flow for flow in leave if flow.protocol == TCP and flow.state not in OVER]
        conditions = (_socket(judge.way(flow), flow, exact) for flow in ends)
        cut.sockets += dict.fromkeys(condition for condition in conditions if condition)
    # those whose sockets have ended by then have the most time
    cut.entries += later
    return cut, unread


def _spared(connection: str) -> Tuple | None:
    """The flow that SSH_CONNECTION (ssh(1)) names."""
    words = connection.split()
    try:
        return Tuple(_plain(words[0]), _plain(words[2]), int(words[1]), int(words[3]))
    except (ValueError, IndexError):
        return None


def _plain(text: str) -> Address:
    address = _address(text.split("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _entry(flow: Flow, exact: bool) -> list[str]:
    asked = flow.asked
    words = ["-D", "-p", PORTS.get(flow.protocol, str(flow.protocol)), "-s", str(asked.source)]
    words += ["-d", str(asked.destination)]
    if flow.protocol in PORTS:
        words += ["--sport", str(asked.source_port)] if exact else []
        words += ["--dport", str(asked.destination_port)]
    return words


def _socket(way: str, flow: Flow, exact: bool) -> str:
    """The condition for this host's socket of a flow; empty when its ends are elsewhere."""
    if way == "input":
        # as the socket sees it, after any translation
        local, peer = flow.answer.source, flow.answer.destination
        ports = (flow.answer.source_port, flow.answer.destination_port if exact else 0)
    elif way == "output":
        local, peer = flow.asked.source, flow.asked.destination
        ports = (flow.asked.source_port if exact else 0, flow.asked.destination_port)
    else:
        return ""
    ends = [f"[{end}]{f':{port}' if port else ''}" for end, port in zip((local, peer), ports)]
    return f"( src {ends[0]} and dst {ends[1]} )"


def cut(runner: Runner, policy: Mapping[str, Any], connection: str = "") -> dict[str, Any]:
    """End every tracked flow that the policy does not admit but connection, the caller's own as SSH_CONNECTION says.

    policy is what policy_json returns. Returns how many entries and sockets were ended, and faults: what could not be done, in words.
    """
    report: dict[str, Any] = {"entries": 0, "sockets": 0, "faults": []}
    shown = runner.run(["ip", "-j", "address"], ok=ANY_STATUS)
    try:
        addresses = local_addresses(shown.stdout) if shown.rc == 0 else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        addresses = {}
    listed = [runner.run(["conntrack", "-L", "-f", family], ok=ANY_STATUS) for family in ("ipv4", "ipv6")]
    failed = [result for result in listed if result.rc != 0]
    if failed or not addresses:
        report["faults"] += [_said(result) for result in failed or [shown]]
        return report
    ends, unread = plan([result.stdout for result in listed], policy, addresses, connection)
    if unread:
        report["faults"].append(f"conntrack -L: {unread} lines could not be read, and their flows were left alone")
    # Sockets first: their resets leave by the entries, which the table would not let out otherwise.
    for start in range(0, len(ends.sockets), CONDITIONS):
        condition = " or ".join(ends.sockets[start : start + CONDITIONS])
        killed = runner.run(["ss", "-K", "-H", "-n", "-t", condition], ok=ANY_STATUS)
        report["sockets"] += len(killed.stdout.splitlines())
        if killed.rc != 0 or killed.stderr.strip():
            report["faults"].append(_said(killed))
    if ends.entries:
        _delete(runner, ends.entries, report)
    return report


def _delete(runner: Runner, entries: Sequence[Sequence[str]], report: dict[str, Any]) -> None:
    lines = "".join(" ".join(words) + "\n" for words in entries)
    results = [runner.run(["conntrack", "-R", "-"], stdin=lines, ok=ANY_STATUS)]
    if results[0].rc != 0:
        # conntrack-tools before 1.4.6 read no commands; 1 says that there was nothing left to delete
        results = [runner.run(["conntrack", *words], ok=ANY_STATUS) for words in entries]
        report["faults"] += [_said(result) for result in results if result.rc not in (0, 1)]
    report["entries"] += sum(len(result.stdout.splitlines()) for result in results)


def _said(result: Result) -> str:
    said = (result.stderr or result.stdout).strip().splitlines()
    return f"{' '.join(result.argv[:2])}: {said[-1] if said else f'status {result.rc}'}"
