# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which GPUs a model gets: how they are named, which the compiler and the role share, and what the names are on a host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import gpu_smi

SECONDS = 60  # without a persistence daemon nvidia-smi wakes each GPU first
NUMBER = re.compile(r"^(?:0|[1-9][0-9]?)\Z")
# CUDA C++ Programming Guide, CUDA_VISIBLE_DEVICES; abbreviated forms are refused, for they are not one GPU for ever
UUID = re.compile(r"^(GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
NAMES = (
    'by its number in the order of the PCI bus, such as 0, or by UUID as nvidia-smi -L shows it: "GPU-..." or "MIG-..."'
)
MINOR = re.compile(r"^DeviceFileMinor:\s*([0-9]+)\s*$", re.MULTILINE)
# every CUDA program opens these (NVIDIA's CDI specification has them for each device); nvidia-uvm-tools serves profilers
COMMON = ("/dev/nvidiactl", "/dev/nvidia-uvm")


def is_name(text: str) -> bool:
    """Whether text names a GPU or a MIG instance."""
    return bool(NUMBER.match(text) or UUID.match(text))


def list_fault(names: Sequence[str]) -> str | None:
    """Return what is wrong with the GPUs of one model on one host, taken together."""
    instances = [name for name in names if name.startswith("MIG-")]
    if len(instances) > 1:
        return "names more than one MIG instance, of which a process of CUDA sees the first alone; name one"
    if instances and len(names) > 1:
        return "names a MIG instance beside a GPU, which CUDA does not take together; name one kind"
    return None


def clashes(models: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, str]]:
    """Return indices of two models of one host and the GPU that both would get, unless both are shared.

    Each has `gpus`, a list of names, of which an empty one is every GPU, and `shared`.
    """
    found = []
    for at, model in enumerate(models):
        for before, other in enumerate(models[:at]):
            if model["shared"] and other["shared"]:
                continue
            both = sorted(set(model["gpus"]) & set(other["gpus"]))
            if both or not model["gpus"] or not other["gpus"]:
                found.append((before, at, both[0] if both else "every GPU"))
    return found


def assign(
    models: Sequence[Mapping[str, Any]], gpus: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return for each model what its unit has to know, and every fault.

    `models` have `name`, `gpus` and `shared`; `gpus` are those of the facts of gpu_info, each MIG instance with `caps`, the numbers
    of its capability nodes. What a unit has to know: `visible`, UUIDs for CUDA_VISIBLE_DEVICES; `nodes`, paths of character devices;
    `minors`, GPU UUID -> minor number of its node.
    """
    ordered = sorted(gpus, key=lambda gpu: str(gpu["slot"]))
    found: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    for index, model in enumerate(models):
        key = f"model_server_models[{index}].gpus"
        names = [str(name) for name in model["gpus"]] or [str(number) for number in range(len(ordered))]
        if not names:
            faults.append(
                f"{key}: the driver shows no GPU, and {model['name']} needs one; run the playbook gpu.yml first"
            )
        picked = [resolve(name, ordered) for name in names]
        faults += [f"{key}: {fault}" for _gpu, _instance, fault in picked if fault]
        together = list_fault(names)
        if together:
            faults.append(f"{key}: {together}")
        found[model["name"]] = devices([(gpu, instance) for gpu, instance, fault in picked if not fault])
    for index, model in enumerate(models):
        for other in models[:index]:
            if model["shared"] and other["shared"]:
                continue
            both = overlap(found[model["name"]], found[other["name"]])
            if both:
                faults.append(
                    f"model_server_models[{index}].gpus: {model['name']} and {other['name']} would both have {both[0]}; "
                    "give each model GPUs of its own, or say shared: true in both"
                )
    return found, faults


Picked = tuple[Mapping[str, Any], "Mapping[str, Any] | None"]


def resolve(
    name: str, ordered: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None, str | None]:
    """Return the GPU, the MIG instance if it is one, and the fault if the host has none of that name."""
    shown = ", ".join(f"{number} is {gpu['uuid']}" for number, gpu in enumerate(ordered)) or "none"
    if name.startswith("MIG-"):
        for gpu in ordered:
            for instance in gpu["mig"]["instances"]:
                if instance["uuid"] == name and len(instance["caps"]) == 2:
                    return gpu, instance, None
                if instance["uuid"] == name:
                    return {}, None, f"{name} has no capability nodes; look at /proc/driver/nvidia/capabilities"
        known = ", ".join(str(i["uuid"]) for gpu in ordered for i in gpu["mig"]["instances"]) or "none"
        return {}, None, f"{name} is no MIG instance of this host; it has: {known}"
    if NUMBER.match(name):
        at = int(name)
        wanted = ordered[at] if at < len(ordered) else None
    else:
        wanted = next((gpu for gpu in ordered if gpu["uuid"] == name), None)
    if wanted is None:
        return {}, None, f"{name} is no GPU that the driver of this host shows; it has: {shown}"
    if wanted["uuid"] is None or wanted["minor"] is None:
        return {}, None, f"{name} at {wanted['slot']} does not tell its UUID and minor number; look at nvidia-smi -q"
    if wanted["mig"]["current"] or wanted["mig"]["instances"]:
        return {}, None, f"{name} is divided by MIG, so no model can have it whole; name one of its instances"
    return wanted, None, None


def devices(picked: Iterable[Picked]) -> dict[str, Any]:
    """Return UUIDs, nodes and minor numbers of what was picked."""
    visible, nodes, minors = [], list(COMMON), {}
    for gpu, instance in picked:
        visible.append(str(gpu["uuid"] if instance is None else instance["uuid"]))
        minors[str(gpu["uuid"])] = int(gpu["minor"])
        nodes.append(f"/dev/nvidia{gpu['minor']}")
        nodes += [f"/dev/nvidia-caps/nvidia-cap{number}" for number in (instance or {}).get("caps", ())]
    return {"visible": visible, "nodes": list(dict.fromkeys(nodes)), "minors": minors}


def overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the UUIDs that two models would both have."""
    return sorted(set(one["visible"]) & set(other["visible"]))


def read(root: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the GPUs that the driver below a gpu_root.Root shows, with the capability nodes of their MIG instances, and faults."""
    told = root.run(["nvidia-smi", "-q", "-x"], limit=SECONDS)
    if told.rc == 127:
        return [], ["nvidia-smi is not on this host, so no driver is; run the playbook gpu.yml first"]
    report = gpu_smi.parse(told.stdout)
    if told.rc != 0 or not report.gpus:
        said = (told.stderr or told.stdout).strip().splitlines() or ["it said nothing"]
        return [], [
            f"nvidia-smi -q -x ended with status {told.rc}: {said[-1]}; run the playbook gpu.yml, or look at dmesg"
        ]
    if any(gpu["mig"]["instances"] for gpu in report.gpus):
        gpu_smi.add_migs(report.gpus, gpu_smi.parse_list(root.run(["nvidia-smi", "-L"], limit=SECONDS).stdout))
    for gpu in report.gpus:
        for instance in gpu["mig"]["instances"]:
            # a process needs the nodes of the GPU instance and of the compute instance in it (MIG User Guide, Device Nodes)
            base = f"/proc/driver/nvidia/capabilities/gpu{gpu['minor']}/mig/gi{instance['gi']}"
            texts = [root.text(f"{base}/access"), root.text(f"{base}/ci{instance['ci']}/access")]
            instance["caps"] = [int(found[1]) for found in (MINOR.search(text or "") for text in texts) if found]
    return report.gpus, []
