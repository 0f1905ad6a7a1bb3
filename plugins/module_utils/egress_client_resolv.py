# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Resolvers of a host: asked before they are used, and written where nothing else writes."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
import struct
from collections.abc import Mapping, Sequence

RESOLV = "/etc/resolv.conf"
RESOLVED_DROPIN = "/etc/systemd/resolved.conf.d/zz-moat-egress.conf"
DHCLIENT_HOOKS = "/etc/dhcp/dhclient-enter-hooks.d"
# resolv.conf(5): further ones are not read
MOST = 3
MANAGED = "# Managed by moat.inference.\n"
SOA, NS = 6, 2
RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
WAIT, ATTEMPTS = 2.0, 2
DNS_NONE = re.compile(r"^\s*(dns\s*=\s*none|rc-manager\s*=\s*unmanaged)\s*$", re.MULTILINE)


def resolv_text(resolvers: Sequence[str], domain: str) -> str:
    """What resolv.conf(5) shall be. Two attempts of 2 s: the next server is asked while the asker still waits."""
    lines = [f"search {domain}\n"] if domain else []
    lines += [f"nameserver {address}\n" for address in resolvers[:MOST]]
    return "".join([MANAGED, *lines, "options timeout:2 attempts:2\n"])


def resolved_text(resolvers: Sequence[str], domain: str) -> str:
    """What systemd-resolved shall do: the same servers for every name, and none to fall back to."""
    lines = [
        "[Resolve]",
        # what another file has is forgotten by the empty line, or it would be added to
        "DNS=",
        "DNS={}".format(" ".join(resolvers[:MOST])),
        "FallbackDNS=",
        "Domains=",
        "Domains={}".format(" ".join([*([domain] if domain else []), "~."])),
        "DNSOverTLS=no",
        "LLMNR=no",
        "MulticastDNS=no",
    ]
    return MANAGED + "\n".join(lines) + "\n"


def hook_text() -> str:
    """What keeps dhclient(8) from writing resolv.conf."""
    return MANAGED + "make_resolv_conf() { :; }\n"


def in_force(text: str) -> list[str]:
    """The name servers that a resolv.conf(5) has."""
    lines = (line.split() for line in text.splitlines())
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def writers(link: str, text: str, active: Mapping[str, bool], settings: str, resolvconf: bool) -> list[str]:
    """Name what else writes resolv.conf, with the remedy.

    link: where resolv.conf leads, empty for a file; settings: the configuration of NetworkManager; resolvconf: whether that program is there.
    """
    faults = []
    if resolvconf or "resolvconf" in link:
        faults.append("resolvconf writes /etc/resolv.conf on this host; remove its package, so that one writer is left")
    manager = active.get("NetworkManager.service", False)
    if manager and not DNS_NONE.search(settings):
        faults.append(
            "NetworkManager writes /etc/resolv.conf on this host; set dns=none in the section main of a file in"
            " /etc/NetworkManager/conf.d and reload it"
        )
    known = ("/systemd/resolve/", "NetworkManager", "resolvconf")
    if link and not any(part in link for part in known):
        faults.append(f"/etc/resolv.conf leads to {link}, which something else writes; replace it by a file")
    return faults


def query(domain: str, number: int) -> bytes:
    """A question for the SOA of domain, or for the name servers of the root."""
    name = b"".join(bytes([len(label)]) + label.encode("idna") for label in domain.strip(".").split(".") if label)
    header = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0)
    return header + name + b"\0" + struct.pack("!HH", SOA if name else NS, 1)


def verdict(answer: bytes, number: int, domain: str) -> str | None:
    """Why an answer does not count; empty when it does, None when it is no answer to this question."""
    if len(answer) < 12:
        return None
    found, flags = struct.unpack("!HH", answer[:4])
    if found != number or not flags & 0x8000:
        return None
    code = flags & 0xF
    good = (0, 3) if domain else (0, 3, 5)
    return "" if code in good else f"answers {RCODES.get(code, code)}"


def ask(address: str, domain: str, port: int = 53) -> str:
    """Ask a resolver; say what is wrong with it, nothing when it answers."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    said = "gives no answer"
    for _attempt in range(ATTEMPTS):
        number = secrets.randbelow(65536)
        with socket.socket(family, socket.SOCK_DGRAM) as plug:
            plug.settimeout(WAIT)
            try:
                # connected, so that an answer from elsewhere is none, and an unreachable port is known at once
                plug.connect((address, port))
                plug.send(query(domain, number))
                result = verdict(plug.recv(4096), number, domain)
            except OSError as error:
                said = "gives no answer ({})".format(error.strerror or "time is over")
                continue
        if result is not None:
            return result
    return said


def is_own(address: str) -> bool:
    """Whether an address is this host's."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as plug:
        try:
            plug.bind((address, 0))
        except OSError:
            return False
    return True


def network_manager_settings() -> str:
    """The configuration of NetworkManager as one text."""
    texts = []
    for directory in ("/usr/lib/NetworkManager/conf.d", "/etc/NetworkManager", "/etc/NetworkManager/conf.d"):
        if os.path.isdir(directory):
            for name in sorted(os.listdir(directory)):
                if name.endswith(".conf"):
                    with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as handle:
                        texts.append(handle.read())
    return "\n".join(texts)
