"""The boots that are tried, and what each begins from."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.lab.shell import LabError, capture, say
from tests.vm import controller, machine, watch, wires
from tests.vm.proof import UNIT, Proof, kill_run

FILES = Path(__file__).resolve().parent / "files"
RULESET, GOOD, OLD = "/etc/moat/firewall/ruleset.nft", "/root/good.nft", "/root/old.nft"
MARK = {"id": "in-mark", "chain": "input", "protocol": "tcp", "ports": [9], "peers4": ["10.191.0.0/28"]}
CUTS = 6
CHANGE = "Close the host but for declared traffic"
# What stands in the place of the ruleset at the next boot. Each is reached from the good file.
BROKEN = {
    "altered so that all is accepted": f"sed -i 's/policy drop/policy accept/' {RULESET}",
    "empty": f": >{RULESET}",
    "truncated": f"truncate -s $(($(stat -c %s {RULESET}) / 2)) {RULESET}",
    "an older text below a newer sum": f"(head -n 1 {GOOD}; tail -n +2 {OLD}) >{RULESET}",
    "noise": f"head -c 3000 /dev/urandom >{RULESET}",
    "sum right, text refused by nft": (
        f"echo 'table inet moat {{ chain input {{ no such thing' >/root/text;"
        f' (echo "# sha256 $(sha256sum </root/text | cut -d " " -f 1)"; cat /root/text) >{RULESET}'
    ),
    "missing": f"rm {RULESET}",
}


def unchanged(said: str) -> bool:
    return "changed=0" in said and "failed=0" in said


def ordinary(proof: Proof) -> None:
    """A restart in order, and the power cut of a machine at rest."""
    proof.boot("restart in order", proof.reboot)
    proof.boot("power cut", proof.cut)
    if not unchanged(controller.converge(machine.policy())):
        raise LabError("a machine that booted twice needs something of the role")


def planted(proof: Proof) -> None:
    """A unit that begins after the network: who does not find this one finds nothing."""
    change = "s/^Before=network-pre.target/After=network-online.target/; s/network-pre/network-online/"
    controller.must(f"sed -i '{change}' /etc/systemd/system/{UNIT}; sync")
    boot = proof.boot("unit after the network, planted", proof.cut)
    boot.planted = True
    if not boot.answered or not boot.foreign or not any("link" in fault for fault in boot.faults):
        raise LabError(f"a boot that was open for a while was not found out: {boot.line()}")
    controller.converge(machine.policy())
    proof.boot("power cut once the unit is mended", proof.cut)


def begin_change(*more: dict[str, Any]) -> tuple[subprocess.Popen[bytes], float]:
    """Start a run of the role, and wait for the task that changes the machine; the moment at which that began."""
    process = controller.begin(machine.policy(*more))
    watch.until(lambda: CHANGE in controller.LOG.read_text(encoding="utf-8") or process.poll() is not None, 300, CHANGE)
    return process, time.monotonic()


def interrupted(proof: Proof, seed: int) -> None:
    """The power goes while the role changes the policy, at moments spread over the task that does it."""
    chance = random.Random(seed)
    process, begun = begin_change(MARK)
    if process.wait(600):
        raise LabError(f"the role failed; its output is in {controller.LOG}")
    length = time.monotonic() - begun
    marked = True
    for number in range(CUTS):
        moment = length * (number + chance.random()) / CUTS
        running: list[bool] = []

        def how(moment: float = moment, running: list[bool] = running, wanted: bool = not marked) -> None:
            process, begun = begin_change(*([MARK] if wanted else []))
            time.sleep(max(0.0, begun + moment - time.monotonic()))
            proof.machine.kill()
            running.append(kill_run(process))
            time.sleep(1)
            proof.machine.start()

        boot = proof.boot(f"power cut {moment:.1f} s into a change", how)
        now = MARK["id"] in boot.facts["rules"].split()
        state = "in force" if now != marked else "not in force"
        say(f"     the run was {'killed' if running[-1] else 'over'}; the change is {state} after the boot")
        marked = now
    # whatever the last one left, a run that is not disturbed mends it
    controller.converge(machine.policy())
    if not unchanged(controller.converge(machine.policy())):
        raise LabError("a second run after the power cuts changes something")


def broken(proof: Proof) -> None:
    """What boot loads is not what the role has written: closed and managed all the same, and the unit says so."""
    controller.must(f"cp {RULESET} {OLD}")
    controller.converge(machine.policy(MARK))
    controller.must(f"cp {RULESET} {GOOD}")
    for number, (name, script) in enumerate(BROKEN.items()):
        controller.must(f"cp {GOOD} {RULESET}; {script}; sync")
        boot = proof.boot(f"ruleset {name}", proof.cut if number else proof.reboot, failed=True)
        boot.expect(MARK["id"] not in boot.facts["rules"].split(), "rules of the broken file are in force")
    controller.converge(machine.policy(MARK))
    controller.must(f"systemctl is-active {UNIT}; cmp {GOOD} {RULESET}; cp {OLD} {RULESET}; sync")
    boot = proof.boot("ruleset whole but older", proof.cut)
    boot.expect(MARK["id"] not in boot.facts["rules"].split(), "the older file is not what was loaded")
    if unchanged(controller.converge(machine.policy(MARK))):
        raise LabError("the role does not see that an older policy is in force")


def full(proof: Proof) -> None:
    """The disk is full while the role changes the policy: what boots is the old policy or the new one."""
    controller.must("fallocate -l 8G /root/fill 2>/dev/null || dd if=/dev/zero of=/root/fill bs=1M 2>/dev/null || sync")
    controller.must("dd if=/dev/zero of=/root/more bs=4k 2>/dev/null || sync; df / | grep -q '100%'")
    process = controller.begin(machine.policy())
    said = "kept its policy" if process.wait(600) else "took the new policy"
    proof.boot("power cut, disk full", proof.cut)
    say(f"     with a full disk the machine {said}")
    controller.must("rm -f /root/fill /root/more; sync")
    controller.converge(machine.policy())
    proof.boot("power cut after that", proof.cut)


def named(proof: Proof) -> None:
    """Interfaces that the policy names and that are made after boot, kernel WireGuard and a VLAN: filtered from their first packet on."""
    controller.must((FILES / "link.sh").read_text(encoding="utf-8"))
    wanted = {
        f"{kind}/{address}/{port}": kind == "tcp" and port == machine.ADMITTED
        for address in ("100.64.0.1", "172.31.120.1")
        for kind in ("tcp", "udp")
        for port in (machine.CANARY, machine.ADMITTED)
    }
    program = (FILES / "knock.py").read_text(encoding="utf-8")
    knock = f"ip netns exec peer python3 - {' '.join(wanted)} <<'END'\n{program}\nEND\n"
    closed = json.loads(controller.must(knock))
    opened = json.loads(controller.must(f"nft delete table inet moat; {knock} systemctl restart {UNIT}"))
    handshake = controller.must("wg show moat0 latest-handshakes").split()
    controller.must("ip netns delete peer; ip link delete moat0")
    say(
        f"     kernel WireGuard and VLAN made after boot: {sum(closed.values())} of {len(closed)} ports answer, as declared"
    )
    wrong = [name for name, answers in closed.items() if answers != wanted[name]]
    silent = [name for name, answers in opened.items() if not answers]
    if wrong or silent or handshake[-1] == "0":
        raise LabError(f"wrong with the table: {wrong}; silent without it: {silent}; last handshake {handshake[-1]}")


def discarded(proof: Proof) -> None:
    """Packets that routing throws away before any chain sees them: the kernel's errors about them must not leave either."""
    addresses = ("10.192.0.99", "fd00:192::99")
    add = "; ".join(f"ip route add unreachable {address}" for address in addresses)
    controller.must(f"{add}; sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    send = (FILES / "send.py").read_text(encoding="utf-8")
    errors = {}
    for name, before, after in (
        ("with the table", "true", "true"),
        ("without it", "nft delete table inet moat", f"systemctl restart {UNIT}"),
    ):
        controller.must(before)
        witness = watch.Witness(proof.folder / "discarded.pcap")
        capture(wires.inside(wires.INTRUDER, sys.executable, "-c", send, machine.DATA_MAC, *addresses))
        witness.stop()
        errors[name] = [len(witness.frames(which)) for which in ("icmp[0] == 3", "icmp6 and ip6[40] == 1")]
        controller.must(after)
    controller.must(
        "sysctl -q -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0; ip route flush type unreachable"
    )
    told = ", ".join(f"{name} {counts[0]} over IPv4 and {counts[1]} over IPv6" for name, counts in errors.items())
    say(f"     errors about what routing throws away: {told}")
    if not all(errors["without it"]):
        raise LabError("an open machine sends no errors either: nothing is proven")
    if any(errors["with the table"]):
        raise LabError("the kernel answers about packets that no rule admits")


CASES = ("ordinary", "planted", "named", "discarded", "interrupted", "broken", "full")
