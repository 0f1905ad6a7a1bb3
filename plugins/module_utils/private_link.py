# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""WireGuard links as values: what the plan asks for, what the file says, what the host has, and the text of each."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

INTERFACE = re.compile(r"^[a-zA-Z0-9_=+.-]{1,15}$")
# a session is renewed after 120 s and dead after 180 s; an endpoint that a living session came from is authenticated
SESSION_SECONDS = 180
HIDDEN = "(hidden)"


@dataclass(frozen=True)
class Peer:
    """The other end of one edge. public_key is empty as long as its host has none."""

    name: str
    public_key: str
    endpoint: str
    allowed_ips: tuple[str, ...]
    keepalive: int = 0
    preshared: bool = False
    handshake: int = 0


@dataclass(frozen=True)
class Link:
    """An interface with everything that the role answers for."""

    interface: str
    public_key: str
    port: int
    mtu: int
    addresses: tuple[str, ...]
    routes: tuple[str, ...]
    peers: tuple[Peer, ...]
    up: bool = True
    fwmark: str = "off"
    kind: str = ""

    def by_key(self) -> dict[str, Peer]:
        return {peer.public_key: peer for peer in self.peers}


@dataclass
class Delta:
    """How to bring a live link to the desired one without taking it down."""

    sync: bool = False
    clear: list[str] = field(default_factory=list)
    addresses_added: list[str] = field(default_factory=list)
    addresses_removed: list[str] = field(default_factory=list)
    routes_added: list[str] = field(default_factory=list)
    routes_removed: list[str] = field(default_factory=list)
    link: bool = False
    reasons: list[str] = field(default_factory=list)


def is_key(text: str) -> bool:
    """Whether text is 32 bytes in canonical base64, as wg(8) writes a key."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(raw) == 32 and base64.b64encode(raw).decode("ascii") == text


def endpoint_text(address: str, port: int) -> str:
    """Return address:port, an IPv6 address in brackets."""
    parsed = ipaddress.ip_address(address)
    return f"[{parsed}]:{port}" if parsed.version == 6 else f"{parsed}:{port}"


def network_text(text: str) -> str:
    """Return a network as wg(8) writes it, a plain address as one host."""
    return str(ipaddress.ip_network(text, strict=False))


def interface_text(text: str) -> str:
    """Return an interface address with its prefix length."""
    return str(ipaddress.ip_interface(text))


def in_order(networks: Iterable[str]) -> tuple[str, ...]:
    """Sort networks or interface addresses, IPv4 first."""

    def key(text: str) -> tuple[int, int, int]:
        parsed = ipaddress.ip_interface(text)
        return parsed.version, int(parsed), parsed.network.prefixlen

    return tuple(sorted(set(networks), key=key))


def _overlaps(peers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Find allowed addresses that two peers share: WireGuard would silently give them to the last one."""
    owned: list[tuple[int, int, int, str, str]] = []
    for peer in peers:
        for text in peer["allowed_ips"]:
            network = ipaddress.ip_network(text, strict=False)
            owned.append((network.version, int(network[0]), -int(network[-1]), str(network), peer["name"]))
    faults = []
    reach: tuple[int, int, str, str] | None = None
    for version, first, negative_last, text, name in sorted(owned):
        if reach and reach[0] == version and first <= reach[1] and name != reach[3]:
            faults.append(
                f"peers[{name}].allowed_ips: {text} overlaps {reach[2]} of peer {reach[3]}; "
                "give each address to one peer"
            )
        if not reach or reach[0] != version or -negative_last > reach[1]:
            reach = (version, -negative_last, text, name)
    return faults


def faults_of(options: Mapping[str, Any]) -> list[str]:
    """Name everything in the module's options that cannot work, with its remedy."""
    faults = []
    if not INTERFACE.match(options["interface"]) or options["interface"] in (".", ".."):
        faults.append(
            "interface: {!r} is no interface name; use at most 15 letters, digits, '_', '-', '.'".format(
                options["interface"]
            )
        )
    if options["state"] == "absent":
        return faults
    if not 1 <= options["port"] <= 65535:
        faults.append("port: {} is no port; use 1 to 65535".format(options["port"]))
    if not 1280 <= options["mtu"] <= 65455:
        faults.append("mtu: {} does not carry IPv6; use 1280 to 65455".format(options["mtu"]))
    if not options["addresses"]:
        faults.append("addresses: is empty; give the addresses of this host on the link")
    own = set()
    for text in options["addresses"]:
        try:
            own.add(ipaddress.ip_interface(text).ip)
        except ValueError:
            faults.append(f"addresses: {text!r} is no address; write it like 100.64.0.1/32")
    sound = []
    names: dict[str, None] = {}
    keys: dict[str, str] = {}
    for peer in options["peers"]:
        name, before = peer["name"], len(faults)
        where = f"peers[{name}]"
        if not re.match(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", name):
            faults.append(f"{where}.name: use letters, digits, '.', '_' and '-'")
        if name in names:
            faults.append(f"{where}: is there twice; join them in one")
        names[name] = None
        try:
            ipaddress.ip_address(peer["endpoint"])
        except ValueError:
            faults.append(
                f"{where}.endpoint: {peer['endpoint']!r} is no address; names are not resolved again, so give an address"
            )
        if not peer["allowed_ips"]:
            faults.append(f"{where}.allowed_ips: is empty; give the peer's addresses on the link")
        for text in peer["allowed_ips"]:
            try:
                network = ipaddress.ip_network(text, strict=False)
            except ValueError:
                faults.append(f"{where}.allowed_ips: {text!r} is no address; write it like 100.64.0.2/32")
                continue
            if network.prefixlen == 0:
                faults.append(f"{where}.allowed_ips: {text} is everybody; list the peer's own addresses")
            elif any(address in network for address in own):
                faults.append(
                    f"{where}.allowed_ips: {text} holds an address of this host; list the peer's own addresses"
                )
        key = peer.get("public_key")
        if key and not is_key(key):
            faults.append(
                f"{where}.public_key: is no WireGuard key; converge that host, or correct its file in keys_dir"
            )
        elif key and key in keys:
            faults.append(
                f"{where}.public_key: is that of {keys[key]} too; a key was copied: remove it from one of the hosts and converge it"
            )
        elif key:
            keys[key] = name
        if len(faults) == before:
            sound.append(peer)
    return faults + _overlaps(sound)


def resolve(options: Mapping[str, Any], known: Mapping[str, str]) -> tuple[list[Peer], list[str]]:
    """Return the peers with a key, given or known from the file on disk, and the names of those without one."""
    taken = {peer["public_key"] for peer in options["peers"] if peer.get("public_key")}
    peers, unresolved = [], []
    for peer in options["peers"]:
        kept = known.get(peer["name"], "")
        key = peer.get("public_key") or (kept if kept not in taken else "")
        if not key:
            unresolved.append(peer["name"])
            continue
        peers.append(
            Peer(
                peer["name"],
                key,
                endpoint_text(peer["endpoint"], options["port"]),
                in_order(network_text(text) for text in peer["allowed_ips"]),
            )
        )
    return sorted(peers, key=lambda peer: peer.name), sorted(unresolved)


def desired_link(options: Mapping[str, Any], public_key: str, peers: Sequence[Peer]) -> Link:
    """Return the link that the options ask for."""
    addresses = in_order(interface_text(text) for text in options["addresses"])
    connected = [ipaddress.ip_interface(text).network for text in addresses]

    def covered(text: str) -> bool:
        network = ipaddress.ip_network(text)
        first, last = int(network[0]), int(network[-1])
        return any(
            network.version == other.version and int(other[0]) <= first and last <= int(other[-1])
            for other in connected
        )

    # as wg-quick does at its start: no route of its own where the address's network has one
    routes = in_order(text for peer in peers for text in peer.allowed_ips if not covered(text))
    return Link(options["interface"], public_key, options["port"], options["mtu"], addresses, routes, tuple(peers))


def configuration(link: Link, private_key: str) -> str:
    """Return the file that wg-quick(8) reads."""
    lines = [
        "# Managed by moat.inference: what is changed by hand is undone by the next run.",
        "[Interface]",
        f"PrivateKey = {private_key}",
        f"ListenPort = {link.port}",
        *(f"Address = {address}" for address in link.addresses),
        f"MTU = {link.mtu}",
    ]
    for peer in link.peers:
        lines += [
            "",
            "[Peer]",
            f"# {peer.name}",
            f"PublicKey = {peer.public_key}",
            "AllowedIPs = {}".format(", ".join(peer.allowed_ips)),
            f"Endpoint = {peer.endpoint}",
        ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Parsed:
    """What matters of a configuration: the private key, and name and public key of the peers in their order."""

    private_key: str
    peers: tuple[tuple[str, str], ...]

    def names(self) -> dict[str, str]:
        """Return name -> public key of the peers that a comment names."""
        return {name: key for name, key in self.peers if name and is_key(key)}


def parse_configuration(text: str) -> Parsed:
    """Read a file of wg-quick(8) or wg(8). A comment in a peer's section is its name. What is not understood is skipped."""
    section, private_key = "", ""
    peers: list[list[str]] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped.lower()
            if section == "[peer]":
                peers.append(["", ""])
        elif stripped.startswith("#") and section == "[peer]" and not peers[-1][0] and not peers[-1][1]:
            peers[-1][0] = stripped.lstrip("#").strip()
        else:
            name, separator, value = (part.strip() for part in stripped.partition("="))
            value = value.split("#")[0].strip()
            if separator and section == "[interface]" and name.lower() == "privatekey":
                private_key = value
            elif separator and section == "[peer]" and name.lower() == "publickey":
                peers[-1][1] = value
    return Parsed(private_key, tuple((name, key) for name, key in peers))


def stripped_faults(text: str, private_key: str, keys: set[str]) -> list[str]:
    """Say why a stripped configuration must not reach the interface: an empty or cut one would wipe key and peers."""
    parsed = parse_configuration(text)
    faults = []
    if not is_key(private_key) or parsed.private_key != private_key:
        faults.append("it does not hold the private key")
    if {key for _name, key in parsed.peers} != keys:
        faults.append("its peers are not those that were written")
    return faults


def redacted(text: str, private_key: str = "") -> str:
    """Return a configuration fit for a diff: secrets are hidden, and one that is not private_key is said to be another."""

    def hide(match: re.Match[str]) -> str:
        other = private_key and match.group(2).lower() == "privatekey" and match.group(3) != private_key
        return match.group(1) + (f"{HIDDEN}, another one" if other else HIDDEN)

    return re.sub(r"(?im)^(\s*(PrivateKey|PresharedKey)\s*=\s*)(\S*)[^\n]*$", hide, text)


def parse_dump(text: str, interface: str, names: Mapping[str, str]) -> Link:
    """Read `wg show <interface> dump` (wg(8)); names is public key -> name. The private key and preshared keys are not kept."""
    lines = [line.split("\t") for line in text.splitlines() if line]
    _private, public_key, port, fwmark = lines[0]
    peers = []
    for key, preshared, endpoint, allowed, handshake, _received, _sent, keepalive in lines[1:]:
        peers.append(
            Peer(
                names.get(key, ""),
                key,
                "" if endpoint == "(none)" else endpoint,
                () if allowed == "(none)" else in_order(allowed.split(",")),
                0 if keepalive == "off" else int(keepalive),
                preshared != "(none)",
                int(handshake),
            )
        )
    peers.sort(key=lambda peer: (not peer.name, peer.name, peer.public_key))
    public_key = "" if public_key == "(none)" else public_key
    return Link(interface, public_key, int(port), 0, (), (), tuple(peers), fwmark=fwmark)


def with_network(link: Link, address_json: str, routes4_json: str, routes6_json: str) -> Link:
    """Add what `ip -d -j address show` and `ip -j route show` (ip(8)) say of the interface."""
    shown = next(item for item in json.loads(address_json) if item.get("ifname") == link.interface)
    addresses = [
        "{}/{}".format(item["local"], item["prefixlen"])
        for item in shown.get("addr_info", [])
        if item.get("scope") != "link"
    ]
    routes = []
    for text in (routes4_json, routes6_json):
        for route in json.loads(text or "[]"):
            # the kernel makes and removes its own routes along with the addresses
            if route.get("protocol") != "kernel":
                default = "0.0.0.0/0" if text is routes4_json else "::/0"
                routes.append(network_text(default if route["dst"] == "default" else route["dst"]))
    return replace(
        link,
        mtu=shown["mtu"],
        up="UP" in shown["flags"],
        kind=shown.get("linkinfo", {}).get("info_kind", ""),
        addresses=in_order(addresses),
        routes=in_order(routes),
    )


def settled_endpoints(live: Link, desired: Link, now: float) -> Link:
    """Take an endpoint that a living session came from for the planned one: WireGuard follows an authenticated peer."""
    wanted = desired.by_key()
    peers = []
    for peer in live.peers:
        other = wanted.get(peer.public_key)
        roamed = other is not None and peer.endpoint and 0 <= now - peer.handshake < SESSION_SECONDS
        peers.append(replace(peer, endpoint=other.endpoint) if other is not None and roamed else peer)
    return replace(live, peers=tuple(peers))


def compare(live: Link, desired: Link) -> Delta:
    """Return what has to change on a live link. Both must be settled (settled_endpoints)."""
    delta = Delta()
    has, wants = live.by_key(), desired.by_key()
    for label, before, after in (
        ("public key", live.public_key, desired.public_key),
        ("listen port", live.port, desired.port),
        ("firewall mark", live.fwmark, desired.fwmark),
    ):
        if before != after:
            delta.sync = True
            delta.reasons.append(f"{label} is {before or 'missing'}")
    for key, peer in has.items():
        if key not in wants:
            delta.sync = True
            delta.reasons.append(f"peer {peer.name or key} is not in the plan")
    for key, peer in wants.items():
        other = has.get(key)
        if other is None:
            delta.sync = True
            delta.reasons.append(f"peer {peer.name} is missing")
            continue
        if other.allowed_ips != peer.allowed_ips:
            delta.sync = True
            delta.reasons.append(f"allowed addresses of {peer.name} differ")
        if other.endpoint != peer.endpoint:
            delta.sync = True
            delta.reasons.append(f"endpoint of {peer.name} differs")
        if other.keepalive != peer.keepalive or other.preshared != peer.preshared:
            # syncconf leaves alone what the file does not mention
            delta.clear.append(key)
            delta.reasons.append(f"keepalive or preshared key of {peer.name} was set by hand")
    delta.addresses_added = [item for item in desired.addresses if item not in live.addresses]
    delta.addresses_removed = [item for item in live.addresses if item not in desired.addresses]
    delta.routes_added = [item for item in desired.routes if item not in live.routes]
    delta.routes_removed = [item for item in live.routes if item not in desired.routes]
    delta.link = live.mtu != desired.mtu or not live.up
    delta.reasons += [f"address {item} is missing" for item in delta.addresses_added]
    delta.reasons += [f"address {item} is not in the plan" for item in delta.addresses_removed]
    delta.reasons += [f"route {item} is missing" for item in delta.routes_added]
    delta.reasons += [f"route {item} is not in the plan" for item in delta.routes_removed]
    if delta.link:
        delta.reasons.append(f"mtu is {live.mtu}" if live.up else "interface is down")
    return delta


def shown(link: Link | None) -> str:
    """Return a link as text for a diff."""
    if link is None:
        return ""
    lines = [
        "{}, mtu {}".format("up" if link.up else "down", link.mtu),
        f"public key {link.public_key or '(made by this run)'}",
        f"listen port {link.port}",
    ]
    if link.fwmark != "off":
        lines.append(f"firewall mark {link.fwmark}")
    lines += [f"address {address}" for address in link.addresses]
    for peer in link.peers:
        lines.append(f"peer {peer.name or '(not in the plan)'}: {peer.public_key}")
        lines.append("  endpoint {}".format(peer.endpoint or "(none)"))
        lines.append("  allowed addresses {}".format(", ".join(peer.allowed_ips) or "(none)"))
        if peer.keepalive:
            lines.append(f"  keepalive {peer.keepalive} s")
        if peer.preshared:
            lines.append("  preshared key set")
    lines += [f"route {route}" for route in link.routes]
    return "\n".join(lines) + "\n"
