"""What is true of every boot of the machine, looked at from outside and from inside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.qemu import Qemu
from tests.lab.shell import LabError, say
from tests.vm import controller, watch
from tests.vm.watch import CANARY, FOREIGN, Probers, Seen, Witness

UNIT = "moat-firewall.service"
TABLE = "inet moat"
PATIENCE = 300  # seconds for a boot, which an emulated processor may need
LEAST = 50  # probes a second of each kind
GAP = 1.0  # seconds in which nobody looked, at most
CONTROL = 2.0  # seconds for which the table is away, and the canary has to answer
FACTS = f"""
show() {{ systemctl show "$1" -p ActiveState -p Result -p ExecMainExitTimestampMonotonic -p ExecMainStartTimestampMonotonic \\
    -p ActiveEnterTimestampMonotonic | sed "s/^/$2./"; }}
show {UNIT} firewall
show systemd-networkd.service network
show canary.service canary
echo "boot=$(cat /proc/sys/kernel/random/boot_id)"
echo "link=$(journalctl -b -o short-monotonic -u systemd-networkd | grep -m 1 -E ': (Link UP|Gained carrier)' | grep -oE '[0-9]+[.][0-9]+' | head -n 1)"
echo "policies=$(nft list table {TABLE} | grep -c 'policy drop')"
echo "rules=$(nft list table {TABLE} | grep -o 'comment "[^"]*"' | sort -u | cut -d '"' -f 2 | tr '\\n' ' ')"
echo "admin=$(nft list table {TABLE} | grep -c 'tcp dport 22 .*accept')"
echo "named=$(ip -br link | grep -cE '^(moat0|outer0)')"
"""


@dataclass
class Boot:
    """One boot: what was found, and what of it must not be."""

    name: str
    faults: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    tried: int = 0
    answered: int = 0
    rate: float = 0.0
    gap: float = 0.0
    frames: int = 0
    foreign: int = 0
    control: dict[str, Seen] = field(default_factory=dict)
    planted: bool = False  # a fault was planted, which has to be found

    def expect(self, true: bool, text: str) -> None:
        if not true:
            self.faults.append(text)

    def line(self) -> str:
        """The row of the summary."""
        verdict = "ok" if not self.faults else "FOUND: " + "; ".join(self.faults)
        if self.planted:
            verdict = "found, as it should be"
        least = min((seen.answered / CONTROL for seen in self.control.values()), default=0.0)
        return (
            f"{self.name:<42} {self.seconds:5.0f} s  {self.tried:6d} probes {self.rate:4.0f}/s gap {self.gap:4.2f} s"
            f"  {self.answered:3d} answers  {self.foreign:3d} of {self.frames:3d} frames"
            f"  control {least:4.0f}/s  {verdict}"
        )


def boot_id() -> str:
    """The id of the boot that answers over SSH; empty when nobody does."""
    said = controller.on("cat /proc/sys/kernel/random/boot_id", timeout=20)
    return said.out.strip() if said.rc == 0 else ""


def facts() -> dict[str, str]:
    """What the machine says of its boot; a connection that is older than the table may have ended with it."""
    for _try in range(3):
        said = controller.on(FACTS, timeout=30)
        if said.rc == 0:
            return dict(re.findall(r"^([\w.]+)=(.*)$", said.out, re.MULTILINE))
    raise LabError(f"the machine says nothing of its boot: {said.err.strip()[-500:]}")


class Proof:
    """The machine, those who look at it, and the boots so far."""

    def __init__(self, machine: Qemu, folder: Path, probers: Probers) -> None:
        self.machine, self.folder, self.probers = machine, folder, probers
        self.boots: list[Boot] = []

    def reboot(self) -> None:
        """In order, as an administrator does it."""
        controller.must("nohup sh -c 'sleep 0.3; systemctl reboot' >/dev/null 2>&1 &")

    def cut(self) -> None:
        """The power goes, and comes again after a second."""
        self.machine.kill()
        time.sleep(1)
        self.machine.start()

    def boot(self, name: str, how: Callable[[], None], *, failed: bool = False) -> Boot:
        """A boot that was looked at without a gap: on a busy machine one may have to be repeated, and is not counted then."""
        for _try in range(3):
            boot = self._boot(name, how, failed)
            say(boot.line())
            if boot.gap <= GAP or len(boot.faults) > 1:
                break
        self.boots.append(boot)
        return boot

    def _boot(self, name: str, how: Callable[[], None], failed: bool) -> Boot:
        """Let the machine boot while everybody looks; it must be closed all the time, and managed at the end."""
        boot = Boot(name)
        before = boot_id() if self.machine.status() == "running" else ""
        witness = Witness(self.folder / f"boot-{len(self.boots) + 1}.pcap")
        begin = time.time()
        try:
            how()
            watch.until(lambda: boot_id() not in ("", before), PATIENCE, f"{name}: administration over SSH")
            boot.facts = facts()
            time.sleep(1)
        finally:
            end = time.time()
            lost = witness.stop()
        boot.seconds = end - begin
        seen, boot.gap = self.probers.window(begin, end)
        boot.tried = sum(item.tried for item in seen.values())
        boot.answered = sum(item.answered for item in seen.values())
        boot.rate = min(seen[name].tried for name in CANARY) / boot.seconds
        boot.frames, foreign = len(witness.frames()), witness.frames(FOREIGN)
        boot.foreign = len(foreign)
        boot.expect(
            not boot.answered, f"answers: { {name: item.answered for name, item in seen.items() if item.answered} }"
        )
        boot.expect(not foreign, f"frames that nobody may see, first {foreign[:1]}")
        boot.expect(boot.frames > 0, "no frame at all, so the capture proves nothing")
        boot.expect(not lost, f"the capture lost {lost} frames")
        boot.expect(boot.rate >= LEAST, f"probed {boot.rate:.0f} times a second only")
        boot.expect(boot.gap <= GAP, f"nobody looked for {boot.gap:.2f} s")
        self._inside(boot, failed)
        self._control(boot, failed)
        return boot

    def _inside(self, boot: Boot, failed: bool) -> None:
        """The order of the boot, by the machine's own clock, and the state of the unit."""
        facts = boot.facts
        loaded = int(facts["firewall.ExecMainExitTimestampMonotonic"])
        network = int(facts["network.ExecMainStartTimestampMonotonic"])
        canary = int(facts["canary.ActiveEnterTimestampMonotonic"])
        link = float(facts["link"]) * 1e6 if facts["link"] else 0.0
        boot.expect(0 < loaded < network, f"{UNIT} ended at {loaded} us, the network's manager began at {network} us")
        boot.expect(0 < loaded < link, f"{UNIT} ended at {loaded} us, the first link was up at {link:.0f} us")
        boot.expect(0 < canary < link, f"the canary was there at {canary} us, after the first link at {link:.0f} us")
        boot.expect(facts["policies"] == "3", f"{facts['policies']} of 3 chains drop")
        boot.expect(facts["admin"] == "2", f"administration has {facts['admin']} rules, not one for each family")
        # the minimal table names no rule
        boot.expect(("in-admin-ssh" in facts["rules"].split()) != failed, f"the rules in force are {facts['rules']!r}")
        boot.expect(facts["named"] == "0", "an interface was there that only the policy should know")
        wanted = "failed" if failed else "active"
        boot.expect(facts["firewall.ActiveState"] == wanted, f"{UNIT} is {facts['firewall.ActiveState']}, not {wanted}")

    def _control(self, boot: Boot, failed: bool) -> None:
        """The same canary answers the same probers as soon as the table is away, and no longer once the unit is started again."""
        script = f"""{{
nft delete table {TABLE} && echo away
read -r back
systemctl restart {UNIT}
ended=$?
conntrack -F 2>/dev/null
echo restart=$ended
exit
}}
"""
        argv = controller.ssh()
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as session:
            assert session.stdin is not None and session.stdout is not None
            session.stdin.write(script)
            session.stdin.flush()
            away = session.stdout.readline().strip() == "away"
            for _try in range(10):
                time.sleep(CONTROL)
                seen, _gap = self.probers.window(time.time() - CONTROL, time.time())
                boot.control = {name: seen[name] for name in CANARY}
                if all(item.answered > CONTROL * LEAST / 2 for item in boot.control.values()):
                    break
            session.stdin.write("back\n")
            session.stdin.close()
            restart = session.stdout.readline().strip()
        boot.expect(away, "the table could not be taken away")
        boot.expect(restart.startswith("restart=") and (restart != "restart=0") == failed, f"{UNIT}: {restart!r}")
        time.sleep(1.5)
        end = time.time()
        seen, _gap = self.probers.window(end - 1, end)
        silent = [name for name, item in boot.control.items() if item.answered <= CONTROL * LEAST / 2]
        boot.expect(not silent, f"without the table the canary did not answer {', '.join(silent)}: nothing is proven")
        still = {name: item.answered for name, item in seen.items() if item.answered}
        boot.expect(not still, f"open after a restart: {still}")


def kill_run(process: subprocess.Popen[bytes]) -> bool:
    """SIGKILL for a run of the role; False when it was over before."""
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def bare(machine: Qemu, folder: Path) -> str:
    """The control of all boots: without the role, the canary is reached as soon as the interface is there."""
    witness, probers = Witness(folder / "bare.pcap"), Probers(folder, with_ssh=False)
    machine.start(frozen=True)
    machine.thaw()
    try:
        watch.until(lambda: boot_id() != "", PATIENCE, "administration over SSH")
        time.sleep(CONTROL)
    finally:
        end = time.time()
        lost = witness.stop()
        probers.stop()
    seen, gap = probers.window(end - CONTROL, end)
    rates = {name: seen[name].answered / CONTROL for name in CANARY}
    frames = witness.frames(FOREIGN)
    silent = [name for name, rate in rates.items() if rate < LEAST / 2]
    if silent or lost or not frames:
        raise LabError(
            f"The probers reach no open machine ({rates} a second, {len(frames)} frames): nothing can be proven"
        )
    link = controller.must(
        "journalctl -b -o short-unix -u systemd-networkd | grep -m 1 'data0: Gained carrier'"
    ).split()[0]
    return (
        f"open without the role: {', '.join(f'{name} {rate:.0f}/s' for name, rate in rates.items())} answered,"
        f" first frame {float(frames[0].split()[0]) - float(link):+.2f} s from carrier, {len(frames)} frames, gap {gap:.2f} s"
    )
