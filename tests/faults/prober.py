"""Intruders that connect without pause while something changes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.lab import site, table
from tests.lab.lab import ssh

PROGRAM = (Path(__file__).parent / "probe_program.py").read_text(encoding="utf-8")
PORTS = (22, 8443, 9101, 9443)


class Prober:
    """One program on each host outside the perimeter, with a control port that must answer as densely."""

    def __init__(self) -> None:
        hosts = table.load().hosts
        outside = [host for host in hosts.values() if host.probe and not host.router]
        control = next(host for host in hosts.values() if host.router)
        targets = [
            {"host": name, "address": address, "port": port}
            for name, plan in site.plans().items()
            for address in plan["firewall"]["segments"][0]["addresses"]
            for port in PORTS
        ]
        self.programs: dict[str, subprocess.Popen[str]] = {}
        for host in outside:
            network = host.interfaces[0].network
            gate = next(item for item in control.interfaces if item.network == network)
            controls = [{"host": "control", "address": a, "port": 22} for a in (gate.address4, gate.address6)]
            wanted = json.dumps([*targets, *controls])
            self.programs[host.name] = subprocess.Popen(
                ssh(host.name, f"python3 -c '{PROGRAM}' '{wanted}'"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def stop(self) -> dict[str, list[dict[str, Any]]]:
        """What each saw, by source."""
        found = {}
        for name, program in self.programs.items():
            out, _err = program.communicate("", timeout=60)
            found[name] = json.loads(out)
        return found


def faults(found: dict[str, list[dict[str, Any]]], least: int) -> list[str]:
    """Connections that nobody declared, and probers that did not look densely enough to say so."""
    wrong = []
    for source, results in found.items():
        for result in results:
            what = f"{source} to {result['host']} {result['address']} port {result['port']}"
            if result["host"] == "control":
                if result["opened"] < least:
                    wrong.append(f"{what}: the control answered {result['opened']} times only, so nothing is proven")
            elif result["opened"]:
                wrong.append(f"{what}: connected {result['opened']} times")
            elif result["tried"] < least:
                wrong.append(f"{what}: tried {result['tried']} times only")
    return wrong
