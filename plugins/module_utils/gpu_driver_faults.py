# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every reason why a host must not get the driver now, as one list: what was seen and what was asked for -> faults with their remedies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_inputs as inputs

# in this order they are told
KEYS = (
    "device",
    "architecture",
    "distribution",
    "kernel",
    "nouveau",
    "secure_boot",
    "headers",
    "busy",
    "fabric_manager",
    "disk",
    "foreign",
    "source",
    "packages",
)
# what the driver needs at least, from the distributions' own releases
OLDEST_KERNEL = {
    ("debian", "12"): (6, 1),
    ("debian", "13"): (6, 12),
    ("ubuntu", "22.04"): (5, 15),
    ("ubuntu", "24.04"): (6, 8),
}
# MiB: packages and their unpacking, DKMS's build trees and apt's cache, an initramfs
ROOM = {"/boot": 256, "/usr": 2048, "/var": 3072}
LOCAL_ROOM = 2048  # the unpacked local repository
# architectures that the proprietary module does not know
OPEN_ONLY = ("blackwell", "rubin")
# the driver's own daemons, which the packages stop; comm of proc(5) has 15 characters
OWN_DAEMONS = {name[:15] for name in ("nvidia-persistenced", "nv-fabricmanager", "nvidia-smi")}
OTHERS = {"amd": "AMD", "intel": "Intel"}


def fault(key: str, text: str, remedy: str) -> dict[str, str]:
    """One fault. text: what is wrong; remedy: what to do."""
    return {"key": key, "fault": text, "remedy": remedy}


def in_order(found: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return faults in the order of KEYS, each once."""
    unique = {(item["key"], item["fault"]): dict(item) for item in found}
    return sorted(unique.values(), key=lambda item: KEYS.index(item["key"]))


def sentences(found: Sequence[Mapping[str, str]]) -> str:
    """Return all faults as one message."""
    return " ".join(f"[{item['key']}] {item['fault']}: {item['remedy']}." for item in found)


def gpus(host: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the NVIDIA GPUs that are this host's own; those that it hands to virtual machines are not."""
    return [
        device
        for device in host["devices"]
        if device["vendor"] == "nvidia" and device["kind"] == "gpu" and device["driver"] != "vfio-pci"
    ]


def others(host: Mapping[str, Any]) -> list[str]:
    """Return in words the GPUs of other vendors."""
    return [
        f"{OTHERS[device['vendor']]} GPU {device['slot']}" for device in host["devices"] if device["vendor"] in OTHERS
    ]


def find(host: Mapping[str, Any], options: Mapping[str, Any], pending: bool) -> list[dict[str, str]]:
    """Return all faults of a host in order, as {"key", "fault", "remedy"}.

    host: what gpu_facts.collect returns; options: those of the module, valid already; pending: whether packages have to change. A host with
    neither a GPU nor the wish for one has none: it is passed by.
    """
    if not gpus(host):
        return _no_device(host, options)
    found = _architecture(host, options) + _distribution(host) + _kernel(host)
    found += _nouveau(host, options) + _secure_boot(host) + _headers(host, options)
    if pending:
        found += _busy(host, options) + _disk(host, options)
    found += _fabric_manager(host, options) + _foreign(host)
    return in_order(found)


def _no_device(host: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, str]]:
    other = others(host)
    if other:
        return [
            fault(
                "device",
                f"{', '.join(other)}: this is no NVIDIA GPU, and no other vendor's driver is installed here",
                "take the host out of the play, or put an NVIDIA GPU into it",
            )
        ]
    passed = [device["slot"] for device in host["devices"] if device["driver"] == "vfio-pci"]
    if not options["required"]:
        return []
    words = (
        f"its NVIDIA GPUs are bound to vfio-pci ({', '.join(passed)})"
        if passed
        else "there is no NVIDIA GPU on the PCI bus"
    )
    remedy = "give one back to the host" if passed else "look at lspci -d 10de: and the seat of the card"
    return [fault("device", words, f"{remedy}, or set required to false to pass the host by")]


def _architecture(host: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    for device in gpus(host):
        if options["kernel_module"] == "open" and device["open_module"] is False:
            text = f"the GPU {device['slot']} ({device['architecture']}) is older than Turing, which open modules do not know"
            found.append(fault("architecture", text, "set kernel_module to proprietary"))
        if options["kernel_module"] == "proprietary" and device["architecture"] in OPEN_ONLY:
            text = f"the GPU {device['slot']} ({device['architecture']}) is not known to the proprietary module"
            found.append(fault("architecture", text, "set kernel_module to open"))
    return found


def supported(host: Mapping[str, Any]) -> bool:
    """Whether the distribution is one of those that packages are known of."""
    return (host["distribution"]["id"], host["distribution"]["version"]) in inputs.SUPPORTED


def _distribution(host: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    if not supported(host):
        seen = host["distribution"]
        name = f"{seen['id'] or 'a distribution without a name'} {seen['version']}".strip()
        why = ", whose packages come by dnf," if seen["family"] == "redhat" else ""
        text = f"{name}{why} is not supported"
        found.append(fault("distribution", text, "use Debian 12 or 13, or Ubuntu 22.04 or 24.04"))
    if host["machine"] != "x86_64":
        text = f"the architecture {host['machine'] or '(unknown)'} is not supported"
        found.append(fault("distribution", text, "use a host with x86_64"))
    return found


def kernel_version(release: str) -> tuple[int, ...]:
    """Return the numbers at the beginning of a kernel's release: (6, 1) for 6.1.0-42-amd64."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else ()


def _kernel(host: Mapping[str, Any]) -> list[dict[str, str]]:
    running = host["kernel"]["running"]
    oldest = OLDEST_KERNEL.get((host["distribution"]["id"], host["distribution"]["version"]))
    if not running:
        return [fault("kernel", "the running kernel is not known", "look at uname -r")]
    if oldest and kernel_version(running) < oldest:
        least = ".".join(map(str, oldest))
        text = f"the running kernel {running} is older than the distribution's own"
        return [fault("kernel", text, f"boot a kernel of the distribution, {least} or newer")]
    if running not in host["kernel"]["installed"]:
        text = f"the running kernel {running} has no modules in /lib/modules"
        return [fault("kernel", text, "boot a kernel that a package of the distribution installed")]
    return []


def _nouveau(host: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, str]]:
    nouveau = host["driver"]["nouveau"]
    if not nouveau["in_use"] or options["nouveau"] == "replace":
        return []
    if nouveau["blacklisted"]:
        return [fault("nouveau", "nouveau drives a GPU, though it is blacklisted", "reboot")]
    text = "nouveau drives a GPU, so the driver cannot take it"
    return [fault("nouveau", text, "set nouveau to replace, which blacklists it and asks for a reboot")]


def _secure_boot(host: Mapping[str, Any]) -> list[dict[str, str]]:
    seen = host["secure_boot"]
    if not seen["enabled"] or seen["mok_enrolled"]:
        return []
    key = seen["mok_key"]
    if not key:
        text = "Secure Boot is on and there is no key to sign the module with"
        remedy = "install dkms and run dkms generate_mok, then mokutil --import /var/lib/dkms/mok.pub, reboot and confirm at the console"
    else:
        known = "is not enrolled" if seen["mok_enrolled"] is False else "may not be enrolled: mokutil did not say"
        text = f"Secure Boot is on and the key {key}, by which the module will be signed, {known}"
        remedy = f"run mokutil --import {key}, reboot and confirm at the console"
    return [fault("secure_boot", text, f"{remedy}, or turn Secure Boot off")]


def built(host: Mapping[str, Any], version: str) -> set[str]:
    """Return the kernels that DKMS has a module of that version for."""
    return {
        entry["kernel"]
        for entry in host["dkms"]
        if entry["module"].startswith("nvidia") and entry["version"] == version and entry["state"] == "installed"
    }


def _headers(host: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, str]]:
    kernel = host["kernel"]
    found: list[dict[str, str]] = []
    there = set(kernel["headers"]) | built(host, options["version"])
    for which in ("running", "newest"):
        release = kernel[which]
        if release and release not in there and not any(release in item["fault"] for item in found):
            text = f"the headers of the {which} kernel {release} are not there, so no module can be built for it"
            found.append(fault("headers", text, f"run apt-get install linux-headers-{release}"))
    return found


def _busy(host: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, str]]:
    users = [user for user in host["users"] if user["name"][:15] not in OWN_DAEMONS]
    if not users or options["busy"] == "ignore":
        return []
    words = ", ".join(f"{user['name']} ({user['pid']})" for user in users[:5])
    more = f" and {len(users) - 5} more" if len(users) > 5 else ""
    return [fault("busy", f"processes use a GPU: {words}{more}", "stop them, such as by stopping moat-model@*.service")]


def _fabric_manager(host: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, str]]:
    if not host["fabric_manager"]["needed"] or options["fabric_manager"] != "never":
        return []
    return [
        fault(
            "fabric_manager",
            "the GPUs are behind NVSwitch, which does nothing without Fabric Manager",
            "set fabric_manager to auto",
        )
    ]


def _disk(host: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    for place, least in ROOM.items():
        if place == "/var" and options["source"]["kind"] == "local":
            least += LOCAL_ROOM
        free = host["disk_free_mib"].get(place)
        if free is not None and free < least:
            text = f"{place} has {free} MiB free of the {least} MiB that the change needs"
            found.append(fault("disk", text, "make room, such as by apt-get clean and by removing old kernels"))
    return found


def _foreign(host: Mapping[str, Any]) -> list[dict[str, str]]:
    foreign = host["driver"]["foreign"]
    if not foreign:
        return []
    text = f"a driver that no package owns is there ({foreign['path']}: {foreign['why']})"
    remedy = "run nvidia-uninstall, or nvidia-installer --uninstall, and reboot; what another way brought goes that way"
    return [fault("foreign", text, remedy)]
