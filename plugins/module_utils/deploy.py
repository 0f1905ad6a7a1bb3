# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Planner of the deploy module: what is there, what shall be there -> what to do."""

from __future__ import annotations

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

    @property
    def changed(self) -> bool:
        return bool(self.directories or self.files or self.daemon_reload or any(unit.actions for unit in self.units))

    def diff(self, states: Mapping[str, UnitState]) -> list[dict[str, str]]:
        """Return Ansible's diff list."""
        entries = [diff_entry(c.path, c.before, c.after, c.sensitive) for c in self.directories + self.files]
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
    if unit["enabled"] is True and state.enabled not in (
        "enabled",
        "static",
        "alias",
        "generated",
    ):
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


def plan_units(plan: Plan, units: Sequence[Mapping[str, Any]], states: Mapping[str, UnitState]) -> None:
    """Add the actions of all units to the plan."""
    changed = [change.path for change in plan.files]
    plan.units = [plan_unit(unit, states[unit["name"]], changed) for unit in units]
    plan.daemon_reload = plan.daemon_reload or any(states[unit["name"]].stale for unit in units)


def parse_show(text: str, names: Sequence[str]) -> dict[str, UnitState]:
    """Parse `systemctl show -p ActiveState,UnitFileState,NeedDaemonReload,LoadState`: a block a unit, in order asked."""
    blocks = text.strip("\n").split("\n\n") if text.strip() else []
    states = {}
    for name, block in zip(names, blocks):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        states[name] = UnitState(
            fields.get("ActiveState", "inactive"),
            fields.get("UnitFileState", ""),
            fields.get("NeedDaemonReload") == "yes",
            fields.get("LoadState", "not-found"),
        )
    # a host whose systemd cannot be asked (not booted yet, check mode in an image) counts as having no unit
    return {name: states.get(name, UnitState("inactive", "", False, "not-found")) for name in names}
