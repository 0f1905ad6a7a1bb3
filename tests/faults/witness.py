"""The second witness: a capture, outside of the hosts, of all that a managed host sends to a host outside the perimeter."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.lab import canary, site, table
from tests.lab.podman import PREFIX, Podman, hardware_address
from tests.lab.shell import LabError, capture, privileged

BUFFER = 16384  # KiB
# Neighbour discovery is how hosts of one network find one another; ARP is no IP packet at all.
NOT_NEIGHBOURS = "not arp and not (icmp6 and ip6[40] >= 133 and ip6[40] <= 137)"


def _any(kind: str, values: list[str]) -> str:
    return "(" + " or ".join(f"{kind} {value}" for value in values) + ")"


class Witness:
    """tcpdump on each of the lab's bridges, which sees a host's first packet after its start as well."""

    def __init__(self) -> None:
        tables = table.load()
        managed = [tables.hosts[name] for name in site.plans()]
        outside = [host for host in tables.hosts.values() if host.probe]
        theirs = [a for host in outside for i in host.interfaces for a in (i.address4, i.address6)]
        senders = [hardware_address(i.address4) for host in managed for i in host.interfaces]
        router = [hardware_address(i.address4) for host in outside if host.router for i in host.interfaces]
        to_them = f"{_any('dst host', theirs)} and {NOT_NEIGHBOURS}"
        # by hardware address, so that a forged source address is seen too
        self.found = f"{_any('ether src', senders)} and {to_them}"
        self.control = f"{_any('ether src', router)} and src port {canary.PORT} and {to_them}"
        self.folder = Path(tempfile.mkdtemp(prefix="moat-witness-"))
        self.folder.chmod(0o755)
        self.programs: dict[str, subprocess.Popen[bytes]] = {}
        backend = Podman()
        # where nobody from outside asks, the control has nobody to answer
        asked = {i.network for host in outside if not host.router for i in host.interfaces}
        self.asked = {backend.bridge(network) for network in asked}
        for network in tables.networks:
            bridge = backend.bridge(network)
            argv = ["tcpdump", "-i", bridge, "-n", "-U", "-s", "128", "-B", str(BUFFER)]
            argv += ["-Z", "root", "-w", str(self._file(bridge)), f"({self.found}) or ({self.control})"]
            log = (self.folder / f"{bridge}.log").open("wb")
            self.programs[bridge] = subprocess.Popen(privileged(argv), stdout=log, stderr=log)
        deadline = time.monotonic() + 15
        while not all("listening on" in self._log(bridge) for bridge in self.programs):
            if time.monotonic() > deadline:
                raise LabError(f"tcpdump does not begin on {PREFIX}*: {self._log(next(iter(self.programs)))}")
            time.sleep(0.1)

    def _file(self, bridge: str) -> Path:
        return self.folder / f"{bridge}.pcap"

    def _log(self, bridge: str) -> str:
        return (self.folder / f"{bridge}.log").read_text(encoding="utf-8", errors="replace")

    def _read(self, bridge: str, what: str) -> list[str]:
        argv = ["tcpdump", "-r", str(self._file(bridge)), "-n", "-tt", "-e", what]
        return capture(privileged(argv)).splitlines()

    def stop(self) -> dict[str, Any]:
        """What it saw: packets of managed hosts (`found`, one line each), of the control, and those that the kernel dropped."""
        for program in self.programs.values():
            capture(privileged(["kill", f"-{signal.SIGINT.value}", str(program.pid)]))
        found: list[str] = []
        control, dropped = {}, {}
        for bridge, program in self.programs.items():
            program.wait(timeout=30)
            found += self._read(bridge, self.found)
            if bridge in self.asked:
                control[bridge] = len(self._read(bridge, self.control))
            dropped[bridge] = int(re.findall(r"(\d+) packets? dropped by kernel", self._log(bridge))[0])
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()
        return {"found": found, "control": control, "dropped": dropped}


def faults(seen: dict[str, Any]) -> list[str]:
    """What contradicts the proof in what a witness saw."""
    wrong = [f"witness: {line}" for line in seen["found"][:20]]
    wrong += [f"witness: {number} packets were dropped on {at}" for at, number in seen["dropped"].items() if number]
    return wrong + [f"witness: no answer of the control was seen on {at}" for at, n in seen["control"].items() if not n]
