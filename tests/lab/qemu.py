"""A backend for one machine at a time: QEMU with the distribution's kernel. It does what a boot test needs of `backend.Backend`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.backend import File
from tests.lab.shell import LabError, capture, privileged, remove_tree, succeeds
from tests.lab.vm_image import Image

PROGRAM = "qemu-system-x86_64"
# no defences against neighbours on the processor: none is there, and emulating them takes long
APPEND = "root=/dev/vda ro console=ttyS0 quiet systemd.show_status=yes panic=-1 mitigations=off audit=0"


@dataclass(frozen=True)
class Nic:
    """An interface of the machine, on a tap device that is there."""

    tap: str
    mac: str


@dataclass(frozen=True)
class Machine:
    """What a machine is made of."""

    name: str
    image: Image
    nics: tuple[Nic, ...]
    namespace: str  # where the tap devices are
    accelerator: str
    memory: int = 1024
    processors: int = 2


class Qemu:
    """One folder for each machine: disk, console, sockets."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.machine = machine
        self.folder = folder / machine.name
        self.disk = self.folder / "disk.raw"
        self.console = self.folder / "console.log"
        self._monitor = self.folder / "qmp"
        self._pid = self.folder / "pid"

    def create(self, files: tuple[File, ...]) -> None:
        """A disk like the image's, with these files beside; the machine stays off."""
        self.destroy()
        self.folder.mkdir(parents=True)
        capture(["cp", "--sparse=always", "--reflink=auto", str(self.machine.image.disk), str(self.disk)])
        self.put(files)

    def put(self, files: tuple[File, ...]) -> None:
        """Write files to the disk of a machine that is off and was shut down in order."""
        commands, folders = [], set()
        place = self.folder / "put"
        place.mkdir(exist_ok=True)
        for number, file in enumerate(files):
            source = place / str(number)
            source.write_bytes(file.content)
            source.chmod(file.mode)
            above = [str(folder) for folder in reversed(Path(file.path).parents)][1:]
            commands += [f"mkdir {folder}" for folder in above if folder not in folders]
            folders.update(above)
            commands += [f"rm {file.path}", f"write {source.relative_to(self.folder)} {file.path}"]
            commands += [f"sif {file.path} uid 0", f"sif {file.path} gid 0"]
        script = place / "commands"
        script.write_text("\n".join(commands) + "\n", encoding="utf-8")
        capture(["env", "-C", str(self.folder), "debugfs", "-w", "-f", "put/commands", "disk.raw"])
        for file in files:
            if (self.read(file.path) or "").encode() != file.content:
                raise LabError(f"{file.path} could not be written to {self.disk}")
        shutil.rmtree(place)

    def read(self, path: str) -> str | None:
        """A file on the disk of a machine that is off."""
        said = capture(["debugfs", "-R", f"cat {path}", str(self.disk)], check=False)
        return said or None

    def start(self, *, frozen: bool = False) -> None:
        """Switch on; a frozen machine has executed nothing yet."""
        self.kill()
        image, nics = self.machine.image, []
        for number, nic in enumerate(self.machine.nics):
            nics += ["-netdev", f"tap,id=net{number},ifname={nic.tap},script=no,downscript=no"]
            nics += ["-device", f"virtio-net-pci,netdev=net{number},mac={nic.mac}"]
        argv = [PROGRAM, "-name", self.machine.name, "-machine", "q35", *processor(self.machine.accelerator), "-smp"]
        argv += [str(self.machine.processors), "-m", str(self.machine.memory), "-nodefaults", "-no-user-config"]
        argv += ["-display", "none", "-sandbox", "on", "-daemonize", "-pidfile", str(self._pid)]
        argv += ["-chardev", f"file,id=console,append=on,path={_quoted(self.console)}", "-serial", "chardev:console"]
        argv += ["-chardev", f"socket,id=monitor,server=on,wait=off,path={_quoted(self._monitor)}"]
        argv += ["-mon", "chardev=monitor,mode=control", "-device", "virtio-rng-pci"]
        # what the guest has flushed is kept when the power is cut, what is in its memory is lost
        argv += ["-drive", f"file={_quoted(self.disk)},if=virtio,format=raw,cache=writeback"]
        argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        argv += ["-append", APPEND, *nics, *(["-S"] if frozen else [])]
        capture(privileged(["ip", "netns", "exec", self.machine.namespace, *argv]))

    def monitor(self, command: str) -> Any:
        """One command to the machine's monitor, and its answer."""
        if not self._monitor.exists():
            raise LabError(f"{self.machine.name} is off")
        if os.geteuid():
            capture(privileged(["chown", str(os.getuid()), str(self._monitor)]))
        # the path of a Unix socket may have 107 bytes only
        with socket.socket(socket.AF_UNIX) as channel, contextlib.ExitStack() as stack:
            folder = os.open(self.folder, os.O_PATH)
            stack.callback(os.close, folder)
            channel.settimeout(20)
            channel.connect(f"/proc/self/fd/{folder}/{self._monitor.name}")
            lines = channel.makefile("rw", encoding="utf-8")
            json.loads(lines.readline())
            for request in ("qmp_capabilities", command):
                lines.write(json.dumps({"execute": request}) + "\n")
                lines.flush()
                answer = json.loads(lines.readline())
                while "event" in answer:
                    answer = json.loads(lines.readline())
        if "error" in answer:
            raise LabError(f"{self.machine.name}: {command}: {answer['error']}")
        return answer["return"]

    def freeze(self) -> None:
        self.monitor("stop")

    def thaw(self) -> None:
        self.monitor("cont")

    def status(self) -> str:
        """running, stopped or absent."""
        if not self.disk.exists():
            return "absent"
        return "running" if self._process() else "stopped"

    def _process(self) -> int:
        """The id of the machine's own process; 0 when it is off."""
        text = capture(privileged(["cat", str(self._pid)]), check=False).strip()
        state, _, named = (text and capture(["ps", "-o", "stat=,comm=", "-p", text], check=False).strip()).partition(
            " "
        )
        # one that has ended may still be listed, where nobody asks how
        return int(text) if named and PROGRAM.startswith(named.split()[0]) and state[0] not in "ZX" else 0

    def kill(self) -> None:
        """The power is cut."""
        process = self._process()
        if process:
            capture(privileged(["kill", f"-{int(signal.SIGKILL)}", str(process)]), check=False)
            while self._process():
                time.sleep(0.02)
        for path in (self._pid, self._monitor):
            capture(privileged(["rm", "-f", str(path)]))

    def wait(self, seconds: float) -> None:
        """Wait until the machine has switched itself off."""
        deadline = time.monotonic() + seconds
        while self._process():
            if time.monotonic() > deadline:
                raise LabError(f"{self.machine.name} is still on after {seconds:.0f} s")
            time.sleep(0.1)

    def destroy(self) -> None:
        if self.folder.exists():
            self.kill()
            remove_tree(self.folder)


def processor(accelerator: str) -> list[str]:
    """Options of an accelerator. What is emulated is a plain processor: vector units only make the emulation slow."""
    return ["-accel", accelerator, "-cpu", "max" if accelerator == "kvm" else "qemu64"]


def accelerator(image: Image) -> str:
    """kvm where the kernel boots by it, or emulation: that a device is there does not say that it works."""
    if not succeeds(privileged(["test", "-c", "/dev/kvm"])):
        return "tcg"
    argv = [PROGRAM, "-machine", "q35", *processor("kvm"), "-m", "512", "-nodefaults", "-display", "none", "-no-reboot"]
    argv += ["-serial", "stdio", "-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    argv += ["-append", "console=ttyS0 earlyprintk=ttyS0 root=none panic=-1"]
    limited = privileged(["timeout", "--signal=KILL", "6", *argv])
    with subprocess.Popen(limited, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        found = any(b"Linux version" in line for line in run.stdout)
        if found:
            capture(privileged(["kill", str(run.pid)]), check=False)
    return "kvm" if found else "tcg"


def _quoted(path: Path) -> str:
    """A path as a value of a QEMU option."""
    return str(path).replace(",", ",,")
