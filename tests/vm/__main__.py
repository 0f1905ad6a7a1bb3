"""`make proof-boot`: a machine with the distribution's kernel, closed from its first packet on, however it came to boot."""

from __future__ import annotations

import sys
import time

from tests.lab import setup, vm_image
from tests.lab.qemu import Machine, Nic, Qemu, accelerator
from tests.lab.shell import CACHE, LAB, LabError, Step, lock, say
from tests.vm import cases, controller, machine, wires
from tests.vm.proof import Proof, bare
from tests.vm.watch import Probers

PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "debugfs": "e2fsprogs", "tcpdump": "tcpdump", "ps": "procps"}


def proof(seed: int, wanted: list[str]) -> list[str]:
    """Build, boot, converge, and then every case; what was found."""
    with lock(CACHE / "lock"):
        image = vm_image.ensure()
    by = accelerator(image)
    say(f"Debian's kernel {image.version}, by {by}; seed {seed}")
    nics = (Nic(wires.DATA_TAP, machine.DATA_MAC), Nic(wires.ADMIN_TAP, machine.ADMIN_MAC))
    backend = Qemu(controller.FOLDER, Machine(machine.NAME, image, nics, wires.ROOM, by))
    backend.destroy()  # what a killed run has left
    wires.up()
    try:
        with Step("vm: the machine without the role"):
            backend.create(controller.keys())
            said = bare(backend, controller.FOLDER)
        say(f"   {said}")
        with Step("vm: the role"):
            controller.converge(machine.policy())
        probers = Probers(controller.FOLDER, with_ssh=True)
        run = Proof(backend, controller.FOLDER, probers)
        try:
            for name in wanted:
                with Step(f"vm: {name}"):
                    case = getattr(cases, name)
                    case(run, seed) if name == "interrupted" else case(run)
        finally:
            probers.stop()
    finally:
        backend.kill()
        wires.down()
    say("")
    for boot in run.boots:
        say(boot.line())
    boots = [boot for boot in run.boots if not boot.planted]
    tried, frames = sum(boot.tried for boot in boots), sum(boot.frames for boot in boots)
    found = [f"{boot.name}: {fault}" for boot in boots for fault in boot.faults]
    say(
        f"{len(boots)} boots: {tried} probes, {sum(boot.answered for boot in boots)} answers;"
        f" {frames} frames from the machine, {sum(boot.foreign for boot in boots)} that nobody may see; {len(found)} findings"
    )
    return found


def main() -> int:
    setup.PROGRAMS.update(PROGRAMS)
    setup.install_packages()
    begun = time.monotonic()
    arguments = dict(word.split("=", 1) for word in sys.argv[1:])
    wanted = arguments.get("cases", ",".join(cases.CASES)).split(",")
    try:
        with lock(LAB / "vm.lock"):
            found = proof(int(arguments.get("seed", time.time())), wanted)
    except LabError as error:
        say(f"\n{error}")
        return 1
    say(f"{time.monotonic() - begun:.0f} s")
    for fault in found:
        say(f"FOUND {fault}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
