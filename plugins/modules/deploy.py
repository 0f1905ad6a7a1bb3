#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: deploy
short_description: Deploy files that belong together, and the units that use them
version_added: 0.1.0
description:
  - Writes directories and files, each validated and then replaced atomically, in the order given, and brings systemd units to
    their state. Whatever fails, the previous files come back and the units get them again, so the last good state stays.
  - A run that was killed is finished by the next one. It removes what was staged, and units that have not seen a change yet see it.
  - One call does what a list of copy, template, systemd and handler tasks would do, in one remote execution.
author:
  - moat.inference contributors (@moat-inference)
options:
  directories:
    description: Directories to have, parents first.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      mode: {description: Permission bits as four octal digits in quotes., type: str, default: "0755"}
      owner: {description: Name of the owner., type: str, default: root}
      group: {description: Name of the group., type: str, default: root}
  files:
    description: Files to have, in the order in which they are replaced. What another file's validation reads comes first.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      content: {description: The whole text in UTF-8., type: str, required: true}
      mode: {description: Permission bits as four octal digits in quotes., type: str, default: "0644"}
      owner: {description: Name of the owner., type: str, default: root}
      group: {description: Name of the group., type: str, default: root}
      validate:
        description: Command as a list; V(%s) is replaced by the candidate, which lies in the same directory. Status 0 accepts it.
        type: list
        elements: str
        default: []
      sensitive: {description: Whether the content stays out of the diff and of what is shown of the arguments., type: bool, default: false}
  absent:
    description: Files and symbolic links to remove.
    type: list
    elements: path
    default: []
  units:
    description: Units to bring to their state, in the order given, after all files are in place; those to stop or disable, before.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Full name of the unit., type: str, required: true}
      enabled: {description: Whether it starts at boot. Left alone when not given., type: bool}
      state:
        description: State to have. Left alone when not given.
        type: str
        choices: [started, stopped]
      on_change:
        description: What to do with a running unit when any file of the call changed.
        type: str
        choices: [reload, restart, none]
        default: none
      restart_on:
        description: Files whose change asks for a restart instead.
        type: list
        elements: path
        default: []
attributes:
  check_mode:
    support: full
    description: Validation commands are not run, for what they need may not be there yet.
  diff_mode:
    support: full
    description: Shows content and attributes of every path that differs, and what happens to each unit.
"""

EXAMPLES = r"""
- name: Deploy the gateway
  moat.inference.deploy:
    directories:
      - {path: /etc/moat/gateway, mode: "0750", group: haproxy}
    files:
      - path: /etc/moat/gateway/haproxy.cfg
        content: "{{ lookup('ansible.builtin.template', 'haproxy.cfg.j2') }}"
        mode: "0640"
        group: haproxy
        validate: [haproxy, -c, -f, "%s"]
    units:
      - {name: moat-gateway.service, enabled: true, state: started, on_change: reload}
"""

RETURN = r"""
changed_files:
  description: Paths that were, or in check mode would be, created, replaced or removed.
  type: list
  elements: str
  returned: always
unit_actions:
  description: Verbs of systemctl(1) for each unit that needed one.
  type: dict
  returned: always
  sample: {moat-gateway.service: [enable, start]}
"""

import json
import os
from contextlib import suppress
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils.run import (
    CommandError,
    Runner,
)

PROPERTIES = "ActiveState,SubState,Result,UnitFileState,NeedDaemonReload,LoadState"
# Gone with a reboot, and so are the running units that have not seen a change.
PENDING = "/run/moat-deploy"
FIRST = ("disable", "stop")  # before the files change: they may take the unit's own file away
RUNNING = {"start", "restart", "reload"}  # what ends with a running unit
ANY = range(256)


def log(module: Any, msg: str, log_args: Any = None) -> None:
    """Keep the contents of files, which are arguments, out of the host's journal."""
    AnsibleModule.log(module, msg.partition(" with ")[0])


class Host:
    """Carries a plan out and takes it back."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._done: list[deploy.Change] = []
        self._acted: list[tuple[str, str]] = []

    def unit_states(self, names: list[str]) -> dict[str, deploy.UnitState]:
        """Ask systemd for all units in one call."""
        if not names:
            return {}
        result = self._runner.run(["systemctl", "show", "-p", PROPERTIES, "--", *names], ok=(0, 1, 127))
        return dict(deploy.parse_show(result.stdout, names))

    def pending(self, names: list[str]) -> dict[str, list[str]]:
        """The paths that an earlier call changed and that the unit has not seen, for it was killed in between."""
        found = {}
        for name in names:
            content = files.read_state(os.path.join(PENDING, name)).content
            if content is not None:
                found[name] = deploy.decode_pending(content.decode("utf-8", "replace"))
        return found

    def apply(self, plan: deploy.Plan, pending: dict[str, list[str]]) -> None:
        """Carry the plan out; what is left to do is kept until it is done."""
        for unit in plan.units:
            text = deploy.encode_pending(plan, unit, pending)
            if text:
                os.makedirs(PENDING, mode=0o700, exist_ok=True)
                files.write(os.path.join(PENDING, unit.name), files.FileState("file", text.encode("utf-8"), 0o600))
        for path in plan.leftovers:
            os.unlink(path)
        self._act(plan, [(unit.name, action) for unit in plan.units for action in unit.actions if action in FIRST])
        for change in plan.directories + plan.files:
            self._write(change)
        if plan.daemon_reload:
            self._runner.run(["systemctl", "daemon-reload"])
        self._act(plan, [(unit.name, action) for unit in plan.units for action in unit.actions if action not in FIRST])
        self._confirm(plan)

    def settle(self, plan: deploy.Plan, pending: dict[str, list[str]]) -> None:
        """Keep of what was pending only what no unit has seen by now, whether its plan was carried out or taken back."""
        seen = {name for name, _action in self._acted}
        for unit in plan.units:
            path = os.path.join(PENDING, unit.name)
            if unit.actions and unit.name not in seen and unit.name in pending:
                files.write(path, files.FileState("file", json.dumps(pending[unit.name]).encode("utf-8"), 0o600))
            else:
                with suppress(FileNotFoundError):
                    os.unlink(path)

    def _write(self, change: deploy.Change) -> None:
        """Put one path into its desired state, checked before it is replaced."""
        same = change.before.kind == change.after.kind and change.before.content == change.after.content
        if change.after.kind == "absent":
            os.unlink(change.path)
        elif same:
            files.set_attributes(change.path, change.after)
        elif change.after.kind == "directory":
            os.mkdir(change.path, 0o700)
            self._done.append(change)
            files.set_attributes(change.path, change.after)
            return
        else:
            candidate = files.stage(change.path, change.after)
            try:
                if change.validate:
                    self._runner.run([word.replace("%s", candidate) for word in change.validate])
                files.commit(candidate, change.path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(candidate)
                raise
        self._done.append(change)

    def _act(self, plan: deploy.Plan, actions: list[tuple[str, str]]) -> None:
        for name, action in actions:
            self._acted.append((name, action))
            try:
                self._runner.run(["systemctl", action, "--", name])
            except CommandError as error:
                if action not in RUNNING:
                    raise
                raise RuntimeError(f"{error}\n{self._journal(name)}") from error

    def _journal(self, name: str) -> str:
        """The last words of a unit: systemctl itself says only that it failed."""
        lines = self._runner.run(["journalctl", "-u", name, "-n", "20", "--no-pager", "-o", "cat"], ok=ANY)
        return lines.stdout.strip()

    def _confirm(self, plan: deploy.Plan) -> None:
        """Look whether the units hold their state."""
        acted = [unit.name for unit in plan.units if RUNNING & set(unit.actions)]
        for name, state in self.unit_states(acted).items():
            fault = deploy.unit_fault(state)
            if fault:
                raise RuntimeError(f"{name} {fault} right after its start: {self._journal(name)}")

    def undo(self, plan: deploy.Plan) -> list[str]:
        """Put everything back, newest first, and return what could not be put back."""
        faults = []
        verbs = {"start": "stop", "enable": "disable"}
        faults += self._systemctl([(verbs[action], name) for name, action in reversed(self._acted) if action in verbs])
        for change in reversed(self._done):
            try:
                self._restore(change)
            except (OSError, KeyError) as error:
                faults.append(f"{change.path}: {error}")
        if plan.daemon_reload:
            self._runner.run(["systemctl", "daemon-reload"], ok=ANY)
        verbs = {
            "stop": "start",
            "disable": "enable",
            "reenable": "reenable",
            "restart": "restart",
            "reload": "reload-or-restart",
        }
        return faults + self._systemctl([(verbs[act], name) for name, act in reversed(self._acted) if act in verbs])

    def _restore(self, change: deploy.Change) -> None:
        before = change.before
        if before.kind == "file" and before.content == change.after.content:
            files.set_attributes(change.path, before)
        elif before.kind == "file":
            files.write(change.path, before)
        elif before.kind == "directory":
            files.set_attributes(change.path, before)
        elif before.kind == "link":
            files.write_link(change.path, before.content or b"")
        elif change.after.kind == "directory":
            os.rmdir(change.path)
        else:
            os.unlink(change.path)

    def _systemctl(self, actions: list[tuple[str, str]]) -> list[str]:
        faults = []
        for verb, name in actions:
            result = self._runner.run(["systemctl", verb, "--", name], ok=ANY)
            if result.rc != 0:
                faults.append(f"{name}, {verb}: {result.stderr.strip()}")
        return faults


def main() -> None:
    attributes = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
    }
    words = {"type": "list", "elements": "str", "default": []}
    paths = {"type": "list", "elements": "path", "default": []}
    module = type("Module", (AnsibleModule,), {"log": log})(
        argument_spec={
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {**attributes, "mode": {"type": "str", "default": "0755"}},
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    **attributes,
                    "mode": {"type": "str", "default": "0644"},
                    "content": {"type": "str", "required": True},
                    "validate": words,
                    "sensitive": {"type": "bool", "default": False},
                },
            },
            "absent": paths,
            "units": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "enabled": {"type": "bool"},
                    "state": {"type": "str", "choices": ["started", "stopped"]},
                    "on_change": {
                        "type": "str",
                        "choices": ["reload", "restart", "none"],
                        "default": "none",
                    },
                    "restart_on": paths,
                },
            },
        },
        supports_check_mode=True,
    )
    params = module.params
    faults = deploy.parameter_faults(params)
    if faults:
        module.fail_json(msg="; ".join(faults))
    for item in params["files"]:
        # not for the diff, which leaves it out anyway, but for the arguments that -vvv shows
        if item["sensitive"] and len(item["content"]) > 8:
            module.no_log_values.add(item["content"])
    host = Host(Runner(module))
    paths = [item["path"] for item in params["directories"] + params["files"]] + params["absent"]
    current = {path: files.read_state(path) for path in paths}
    faults = deploy.kind_faults(params, current)
    if faults:
        module.fail_json(msg="; ".join(faults))
    units = params["units"]
    names = [unit["name"] for unit in units]
    states, pending = host.unit_states(names), host.pending(names)
    plan = deploy.plan_paths(params["directories"], params["files"], params["absent"], current)
    candidates = [files.candidate_path(item["path"]) for item in params["files"]]
    plan.leftovers = [path for path in candidates if os.path.lexists(path)]
    deploy.plan_units(plan, units, states, pending)
    deploy.plan_installs(plan, units, states)
    report = {
        "changed": plan.changed,
        "diff": plan.diff(states),
        "changed_files": [change.path for change in plan.files],
        "unit_actions": {unit.name: list(unit.actions) for unit in plan.units if unit.actions},
    }
    if module.check_mode:
        module.exit_json(**report)
    if plan.changed:
        try:
            host.apply(plan, pending)
        except (OSError, KeyError, RuntimeError, CommandError) as error:
            left = host.undo(plan)
            reason = f"no such user or group: {error}" if isinstance(error, KeyError) else str(error)
            outcome = "but not completely: {}".format("; ".join(left)) if left else "completely"
            if not left:
                host.settle(plan, pending)
            module.fail_json(msg=f"{reason}. The previous state was restored {outcome}.")
    host.settle(plan, pending)
    module.exit_json(**report)


if __name__ == "__main__":
    main()
