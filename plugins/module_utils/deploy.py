# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Planner of the deploy module: what is there, what shall be there -> what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.files import (
    ABSENT,
    FileState,
    diff_entry,
)

UNIT_DIRECTORIES = (
    "/etc/systemd/",
    "/usr/lib/systemd/",
    "/lib/systemd/",
    "/run/systemd/",
)
SETTLED = ("active", "reloading", "activating")
# a unit without [Install] is static: there is nothing to enable
ENABLED = ("enabled", "static", "alias", "generated")
MODE = re.compile(r"[0-7]{4}")
UNIT_NAME = re.compile(
    r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]+)?\.(service|socket|timer|path|mount|automount|swap|slice|target)"
)
INSTALL = re.compile(r"^\[Install\]\s*$(.*?)(?=^\[|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Change:
    """One path that differs."""

    path: str
    before: FileState
    after: FileState
    sensitive: bool = False
    validate: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnitState:
    """What systemd says of a unit (systemctl(1), show)."""

    active: str
    enabled: str
    stale: bool
    load: str = "loaded"
    sub: str = ""
    result: str = ""


@dataclass(frozen=True)
class UnitPlan:
    """Actions for a unit, in the order of systemctl's verbs to run."""

    name: str
    actions: tuple[str, ...]


@dataclass
class Plan:
    """Everything that a call has to do; empty when the host is as desired."""

    directories: list[Change] = field(default_factory=list)
    files: list[Change] = field(default_factory=list)
    daemon_reload: bool = False
    units: list[UnitPlan] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(
            self.directories
            or self.files
            or self.leftovers
            or self.daemon_reload
            or any(unit.actions for unit in self.units)
        )

    def diff(self, states: Mapping[str, UnitState]) -> list[dict[str, str]]:
        """Return Ansible's diff list."""
        entries = [diff_entry(c.path, c.before, c.after, c.sensitive) for c in self.directories + self.files]
        for path in self.leftovers:
            header = {"before_header": path, "after_header": f"{path} (absent)"}
            entries.append({**header, "before": "(left by a run that was killed)\n", "after": ""})
        for unit in self.units:
            if unit.actions:
                state = states[unit.name]
                entries.append(
                    {
                        "before_header": unit.name,
                        "after_header": unit.name,
                        "before": "{}, {}\n".format(state.active, state.enabled or "not enabled"),
                        "after": "will {}\n".format(", ".join(unit.actions)),
                    }
                )
        return entries


def parameter_faults(params: Mapping[str, Any]) -> list[str]:
    """Name every option that no host could carry out, with its remedy."""
    faults = []
    owners: dict[str, str] = {}
    for option in ("directories", "files", "absent"):
        for index, item in enumerate(params[option]):
            key = f"{option}[{index}]"
            path = item if isinstance(item, str) else item["path"]
            if not path.startswith("/") or path.endswith("/") or "/../" in f"{path}/":
                faults.append(f"{key}: {path} is no absolute path of a file or directory; write it in full")
            if owners.setdefault(path, key) != key:
                faults.append(f"{key}: {path} is there twice; remove it here or from {owners[path]}")
            if isinstance(item, Mapping) and not MODE.fullmatch(item["mode"]):
                faults.append(
                    f'{key}.mode: {item["mode"]} is not four octal digits; write it in quotes, such as "0640"'
                )
    names = set()
    for index, unit in enumerate(params["units"]):
        key = f"units[{index}].name"
        if not UNIT_NAME.fullmatch(unit["name"]):
            faults.append(f"{key}: {unit['name']} is no full name of a unit; write one such as moat-gateway.service")
        if unit["name"] in names:
            faults.append(f"{key}: {unit['name']} is there twice; remove one of the two")
        names.add(unit["name"])
    return faults


def kind_faults(params: Mapping[str, Any], current: Mapping[str, FileState]) -> list[str]:
    """Name every path that is there as something that must not be replaced or removed."""
    faults = []
    for option, kind in (("directories", "directory"), ("files", "file")):
        for item in params[option]:
            found = current[item["path"]].kind
            if found not in (kind, "absent"):
                shown = "is a symbolic link" if found == "link" else "is there"
                faults.append("{} {} and is no {}; move it away".format(item["path"], shown, kind))
    for path in params["absent"]:
        if current[path].kind == "directory":
            faults.append(f"{path} is a directory; only files are removed")
        elif current[path].kind == "other":
            faults.append(f"{path} is no regular file; remove it by hand")
    return faults


def desired_state(item: Mapping[str, Any], kind: str) -> FileState:
    """Return the state that an item of the options `files` or `directories` asks for."""
    content = item["content"].encode("utf-8") if kind == "file" else None
    return FileState(kind, content, int(item["mode"], 8), item["owner"], item["group"])


def plan_paths(
    directories: Sequence[Mapping[str, Any]],
    files: Sequence[Mapping[str, Any]],
    absent: Sequence[str],
    current: Mapping[str, FileState],
) -> Plan:
    """Return the plan for all paths, units not yet considered."""
    plan = Plan()
    for item in directories:
        after = desired_state(item, "directory")
        if current[item["path"]] != after:
            plan.directories.append(Change(item["path"], current[item["path"]], after))
    for item in files:
        after = desired_state(item, "file")
        if current[item["path"]] != after:
            plan.files.append(
                Change(
                    item["path"],
                    current[item["path"]],
                    after,
                    item["sensitive"],
                    tuple(item["validate"]),
                )
            )
    for path in absent:
        if current[path].kind != "absent":
            plan.files.append(Change(path, current[path], ABSENT))
    plan.daemon_reload = any(change.path.startswith(UNIT_DIRECTORIES) for change in plan.files)
    return plan


def plan_unit(unit: Mapping[str, Any], state: UnitState, changed: Sequence[str]) -> UnitPlan:
    """Return the systemctl verbs that bring a unit to its state after the given paths changed."""
    actions = []
    if unit["enabled"] is True and state.enabled not in ENABLED:
        actions.append("enable")
    if unit["enabled"] is False and state.enabled in ("enabled", "enabled-runtime"):
        actions.append("disable")
    if unit["state"] == "stopped" and (state.active in SETTLED):
        actions.append("stop")
    if unit["state"] == "started":
        if state.active not in SETTLED:
            actions.append("start")
        elif changed and any(path in unit["restart_on"] for path in changed):
            actions.append("restart")
        elif changed and unit["on_change"] != "none":
            actions.append(unit["on_change"])
    return UnitPlan(unit["name"], tuple(actions))


def plan_units(
    plan: Plan,
    units: Sequence[Mapping[str, Any]],
    states: Mapping[str, UnitState],
    pending: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Add the actions of all units to the plan.

    `pending` has, by unit, the paths that an earlier call changed before it was killed: the unit has not seen them.
    """
    changed = [change.path for change in plan.files]
    plan.units = [
        plan_unit(unit, states[unit["name"]], [*changed, *(pending or {}).get(unit["name"], ())]) for unit in units
    ]
    plan.daemon_reload = plan.daemon_reload or any(states[unit["name"]].stale for unit in units)


def plan_installs(plan: Plan, units: Sequence[Mapping[str, Any]], states: Mapping[str, UnitState]) -> None:
    """Have a unit enabled anew whose [Install] section changes with this call: systemd makes its links only then."""
    for index, unit in enumerate(units):
        actions = plan.units[index].actions
        state = states[unit["name"]]
        if unit["enabled"] is True and state.enabled in ("enabled", "static") and _install_changes(plan, unit["name"]):
            plan.units[index] = UnitPlan(unit["name"], ("reenable", *actions))


def _install_changes(plan: Plan, name: str) -> bool:
    template = re.sub(r"@.*(?=\.[a-z]+$)", "@", name)
    for change in plan.files:
        directory, _slash, base = change.path.rpartition("/")
        if directory.startswith(UNIT_DIRECTORIES) and base in (name, template) and change.after.kind == "file":
            return install_section(change.before) != install_section(change.after) != ""
    return False


def install_section(state: FileState) -> str:
    """The [Install] sections of a unit file."""
    text = (state.content or b"").decode("utf-8", "replace")
    return "\n".join(section.strip() for section in INSTALL.findall(text))


def encode_pending(plan: Plan, unit: UnitPlan, pending: Mapping[str, Sequence[str]]) -> str:
    """What to keep of a unit that has yet to see changes, until it has seen them; empty when there is nothing."""
    if not set(unit.actions) & {"reload", "restart"}:
        return ""
    return json.dumps(sorted({*(change.path for change in plan.files), *pending.get(unit.name, ())}))


def decode_pending(text: str) -> list[str]:
    """The paths that were kept; what cannot be read (cut off by a crash) stands for any path."""
    try:
        paths = json.loads(text)
    except ValueError:
        return ["?"]
    return [str(path) for path in paths] if isinstance(paths, list) else ["?"]


def unit_fault(state: UnitState) -> str:
    """Why a unit that was just started, restarted or reloaded does not count as well; empty when it does."""
    if state.active == "failed":
        return "failed"
    if state.sub == "auto-restart":
        return f"ended ({state.result or 'unknown'}) and waits for its restart"
    if state.active == "inactive" and state.result not in ("", "success"):
        return f"ended ({state.result})"
    return ""


def parse_show(text: str, names: Sequence[str]) -> dict[str, UnitState]:
    """Parse `systemctl show -p ActiveState,UnitFileState,NeedDaemonReload,LoadState`: a block a unit, in order asked.

    SubState and Result are read where they were asked for.
    """
    blocks = text.strip("\n").split("\n\n") if text.strip() else []
    states = {}
    for name, block in zip(names, blocks):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        states[name] = UnitState(
            fields.get("ActiveState", "inactive"),
            fields.get("UnitFileState", ""),
            fields.get("NeedDaemonReload") == "yes",
            fields.get("LoadState", "not-found"),
            fields.get("SubState", ""),
            fields.get("Result", ""),
        )
    # a host whose systemd cannot be asked (not booted yet, check mode in an image) counts as having no unit
    return {name: states.get(name, UnitState("inactive", "", False, "not-found")) for name in names}
