"""Changes that lock the operator out, and the ways by which the operator comes."""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import site, table
from tests.lab.lab import SSH, STATE
from tests.lab.podman import podman
from tests.lab.shell import succeeds

Data = dict[str, Any]
BASTION, JUMP = "router1", "app1"
LINK_KEYS = STATE / "link-keys"


def controller() -> tuple[str, str]:
    """The operator's addresses."""
    network = next(network for network in table.load().networks.values() if network.controller4)
    return str(network.controller4), str(network.controller6)


@functools.cache
def gate() -> table.Interface:
    """The bastion's interface to the operator's network."""
    return next(item for item in table.load().hosts[BASTION].interfaces if item.network == "admin")


def extra(name: str, **rule: Any) -> Data:
    """One rule beside the plan's."""
    return {"id": name, "protocol": "tcp", "ports": [22], "reason": "a test of lock-outs", **rule}


def plan(host: str) -> Data:
    firewall = copy.deepcopy(site.plans()[host]["firewall"])
    return {"change_firewall": {"segments": firewall["segments"], "rules": firewall["rules"], "extra_rules": []}}


def harmless(variables: Data) -> Data:
    """Another sound change, so that the run has something to confirm."""
    changed = copy.deepcopy(variables)
    rule = extra("metrics-of-the-site", chain="input", ports=[9100], peers4=["10.90.0.2/32"])
    changed["change_firewall"]["extra_rules"].append(rule)
    return changed


@dataclass(frozen=True)
class Way:
    """How the operator comes to the host, which hosts are in the run, and their sound variables."""

    target: str
    others: tuple[str, ...]
    options: str = ""
    address: str = ""

    def connection(self) -> Data:
        options = f"-F '{SSH / 'config'}' -o HostKeyAlias={self.target} {self.options}"
        found = {"ansible_ssh_common_args": options.strip()}
        return {**found, "ansible_host": self.address} if self.address else found

    def reaches(self) -> bool:
        """Whether a new connection gets in."""
        options = ["-F", str(SSH / "config"), "-o", "BatchMode=yes", "-o", f"HostKeyAlias={self.target}"]
        address = self.address or table.load().hosts[self.target].management
        argv = ["ssh", *options, *self.options.split(), "-o", "ConnectTimeout=3", "-l", "root", address, "true"]
        return succeeds(argv, timeout=5)

    def sound(self) -> dict[str, Data]:
        found = {host: plan(host) for host in (self.target, *self.others)}
        if BASTION in self.options:
            admin(found[self.target])["peers4"].append(f"{gate().address4}/32")
        if JUMP in self.options:
            here, there = site.plans()[JUMP]["private_link"], site.plans()[self.target]["private_link"]
            four = here["addresses"][0]
            came = extra("jump-in", chain="input", interface=there["interface"], peers4=[four])
            went = extra("jump-out", chain="output", interface=here["interface"], peers4=[there["addresses"][0]])
            found[self.target]["change_firewall"]["extra_rules"].append(came)
            found[JUMP]["change_firewall"]["extra_rules"].append(went)
            found[self.target]["change_link"] = {**copy.deepcopy(there), "keys_dir": str(LINK_KEYS)}
        return found


def admin(variables: Data) -> Data:
    """The rule by which the operator comes."""
    rules = variables["change_firewall"]["rules"]
    return dict_of(next(rule for rule in rules if rule["id"] == "in-admin-ssh"))


def dict_of(value: Any) -> Data:
    assert isinstance(value, dict)
    return value


def rule(**parts: Any) -> Callable[[Data, Path], None]:
    """Another value in the operator's rule."""

    def change(variables: Data, _folder: Path) -> None:
        admin(variables).update(parts)

    return change


def dropped(**parts: Any) -> Callable[[Data, Path], None]:
    """What is established goes as well."""

    def change(variables: Data, _folder: Path) -> None:
        variables["change_firewall"]["extra_rules"].append(extra("lock-out", verdict="drop", **parts))

    return change


def elsewhere(variables: Data, _folder: Path) -> None:
    """The operator's network is said to be behind another interface, so that the operator's packets look forged."""
    segment = variables["change_firewall"]["segments"][0]
    segment["networks"] = [*segment["networks"], "10.90.0.0/28"]


def link(**parts: Any) -> Callable[[Data, Path], None]:
    def change(variables: Data, _folder: Path) -> None:
        variables["change_link"].update(parts)

    return change


def no_peer(variables: Data, _folder: Path) -> None:
    peers = variables["change_link"]["peers"]
    variables["change_link"]["peers"] = [peer for peer in peers if peer["name"] != JUMP]


def other_source(variables: Data, _folder: Path) -> None:
    """The peer may use another address inside of the link, so there is no way back to this one."""
    peer = next(peer for peer in variables["change_link"]["peers"] if peer["name"] == JUMP)
    peer["allowed_ips"] = ["100.110.0.99/32"]


def other_key(variables: Data, folder: Path) -> None:
    keys = folder / "keys"
    shutil.copytree(LINK_KEYS, keys)
    wrong = subprocess.run(
        podman("exec", f"moat-lab-{JUMP}", "sh", "-c", "wg genkey | wg pubkey"), capture_output=True, check=True
    )
    (keys / f"{JUMP}.pub").write_bytes(wrong.stdout)
    variables["change_link"]["keys_dir"] = str(keys)


def no_link(variables: Data, _folder: Path) -> None:
    """The packet filter admits no packet of the link from any peer."""
    everyone = {"peers4": ["10.0.0.0/8"], "peers6": ["fd00::/16"]}
    rules = variables["change_firewall"]["extra_rules"]
    rules.append({**extra("lock-out", chain="input", verdict="drop", **everyone), "protocol": "udp", "ports": [51820]})


def ways() -> dict[str, Way]:
    six = table.load().hosts["app2"].interfaces[1].address6
    over = site.plans()["gpu1"]["private_link"]["addresses"][0].split("/")[0]
    return {
        "directly": Way("app2", ("app3",)),
        "over IPv6": Way("app2", ("app3",), address=six),
        "by a bastion": Way("app2", ("app3",), f"-o ProxyJump={BASTION}"),
        "over the link": Way("gpu1", (JUMP, "app3"), f"-o ProxyJump={JUMP}", over),
    }


@dataclass(frozen=True)
class Case:
    way: str
    name: str
    change: Callable[[Data, Path], None]
    ends: str = ""  # how the run ends between apply and confirm, when not by itself


OPERATOR4, OPERATOR6 = (f"{address}/{bits}" for address, bits in zip(controller(), (32, 128), strict=True))
ROUTER4 = f"{gate().address4}/32"
# The first ones are the short form.
CASES = [
    Case("directly", "another admin network", rule(peers4=["10.91.0.0/28"])),
    Case("over the link", "no peer", no_peer),
    Case("directly", "established connections dropped", dropped(chain="input", peers4=[OPERATOR4])),
    Case("directly", "the power is cut", rule(peers4=["10.91.0.0/28"]), "power cut"),
    Case("directly", "an admin network too narrow", rule(peers4=["10.90.0.2/32"])),
    Case("directly", "the admin network is another segment", rule(peers4=["10.110.0.0/24"])),
    Case("directly", "IPv6 only", rule(peers4=[])),
    Case("directly", "another port", rule(ports=[2222])),
    Case("directly", "another interface", rule(interface="eth0")),
    Case("directly", "the admin network behind another interface", elsewhere),
    Case("directly", "answers dropped", dropped(chain="output", peers4=[OPERATOR4], ports=list(range(32768, 61000)))),
    Case("directly", "the run is killed", rule(peers4=["10.91.0.0/28"]), "SIGKILL"),
    Case("over IPv6", "another admin network", rule(peers6=["fd00:91::/124"])),
    Case("over IPv6", "IPv4 only", rule(peers6=[])),
    Case("over IPv6", "established connections dropped", dropped(chain="input", peers6=[OPERATOR6])),
    Case("by a bastion", "the bastion forgotten", rule(peers4=["10.90.0.0/28"])),
    Case("by a bastion", "established connections dropped", dropped(chain="input", peers4=[ROUTER4])),
    Case("over the link", "another port", link(port=51999)),
    Case("over the link", "another address", link(addresses=["100.120.0.99/32"])),
    Case("over the link", "another source", other_source),
    Case("over the link", "another key", other_key),
    Case("over the link", "the link's port dropped", no_link),
]
