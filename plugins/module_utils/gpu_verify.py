# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a host's GPUs work after a change of their driver: what is asked of CUDA, and the verdict. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.run import Result


def gpu_slots(host: Mapping[str, Any]) -> list[str]:
    """Return the PCI slots of the NVIDIA GPUs that the bus shows."""
    return sorted(d["slot"] for d in host["devices"] if d["vendor"] == "nvidia" and d["kind"] == "gpu")


def in_use(gpu: Mapping[str, Any]) -> bool:
    """Whether a process computes on the GPU: it may have taken all the memory, and shows itself that CUDA works."""
    return any("C" in (process["type"] or "") for process in gpu["processes"])


def targets(host: Mapping[str, Any]) -> list[str]:
    """Return the UUIDs of what CUDA can work on: each GPU that nobody uses, or each MIG instance of one in MIG mode.

    An empty UUID is whatever CUDA shows, for a host whose GPUs nvidia-smi does not list.
    """
    found = []
    for gpu in host["gpus"]:
        if in_use(gpu):
            continue
        if gpu["mig"]["current"]:
            found += [instance["uuid"] for instance in gpu["mig"]["instances"] if instance["uuid"]]
        elif gpu["uuid"]:
            found.append(gpu["uuid"])
    return found if host["gpus"] else [""]


def answer(result: Result) -> dict[str, Any]:
    """Return what the program gpu_cuda said: api, devices and fault; its end, when it could not say anything."""
    try:
        told = json.loads(result.stdout)
        return {"api": int(told["api"]), "devices": list(told["devices"]), "fault": str(told["fault"])}
    except (ValueError, LookupError, TypeError):
        # a signal's number is negative; SIGALRM is the program's own time limit
        word = "took too long" if result.rc == -14 else f"ended with status {result.rc}"
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        return {"api": 0, "devices": [], "fault": ": ".join([f"the call {word}", *lines[-1:]])}


def driver_faults(driver: Mapping[str, Any], expected: str) -> list[str]:
    """Return what is wrong with the versions of the driver's parts."""
    module = driver["module"]
    if not module or not module["loaded"]:
        disk = driver["on_disk"]
        kept = (
            f"{disk['version']} is on disk for the running kernel" if disk else "none is on disk for the running kernel"
        )
        return [f"the kernel module nvidia is not loaded; {kept}; see journalctl -k -b"]
    faults = []
    if driver["userspace"] != module["version"]:
        faults.append(
            f"the kernel module is {module['version']} and the libraries are {driver['userspace'] or 'not there'}; reboot the host"
        )
    if expected and module["version"] != expected:
        faults.append(f"the kernel module is {module['version']}, and {expected} is wanted")
    return faults


def faults(host: Mapping[str, Any], calls: Mapping[str, Mapping[str, Any]], expected: str, xids: bool) -> list[str]:
    """Return all that is wrong; none is when the host can serve.

    host is that of gpu_info, calls are answers by UUID ("" for all that CUDA shows), expected a driver version or "", xids whether an
    Xid error since boot counts.
    """
    slots = gpu_slots(host)
    if not slots:
        return ["no NVIDIA GPU on the PCI bus"]
    found = driver_faults(host["driver"], expected)
    listed = {gpu["slot"] for gpu in host["gpus"]}
    missing = [slot for slot in slots if slot not in listed]
    if missing:
        told = [entry["why"] for entry in host["unread"] if entry["what"] == "nvidia-smi"]
        found.append(": ".join([f"nvidia-smi does not list {', '.join(missing)}", *told[:1]]))
    for gpu in host["gpus"]:
        if gpu["remapped_rows"]["failure"]:
            found.append(f"{gpu['slot']}: memory could not be repaired (row remapping failed); replace the GPU")
    manager = host["fabric_manager"]
    if manager["needed"] and not manager["active"]:
        found.append("NVSwitch is there and nvidia-fabricmanager.service is not active, so CUDA cannot start")
    if xids:
        for xid in host["xids"]:
            found.append(f"{xid['slot']}: Xid {xid['xid']} since boot, {xid['count']} times: {xid['text']}")
    for uuid, call in calls.items():
        name = uuid or "CUDA"
        if call["fault"]:
            found.append(f"{name}: {call['fault']}")
        elif uuid and len(call["devices"]) != 1:
            found.append(f"{name}: CUDA shows {len(call['devices'])} devices instead of this one")
    return found


def settings_faults(text: str | None) -> list[str]:
    """Return what moat-gpu.service could not have, from its record; none where the host has no such record."""
    if text is None:
        return []
    try:
        told = json.loads(text)["faults"]
        return [f"moat-gpu.service: {fault}" for fault in told]
    except (ValueError, LookupError, TypeError):
        return ["/run/moat/gpu.json is no record of moat-gpu.service; restart that unit"]


def state(host: Mapping[str, Any], wrong: Sequence[str]) -> str:
    """Return in one sentence what state the host is in, for the reader of a failed run."""
    driver, module = host["driver"], host["driver"]["module"]
    loaded = f"{module['version']} ({module['flavour']})" if module and module["loaded"] else "none"
    return (
        f"kernel {host['kernel']['running']}, kernel module {loaded}, libraries {driver['userspace'] or 'none'}, "
        f"{len(host['gpus'])} of {len(gpu_slots(host))} GPUs listed, {len(wrong)} faults"
    )
