# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The routes module's hands on the host: kernel, files and units; a change of the kernel waits to be confirmed."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import deploy, files, routes
from ansible_collections.moat.inference.plugins.module_utils import routes_commands as commands
from ansible_collections.moat.inference.plugins.module_utils.early_unit import SANDBOX
from ansible_collections.moat.inference.plugins.module_utils.firewall_policy import read_connection
from ansible_collections.moat.inference.plugins.module_utils.pending import Pending, Staged, Terms
from ansible_collections.moat.inference.plugins.module_utils.private_link_commands import tolerant
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner
from ansible_collections.moat.inference.plugins.module_utils.steps import Steps

NAME = "routes"
DIRECTORY = "/etc/moat/routes"
STATE = f"{DIRECTORY}/state.json"
HOLD, FOLLOW = f"{DIRECTORY}/hold", f"{DIRECTORY}/follow"
HOLD_UNIT, FOLLOW_UNIT = "moat-routes.service", "moat-routes-follow.service"
UNIT_PROPERTIES = "ActiveState,UnitFileState,NeedDaemonReload,LoadState"
HOLD_UNIT_TEXT = f"""# Managed by moat.inference.
[Unit]
Description=No default route is in force (policy routing of the perimeter)
Documentation=man:ip-rule(8)
DefaultDependencies=no
After=local-fs.target
Wants=network-pre.target
Before=network-pre.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh {HOLD}
# There is no ExecStop: the rules stay when the unit is stopped.

{SANDBOX}
[Install]
WantedBy=sysinit.target
"""
FOLLOW_UNIT_TEXT = f"""# Managed by moat.inference.
[Unit]
Description=Planned routes, also once an interface was down
Documentation=man:ip-route(8)
After={HOLD_UNIT} network.target
StartLimitIntervalSec=0

[Service]
ExecStart=/bin/bash {FOLLOW}
Restart=always
RestartSec=1

{SANDBOX}
[Install]
WantedBy=multi-user.target
"""
FOLLOW_TEXT = f"""#!/bin/bash
# Has the planned routes, and has them again when the kernel took them away with an interface or address; takes the default route away that
# the host's own network settings bring at boot, which has no effect. Made by moat.inference.
have() {{
    for family in 4 6; do
        [ ! -s {DIRECTORY}/ipv$family ] || ip -$family -force -batch {DIRECTORY}/ipv$family
        ip -$family rule show pref {routes.NOTHING} | grep -q . || continue
        for protocol in boot static; do
            while ip -$family route delete unicast default proto $protocol table main 2>/dev/null; do :; done
        done
    done
}}
ip -o monitor link address | {{
    have
    # a change before the monitor listened
    sleep 1
    have
    while read -r _; do
        # changes come in bursts
        for _ in {{1..20}}; do read -r -t 1 _ || break; done
        have
    done
}}
exit 1
"""


def hold_text() -> str:
    """The program that has the rules before the network is up. A rule that is there is refused by the kernel, and right."""
    lines = ["#!/bin/sh", "# Has the rules that leave no default route in force. Made by moat.inference.", "failed=0"]
    for family in routes.FAMILIES:
        prefix = "" if family == 4 else "[ ! -e /proc/net/if_inet6 ] || "
        for number in (routes.MAIN, routes.PLANNED, routes.NOTHING):
            added = shlex.join(routes.rule_argv("add", number, family))
            there = f"ip -{family} rule show pref {number} | grep -q ."
            lines.append(f"{prefix}{added} 2>/dev/null || {there} || failed=1")
    return "\n".join([*lines, "exit $failed"]) + "\n"


def batch_text(target: routes.Desired, family: int) -> str:
    """What `ip -batch` reads."""
    return "".join(
        shlex.join(route.argv("replace")[2:]) + "\n"
        for route in sorted(target.routes, key=str)
        if route.family == family
    )


def state_text(kept: list[routes.Via], own: list[tuple[int, routes.Item]]) -> str:
    """What the module has to know the next time."""
    values = {"kept": [{"to": item.to, "via": item.via, "dev": item.dev} for item in kept], "own": own}
    return json.dumps(values, sort_keys=True) + "\n"


def read_text(text: str) -> tuple[list[routes.Via], list[tuple[int, routes.Item]]]:
    """The inverse of state_text."""
    try:
        values = json.loads(text)
        kept = [routes.Via(item["to"], item["via"], item.get("dev", "")) for item in values["kept"]]
        return kept, [(int(family), item) for family, item in values["own"]]
    except (ValueError, TypeError, KeyError) as error:
        message = (
            f"{STATE} cannot be read ({error}); put it back, or remove it if the host's own default route is not missed"
        )
        raise routes.RoutesError(message) from error


class Work:
    """What a call has to do."""

    def __init__(self, runner: Runner, options: Mapping[str, Any], connection: str, bare: bool) -> None:
        """bare: ip(8) is not there, as may be in check mode."""
        self._runner = runner
        self.pending, self.steps = Pending(runner, NAME), Steps(runner)
        self.held = options["state"] == "present" and not options["default"]
        before = files.read_state(STATE)
        self.first = before.kind != "file"
        self.old_kept, self.own = (
            ([], []) if self.first else read_text((before.content or b"").decode("utf-8", "replace"))
        )
        names = [HOLD_UNIT, FOLLOW_UNIT]
        listed = runner.run(["systemctl", "show", "-p", UNIT_PROPERTIES, "--", *names], ok=(0, 1, 127)).stdout
        self.states = deploy.parse_show(listed, names)
        self.kernels = {family: routes.Kernel([], []) for family in routes.FAMILIES} if bare else self._look()
        self.kinds = {} if bare else self._kinds()
        self.target = routes.Desired(False)
        if self.held:
            self._aim(options["via"], connection, bare)
        self.delta = routes.compare(self.kernels, self.target, self.kinds, self.own)
        if self.first and self.held:
            self.own = list(self.delta.main_removed)
        self.paths = self._plan_paths()

    def _aim(self, via: Any, connection: str, bare: bool) -> None:
        faults = routes.conflicts(self.kernels)
        if faults:
            raise routes.RoutesError("; ".join(faults))
        self.target = routes.desired(via, self.old_kept, self.kernels, strict=not bare)
        ends = read_connection(connection)
        if ends is None or bare or routes.covers(ends[0], self.target, self.kernels):
            return
        served = routes.host_route(
            ends[0], self._runner.run(["ip", "-j", "route", "get", str(ends[0])], ok=(0, 2)).stdout
        )
        if served is not None:
            self.target.kept.append(served)
            self.target.routes.append(served)

    def _ip(self, *words: str) -> list[routes.Item]:
        found: list[routes.Item] = routes.parse(self._runner.run(["ip", "-j", "-d", *words]).stdout)
        return found

    def _look(self) -> dict[int, routes.Kernel]:
        families = [4, 6] if os.path.exists("/proc/net/if_inet6") else [4]
        return {
            family: routes.Kernel(
                self._ip(f"-{family}", "rule", "show"), self._ip(f"-{family}", "route", "show", "table", "all")
            )
            for family in families
        }

    def _kinds(self) -> dict[str, str]:
        return {item["ifname"]: item.get("linkinfo", {}).get("info_kind", "") for item in self._ip("link", "show")}

    def _plan_paths(self) -> deploy.Plan:
        units: list[dict[str, Any]] = [
            {"name": name, "on_change": "none", "restart_on": []} for name in (HOLD_UNIT, FOLLOW_UNIT)
        ]
        root = {"owner": "root", "group": "root", "sensitive": False, "validate": []}
        places = (os.path.dirname(DIRECTORY), DIRECTORY)
        directories = [{**root, "path": path, "mode": "0755"} for path in places]
        texts = {
            f"/etc/systemd/system/{HOLD_UNIT}": HOLD_UNIT_TEXT,
            f"/etc/systemd/system/{FOLLOW_UNIT}": FOLLOW_UNIT_TEXT,
            HOLD: hold_text(),
            FOLLOW: FOLLOW_TEXT,
            f"{DIRECTORY}/ipv4": batch_text(self.target, 4),
            f"{DIRECTORY}/ipv6": batch_text(self.target, 6),
            STATE: state_text(self.target.kept, self.own),
        }
        current = {path: files.read_state(path) for path in (*texts, *places)}
        if not self.held:
            plan = deploy.plan_paths([], [], list(texts), current)
            units = [{**unit, "enabled": False, "state": "stopped"} for unit in units]
        else:
            wanted = [{**root, "path": path, "content": text, "mode": "0644"} for path, text in texts.items()]
            plan = deploy.plan_paths(directories, wanted, [], current)
            units = [{**unit, "enabled": True, "state": "started"} for unit in units]
        for change in plan.files:
            if change.before.kind not in ("absent", "file"):
                raise ValueError(f"{change.path} is there as something else ({change.before.kind}); move it away")
        deploy.plan_units(plan, units, self.states)
        return plan

    @property
    def changed(self) -> bool:
        return bool(self.delta.changed or self.paths.changed)

    @property
    def waits(self) -> bool:
        """Whether the kernel changes, so that an operator could be locked out."""
        return bool(self.delta.changed)

    def reasons(self) -> list[str]:
        found: list[str] = self.delta.reasons()
        for change in [*self.paths.directories, *self.paths.files]:
            verb = "is missing" if change.before.kind == "absent" else "differs" if self.held else "is there"
            found.append(f"{change.path} {verb}")
        return found + [f"{unit.name} needs {action}" for unit in self.paths.units for action in unit.actions]

    def diff(self) -> list[dict[str, str]]:
        entries: list[dict[str, str]] = self.paths.diff(self.states)
        if self.delta.changed:
            after = commands.shown(commands.after(self.kernels, self.delta))
            entry = {"before_header": "rules and routes", "after_header": "rules and routes"}
            entries.insert(0, {**entry, "before": commands.shown(self.kernels), "after": after})
        return entries

    def lasting(self) -> Staged:
        """What boot loads, and what keeps the routes while the host runs."""
        if not self.held:
            paths = [change.path for change in self.paths.files]
            # the units are stopped and disabled while their files are there
            gone = [["rm", "-f", "--", *paths]] if paths else []
            gone += [tolerant(["rmdir", "--", DIRECTORY, os.path.dirname(DIRECTORY)]), ["systemctl", "daemon-reload"]]
            return Staged(deploy.Plan(units=self.paths.units), gone)
        read = {FOLLOW, f"{DIRECTORY}/ipv4", f"{DIRECTORY}/ipv6", f"/etc/systemd/system/{FOLLOW_UNIT}"}
        started = any(unit.name == FOLLOW_UNIT and "start" in unit.actions for unit in self.paths.units)
        argvs = []
        if not started and any(change.path in read for change in self.paths.files):
            argvs.append(["systemctl", "restart", "--", FOLLOW_UNIT])
        # what it had may have come back meanwhile
        argvs += [tolerant(commands.route_argv("delete", *pair)) for pair in self.delta.routes_removed]
        return Staged(self.paths, argvs)

    def apply(self, terms: Terms) -> None:
        """Carry the plan out. Only a change of the kernel waits for its confirmation."""
        if self.waits:
            self._apply_waiting(terms)
            return
        staged = self.lasting()
        try:
            self.steps.paths(staged.plan)
            for unit in staged.plan.units:
                self.steps.unit(unit.name, unit.actions)
            for argv in staged.commands:
                self._runner.run(argv)
        except (OSError, KeyError, CommandError) as error:
            raise _taken_back(error, self.steps.undo()) from error

    def _apply_waiting(self, terms: Terms) -> None:
        undo = [tolerant(argv) if maybe else argv for argv, maybe in commands.back(self.delta)]
        try:
            self.pending.prepare({})
            self.pending.arm(undo, self.lasting(), terms)
            for argv in commands.forward(self.delta):
                self._runner.run(argv)
            remaining = routes.compare(self._look(), self.target, self.kinds, self.own).reasons()
            if remaining:
                raise OSError("the kernel has not what was planned: {}".format("; ".join(remaining)))
        except (OSError, CommandError) as error:
            raise _taken_back(error, self.pending.undo() if self.pending.waits else []) from error


def _taken_back(error: Exception, left: list[str]) -> RuntimeError:
    outcome = "but not completely: " + "; ".join(left) if left else "completely"
    return RuntimeError(f"{error}. The previous state was restored {outcome}.")
