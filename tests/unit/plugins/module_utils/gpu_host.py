"""A made-up host below a directory: files, sysfs and programs that answer with what they are given."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root
from ansible_collections.moat.inference.plugins.module_utils.run import Runner

FIXTURES = Path(__file__).parents[2] / "fixtures" / "gpu"


def captured(name: str) -> str:
    return (FIXTURES / name).read_text(encoding="utf-8")


class Commands:
    """Stands for the module: runs what it is asked to and remembers it."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []

    def run_command(self, argv: Sequence[str], environ_update: Any = None, **_options: Any) -> tuple[int, str, str]:
        self.ran.append(list(argv))
        done = subprocess.run(
            argv,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env={**os.environ, **environ_update},
            check=False,
        )
        return done.returncode, done.stdout, done.stderr


class Host:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.commands = Commands()

    @property
    def root(self) -> Root:
        return Root(str(self.path), Runner(self.commands))

    def file(self, path: str, content: str | bytes = "") -> Path:
        place = self.path / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return place

    def directory(self, path: str) -> None:
        (self.path / path.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def link(self, path: str, target: str) -> None:
        place = self.path / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def program(self, name: str, stdout: str = "", rc: int = 0, stderr: str = "", directory: str = "usr/bin") -> None:
        """A program that answers the same whatever it is asked; by words of the arguments, see answers."""
        self.answers(name, {"*": (stdout, rc, stderr)}, directory)

    def answers(self, name: str, cases: dict[str, tuple[str, int, str]], directory: str = "usr/bin") -> None:
        """A program that answers by a shell pattern of its arguments, the first that matches."""
        lines = ["#!/bin/sh", 'case "$*" in']
        for pattern, (stdout, rc, stderr) in cases.items():
            lines += [
                f"{pattern})",
                f"printf %s {shlex.quote(stdout)}",
                f"printf %s {shlex.quote(stderr)} >&2",
                f"exit {rc} ;;",
            ]
        lines += ["esac", "exit 2", ""]
        self.file(f"{directory}/{name}", "\n".join(lines)).chmod(0o755)

    def device(
        self, slot: str, vendor: str, device: str, device_class: str, driver: str = "", subsystem: str = "10de:16c1"
    ) -> None:
        """A device as sysfs shows it: a link into /sys/devices."""
        place = f"sys/devices/pci0000:00/{slot}"
        board = subsystem.split(":")
        for name, value in (
            ("vendor", vendor),
            ("device", device),
            ("class", device_class),
            ("subsystem_vendor", board[0]),
            ("subsystem_device", board[1]),
        ):
            self.file(f"{place}/{name}", f"0x{value}\n")
        if driver:
            self.directory(f"sys/bus/pci/drivers/{driver}")
            self.link(f"{place}/driver", f"../../../bus/pci/drivers/{driver}")
        self.link(f"sys/bus/pci/devices/{slot}", f"../../../devices/pci0000:00/{slot}")

    def kernel(self, release: str, headers: bool = True) -> None:
        self.directory(f"usr/lib/modules/{release}/kernel")
        if headers:
            self.directory(f"usr/src/linux-headers-{release}")
        self.link(f"usr/lib/modules/{release}/build", f"/usr/src/linux-headers-{release}")


def gpu_host(path: Path) -> Host:
    """A host with Ubuntu 24.04, an H100 and the open module of R580, all of it as it should be."""
    host = Host(path)
    host.file("etc/os-release", 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n')
    host.link("lib", "usr/lib")
    host.kernel("6.8.0-31-generic", headers=False)
    host.kernel("6.8.0-49-generic")
    host.program("uname", "x86_64\n")
    host.file("proc/sys/kernel/osrelease", "6.8.0-49-generic\n")
    host.file("proc/cmdline", "BOOT_IMAGE=/vmlinuz quiet\n")
    host.file(
        "proc/modules",
        "nvidia_uvm 1830912 0 - Live 0x0000000000000000 (O)\nnvidia 14299136 1 nvidia_uvm, Live 0x0000000000000000 (O)\n",
    )
    host.file("proc/driver/nvidia/version", captured("proc-version-open.txt"))
    host.file("sys/module/nvidia/version", "580.159.04\n")
    host.device("0000:00:00.0", "8086", "0d57", "060000")
    host.device("0000:00:06.0", "10de", "2330", "030200", "nvidia")
    host.answers(
        "nvidia-smi",
        {
            "-q*": (captured("h100-580.xml"), 0, ""),
            "nvlink*": ("", 0, ""),
        },
    )
    host.program("modinfo", captured("modinfo-open.txt"), directory="usr/sbin")
    host.program("dkms", "nvidia/580.159.04, 6.8.0-49-generic, x86_64: installed\n", directory="usr/sbin")
    host.answers(
        "dpkg-query",
        {
            "-W*": (captured("dpkg.txt"), 1, "dpkg-query: no packages found matching nvlsm\n"),
            "-S*": ("libnvidia-compute-580:amd64: /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.159.04\n", 0, ""),
        },
    )
    host.file("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.159.04")
    host.link("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "libnvidia-ml.so.580.159.04")
    host.file("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", b"\x06\0\0\0\0")
    host.file("var/lib/shim-signed/mok/MOK.der", b"certificate")
    host.program("mokutil", "/var/lib/shim-signed/mok/MOK.der is not enrolled\n")
    host.program("dmesg", captured("dmesg-h100.txt"))
    host.program("systemctl", "inactive\n", rc=3)
    host.program(
        "df",
        "Filesystem 1024-blocks Used Available Capacity Mounted on\n"
        "/dev/vda1 102400000 51200000 51200000 50% /\n/dev/vda2 1048576 524288 524288 50% /boot\n",
    )
    for place in ("boot", "var", "usr"):
        host.directory(place)
    host.file("proc/4711/comm", "python3\n")
    host.directory("proc/4711/fd")
    return host
