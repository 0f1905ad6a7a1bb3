# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The GPUs and NVSwitches on the PCI bus, from sysfs: what is there whether or not a driver is."""

from __future__ import annotations

import os
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root

DEVICES = "/sys/bus/pci/devices"
NVIDIA, AMD, INTEL = "10de", "1002", "8086"
VENDORS = {NVIDIA: "nvidia", AMD: "amd", INTEL: "intel"}
# PCI classes: VGA compatible, 3D, other display controllers, processing accelerators
DISPLAY_CLASSES = ("0300", "0302", "0380")
ACCELERATOR = "1200"
BRIDGE = "0680"
# NVSwitch of HGX-2, HGX A100 and HGX H100/H200; other bridges of this vendor are chipsets. Later ones are not on the host's bus
# (NVIDIA Fabric Manager User Guide; pci.ids)
NVSWITCHES = ("1ac0", "1ac1", "1ac2", "1af1", "22a3")
# B200, B200 168 GB, B300: come on HGX boards whose NVSwitches the host does not see, and need Fabric Manager all the same
HGX_WITHOUT_SWITCH = ("2901", "2909", "3182")
# first and last device id of each architecture (pci.ids; "Compatible GPUs" in the README of NVIDIA/open-gpu-kernel-modules;
# gpu/devid_chips.py in NVIDIA/gpu-admin-tools). Ids were not handed out in order before Kepler.
ARCHITECTURES = (
    (0x0FC0, 0x0FFF, "kepler"),
    (0x1000, 0x103F, "kepler"),
    (0x1180, 0x11FF, "kepler"),
    (0x1280, 0x12FF, "kepler"),
    (0x1340, 0x147F, "maxwell"),
    (0x15F0, 0x15FF, "pascal"),
    (0x1600, 0x167F, "maxwell"),
    (0x1725, 0x172F, "pascal"),
    (0x1740, 0x17FF, "maxwell"),
    (0x1B00, 0x1D7F, "pascal"),
    (0x1D80, 0x1DFF, "volta"),
    (0x1E00, 0x1FFF, "turing"),
    (0x2080, 0x20FF, "ampere"),
    (0x2180, 0x21FF, "turing"),
    (0x2200, 0x229F, "ampere"),
    (0x2300, 0x237F, "hopper"),
    (0x2400, 0x25FF, "ampere"),
    (0x2680, 0x28FF, "ada"),
    (0x2900, 0x297F, "blackwell"),
    (0x2B80, 0x2DFF, "blackwell"),
    (0x2E00, 0x2E7F, "blackwell"),
    (0x2F00, 0x2F7F, "blackwell"),
    (0x3180, 0x31FF, "blackwell"),
)
# Fermi and before lie below, but for the Kepler ids above and a few that are listed there
OLDEST_KNOWN = 0x1340
# the open modules need the GPU System Processor, which came with Turing (README of NVIDIA/open-gpu-kernel-modules)
CLOSED_ONLY = ("legacy", "kepler", "maxwell", "pascal", "volta")
# discrete ones whose class is VGA, as the integrated ones' is: DG1, DG2 (Arc, Flex), Ponte Vecchio, Battlemage (pci.ids)
INTEL_DISCRETE = ((0x4905, 0x4909), (0x4F80, 0x4F88), (0x5690, 0x56C2), (0x0BD0, 0x0BDB), (0xE200, 0xE22F))
# where the integrated graphics of an Intel processor always is
INTEL_INTEGRATED = "0000:00:02.0"


def architecture(device_id: str) -> str:
    """Return the architecture of an NVIDIA GPU by its PCI device id: turing, hopper, ..., legacy (Fermi or older) or unknown."""
    number = int(device_id, 16)
    for first, last, name in ARCHITECTURES:
        if first <= number <= last:
            return name
    return "legacy" if number < OLDEST_KNOWN else "unknown"


def open_module(name: str) -> bool | None:
    """Whether the open kernel modules work with an architecture; None when it is unknown."""
    return None if name == "unknown" else name not in CLOSED_ONLY


def kind(vendor_id: str, device_id: str, device_class: str, slot: str) -> str | None:
    """Return gpu or nvswitch for what is of interest here, or None. Integrated Intel graphics is not."""
    if vendor_id == NVIDIA:
        if device_class == BRIDGE:
            return "nvswitch" if device_id in NVSWITCHES else None
        return "gpu" if device_class.startswith("03") else None
    if vendor_id == AMD:
        return "gpu" if device_class in (*DISPLAY_CLASSES, ACCELERATOR) else None
    if vendor_id == INTEL and slot != INTEL_INTEGRATED and device_class in (*DISPLAY_CLASSES, ACCELERATOR):
        discrete = any(first <= int(device_id, 16) <= last for first, last in INTEL_DISCRETE)
        return "gpu" if discrete or device_class in ("0302", "0380") else None
    return None


def devices(root: Root) -> list[dict[str, Any]]:
    """Return the GPUs and NVSwitches in the order of their slots; ids and class are hexadecimal without 0x."""
    found = []
    if not root.is_dir(DEVICES):
        root.tell(DEVICES, "it is not there: no PCI bus, or no sysfs")
    for slot in root.names(DEVICES):
        device = _device(root, slot)
        if device is not None:
            found.append(device)
    return found


def _device(root: Root, slot: str) -> dict[str, Any] | None:
    place = os.path.join(DEVICES, slot)
    vendor_id = _hexadecimal(root, place, "vendor")
    if vendor_id is None or vendor_id not in VENDORS:
        return None
    device_id, device_class = _hexadecimal(root, place, "device"), _hexadecimal(root, place, "class", 6)
    if device_id is None or device_class is None:
        return None
    found = kind(vendor_id, device_id, device_class[:4], slot)
    if found is None:
        return None
    name = architecture(device_id) if vendor_id == NVIDIA and found == "gpu" else "unknown"
    subsystem = [_hexadecimal(root, place, f"subsystem_{part}") or "" for part in ("vendor", "device")]
    return {
        "slot": slot,
        "vendor": VENDORS[vendor_id],
        "kind": found,
        "vendor_id": vendor_id,
        "device_id": device_id,
        "subsystem": ":".join(subsystem) if all(subsystem) else "",
        "class": device_class[:4],
        "driver": os.path.basename(root.link(f"{place}/driver") or ""),
        "architecture": name,
        "open_module": open_module(name),
    }


def _hexadecimal(root: Root, place: str, name: str, digits: int = 4) -> str | None:
    text = root.text(os.path.join(place, name))
    if text is None:
        return None
    try:
        return format(int(text, 16), f"0{digits}x")
    except ValueError:
        root.tell(os.path.join(place, name), f"not a hexadecimal number: {text[:40]!r}")
        return None


def needs_fabric_manager(found: list[dict[str, Any]], gpus: list[dict[str, Any]]) -> bool:
    """Whether Fabric Manager has to run on this host.

    It does with NVSwitches on the bus; with GPUs that say they register with a fabric, but for Grace ones, whose switches are
    managed elsewhere; and with two or more of the GPUs whose NVSwitches the host does not see, as long as no driver tells.
    Source: NVIDIA Fabric Manager User Guide.
    """
    if any(device["kind"] == "nvswitch" for device in found):
        return True
    states = [gpu["fabric"] for gpu in gpus if not _is_grace(gpu["name"] or "")]
    if any(state and state["state"] in ("Not Started", "In Progress", "Completed") for state in states):
        return True
    hidden = [device for device in found if device["vendor_id"] == NVIDIA and device["device_id"] in HGX_WITHOUT_SWITCH]
    return not gpus and len(hidden) > 1


def _is_grace(name: str) -> bool:
    return any(part.startswith(("GH", "GB2", "GB3")) for part in name.split())
