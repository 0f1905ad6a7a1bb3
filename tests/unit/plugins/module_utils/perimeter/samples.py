"""A small perimeter that is accepted, and ways to spoil it."""

from __future__ import annotations

import copy
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import Plan, compile_intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import Fault, IntentError

REMOVE = object()
P = "moat_perimeter"
GPU = {"moat_segment": "inference", "moat_address4": "10.120.0.21"}
# title -> edits, then path, value, problem and remedy of the only fault that they make
Refusals = dict[str, tuple[dict[str, Any], str, str, str, str]]

PERIMETER: dict[str, Any] = {
    "domain": "inference.internal",
    "segments": {
        "app": {"cidr4": "10.110.0.0/24", "cidr6": "fd00:110::/64"},
        "inference": {"cidr4": "10.120.0.0/24", "cidr6": "fd00:120::/64", "vlan": 120},
        "services": {"cidr4": "10.140.0.0/24", "cidr6": "fd00:140::/64"},
    },
    "admin": {"from": ["10.90.0.0/28", "fd00:90::/124"]},
    "ca": {"host": "ca1"},
    "models": {
        "xray-7b": {"hosts": "gpu_hosts", "source": "/srv/models/xray-7b"},
        "notes-1b": {"hosts": "gpu1", "source": "/srv/models/notes-1b", "engine_args": ["--max-model-len", "512"]},
    },
    "clients": {
        "portal": {
            "hosts": "app1",
            "users": ["portal"],
            "models": ["xray-7b"],
            "limits": {"requests_per_second": 20, "burst": 40, "concurrent": 16},
        },
        "batch": {"hosts": "app3", "users": ["batch", "cron"], "port": 8081, "models": ["notes-1b"]},
    },
    "services": {"dns": {"to": ["10.140.0.53"], "protocol": "udp", "ports": [53], "from": "all"}},
    "tests": [
        {"from": "portal", "to": "xray-7b", "expect": "allow"},
        {"from": "batch", "to": "xray-7b", "expect": "deny"},
    ],
}


def member(segment: str, number: int, octet: int, **more: Any) -> dict[str, Any]:
    return {
        "moat_segment": segment,
        "moat_address4": f"10.{number}.0.{octet}",
        "moat_address6": f"fd00:{number}::{octet}",
        **more,
    }


INVENTORY: dict[str, Any] = {
    "hosts": {
        "ca1": member("services", 140, 10),
        "gpu1": member("inference", 120, 11),
        "gpu2": member("inference", 120, 12),
        "app1": member("app", 110, 11),
        "app2": member("app", 110, 12),
        "app3": member("app", 110, 13),
        "intruder": {"moat_probe": True, "moat_address4": "10.110.0.66", "moat_address6": "fd00:110::66"},
        "station": {"moat_probe": True, "moat_address4": "10.90.0.5", "moat_address6": "fd00:90::5"},
        "outside": {"ansible_host": "192.0.2.1"},
    },
    "groups": {
        "all": ["ca1", "gpu1", "gpu2", "app1", "app2", "app3", "intruder", "station", "outside"],
        "gpu_hosts": ["gpu1", "gpu2"],
        "app_hosts": ["app1", "app2", "app3"],
        "empty": [],
        "mixed": ["app1", "outside"],
    },
}


# Two proxies, two name servers and a segment without a default route; documentation addresses are the internet.
WAYS_OUT: dict[str, Any] = {
    f"{P}.segments.edge": {"cidr4": "10.130.0.0/24", "cidr6": "fd00:130::/64"},
    f"{P}.segments.inference.router4": "10.120.0.254",
    f"{P}.segments.inference.router6": "fd00:120::254",
    f"{P}.segments.inference.default_route": False,
    f"{P}.services": {"time": {"to": ["10.150.0.1"], "protocol": "udp", "ports": [123], "from": "all"}},
    f"{P}.proxy": {
        "hosts": ["egress1", "egress2"],
        "to": ["203.0.113.0/24", "2001:db8:9::/48"],
        "resolvers": ["203.0.113.53", "2001:db8:9::53"],
        "upload_limit": "10MB",
    },
    f"{P}.egress": [
        {"from": "gpu_hosts", "host": "packages.example.org"},
        {"from": ["app1", "egress1"], "host": "*.example.net", "ports": [8443, 443], "reason": "mirrors change"},
    ],
    f"{P}.dns": {"hosts": ["dns1", "dns2"], "forward": {"to": ["203.0.113.53"], "for": ["app2"]}},
    "hosts.egress1": member("edge", 130, 10),
    "hosts.egress2": member("edge", 130, 11),
    "hosts.dns1": member("services", 140, 53),
    "hosts.dns2": member("services", 140, 54),
}


def out(edits: dict[str, Any] | None = None) -> dict[str, Any]:
    """The edits after those that make the ways out."""
    merged = {**WAYS_OUT, **(edits or {})}
    return {path: value for path, value in merged.items() if value is not REMOVE or path not in WAYS_OUT}


def sample(edits: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Intent and inventory with edits by dotted path, below `moat_perimeter` or `hosts`."""
    root = {"moat_perimeter": copy.deepcopy(PERIMETER), **copy.deepcopy(INVENTORY)}
    for path, value in (edits or {}).items():
        *way, last = path.split(".")
        node: Any = root
        for key in way:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if value is REMOVE:
            del node[last]
        elif isinstance(node, list):
            node.insert(int(last), copy.deepcopy(value))
        else:
            node[last] = copy.deepcopy(value)
    return root["moat_perimeter"], {"hosts": root["hosts"], "groups": root["groups"]}


def compiled(edits: dict[str, Any] | None = None) -> Plan:
    return compile_intent(*sample(edits))


def faults_of(edits: dict[str, Any]) -> list[Fault]:
    try:
        compiled(edits)
    except IntentError as error:
        return error.faults
    return []


def assert_refused(edits: dict[str, Any], path: str, value: str, problem: str, remedy: str) -> None:
    found = faults_of(edits)
    assert [fault.path for fault in found] == [path], [str(fault) for fault in found]
    assert found[0].value == (value if len(value) <= 80 else f"{value[:77]}...")
    assert problem in found[0].problem
    assert remedy in found[0].remedy
