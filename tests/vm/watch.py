"""Who looks while a machine boots: probers that connect without pause, and a capture of every frame that comes from it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.shell import LabError, capture, privileged
from tests.vm import machine
from tests.vm.wires import INTRUDER, ROOM, inside

PROGRAM = (Path(__file__).parent / "probe_program.py").read_text(encoding="utf-8")
# A host says these whatever its policy: who has which address, and which groups it listens to.
NEIGHBOURS = (
    "(arp or (icmp6 and (ip6[40] == 133 or ip6[40] == 135 or ip6[40] == 136))"
    " or (ip6 proto 0 and ip6[40] == 58 and (ip6[48] == 131 or ip6[48] == 132 or ip6[48] == 143)))"
)
FOREIGN = f"not ({NEIGHBOURS} or (vlan and {NEIGHBOURS}))"


CANARY = ("tcp4", "udp4", "tcp6", "udp6")  # the targets that are looked at as often as can be
FAR = {4: (machine.DATA4, machine.INTRUDER4), 6: (machine.DATA6, machine.INTRUDER6)}
NEAR = {4: (machine.ADMIN4, machine.STRANGER4), 6: (machine.ADMIN6, machine.STRANGER6)}
SELDOM = 130  # each connection costs sshd a process


def targets(*, with_ssh: bool) -> dict[str, list[dict[str, Any]]]:
    """What is probed: the canary and sshd by the intruder, and by somebody at the administration's wire who is not of it."""

    def target(name: str, ends: tuple[str, str], port: int, every: int) -> dict[str, Any]:
        address, source = ends
        return {
            "name": name,
            "kind": name.split("-")[-1][:3],
            "address": address,
            "port": port,
            "source": source,
            "every": every,
        }

    data = [
        target(f"{kind}{version}", FAR[version], machine.CANARY, 1) for version in (4, 6) for kind in ("tcp", "udp")
    ]
    admin = [target(f"admin-tcp{version}", NEAR[version], machine.CANARY, 4) for version in (4, 6)]
    if with_ssh:
        data += [target(f"ssh-tcp{version}", FAR[version], 22, SELDOM) for version in (4, 6)]
        admin += [target(f"admin-ssh-tcp{version}", NEAR[version], 22, SELDOM) for version in (4, 6)]
    return {INTRUDER: data, ROOM: admin}


@dataclass
class Seen:
    """What a prober has tried and what came back in some length of time."""

    tried: int = 0
    answered: int = 0


class Probers:
    """One program in each namespace, from before the machine is on to the end."""

    def __init__(self, folder: Path, *, with_ssh: bool) -> None:
        wires = targets(with_ssh=with_ssh)
        self.logs = {namespace: folder / f"probes-{namespace}.jsonl" for namespace in wires}
        self._programs = []
        for namespace, wanted in wires.items():
            argv = inside(namespace, "nice", "-n", "-10", sys.executable, "-c", PROGRAM, json.dumps(wanted))
            with self.logs[namespace].open("wb") as log:
                self._programs.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log))

    def stop(self) -> None:
        for program in self._programs:
            program.communicate(timeout=20)
            if program.returncode:
                raise LabError(f"a prober ended with {program.returncode}")

    def window(self, begin: float, end: float) -> tuple[dict[str, Seen], float]:
        """Counts by target from begin to end, and the longest time in which the intruder did not look."""
        found: dict[str, Seen] = {}
        gap = 0.0
        for namespace, log in self.logs.items():
            last = begin
            for text in log.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                if not begin <= line["at"] <= end:
                    continue
                if namespace == INTRUDER:
                    gap, last = max(gap, line["at"] - last), line["at"]
                for name, (tried, answered) in line["counts"].items():
                    seen = found.setdefault(name, Seen())
                    seen.tried += tried
                    seen.answered += answered
            if namespace == INTRUDER:
                gap = max(gap, end - last)
        return found, gap


class Witness:
    """tcpdump in the intruder's namespace: every frame with the machine's hardware address."""

    def __init__(self, file: Path) -> None:
        self.file = file
        argv = ["tcpdump", "-Z", "root", "-n", "-U", "-s", "160", "-B", "8192", "-i", "eth0", "-Q", "in"]
        self._program = subprocess.Popen(
            inside(INTRUDER, *argv, "-w", str(file), "ether", "src", machine.DATA_MAC),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._program.stderr is not None
        line = self._program.stderr.readline()
        while "listening on" not in line:
            if not line:
                raise LabError("tcpdump does not listen")
            line = self._program.stderr.readline()

    def stop(self) -> int:
        """End the capture; the number of frames that it lost."""
        capture(privileged(["kill", "-INT", str(self._program.pid)]))
        _out, said = self._program.communicate(timeout=20)
        lost = re.search(r"(\d+) packets? dropped by kernel", said)
        if lost is None:
            raise LabError(f"tcpdump said nothing of lost packets: {said}")
        return int(lost[1])

    def frames(self, expression: str = "") -> list[str]:
        """The frames that an expression matches, in words."""
        argv = ["tcpdump", "-n", "-e", "-tt", "-r", str(self.file), *([expression] if expression else [])]
        return capture(privileged(argv)).splitlines()


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)
