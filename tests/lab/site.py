"""What the lab's own programs need to know of the site: the compiled plan, counters and logs of its hosts."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.lab import table
from tests.lab.collection import COLLECTIONS, environment, tool
from tests.lab.lab import ssh
from tests.lab.shell import ROOT, capture


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def on(host: str, script: str, *, data: bytes | None = None, timeout: float = 60) -> Answer:
    """Run a shell script on a host; a secret goes in by standard input."""
    done = subprocess.run(
        ssh(host, f"bash -c {shlex.quote(script)}"),
        input=data or b"",
        capture_output=True,
        check=False,
        timeout=timeout,
    )
    return Answer(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


@cache
def compiled(inventory: str) -> Any:
    """The plan of an inventory, compiled as the collection does it."""
    if str(COLLECTIONS) not in sys.path:
        sys.path.insert(0, str(COLLECTIONS))
    from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import compile_intent

    argv = tool("ansible-inventory", "-i", inventory, "--list")
    listing = json.loads(subprocess.run(argv, env=environment(), cwd=ROOT, check=True, capture_output=True).stdout)
    variables = listing["_meta"]["hostvars"]
    intent = next(item["moat_perimeter"] for item in variables.values() if "moat_perimeter" in item)
    groups = {name: sorted(members(listing, name)) for name in listing if name != "_meta"}
    return compile_intent(intent, {"hosts": variables, "groups": groups})


@cache
def plans() -> dict[str, Any]:
    """The plan of every host of the lab."""
    plan = compiled(str(table.INVENTORY))
    return {name: plan.host(name) for name in plan.hosts}


def members(listing: dict[str, Any], group: str) -> set[str]:
    """Hosts of a group and its children, in the form of `ansible-inventory --list`."""
    entry = listing.get(group, {})
    return set(entry.get("hosts", ())).union(*(members(listing, child) for child in entry.get("children", ())))


def teach_router() -> None:
    """Let the router forward to the gateways' link addresses too, so that it is their host that refuses, not the way."""
    router = next(host.name for host in table.load().hosts.values() if host.router)
    lines = []
    for plan in plans().values():
        if "gateway" in plan:
            for inner, outer in zip(plan["gateway"]["addresses"], plan["firewall"]["segments"][0]["addresses"]):
                lines.append(f"ip route replace {inner} via {outer}")
    capture(ssh(router, "; ".join(lines)))


def denied(host: str) -> dict[str, int]:
    """Packets that each deny rule of a host has counted."""
    listed = json.loads(on(host, "nft -j list table inet moat").out or "{}")
    counts: dict[str, int] = {}
    for entry in listed.get("nftables", ()):
        rule = entry.get("rule", {})
        name = str(rule.get("comment", ""))
        if name.startswith("deny"):
            for expression in rule["expr"]:
                counter = expression.get("counter")
                if isinstance(counter, dict):
                    counts[name] = counts.get(name, 0) + int(counter["packets"])
    return counts


def gateway_log(host: str, lines: int = 20) -> list[dict[str, Any]]:
    """The newest entries of a gateway's access log."""
    text = on(host, f"journalctl -u moat-gateway.service -n {lines} -o cat --no-pager").out
    found = []
    for line in text.splitlines():
        start = line.find("{")
        if start >= 0:
            try:
                found.append(json.loads(line[start:]))
            except ValueError:
                continue
    return found
