"""The machine under test: its addresses, the files that its image has, and the policy that it is converged with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = "vm1"
HERE = Path(__file__).resolve().parent
DATA_MAC, ADMIN_MAC = "52:54:00:6d:00:01", "52:54:00:6d:00:02"
DATA4, DATA6 = "10.192.0.11", "fd00:192::11"
ADMIN4, ADMIN6 = "10.191.0.20", "fd00:191::20"
INTRUDER4, INTRUDER6 = "10.192.0.66", "fd00:192::66"
CONTROLLER4, CONTROLLER6 = "10.191.0.1", "fd00:191::1"  # of the admin networks
STRANGER4, STRANGER6 = "10.191.0.100", "fd00:191::100"  # on the same wire, of no admin network
ADMIN_NETWORKS4, ADMIN_NETWORKS6 = ["10.191.0.0/28"], ["fd00:191::/124"]
VLAN, LINK = "outer0.120", "moat0"  # interfaces that the policy names and that no boot makes
PEER4, PEER_VLAN4, PEER_LINK4 = "172.31.0.2", "172.31.120.2", "100.64.0.2"
CANARY, ADMITTED = 7, 8443  # the canary's ports: no rule admits the first one


def network(name: str, mac: str, addresses: tuple[str, ...]) -> dict[str, str]:
    """An interface by its hardware address, brought up by systemd-networkd."""
    lines = "".join(f"Address={address}\n" for address in addresses)
    text = f"[Match]\nMACAddress={mac}\n[Network]\nLinkLocalAddressing=ipv6\nIPv6AcceptRA=no\nLLMNR=no\n{lines}"
    return {
        f"/etc/systemd/network/10-{name}.link": f"[Match]\nMACAddress={mac}\n[Link]\nName={name}\n",
        f"/etc/systemd/network/20-{name}.network": text,
    }


def files() -> dict[str, str]:
    """What the machine has beside Debian."""
    return {
        **network("data0", DATA_MAC, (f"{DATA4}/24", f"{DATA6}/64")),
        **network("admin0", ADMIN_MAC, (f"{ADMIN4}/24", f"{ADMIN6}/64")),
        "/usr/local/lib/canary.py": (HERE / "files" / "canary.py").read_text(encoding="utf-8"),
        "/etc/systemd/system/canary.service": (HERE / "files" / "canary.service").read_text(encoding="utf-8"),
        "/etc/systemd/system/sysinit.target.d/canary.conf": "[Unit]\nWants=canary.service\n",
    }


def policy(*more: dict[str, Any]) -> dict[str, Any]:
    """The firewall role's inputs."""
    tcp = {"chain": "input", "protocol": "tcp"}
    rules = [
        {
            **tcp,
            "id": "in-admin-ssh",
            "ports": [22],
            "peers4": ADMIN_NETWORKS4,
            "peers6": ADMIN_NETWORKS6,
            "admin": True,
        },
        {**tcp, "id": "in-link-service", "ports": [ADMITTED], "interface": LINK, "peers4": ["100.64.0.0/10"]},
        {**tcp, "id": "in-vlan-service", "ports": [ADMITTED], "interface": VLAN, "peers4": ["172.31.120.0/24"]},
        {"id": "in-link", "chain": "input", "protocol": "udp", "ports": [51820], "peers4": [f"{PEER4}/32"]},
        {"id": "out-link", "chain": "output", "protocol": "udp", "ports": [51820], "peers4": [f"{PEER4}/32"]},
        *more,
    ]
    segments = [
        {"name": "data", "addresses": [DATA4, DATA6], "networks": ["10.192.0.0/24", "fd00:192::/64"]},
        {"name": "vlan", "interface": VLAN, "networks": ["172.31.120.0/24"]},
        {"name": "private-link", "interface": LINK, "networks": ["100.64.0.0/10"]},
    ]
    return {"firewall_segments": segments, "firewall_rules": rules}
