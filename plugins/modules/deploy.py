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
      mode: {description: Permission bits in octal., type: str, default: "0755"}
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
      mode: {description: Permission bits in octal., type: str, default: "0644"}
      owner: {description: Name of the owner., type: str, default: root}
      group: {description: Name of the group., type: str, default: root}
      validate:
        description: Command as a list; V(%s) is replaced by the candidate, which lies in the same directory. Status 0 accepts it.
        type: list
        elements: str
        default: []
      sensitive: {description: Whether the content stays out of the diff., type: bool, default: false}
  absent:
    description: Files to remove.
    type: list
    elements: path
    default: []
  units:
    description: Units to bring to their state, in the order given, after all files are in place.
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
        validate: [haproxy, -c, -q, -f, "%s"]
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

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils.run import (
    CommandError,
    Runner,
)

PROPERTIES = "ActiveState,UnitFileState,NeedDaemonReload,LoadState"


class Host:
    """Carries a plan out and takes it back."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._done: list[deploy.Change] = []
        self._touched: dict[str, str] = {}

    def unit_states(self, names: list[str]) -> dict[str, deploy.UnitState]:
        """Ask systemd for all units in one call."""
        if not names:
            return {}
        result = self._runner.run(["systemctl", "show", "-p", PROPERTIES, "--", *names], ok=(0, 1, 127))
        return deploy.parse_show(result.stdout, names)

    def write(self, change: deploy.Change) -> None:
        """Put one path into its desired state, checked before it is replaced."""
        if change.after.kind == "absent":
            os.unlink(change.path)
        elif change.after.kind == "directory":
            if change.before.kind == "absent":
                os.mkdir(change.path, 0o700)
            files.set_attributes(change.path, change.after)
        elif change.before.kind == "file" and change.before.content == change.after.content:
            files.set_attributes(change.path, change.after)
        else:
            candidate = files.stage(change.path, change.after)
            try:
                if change.validate:
                    self._runner.run([word.replace("%s", candidate) for word in change.validate])
                files.commit(candidate, change.path)
            except BaseException:
                if os.path.exists(candidate):
                    os.unlink(candidate)
                raise
        self._done.append(change)

    def act(self, plan: deploy.Plan, states: dict[str, deploy.UnitState]) -> None:
        """Bring the units to their state and look whether they hold it."""
        if plan.daemon_reload:
            self._runner.run(["systemctl", "daemon-reload"])
        for unit in plan.units:
            for action in unit.actions:
                self._touched[unit.name] = states[unit.name].active
                self._runner.run(["systemctl", action, "--", unit.name])
        acted = [unit.name for unit in plan.units if set(unit.actions) & {"start", "restart", "reload"}]
        for name, state in self.unit_states(acted).items():
            if state.active == "failed":
                journal = self._runner.run(
                    ["journalctl", "-u", name, "-n", "20", "--no-pager", "-o", "cat"],
                    ok=range(256),
                )
                raise RuntimeError(f"{name} failed right after its start: {journal.stdout.strip()}")

    def undo(self, plan: deploy.Plan) -> list[str]:
        """Put everything back, newest first, and return what could not be put back."""
        faults = []
        for change in reversed(self._done):
            try:
                if change.before.kind == "file":
                    files.write(change.path, change.before)
                elif change.before.kind == "directory":
                    files.set_attributes(change.path, change.before)
                elif change.after.kind == "directory":
                    os.rmdir(change.path)
                elif change.before.kind == "absent":
                    os.unlink(change.path)
            except OSError as error:
                faults.append(f"{change.path}: {error}")
        if plan.daemon_reload:
            self._runner.run(["systemctl", "daemon-reload"], ok=range(256))
        for name, active in self._touched.items():
            verb = "reload-or-restart" if active in deploy.SETTLED else "stop"
            result = self._runner.run(["systemctl", verb, "--", name], ok=range(256))
            if result.rc != 0:
                faults.append(f"{name}: {result.stderr.strip()}")
        return faults


def wrong_kinds(params: dict[str, Any], current: dict[str, files.FileState]) -> list[str]:
    """Name every path that is there as something that this module must not replace."""
    faults = []
    for option, kind in (("directories", "directory"), ("files", "file")):
        for item in params[option]:
            if current[item["path"]].kind not in (kind, "absent"):
                faults.append("{} is there and is no {}; move it away".format(item["path"], kind))
    return faults + [
        f"{path} is a directory; only files are removed"
        for path in params["absent"]
        if current[path].kind == "directory"
    ]


def main() -> None:
    attributes = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
    }
    words = {"type": "list", "elements": "str", "default": []}
    paths = {"type": "list", "elements": "path", "default": []}
    module = AnsibleModule(
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
    host = Host(Runner(module))
    every_path = [item["path"] for item in params["directories"] + params["files"]] + params["absent"]
    current = {path: files.read_state(path) for path in every_path}
    faults = wrong_kinds(params, current)
    if faults:
        module.fail_json(msg="; ".join(faults))
    plan = deploy.plan_paths(params["directories"], params["files"], params["absent"], current)
    states = host.unit_states([unit["name"] for unit in params["units"]])
    deploy.plan_units(plan, params["units"], states)
    report = {
        "changed": plan.changed,
        "diff": plan.diff(states),
        "changed_files": [change.path for change in plan.files],
        "unit_actions": {unit.name: list(unit.actions) for unit in plan.units if unit.actions},
    }
    if plan.changed and not module.check_mode:
        try:
            for change in plan.directories + plan.files:
                host.write(change)
            host.act(plan, states)
        except (OSError, KeyError, RuntimeError, CommandError) as error:
            left = host.undo(plan)
            reason = f"no such user or group: {error}" if isinstance(error, KeyError) else str(error)
            outcome = "but not completely: {}".format("; ".join(left)) if left else "completely"
            module.fail_json(msg=f"{reason}. The previous state was restored {outcome}.")
    module.exit_json(**report)


if __name__ == "__main__":
    main()
