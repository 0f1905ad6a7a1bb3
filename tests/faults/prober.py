"""Intruders that connect without pause while something changes, and what they found."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import canary, site, table
from tests.lab.lab import ssh
from tests.lab.podman import hardware_address
from tests.lab.shell import LabError

PROGRAM = (Path(__file__).parent / "probe_program.py").read_text(encoding="utf-8")
INTERVAL = 0.4  # seconds from one flow to the next of the same target
GAP = 1.0  # seconds without a flow, or without an answer of the control, in which a moment of change does not count
TCP, UDP = (22, 8443, 9101, 9443, canary.PORT), (51820, canary.PORT)


@dataclass
class Source:
    """One intruder: its program, and what it told so far."""

    name: str
    targets: list[dict[str, Any]]
    program: subprocess.Popen[str]
    beat: float = 0.0
    silent: list[int] = field(default_factory=list)
    gaps: list[tuple[int, float, float]] = field(default_factory=list)
    findings: list[tuple[int, str, float]] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)

    def listen(self) -> None:
        assert self.program.stdout is not None
        for line in self.program.stdout:
            told = json.loads(line)
            if "beat" in told:
                self.silent, self.beat = told["silent"], told["beat"]
            elif "gap" in told:
                self.gaps.append((told["target"], *told["gap"]))
            elif "found" in told:
                self.findings.append((told["target"], told["found"], told["time"]))
            else:
                self.totals = told

    def words(self, number: int) -> str:
        target = self.targets[number]
        return f"{self.name} to {target['host']} {target['address']} {target['protocol']}/{target['port']}"


def targets_for(intruder: table.Host, hosts: dict[str, table.Host]) -> list[dict[str, Any]]:
    """Every address of every managed host, and as a control the router's address in the intruder's own segment."""
    managed, found = site.plans(), []
    for host in hosts.values():
        control = host.router
        if not control and host.name not in managed:
            continue
        for interface in host.interfaces:
            if control and interface.network != intruder.interfaces[0].network:
                continue
            for address in (interface.address4, interface.address6):
                for protocol, ports in (("tcp", TCP), ("udp", UDP)):
                    for port in (canary.PORT,) if control else ports:
                        target = {"host": host.name, "address": address, "port": port, "protocol": protocol}
                        found.append({**target, "control": control})
    return found


def neighbours(host: table.Host, hosts: dict[str, table.Host]) -> Iterator[str]:
    """Commands that fix the neighbours of a host: a flow to a host that boots must not wait for its address to be found."""
    for number, own in enumerate(host.interfaces):
        for other in hosts.values():
            for item in other.interfaces:
                if other.name != host.name and item.network == own.network:
                    for address in (item.address4, item.address6):
                        place = f"lladdr {hardware_address(item.address4)} dev eth{number}"
                        yield f"ip neighbour replace {address} {place} nud permanent"


class Prober:
    """One program on each intruder, with controls that answer as densely. Canaries listen on every managed host meanwhile."""

    def __init__(self, interval: float = INTERVAL) -> None:
        hosts = table.load().hosts
        self.interval = interval
        self.planted = [*site.plans(), *(host.name for host in hosts.values() if host.router)]
        self.outside = [host for host in hosts.values() if host.probe]
        self.begun = time.time()
        self.sources: list[Source] = []
        self.threads: list[threading.Thread] = []
        self.wrong: list[str] = []
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(canary.plant, self.planted))
            list(pool.map(lambda h: site.on(h.name, "; ".join(neighbours(h, hosts))), self.outside))
        self.asked(*self.planted)
        for host in self.outside:
            if host.router:
                continue
            targets = targets_for(host, hosts)
            # first at the processor: what changes meanwhile takes all there is of it
            words = ["nice", "-n", "-10", "python3", "-c", PROGRAM, json.dumps(targets), str(interval), str(GAP)]
            pipe = subprocess.PIPE
            program = subprocess.Popen(ssh(host.name, shlex.join(words)), stdin=pipe, stdout=pipe, text=True)
            self.sources.append(Source(host.name, targets, program))
            self.threads.append(threading.Thread(target=self.sources[-1].listen, daemon=True))
            self.threads[-1].start()
        self.settle(self.begun)

    def asked(self, *hosts: str) -> None:
        """The canaries of these hosts answer over loopback, or the refusals prove nothing."""
        for host in hosts:
            if not canary.answers(host):
                self.wrong.append(
                    f"{host}: the canary does not answer on the host itself, so its silence proves nothing"
                )

    def settle(self, moment: float) -> None:
        """Wait until every source has told of all that was at this moment."""
        deadline = time.time() + 30
        while any(source.beat < moment + GAP + 1 for source in self.sources):
            if time.time() > deadline or any(source.program.poll() is not None for source in self.sources):
                late = [source.name for source in self.sources if source.beat < moment + GAP + 1]
                raise LabError(f"no word from the probers on {', '.join(late)}")
            time.sleep(0.1)

    def watched(self, begun: float, ended: float, hosts: set[str] | None = None) -> bool:
        """Whether no flow to these hosts (to all, if none are named) and no control paused while something changed."""
        self.settle(ended)
        for source in self.sources:
            open_gaps = [(number, source.beat - GAP, source.beat) for number in source.silent]
            for number, start, end in [*source.gaps, *open_gaps]:
                target = source.targets[number]
                concerned = target["control"] or hosts is None or target["host"] in hosts
                if concerned and start < ended and begun < end:
                    return False
        return True

    def stop(self) -> dict[str, Any]:
        """End the programs, take the canaries away, and return rates, gaps and counts; `wrong` has what is undeclared."""
        totals = {}
        for source, thread in zip(self.sources, self.threads, strict=True):
            assert source.program.stdin is not None
            source.program.stdin.close()
            thread.join(timeout=60)
            source.program.wait(timeout=60)
            if not source.totals:
                self.wrong.append(f"{source.name}: its prober did not live to the end")
                continue
            totals[source.name] = self._judge(source)
        self.wrong += self.findings()[:50]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(canary.pull, self.planted))
            list(pool.map(lambda h: site.on(h.name, "ip neighbour flush nud permanent"), self.outside))
        return totals

    def findings(self) -> list[str]:
        """What answered up to now."""
        words = {"answer": "an answer", "ECONNREFUSED": "a refusal, which is an answer"}
        return [f"{s.words(n)}: {words[what]} at {at:.3f}" for s in self.sources for n, what, at in s.findings]

    def _judge(self, source: Source) -> dict[str, Any]:
        seconds = source.totals["seconds"]
        rows = list(zip(source.targets, source.totals["totals"], strict=True))
        least = min(total["tried"] for _target, total in rows)
        if least * self.interval < 0.5 * seconds:
            self.wrong.append(f"{source.name}: {least} flows to one target in {seconds:.0f} s are too few")
        controls = [(target, total) for target, total in rows if target["control"]]
        others = [total for target, total in rows if not target["control"]]
        for target, total in controls:
            answered = total["counts"].get("answer", 0)
            # a control that answers seldom would hide what the others miss
            if answered < 0.9 * total["tried"]:
                self.wrong.append(
                    f"{source.name}: the control {target['protocol']} {target['address']} answered {answered} of {total['tried']}"
                )
        return {
            "seconds": seconds,
            "targets": len(others),
            "tried": sum(total["tried"] for total in others),
            "least": least,
            "answers": sum(total["counts"].get("answer", 0) for total in others),
            "refusals": sum(total["counts"].get("ECONNREFUSED", 0) for total in others),
            "control_tried": sum(total["tried"] for _target, total in controls),
            "control_answers": sum(total["counts"].get("answer", 0) for _target, total in controls),
            "widest": max(total["widest"] for total in others),
            "control_widest": max(total["widest"] for _target, total in controls),
            "gaps": len(source.gaps),
        }


@contextlib.contextmanager
def probing(interval: float = INTERVAL) -> Iterator[Prober]:
    """Stopped whatever happens: a canary that stays would be a find of every later test."""
    watching = Prober(interval)
    try:
        yield watching
    finally:
        if any(source.program.poll() is None for source in watching.sources):
            watching.stop()
