# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the firewall module is asked for: read, checked with all faults at once, and resolved on the host."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import Any, Union

Network = Union[IPv4Network, IPv6Network]
Address = Union[IPv4Address, IPv6Address]

RULE_ID = re.compile(r"[a-z][a-z0-9-]{0,63}")
SEGMENT = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
# dev_valid_name() of the kernel, without what nft reads as a pattern or a quote
INTERFACE = re.compile(r"[^\s/\"*\\]{1,15}")
LOG_RATE = re.compile(r"[1-9][0-9]{0,5}/(second|minute|hour|day)")
RATE = re.compile(r"[1-9][0-9]{0,5}/(second|minute)")
EXTRA = "extra-"


class PolicyError(Exception):
    """What was asked for cannot be had; faults holds every reason."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(self.faults))


class Networks:
    """Networks to look addresses up in, however many there are."""

    def __init__(self, members: Mapping[tuple[int, int], Iterable[int]]) -> None:
        # version and length of the host part -> the network parts
        self._members = {key: set(values) for key, values in members.items()}

    @classmethod
    def of(cls, networks: Iterable[Network]) -> Networks:
        """Read from networks."""
        members: dict[tuple[int, int], list[int]] = {}
        for network in networks:
            bits = network.max_prefixlen - network.prefixlen
            members.setdefault((network.version, bits), []).append(int(network.network_address) >> bits)
        return cls(members)

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        return any(
            version == address.version and number >> bits in members
            for (version, bits), members in self._members.items()
        )

    def plain(self) -> list[list[Any]]:
        """The same as plain values, for of_plain."""
        return [[version, bits, sorted(members)] for (version, bits), members in self._members.items()]

    @classmethod
    def of_plain(cls, items: Iterable[Sequence[Any]]) -> Networks:
        """Read from plain values."""
        return cls({(version, bits): members for version, bits, members in items})


@dataclass(frozen=True)
class Segment:
    """A network that the host has an address in, and the interface it lies on."""

    name: str
    interface: str
    networks: tuple[Network, ...]


@dataclass(frozen=True)
class Rule:
    """One admitted kind of traffic. peers are sources, in the chain output destinations."""

    id: str
    chain: str
    protocol: str
    ports: tuple[int, ...]
    peers: tuple[Network, ...] = ()
    interface: str | None = None
    uids: tuple[int, ...] = ()
    listeners: tuple[int, ...] = (0,)
    comment: str = ""
    reason: str = ""
    admin: bool = False
    drop: bool = False
    rate: str = ""

    @cached_property
    def _families(self) -> dict[int, tuple[Network, ...]]:
        return {version: tuple(item for item in self.peers if item.version == version) for version in (4, 6)}

    @cached_property
    def _hosts(self) -> dict[int, tuple[str, ...]]:
        return {version: _single_hosts(self.family(version)) for version in (4, 6)}

    @cached_property
    def _members(self) -> dict[int, list[str]]:
        return {version: list(self.hosts(version)) or _without_inner(self.family(version)) for version in (4, 6)}

    @cached_property
    def index(self) -> Networks:
        """The peers, to look addresses up in."""
        return Networks.of(self.peers)

    def family(self, version: int) -> tuple[Network, ...]:
        """The peers of one IP version."""
        return self._families[version]

    def hosts(self, version: int) -> tuple[str, ...]:
        """The peers of one IP version in order, as inet_ntop(3) writes them; empty when one of them is no single host."""
        return self._hosts[version]

    def members(self, version: int) -> list[str]:
        """The peers of one IP version in order, without those that lie in another."""
        return self._members[version]


@dataclass(frozen=True)
class Policy:
    """Everything that one host enforces."""

    segments: tuple[Segment, ...]
    rules: tuple[Rule, ...]
    log_rate: str
    missing_users: tuple[str, ...] = ()

    @property
    def extra(self) -> tuple[Rule, ...]:
        """The rules that did not come from the plan."""
        return tuple(rule for rule in self.rules if rule.reason)

    def of_chain(self, chain: str, drop: bool = False) -> tuple[Rule, ...]:
        """The rules of one chain that admit, or with drop those that refuse, in the order given."""
        return tuple(rule for rule in self.rules if rule.chain == chain and rule.drop == drop)

    def admits(self, source: Address, port: int, interface: str | None) -> bool:
        """Whether a new TCP connection from source would come in; an unknown interface counts as any."""
        if source.is_loopback:
            return True
        for segment in self.segments:
            if interface not in (None, segment.interface) and any(source in network for network in segment.networks):
                return False

        def matches(rule: Rule) -> bool:
            return (
                rule.protocol == "tcp"
                and port in rule.ports
                and (rule.interface is None or interface is None or rule.interface == interface)
                and source in rule.index
            )

        refused = any(matches(rule) for rule in self.of_chain("input", drop=True))
        return not refused and any(matches(rule) for rule in self.of_chain("input"))


class Reader:
    """Reads the module's options, collecting faults under the key that each is about."""

    def __init__(self, interfaces: Mapping[str, str], uid_of: Callable[[str], int | None]) -> None:
        self._interfaces = {_canonical(address): name for address, name in interfaces.items()}
        self._uid_of = uid_of
        self._segments: dict[str, Segment] = {}
        self.faults: list[str] = []
        self.missing_users: dict[str, str] = {}

    def fault(self, key: str, text: str) -> None:
        self.faults.append(f"{key}: {text}")

    def segment(self, key: str, item: Mapping[str, Any]) -> Segment | None:
        """Read one segment and find its interface."""
        name = item["name"]
        if not SEGMENT.fullmatch(name):
            self.fault(f"{key}.name", f"{name!r} is no segment name; write lower-case letters, digits and hyphens")
        if name in self._segments:
            self.fault(f"{key}.name", f"{name!r} is there twice; name each segment once")
        networks = self.networks(f"{key}.networks", item.get("networks") or [], None)
        interface = item.get("interface") or self._by_address(key, item.get("addresses") or [])
        if interface is None:
            return None
        if not self._is_interface(f"{key}.interface", interface):
            return None
        self._segments[name] = Segment(name, interface, tuple(networks))
        return self._segments[name]

    def _by_address(self, key: str, addresses: Sequence[str]) -> str | None:
        if not addresses:
            self.fault(key, "has neither an interface nor addresses to find it by; give one of them")
            return None
        found = {address: self._interfaces.get(_canonical(address)) for address in addresses}
        for address, name in found.items():
            if name is None:
                self.fault(
                    f"{key}.addresses",
                    f"no interface of this host has {address}; bring the segment's interface up or name it"
                    " (interface, in an inventory moat_interface)",
                )
        names = {name for name in found.values() if name is not None}
        if len(names) > 1:
            self.fault(
                f"{key}.addresses", f"lie on several interfaces ({', '.join(sorted(names))}); name the one to use"
            )
            return None
        return next(iter(names)) if None not in found.values() else None

    def _is_interface(self, key: str, name: str) -> bool:
        if not INTERFACE.fullmatch(name) or name in (".", ".."):
            self.fault(key, f"{name!r} is no interface name; write it as ip-link(8) shows it, without a pattern")
            return False
        if name == "lo":
            self.fault(key, "is the loopback interface, which is always open; restrict a local port by chain local")
            return False
        return True

    def networks(self, key: str, texts: Sequence[str], version: int | None) -> list[Network]:
        """Read networks of one IP version; everybody is refused, in one piece or in several."""
        networks: list[Network] = []
        for index, text in enumerate(texts):
            where = f"{key}[{index}]"
            try:
                network = _network(text)
            except ValueError:
                self.fault(where, _no_network(text))
                continue
            if version in (None, network.version):
                networks.append(network)
            else:
                self.fault(where, f"{text!r} is IPv{network.version}; move it to peers{network.version}")
        for family in (4, 6):
            whole = _everybody([network for network in networks if network.version == family])
            if whole:
                self.fault(key, f"admits everybody ({whole}); name the networks that need it")
        return networks

    def rule(self, key: str, item: Mapping[str, Any], extra: bool) -> Rule | None:
        """Read one rule of the plan, or of the hatch."""
        before = len(self.faults)
        rule_id = str(item["id"])
        chain = item["chain"]
        if not RULE_ID.fullmatch(rule_id):
            self.fault(f"{key}.id", f"{rule_id!r} is no id; write lower-case letters, digits and hyphens, 64 at most")
        elif rule_id.startswith(("allow-", "deny-")) or (not extra and rule_id.startswith(EXTRA)):
            self.fault(f"{key}.id", f"{rule_id!r} begins like an id that the role gives; choose another")
        if extra and not rule_id.startswith(EXTRA):
            rule_id = EXTRA + rule_id
        reason = str(item.get("reason") or "").strip()
        if extra and not reason:
            self.fault(f"{key}.reason", "is empty; write why the plan cannot say this")
        ports = self._ports(f"{key}.ports", item.get("ports") or [])
        peers = self.networks(f"{key}.peers4", item.get("peers4") or [], 4)
        peers += self.networks(f"{key}.peers6", item.get("peers6") or [], 6)
        users = item.get("users") or []
        uids = self._uids(f"{key}.users", users)
        listeners = self._listeners(f"{key}.listeners", chain, item.get("listeners") or [])
        self._check_who(key, chain, item.get("peers4") or item.get("peers6"), users)
        interface = self._interface(key, chain, item)
        admin, drop = bool(item.get("admin")), item.get("verdict") == "drop"
        if admin and (chain != "input" or item["protocol"] != "tcp"):
            self.fault(f"{key}.admin", "is for TCP rules of chain input, by which the operator comes; take it out")
        if drop and chain == "local":
            self.fault(
                f"{key}.verdict", "drop is for the chains input, output and forward; a local port is closed by its rule"
            )
        rate = str(item.get("rate") or "")
        if rate and (chain != "input" or drop or admin):
            self.fault(f"{key}.rate", "is for rules of chain input that admit others than the operator; take it out")
        elif rate and not RATE.fullmatch(rate):
            self.fault(f"{key}.rate", f"{rate!r} is no rate; write one such as 100/second")
        if len(self.faults) > before:
            return None
        comment = " ".join(str(item.get("comment") or "").split())
        return Rule(
            rule_id,
            chain,
            item["protocol"],
            ports,
            tuple(peers),
            interface,
            uids,
            listeners,
            comment,
            reason,
            admin,
            drop,
            rate,
        )

    def _check_who(self, key: str, chain: str, peers: Any, users: Any) -> None:
        if not peers and not users:
            self.fault(key, "has neither peers nor users, so it would admit everybody; name them")
        elif chain == "local" and (peers or not users):
            self.fault(key, "is of chain local, which admits users; give users and no peers")
        elif chain != "local" and (users or not peers):
            self.fault(key, f"is of chain {chain}, which admits peers; give peers4 or peers6 and no users")

    def _interface(self, key: str, chain: str, item: Mapping[str, Any]) -> str | None:
        segment, interface = item.get("segment"), item.get("interface")
        if chain == "local" and (segment or interface):
            self.fault(key, "is of chain local, which is about the loopback interface; give no segment or interface")
        if segment and interface:
            self.fault(key, "names a segment and an interface; keep one of them")
        if interface:
            self._is_interface(f"{key}.interface", interface)
            return str(interface)
        if not segment:
            return None
        if segment not in self._segments:
            known = ", ".join(sorted(self._segments)) or "none"
            self.fault(
                f"{key}.segment", f"{segment!r} is no segment that was found (there are: {known}); add it to segments"
            )
            return None
        return self._segments[segment].interface

    def _ports(self, key: str, ports: Sequence[int]) -> tuple[int, ...]:
        if not ports:
            self.fault(key, "is empty; name the ports")
        for port in ports:
            if not 1 <= port <= 65535:
                self.fault(key, f"{port} is no port; write 1 to 65535")
        return tuple(sorted(set(ports)))

    def _listeners(self, key: str, chain: str, users: Sequence[str]) -> tuple[int, ...]:
        if users and chain != "local":
            self.fault(key, f"is of chain {chain}, which knows no local users; give listeners to a rule of chain local")
        return self._uids(key, users) if users else (0,)

    def _uids(self, key: str, users: Sequence[str]) -> tuple[int, ...]:
        uids = set()
        for name in users:
            uid = self._uid_of(name)
            if uid is None:
                self.missing_users[name] = key
            else:
                uids.add(uid)
        return tuple(sorted(uids))


def read_policy(
    options: Mapping[str, Any], uid_of: Callable[[str], int | None], accept_missing_users: bool = False
) -> Policy:
    """Return the policy that the module's options ask for, or raise PolicyError.

    A user that does not exist admits nobody; unless that is accepted (in check mode, before the user is made), it is a fault.
    """
    reader = Reader(options.get("interfaces") or {}, uid_of)
    segments = [reader.segment(f"segments[{i}]", item) for i, item in enumerate(options.get("segments") or [])]
    found: list[tuple[str, Rule | None]] = []
    for option, extra in (("rules", False), ("extra_rules", True)):
        for index, item in enumerate(options.get(option) or []):
            key = f"{option}[{index}] ({item['id']})"
            found.append((key, reader.rule(key, item, extra)))
    seen: set[str] = set()
    for key, rule in found:
        if rule is not None and rule.id in seen:
            reader.fault(f"{key}.id", f"{rule.id!r} is there twice; every id counts one rule")
        if rule is not None:
            seen.add(rule.id)
    if not accept_missing_users:
        for name, key in reader.missing_users.items():
            reader.fault(key, f"this host has no user {name!r}; create the user first or take the name out")
    if not reader.faults and not any(rule is not None and rule.admin for _key, rule in found):
        reader.fault(
            "rules",
            "no rule is marked as the operator's, so nobody could reach the host after a boot whose ruleset does not load;"
            " add admin: true to the rule for administration",
        )
    log_rate = str(options["log_rate"])
    if not LOG_RATE.fullmatch(log_rate):
        reader.fault("log_rate", f"{log_rate!r} is no rate; write one such as 10/minute")
    if reader.faults:
        raise PolicyError(reader.faults)
    return Policy(
        tuple(segment for segment in segments if segment is not None),
        tuple(rule for _key, rule in found if rule is not None),
        log_rate,
        tuple(reader.missing_users),
    )


def _network(text: str) -> Network:
    """Read a network; most of a long list are single hosts, for which ip_network takes up to three times as long."""
    if "/" not in text:
        with suppress(OSError):
            if ":" in text:
                return IPv6Network((int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big"), 128))
            return IPv4Network((int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big"), 32))
    return ip_network(text)


def _no_network(text: str) -> str:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return f"{text!r} is no network; write one such as '10.90.0.0/28' or 'fd00:90::/124'"
    return f"{text!r} has host bits set; write {str(network)!r}"


def _everybody(networks: Sequence[Any]) -> str:
    """The network of all addresses when these make it up, in one piece or in several."""
    # most lists are too short for it, and collapse_addresses takes its time
    covered = sum(1 << (network.max_prefixlen - network.prefixlen) for network in networks)
    if not networks or covered < 1 << networks[0].max_prefixlen:
        return ""
    return next((str(network) for network in collapse_addresses(networks) if network.prefixlen == 0), "")


def _without_inner(networks: Sequence[Network]) -> list[str]:
    texts, last = [], -1
    for first, bits, network in sorted((int(item.network_address), item.prefixlen, item) for item in networks):
        end = first + (1 << (network.max_prefixlen - bits)) - 1
        if end > last:
            last = end
            texts.append(str(network) if end > first else _written(network.network_address.packed))
    return texts


def _single_hosts(networks: Sequence[Network]) -> tuple[str, ...]:
    if any(network.prefixlen != network.max_prefixlen for network in networks):
        return ()
    packed = sorted({network.network_address.packed for network in networks})
    return tuple(map(_written, packed))


def _written(packed: bytes) -> str:
    """An address as the kernel's tools write it; ipaddress does not for all of IPv6, and takes longer."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def read_connection(text: str) -> tuple[Address, int, Address] | None:
    """Return client, server port and server of SSH_CONNECTION (ssh(1)), or None when it holds none."""
    words = text.split()
    if len(words) != 4:
        return None
    try:
        return _plain(words[0]), int(words[3]), _plain(words[2])
    except ValueError:
        return None


def established(tables: Iterable[str]) -> list[tuple[Address, int, Address, int]]:
    """Return client, its port, server, its port of the established connections in texts like /proc/net/tcp (proc(5))."""
    connections = []
    for text in tables:
        for line in text.splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == "01":
                (server, port), (client, client_port) = _end(fields[1]), _end(fields[2])
                connections.append((client, client_port, server, port))
    return connections


def _end(text: str) -> tuple[Address, int]:
    digits, port = text.split(":")
    # words of 32 bits, each in the host's byte order
    raw = b"".join(int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(digits), 8))
    return _plain(str(IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw))), int(port, 16)


def _plain(text: str) -> Address:
    address = ip_address(text.split("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _canonical(text: str) -> str:
    try:
        return str(_plain(text.split("/")[0]))
    except ValueError:
        return text
