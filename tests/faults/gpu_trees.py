"""Hosts made of a few files below one directory, which gpu_driver reads in place of the machine's: a sound one, and one for each reason to stop.

They have a sysfs, a procfs and programs that say one thing each; whatever is not there does not exist for the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.lab.backend import File

Tree = dict[str, str]
RUNNING, NEWER = "6.1.0-42-amd64", "6.1.0-44-amd64"
OS = 'PRETTY_NAME="{name}"\nID={id}\nVERSION_ID="{version}"\nVERSION_CODENAME={codename}\n'
DEBIAN = OS.format(name="Debian GNU/Linux 12 (bookworm)", id="debian", version="12", codename="bookworm")
SLOT, SWITCH = "0000:3b:00.0", "0000:c5:00.0"
EFI = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
DF = """#!/bin/sh
echo "Filesystem 1024-blocks Used Available Capacity Mounted on"
echo "/dev/vda1 104857600 1048576 {free} 10% /"
"""


def says(text: str, status: int = 0) -> str:
    """A program that says one thing."""
    return f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n"


def device(slot: str, vendor: str, number: str, kind: str) -> Tree:
    """One function on the PCI bus."""
    place = f"/sys/bus/pci/devices/{slot}"
    return {
        f"{place}/vendor": f"0x{vendor}\n",
        f"{place}/device": f"0x{number}\n",
        f"{place}/class": f"0x{kind}00\n",
        f"{place}/subsystem_vendor": "0x10de\n",
        f"{place}/subsystem_device": "0x16c1\n",
    }


def kernel(release: str, *, headers: bool = True) -> Tree:
    found = {f"/lib/modules/{release}/kernel/.keep": "", f"/lib/modules/{release}/modules.builtin": ""}
    return {**found, **({f"/lib/modules/{release}/build/Makefile": "# headers\n"} if headers else {})}


H100, P100 = device(SLOT, "10de", "2330", "0302"), device(SLOT, "10de", "15f8", "0302")
NVSWITCH = device(SWITCH, "10de", "22a3", "0680")
MI300, FLEX = device(SLOT, "1002", "74a1", "1200"), device(SLOT, "8086", "56c0", "0380")
SOUND: Tree = {
    **H100,
    **kernel(RUNNING),
    "/etc/os-release": DEBIAN,
    "/proc/sys/kernel/osrelease": f"{RUNNING}\n",
    "/proc/modules": "ext4 1 1 - Live 0x0\n",
    "/proc/cmdline": "quiet\n",
    "/sys/firmware/acpi/pm_profile": "4\n",  # no efi beside it: it booted by BIOS
    "/boot/.keep": "",
    "/var/.keep": "",
    "/usr/bin/uname": '#!/bin/sh\n[ "$1" = -m ] && echo x86_64 || echo ' + RUNNING + "\n",
    "/usr/bin/df": DF.format(free=90000000),
    "/usr/bin/dpkg-query": says("", 1),
    "/usr/bin/dmesg": says("[    0.000000] Linux version"),
    "/usr/bin/systemctl": says("inactive", 3),
    "/usr/sbin/modinfo": says("", 1),
}


@dataclass(frozen=True)
class Stop:
    """What differs from the sound host, the fault's key, and words of what is wrong and of its remedy."""

    tree: Mapping[str, str | None]
    key: str
    words: tuple[str, ...]
    inputs: Mapping[str, object] = field(default_factory=dict)


NO_DEVICE: dict[str, str | None] = dict.fromkeys(H100)
BOUND = f"/sys/bus/pci/devices/{SLOT}/driver.link"
STOPS: dict[str, Stop] = {
    "no device": Stop(NO_DEVICE, "device", ("no NVIDIA GPU on the PCI bus", "lspci"), {"required": True}),
    "handed to virtual machines": Stop(
        {BOUND: "../vfio-pci"}, "device", ("vfio-pci", "give one back"), {"required": True}
    ),
    "AMD": Stop({**NO_DEVICE, **MI300}, "device", (f"AMD GPU {SLOT}", "take the host out of the play")),
    "Intel": Stop({**NO_DEVICE, **FLEX}, "device", (f"Intel GPU {SLOT}", "take the host out of the play")),
    "older than Turing": Stop(P100, "architecture", ("older than Turing", "set kernel_module to proprietary")),
    "distribution": Stop(
        {"/etc/os-release": OS.format(name="Fedora Linux 42", id="fedora", version="42", codename="none")},
        "distribution",
        ("fedora 42", "use Debian 12 or 13"),
    ),
    "machine": Stop({"/usr/bin/uname": says("aarch64")}, "distribution", ("aarch64", "use a host with x86_64")),
    "kernel that is too old": Stop(
        {"/proc/sys/kernel/osrelease": "5.10.0-30-amd64\n", **kernel("5.10.0-30-amd64")},
        "kernel",
        ("5.10.0-30-amd64 is older", "boot a kernel of the distribution"),
    ),
    "kernel without modules": Stop(
        {"/proc/sys/kernel/osrelease": "6.18.1-custom\n"},
        "kernel",
        ("6.18.1-custom has no modules", "boot a kernel that"),
    ),
    "headers of the running kernel": Stop(
        {f"/lib/modules/{RUNNING}/build/Makefile": None}, "headers", (f"apt-get install linux-headers-{RUNNING}",)
    ),
    "headers of the newest kernel": Stop(
        kernel(NEWER, headers=False), "headers", (f"newest kernel {NEWER}", f"apt-get install linux-headers-{NEWER}")
    ),
    "nouveau": Stop(
        {"/proc/modules": "nouveau 1 2 - Live 0x0\n", BOUND: "../nouveau"},
        "nouveau",
        ("nouveau drives a GPU", "set nouveau to replace"),
    ),
    "Secure Boot, a key that is not enrolled": Stop(
        {
            EFI: "\x06\x00\x00\x00\x01",
            "/var/lib/dkms/mok.pub": "certificate\n",
            "/usr/bin/mokutil": says("/var/lib/dkms/mok.pub is not enrolled", 1),
        },
        "secure_boot",
        ("is not enrolled", "mokutil --import /var/lib/dkms/mok.pub", "confirm at the console"),
    ),
    "Secure Boot, no key": Stop({EFI: "\x06\x00\x00\x00\x01"}, "secure_boot", ("there is no key", "dkms generate_mok")),
    "busy": Stop(
        {"/proc/4321/fd/7.link": "/dev/nvidia0", "/proc/4321/comm": "vllm\n"}, "busy", ("vllm (4321)", "stop them")
    ),
    "disk space": Stop({"/usr/bin/df": DF.format(free=512 * 1024)}, "disk", ("/var has 512 MiB", "make room")),
    "driver of a .run file": Stop(
        {"/usr/bin/nvidia-uninstall": says("")}, "foreign", ("/usr/bin/nvidia-uninstall", "run nvidia-uninstall")
    ),
    "NVSwitch without Fabric Manager": Stop(
        NVSWITCH, "fabric_manager", ("behind NVSwitch", "set fabric_manager to auto"), {"fabric_manager": "never"}
    ),
}
# these go together: all of them have to be named at once
MANY = (
    "older than Turing",
    "headers of the newest kernel",
    "nouveau",
    "Secure Boot, no key",
    "busy",
    "disk space",
    "driver of a .run file",
)


def files(top: str, tree: Mapping[str, str | None]) -> tuple[File, ...]:
    """The tree below a directory of a host; `.link` is a link, and None is not there."""
    found = []
    for path, text in tree.items():
        if text is not None:
            mode = 0o755 if text.startswith("#!") else 0o644
            found.append(File(f"{top}{path}", text.encode("latin-1"), mode))
    return tuple(found)


def changed(changes: Mapping[str, str | None]) -> dict[str, str | None]:
    return {**SOUND, **changes}
