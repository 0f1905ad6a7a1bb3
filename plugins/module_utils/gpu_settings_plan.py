# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What moat-gpu.service has to do on a host: from the declaration and from what nvidia-smi says to commands, each with its reason.

Pure. A run that finds everything as declared gets a plan without commands, so a second plan verifies what the first one did.
nvidia-smi(1) of the branch R580 and NVIDIA's "MIG User Guide" say what the commands do. Also installed on hosts, beside
gpu_settings.py, so it uses the standard library alone.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

DECLARATION = "/etc/moat/gpu.json"
UUID = re.compile(r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# they hold the device files open and neither mind a layout nor are in its way; comm(5) has 15 characters
HARMLESS = {name[:15] for name in ("nvidia-persistenced", "nv-fabricmanager", "nvidia-smi")}
GPU_LINE = re.compile(r"^GPU (\d+): .*\(UUID: (GPU-[0-9a-f-]+)\)")
MIG_LINE = re.compile(r"^\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)\s]+)\)")
PROFILE_ROW = re.compile(r"^\|\s+(\d+)\s+MIG\s+(\S+)\s+(\d+)\s+\d+/(\d+)\s+([\d.]+)\s")
GI_ROW = re.compile(r"^\|\s+(\d+)\s+MIG\s+(\S+)\s+\d+\s+(\d+)\s+\d+:\d+\s+\|")
CI_ROW = re.compile(r"^\|\s+(\d+)\s+(\d+)\s+MIG\s+(\S+)\s+\d+\*?\s+(\d+)\s")


class DeclarationError(Exception):
    """The declaration cannot be; faults says all that is wrong."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(self.faults))


@dataclass(frozen=True)
class Gpu:
    """What nvidia-smi says of a GPU; None where it says nothing. Power in W, clocks in MHz."""

    uuid: str
    slot: str
    index: int
    minor: int | None
    persistence: bool | None
    mig: bool | None
    mig_pending: bool | None
    power: Mapping[str, float | None]
    graphics_mhz: int | None
    graphics: tuple[int, ...]
    memory: tuple[int, ...]
    # index of the MIG device -> its GPU instance and compute instance
    instances: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    users: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """A profile of GPU instances: its number, how many fit on an empty GPU, memory in GiB."""

    number: int
    total: int
    memory: float

    @staticmethod
    def slices(name: str) -> int:
        """Return the compute slices that the name of a profile tells: 3 for 3g.40gb."""
        return int(name.split("g", 1)[0]) if name[:1].isdigit() else 0


@dataclass(frozen=True)
class Seen:
    """A host at one moment, by GPU index where not said otherwise."""

    gpus: tuple[Gpu, ...]
    profiles: Mapping[int, Mapping[str, Profile]] = field(default_factory=dict)
    layout: Mapping[int, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    # (GPU index, GPU instance) -> names of its compute instances
    computes: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    # GPU UUID -> index of the MIG device -> its profile and UUID
    devices: Mapping[str, Mapping[int, tuple[str, str]]] = field(default_factory=dict)
    daemon: bool = False
    # GPU UUID -> what this program applied since the module was loaded
    record: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A command that changes something; note is what it leaves in the record of the GPU."""

    argv: tuple[str, ...]
    why: str
    uuid: str = ""
    kind: str = ""
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """Commands in order; wrong is what the declaration asks in vain, unmet what the host's state does not allow now."""

    commands: list[Command] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)


def is_number(value: Any, *kinds: type) -> bool:
    """Whether value is of one of the kinds; true and false are no numbers, though Python has them as such."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def clock_range(value: Any) -> bool:
    """Whether value is {"min": MHz, "max": MHz}."""
    good = isinstance(value, dict) and set(value) == {"min", "max"}
    return good and all(is_number(n, int) and n > 0 for n in value.values()) and value["min"] <= value["max"]


def parse_declaration(text: str) -> dict[str, Any]:
    """Return {"persistence": bool, "wait_s": seconds, "gpus": {"all" or UUID: settings}}; raise DeclarationError."""
    try:
        told = json.loads(text)
    except ValueError as error:
        raise DeclarationError([f"{DECLARATION} is no JSON: {error}"]) from error
    if not isinstance(told, dict) or not isinstance(told.get("gpus", {}), dict):
        raise DeclarationError(["the declaration has to be an object, and gpus an object in it"])
    result = {"persistence": True, "wait_s": 60, "gpus": {}, **told}
    faults = [f"{key} is no setting" for key in sorted(set(result) - {"persistence", "wait_s", "gpus"})]
    if not isinstance(result["persistence"], bool):
        faults.append("persistence has to be true or false")
    if not is_number(result["wait_s"], int) or not 0 <= result["wait_s"] <= 600:
        faults.append("wait_s has to be a whole number of seconds from 0 to 600")
    for key, settings in result["gpus"].items():
        if key != "all" and not UUID.fullmatch(key):
            faults.append(f"gpus.{key} is neither all nor the UUID of a GPU as nvidia-smi -L shows it")
        if not isinstance(settings, dict):
            faults.append(f"gpus.{key} has to be an object")
            continue
        for name, value in settings.items():
            if name == "power_limit_w":
                good, form = is_number(value, int, float) and value > 0, "a number of watts"
            elif name in ("graphics_clock_mhz", "memory_clock_mhz"):
                good, form = clock_range(value), '{"min": MHz, "max": MHz} with min not above max'
            elif name == "mig":
                good = isinstance(value, list) and all(isinstance(item, str) for item in value)
                form = "a list of profiles, empty for MIG off"
            else:
                good, form = False, "absent, for there is no such setting"
            if not good:
                faults.append(f"gpus.{key}.{name} has to be {form}")
    if faults:
        raise DeclarationError(faults)
    return result


def declared_for(declaration: Mapping[str, Any], uuid: str) -> dict[str, Any]:
    """Return the settings of one GPU: its own before those of all."""
    return {**declaration["gpus"].get("all", {}), **declaration["gpus"].get(uuid, {})}


def number_of(text: str | None) -> float | None:
    """Return the number of "700.00 W" or "1980 MHz", None for "N/A" and other words."""
    found = re.match(r"\s*(\d+(?:\.\d+)?)\b", text or "")
    return float(found.group(1)) if found else None


def switch_of(text: str | None) -> bool | None:
    """Return whether a mode is on, None where the GPU has no such mode."""
    return {"enabled": True, "disabled": False}.get((text or "").strip().lower())


def parse_gpus(text: str) -> list[Gpu]:
    """Parse `nvidia-smi -q -x`, in the order of the PCI bus, which is that of the GPUs' indices; raise ValueError."""
    # warnings stand before and after the document
    begin, end = text.find("<?xml"), text.rfind(">")
    try:
        root = ElementTree.fromstring(text[max(begin, 0) : end + 1])
    except ElementTree.ParseError as error:
        raise ValueError(f"nvidia-smi -q -x gave no XML: {error}") from error
    gpus = []
    for index, node in enumerate(root.findall("gpu")):
        # before the branch R535 the element was power_readings, with power_limit in it
        power = node.find("gpu_power_readings")
        if power is None:
            power = node.find("power_readings")
        watts: dict[str, float | None] = {}
        for name, tags in {
            "limit": ("requested_power_limit", "current_power_limit", "power_limit"),
            "min": ("min_power_limit",),
            "max": ("max_power_limit",),
            "default": ("default_power_limit",),
        }.items():
            numbers = [number_of(power.findtext(tag)) for tag in tags] if power is not None else []
            watts[name] = next((number for number in numbers if number is not None), None)
        memory = [number_of(value.findtext("value")) for value in node.iter("supported_mem_clock")]
        graphics = [number_of(value.text) for value in node.iter("supported_graphics_clock")]
        minor, now = number_of(node.findtext("minor_number")), number_of(node.findtext("clocks/graphics_clock"))
        instances = {}
        for device in node.iter("mig_device"):
            numbers = [number_of(device.findtext(t)) for t in ("index", "gpu_instance_id", "compute_instance_id")]
            at, gi, ci = (-1 if n is None else int(n) for n in numbers)
            instances[at] = (gi, ci)
        users = []
        for process in node.iter("process_info"):
            name = (process.findtext("process_name") or "").strip()
            if os.path.basename(name)[:15] not in HARMLESS:
                users.append("{} ({})".format((process.findtext("pid") or "?").strip(), name or "unknown"))
        gpus.append(
            Gpu(
                uuid=(node.findtext("uuid") or "").strip(),
                slot=node.get("id", "").lower()[-12:],
                index=index,
                minor=None if minor is None else int(minor),
                persistence=switch_of(node.findtext("persistence_mode")),
                mig=switch_of(node.findtext("mig_mode/current_mig")),
                mig_pending=switch_of(node.findtext("mig_mode/pending_mig")),
                power=watts,
                graphics_mhz=None if now is None else int(now),
                graphics=tuple(sorted({int(clock) for clock in graphics if clock is not None})),
                memory=tuple(sorted({int(clock) for clock in memory if clock is not None})),
                instances=instances,
                users=tuple(users),
            )
        )
    return gpus


def parse_devices(text: str) -> dict[str, dict[int, tuple[str, str]]]:
    """Parse `nvidia-smi -L`: GPU UUID -> index of the MIG device -> its profile and UUID."""
    found: dict[str, dict[int, tuple[str, str]]] = {}
    uuid = ""
    for line in text.splitlines():
        gpu, mig = GPU_LINE.match(line), MIG_LINE.match(line)
        if gpu:
            uuid = gpu.group(2)
            found[uuid] = {}
        elif mig and uuid:
            found[uuid][int(mig.group(2))] = (mig.group(1), mig.group(3))
    return found


def parse_profiles(text: str) -> dict[int, dict[str, Profile]]:
    """Parse `nvidia-smi mig -lgip`: GPU index -> name -> profile."""
    found: dict[int, dict[str, Profile]] = {}
    for row in filter(None, map(PROFILE_ROW.match, text.splitlines())):
        gpu, name, number, total, memory = row.groups()
        found.setdefault(int(gpu), {})[name] = Profile(int(number), int(total), float(memory))
    return found


def parse_layout(text: str) -> dict[int, tuple[tuple[str, int], ...]]:
    """Parse `nvidia-smi mig -lgi`: GPU index -> profile and number of each GPU instance."""
    found: dict[int, list[tuple[str, int]]] = {}
    for row in filter(None, map(GI_ROW.match, text.splitlines())):
        found.setdefault(int(row.group(1)), []).append((row.group(2), int(row.group(3))))
    return {gpu: tuple(rows) for gpu, rows in found.items()}


def parse_computes(text: str) -> dict[tuple[int, int], tuple[str, ...]]:
    """Parse `nvidia-smi mig -lci`: GPU index and GPU instance -> names of its compute instances."""
    found: dict[tuple[int, int], list[str]] = {}
    for row in filter(None, map(CI_ROW.match, text.splitlines())):
        found.setdefault((int(row.group(1)), int(row.group(2))), []).append(row.group(3))
    return {key: tuple(names) for key, names in found.items()}


def layout_faults(gpu: Gpu, wanted: Sequence[str], profiles: Mapping[str, Profile]) -> list[str]:
    """Say why a layout cannot be on a GPU; whether the places suffice is left to the driver."""
    where = f"GPU {gpu.uuid}: mig"
    if gpu.mig is None:
        return [f"{where} is declared, but this GPU has no MIG; leave it out"] if wanted else []
    if not profiles:
        return [f"{where} cannot be judged, for nvidia-smi mig -lgip lists no profile"] if wanted else []
    unknown = sorted(set(wanted) - set(profiles))
    if unknown:
        return [f"{where} names {', '.join(unknown)}; this GPU has {', '.join(sorted(profiles))}"]
    faults = [
        f"{where} wants {count} of {name}, and {profiles[name].total} fit"
        for name, count in sorted(Counter(wanted).items())
        if count > profiles[name].total
    ]
    slices, memory = sum(map(Profile.slices, wanted)), sum(profiles[name].memory for name in wanted)
    most, room = max(map(Profile.slices, profiles)), max(profile.memory for profile in profiles.values())
    # the instances' memory adds up to a little more or less than the whole
    if not faults and (slices > most or memory > room * 1.02):
        faults.append(f"{where} wants {slices} slices and {memory:g} GiB; the GPU has {most} slices and {room:g} GiB")
    return faults


def plan_mig(gpu: Gpu, wanted: Sequence[str], seen: Seen, plan: Plan) -> None:
    """Add what makes the MIG layout of a GPU the wanted one: GPU instances, each with one compute instance over all of it."""
    profiles = seen.profiles.get(gpu.index, {})
    faults = layout_faults(gpu, wanted, profiles)
    plan.wrong += faults
    now = seen.layout.get(gpu.index, ())
    whole = all(seen.computes.get((gpu.index, number)) == (name,) for name, number in now)
    same_mode = gpu.mig is None or gpu.mig == bool(wanted)
    if faults or (same_mode and (not wanted or (Counter(name for name, _number in now) == Counter(wanted) and whole))):
        return
    where = f"GPU {gpu.uuid}"
    if not same_mode and gpu.mig_pending == bool(wanted):
        plan.unmet.append(
            f"{where}: MIG mode is {'on' if wanted else 'off'} only after a reset of the GPU; it is not reset here: reboot the host"
        )
        return
    if gpu.users:
        plan.unmet.append(f"{where}: MIG is not changed while it is in use by {', '.join(gpu.users)}; stop them first")
        return
    smi = ("nvidia-smi", "mig", "-i", gpu.uuid)
    if now:
        shown = ", ".join(name for name, _number in now)
        if any(seen.computes.get((gpu.index, number)) for _name, number in now):
            plan.commands.append(Command((*smi, "-dci"), f"{where}: it has {shown}", gpu.uuid, "mig"))
        plan.commands.append(Command((*smi, "-dgi"), f"{where}: it has {shown}", gpu.uuid, "mig"))
    if not same_mode:
        argv = ("nvidia-smi", "-i", gpu.uuid, "-mig", "1" if wanted else "0")
        plan.commands.append(Command(argv, f"{where}: MIG is {'off' if wanted else 'on'}", gpu.uuid, "mode"))
    if wanted:
        # the largest first, so that the small ones do not take the places where it would have to begin
        order = sorted(wanted, key=lambda name: (-profiles[name].memory, -Profile.slices(name), name))
        numbers = ",".join(str(profiles[name].number) for name in order)
        why = f"{where}: {', '.join(order)} is declared"
        plan.commands.append(Command((*smi, "-cgi", numbers, "-C"), why, gpu.uuid, "mig"))


def plan_power(gpu: Gpu, wanted: float | None, done: Mapping[str, Any], plan: Plan, again: bool) -> None:
    """Add what makes the power limit the wanted one, or the default again where this program had set another (done)."""
    low, high, limit = gpu.power["min"], gpu.power["max"], gpu.power["limit"]
    where, key = f"GPU {gpu.uuid}", "power_limit_w"
    if wanted is None:
        if done.get(key) and gpu.power["default"] is not None:
            argv = ("nvidia-smi", "-i", gpu.uuid, "-pl", f"{gpu.power['default']:g}")
            plan.commands.append(Command(argv, f"{where}: {key} is no longer declared", gpu.uuid, "power", {key: None}))
    elif low is None or high is None or limit is None:
        plan.wrong.append(f"{where}: {key} is {wanted:g}, but the power limit of this GPU cannot be set; leave it out")
    elif not low <= wanted <= high:
        plan.wrong.append(f"{where}: {key} is {wanted:g}; the GPU takes {low:g} to {high:g}")
    elif again or abs(limit - wanted) >= 0.5:
        argv = ("nvidia-smi", "-i", gpu.uuid, "-pl", f"{wanted:g}")
        why = f"{where}: the power limit is {limit:g} W"
        plan.commands.append(Command(argv, why, gpu.uuid, "power", {key: wanted}))


def plan_clock(gpu: Gpu, key: str, wanted: Mapping[str, int] | None, done: Mapping[str, Any], plan: Plan) -> None:
    """Add what locks a clock. The driver does not tell what is locked, so what this program did (done) says it."""
    lock, free, known = ("-lgc", "-rgc", gpu.graphics) if key == "graphics_clock_mhz" else ("-lmc", "-rmc", gpu.memory)
    where = f"GPU {gpu.uuid}"
    locked = done.get(key)
    if wanted is None:
        if locked:
            undo = ("nvidia-smi", "-i", gpu.uuid, free)
            plan.commands.append(Command(undo, f"{where}: {key} is no longer declared", gpu.uuid, "clock", {key: None}))
        return
    shown = "{min} to {max}".format_map(wanted)
    if not known:
        plan.wrong.append(f"{where}: {key} is {shown}, but this GPU lists no clocks that it takes; leave it out")
    elif not known[0] <= wanted["min"] <= wanted["max"] <= known[-1]:
        plan.wrong.append(f"{where}: {key} is {shown}; the GPU takes {known[0]} to {known[-1]}")
    elif locked != dict(wanted):
        argv = ("nvidia-smi", "-i", gpu.uuid, lock, "{min},{max}".format_map(wanted))
        why = f"{where}: {key} is {'locked otherwise' if locked else 'not locked'}"
        plan.commands.append(Command(argv, why, gpu.uuid, "clock", {key: dict(wanted)}))
    elif key == "graphics_clock_mhz" and gpu.graphics_mhz is not None and gpu.graphics_mhz > wanted["max"] + 15:
        plan.unmet.append(f"{where}: the graphics clock is {gpu.graphics_mhz} MHz, and {wanted['max']} was locked")


def make_plan(declaration: Mapping[str, Any], seen: Seen, afterwards: bool = False) -> Plan:
    """Return what has to be done, or with afterwards what was not had; nothing is when the host is as declared."""
    plan = Plan()
    present = {gpu.uuid for gpu in seen.gpus}
    for uuid in sorted(set(declaration["gpus"]) - present - {"all"}):
        plan.unmet.append(
            f"GPU {uuid} is declared and not there; nvidia-smi -L lists {', '.join(sorted(present)) or 'none'}"
        )
    for gpu in seen.gpus:
        if not declaration["persistence"] or gpu.persistence is not False:
            continue
        where = f"GPU {gpu.uuid}: persistence mode is off"
        if seen.daemon:
            on = ("nvidia-smi", "-i", gpu.uuid, "-pm", "1")
            plan.commands.append(Command(on, f"{where}, and settings end with the GPU's last user", gpu.uuid))
        else:
            plan.unmet.append(
                f"{where} and nvidia-persistenced does not run, so settings would end with the GPU's last user; "
                "start nvidia-persistenced.service"
            )
    for gpu in seen.gpus:
        wanted = declared_for(declaration, gpu.uuid)
        before = len(plan.commands)
        if "mig" in wanted:
            plan_mig(gpu, wanted["mig"], seen, plan)
        # a change of the mode may reset the GPU, and then it has forgotten the others
        again = not afterwards and any(command.kind == "mode" for command in plan.commands[before:])
        done = {} if again else seen.record.get(gpu.uuid, {})
        plan_power(gpu, wanted.get("power_limit_w"), done, plan, again)
        for key in ("graphics_clock_mhz", "memory_clock_mhz"):
            plan_clock(gpu, key, wanted.get(key), done, plan)
    return plan
