# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Program of moat-gpu.service: device nodes, MIG layout, power limit and locked clocks, as declared in /etc/moat/gpu.json.

The driver forgets all of these at a boot (MIG mode apart, which GPUs older than Hopper keep), so they are applied anew by each one.
The state that was had is read back and written to /run/moat/gpu.json. Status 0: as declared; 78 (EX_CONFIG): the declaration cannot
be, and nothing but device nodes was touched; 1: the state could not be had. With --check the plan is printed and nothing changed.
Standard library alone: the role installs this file and gpu_settings_plan.py on the host. See nvidia-modprobe(1).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from ansible_collections.moat.inference.plugins.module_utils import gpu_settings_plan as planner
    from ansible_collections.moat.inference.plugins.module_utils.gpu_settings_plan import (
        Command,
        DeclarationError,
        Seen,
    )
else:  # on a host this file lies beside the other
    import gpu_settings_plan as planner
    from gpu_settings_plan import Command, DeclarationError, Seen

STATE = "/run/moat/gpu.json"
# sysexits.h: a declaration that no second try mends
EX_CONFIG = 78
# nvidia-smi ends with status 0 all the same
REFUSED = re.compile(r"not supported|treating as warning|pending enable|pending disable", re.IGNORECASE)
COMMAND_TIMEOUT = 180
# what each program of CUDA opens; nvidia-modprobe makes the node of UVM's tools with that of UVM
COMMON: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("/dev/nvidiactl", "nvidiactl", 255, ("nvidia-modprobe", "-c", "255")),
    ("/dev/nvidia-uvm", "nvidia-uvm", 0, ("nvidia-modprobe", "-u", "-c", "0")),
)
RECORDED = ("power_limit_w", "graphics_clock_mhz", "memory_clock_mhz")
CAPABILITIES = "/proc/driver/nvidia/capabilities"


class Unmet(Exception):
    """The host lacks something without which there is no plan."""


class System:
    """Commands and files of a host; root is put before every path, programs are those of the search path."""

    def __init__(self, root: str = "") -> None:
        self.root = root

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        """Return status and output; 127 when the program is not there, 124 when it took too long."""
        environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
        try:
            done = subprocess.run(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_TIMEOUT,
                env=environment,
                check=False,
            )
        except FileNotFoundError:
            return 127, f"{argv[0]} is not installed"
        except PermissionError as error:
            return 126, f"{argv[0]} cannot be run: {error.strerror}"
        except subprocess.TimeoutExpired:
            return 124, f"no end after {COMMAND_TIMEOUT} s"
        return done.returncode, done.stdout.decode("utf-8", errors="replace")

    def has(self, program: str) -> bool:
        return shutil.which(program) is not None

    def exists(self, path: str) -> bool:
        return os.path.exists(self.root + path)

    def text(self, path: str) -> str:
        """Return the content of a file, an empty text where there is none."""
        try:
            with open(self.root + path, encoding="utf-8", errors="replace") as handle:
                return handle.read()
        except OSError:
            return ""

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root + path))
        except OSError:
            return []

    def inode(self, path: str) -> int:
        try:
            return os.stat(self.root + path).st_ino
        except OSError:
            return 0

    def device(self, path: str) -> tuple[int, int] | None:
        """Return major and minor number of a character device."""
        try:
            info = os.stat(self.root + path)
        except OSError:
            return None
        return (os.major(info.st_rdev), os.minor(info.st_rdev)) if stat.S_ISCHR(info.st_mode) else None

    def openers(self, path: str) -> list[str]:
        """Return "pid (name)" of the processes that have a file open; processes of others are seen by root alone."""
        found = []
        for pid in filter(str.isdigit, self.names("/proc")):
            for number in self.names(f"/proc/{pid}/fd"):
                try:
                    target = os.readlink(f"{self.root}/proc/{pid}/fd/{number}")
                except OSError:
                    continue
                if target == path:
                    name = self.text(f"/proc/{pid}/comm").strip()
                    if name not in planner.HARMLESS:
                        found.append(f"{pid} ({name or 'unknown'})")
                    break
        return found

    def write(self, path: str, text: str) -> None:
        """Replace a file, readable by all, in one step."""
        target = self.root + path
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        with open(target + ".new", "w", encoding="utf-8") as handle:
            os.fchmod(handle.fileno(), 0o644)
            handle.write(text)
        os.replace(target + ".new", target)


def majors(text: str) -> dict[str, int]:
    """Parse /proc/devices: name -> major number of the character devices."""
    rows = re.findall(r"^\s*(\d+) (\S+)$", text.split("Block devices:", 1)[0], re.MULTILINE)
    return {name: int(number) for number, name in rows}


def minor_of(text: str, key: str = "DeviceFileMinor") -> int | None:
    """Return the minor number in a file of /proc/driver/nvidia."""
    found = re.search(rf"^{key}:\s*(\d+)", text, re.MULTILINE)
    return int(found.group(1)) if found else None


def minors(system: System) -> list[int]:
    """Return the minor numbers of the GPUs that the kernel module serves."""
    base = "/proc/driver/nvidia/gpus"
    found = [minor_of(system.text(f"{base}/{slot}/information"), "Device Minor") for slot in system.names(base)]
    return sorted(number for number in found if number is not None)


def capabilities(system: System) -> dict[str, int]:
    """Return the files of the capabilities of MIG, and of each instance, and the minor numbers of their nodes."""
    found = {}
    names = [name for name in system.names(CAPABILITIES) if re.fullmatch(r"gpu\d+", name)]
    folders = [f"{CAPABILITIES}/mig", *(f"{CAPABILITIES}/{name}/mig" for name in names)]
    while folders:
        folder = folders.pop()
        for name in system.names(folder):
            path = f"{folder}/{name}"
            number = minor_of(system.text(path))
            if number is not None:
                found[path] = number
            elif re.fullmatch(r"[gc]i\d+", name):
                folders.append(path)
    return found


def missing_nodes(system: System, with_mig: bool) -> list[Command]:
    """Return what makes the device nodes that are not there, or are those of another driver's load."""
    numbers = majors(system.text("/proc/devices"))
    wanted = [(path, numbers.get(name), minor, argv) for path, name, minor, argv in COMMON]
    argv: tuple[str, ...]
    for minor in minors(system):
        argv = ("nvidia-modprobe", "-c", str(minor))
        wanted.append((f"/dev/nvidia{minor}", numbers.get("nvidia", numbers.get("nvidia-frontend")), minor, argv))
    if with_mig:
        for path, minor in sorted(capabilities(system).items()):
            argv = ("nvidia-modprobe", "-f", path)
            wanted.append((f"/dev/nvidia-caps/nvidia-cap{minor}", numbers.get("nvidia-caps"), minor, argv))
    commands = []
    for path, major, minor, argv in wanted:
        there = system.device(path)
        if there is None or (major is not None and there != (major, minor)):
            word = "is not there" if there is None else f"is device {there[0]}:{there[1]} instead of {major}:{minor}"
            commands.append(Command(argv, f"{path} {word}", kind="node"))
    return commands


def session(system: System) -> str:
    """Return what changes when the driver forgets: a boot, or a new load of the kernel module (its sysfs directory is another)."""
    return "{}:{}".format(system.text("/proc/sys/kernel/random/boot_id").strip(), system.inode("/sys/module/nvidia"))


def record_of(system: System) -> dict[str, dict[str, Any]]:
    """Return what was applied since the module was loaded, by GPU UUID."""
    try:
        kept = json.loads(system.text(STATE))
        return dict(kept["gpus"]) if kept["session"] == session(system) else {}
    except (ValueError, LookupError, TypeError):
        return {}


def smi(system: System, *arguments: str, empty: str = "") -> str:
    """Return what nvidia-smi says; a failure whose text has empty in it is an empty answer, any other raises Unmet."""
    status, output = system.run(["nvidia-smi", *arguments])
    if status == 127:
        raise Unmet("nvidia-smi is not installed; install the driver's utilities (role gpu_driver)")
    if status:
        if empty and re.search(empty, output):
            return ""
        told = " ".join(output.split())[:300] or "no word"
        raise Unmet(f"nvidia-smi {' '.join(arguments)} ended with status {status}: {told}")
    return output


def look(system: System, with_mig: bool) -> Seen:
    """Return the host as it is; raise Unmet when nvidia-smi does not answer."""
    try:
        gpus = planner.parse_gpus(smi(system, "-q", "-x"))
    except ValueError as error:
        raise Unmet(str(error)) from error
    gpus = [
        dataclasses.replace(gpu, users=tuple(sorted({*gpu.users, *system.openers(f"/dev/nvidia{gpu.minor}")})))
        for gpu in gpus
    ]
    none = r"No MIG|No GPU instances|No compute instances|Not Supported|No .* found"
    seen = Seen(gpus=tuple(gpus), daemon=system.exists("/run/nvidia-persistenced/socket"), record=record_of(system))
    if with_mig:
        seen = dataclasses.replace(seen, profiles=planner.parse_profiles(smi(system, "mig", "-lgip", empty=none)))
    if any(gpu.mig for gpu in gpus):
        seen = dataclasses.replace(
            seen,
            layout=planner.parse_layout(smi(system, "mig", "-lgi", empty=none)),
            computes=planner.parse_computes(smi(system, "mig", "-lci", empty=none)),
            devices=planner.parse_devices(smi(system, "-L")),
        )
    return seen


class Settings:
    """One run of the program."""

    def __init__(self, system: System, declaration: dict[str, Any], check: bool = False) -> None:
        self.system = system
        self.declaration = declaration
        self.check = check
        self.wants_mig = any(settings.get("mig") for settings in declaration["gpus"].values())
        self.applied: list[Command] = []
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.wrong = False

    def say(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def do(self, command: Command) -> bool:
        """Run a command, or with --check only say it; return whether it did what it is for."""
        shown = " ".join(command.argv)
        self.say(f"{'would run' if self.check else 'runs'}: {shown} ({command.why})")
        if self.check:
            if not self.system.has(command.argv[0]):
                self.faults.append(f"{command.argv[0]} is not installed; needed for: {shown}")
            return True
        status, output = self.system.run(command.argv)
        if status or REFUSED.search(output):
            told = " ".join(output.split())[:400] or "no word"
            self.faults.append(f"{command.why}, and {shown} ended with status {status}: {told}")
            return False
        self.applied.append(command)
        return True

    def wait(self, deadline: float) -> Iterator[None]:
        """Come again each half second until the deadline; a check looks once."""
        while not self.check and time.monotonic() < deadline:
            yield
            time.sleep(0.5)

    def nodes(self, with_mig: bool) -> None:
        """Make the device nodes, once each, and say which are still missing."""
        for command in missing_nodes(self.system, with_mig):
            self.do(command)
        if not self.check:
            told = " ".join(self.faults)
            left = [command.why for command in missing_nodes(self.system, with_mig)]
            self.faults += [f"{why}, although nvidia-modprobe ran" for why in left if why not in told]

    def module(self, deadline: float) -> None:
        """Have the kernel module loaded; raise Unmet when it is not."""
        loaded = "/proc/driver/nvidia/version"
        if not self.system.exists(loaded):
            self.do(Command(("nvidia-modprobe",), "the kernel module nvidia is not loaded", kind="module"))
            for _turn in self.wait(deadline):
                if self.system.exists(loaded):
                    break
        if not self.system.exists(loaded):
            raise Unmet("the kernel module nvidia is not loaded (no /proc/driver/nvidia/version); see gpu_info")

    def settled(self, deadline: float) -> Seen:
        """Return the host when nvidia-smi answers and persistence is on, or as it is at the deadline."""
        found = look(self.system, self.wants_mig)
        if self.declaration["persistence"]:
            for _turn in self.wait(deadline):
                if found.daemon or all(gpu.persistence is not False for gpu in found.gpus):
                    break
                found = look(self.system, self.wants_mig)
        return found

    def carry_out(self, commands: Sequence[Command]) -> None:
        """Run the plan's commands; what builds on one that failed is left out."""
        broken: set[str] = set()
        for command in commands:
            if command.kind in ("mig", "mode") and command.uuid in broken:
                continue
            if not self.do(command) and command.kind in ("mig", "mode"):
                broken.add(command.uuid)
            elif command.kind == "mode" and not self.check:
                gpu = next((gpu for gpu in look(self.system, False).gpus if gpu.uuid == command.uuid), None)
                if gpu is None or gpu.mig != (command.argv[-1] == "1"):
                    broken.add(command.uuid)

    def run(self) -> Seen | None:
        """Do everything; return the host as it is afterwards, None where that is not to be had."""
        deadline = time.monotonic() + self.declaration["wait_s"]
        self.module(deadline)
        self.nodes(self.wants_mig)
        found = self.settled(deadline)
        if not found.gpus:
            raise Unmet("nvidia-smi shows no GPU")
        if not found.daemon and any(gpu.persistence for gpu in found.gpus):
            self.notes.append("persistence mode is on without nvidia-persistenced (no /run/nvidia-persistenced/socket)")
        plan = planner.make_plan(self.declaration, found)
        self.wrong = bool(plan.wrong)
        if plan.wrong:
            self.faults += plan.wrong + plan.unmet
            return found
        self.carry_out(plan.commands)
        if self.check:
            self.faults += plan.unmet
            return found
        if self.wants_mig or any(gpu.mig for gpu in found.gpus):
            self.nodes(True)
        return self.verify(found)

    def verify(self, before: Seen) -> Seen:
        """Read everything back: what a second plan would still have to do was not had."""
        kept = {uuid: dict(values) for uuid, values in before.record.items()}
        for command in self.applied:
            if command.note:
                kept.setdefault(command.uuid, {}).update(command.note)
        after = dataclasses.replace(look(self.system, self.wants_mig), record=kept)
        left = planner.make_plan(self.declaration, after, afterwards=True)
        self.faults += left.wrong + left.unmet
        failed = " ".join(self.faults)
        self.faults += [
            f"{command.why}, although all was done; still to do: {' '.join(command.argv)}"
            for command in left.commands
            if command.why not in failed and not (command.kind == "mig" and f"GPU {command.uuid}: MIG" in failed)
        ]
        return after

    def state(self, seen: Seen | None) -> dict[str, Any]:
        """Return the content of /run/moat/gpu.json."""
        # what was applied is not forgotten because nvidia-smi gave no answer this time
        gpus: dict[str, dict[str, Any]] = {} if seen else record_of(self.system)
        for gpu in seen.gpus if seen else ():
            done = seen.record.get(gpu.uuid, {}) if seen else {}
            instances = []
            for index, (gi, ci) in sorted(gpu.instances.items()):
                profile, uuid = (seen.devices if seen else {}).get(gpu.uuid, {}).get(index, ("", ""))
                base = f"{CAPABILITIES}/gpu{gpu.minor}/mig/gi{gi}"
                numbers = [minor_of(self.system.text(path)) for path in (f"{base}/access", f"{base}/ci{ci}/access")]
                nodes = [f"/dev/nvidia-caps/nvidia-cap{number}" for number in numbers if number is not None]
                instances.append({"uuid": uuid, "profile": profile, "gi": gi, "ci": ci, "nodes": nodes})
            gpus[gpu.uuid] = {
                **{key: done[key] for key in RECORDED if done.get(key)},
                "slot": gpu.slot,
                "index": gpu.index,
                "minor": gpu.minor,
                "nodes": [f"/dev/nvidia{gpu.minor}"],
                "mig_mode": gpu.mig,
                "mig": instances,
                "power_w": gpu.power["limit"],
            }
        return {
            "session": session(self.system),
            "gpus": gpus,
            "mig": [instance["uuid"] for gpu in gpus.values() for instance in gpu["mig"]],
            "nodes": [path for path, *_rest in COMMON],
            "applied": [{"argv": list(command.argv), "why": command.why} for command in self.applied],
            "faults": self.faults,
            "notes": self.notes,
        }


def main(arguments: Sequence[str], system: System | None = None) -> int:
    """Run; arguments are --check and the path of another declaration, both optional."""
    host = system or System()
    paths = [argument for argument in arguments if argument != "--check"]
    if len(paths) > 1 or any(path.startswith("-") for path in paths):
        sys.stderr.write("usage: gpu_settings.py [--check] [FILE]\n")
        return 2
    path = paths[0] if paths else planner.DECLARATION
    check = "--check" in arguments
    run, seen = Settings(host, planner.parse_declaration("{}"), check), None
    try:
        if not host.exists(path):
            raise DeclarationError([f"{path} is not there; apply the role gpu_driver"])
        run = Settings(host, planner.parse_declaration(host.text(path)), check)
        seen = run.run()
    except DeclarationError as error:
        run.faults += error.faults
        run.wrong = True
    except Unmet as error:
        run.faults.append(str(error))
    if not check:
        try:
            host.write(STATE, json.dumps(run.state(seen), indent=2, sort_keys=True) + "\n")
        except OSError as error:
            run.faults.append(f"{STATE} cannot be written: {error.strerror}")
    for note in run.notes:
        run.say(f"note: {note}")
    for fault in run.faults:
        sys.stderr.write(f"<3>gpu: {fault}\n")
    if not run.faults and seen is not None:
        run.say(f"GPUs {'looked at' if check else 'as declared'}: {len(seen.gpus)}")
    if run.wrong:
        return EX_CONFIG
    return 1 if run.faults else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
