# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compiles moat_perimeter on the controller. The work is in module_utils/perimeter; here is only what Ansible needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.moat.inference.plugins.module_utils import applied
from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import compile_intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import Fault, IntentError, suggest
from ansible_collections.moat.inference.plugins.module_utils.perimeter.inventory import HOST_KEYS

VARIABLE = "moat_perimeter"
READ = (*HOST_KEYS, "ansible_host")


def plain(value: Any) -> Any:
    """The value without Ansible's tags and lazy containers, which cost time and do not serialise."""
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value


def read_inventory(hostvars: Mapping[str, Any], groups: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """What the compiler needs of the inventory. Only the hosts' own keys are templated; of the rest, only the names are read."""
    hosts: dict[str, dict[str, Any]] = {}
    for name in hostvars:
        variables = hostvars[name]
        own = {str(key): None for key in variables if key.startswith("moat_")}
        if own.keys() & {"moat_segment", "moat_probe"}:
            own.update({key: plain(variables[key]) for key in READ if key in variables})
        hosts[str(name)] = own
    return {"hosts": hosts, "groups": {str(group): [str(name) for name in names] for group, names in groups.items()}}


def parts_of(plan: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What each role of a host is handed, as digests: its part of the plan, and its inputs that the inventory sets.

    The digest of inputs is empty when one has no value yet, so that it equals none.
    """
    own: dict[str, dict[str, Any]] = {role: {} for role in plan["roles"]}
    unknown = set()
    for key in variables:
        for role, inputs in own.items():
            if str(key).startswith(f"{role}_"):
                try:
                    inputs[str(key)] = plain(variables[key])
                except AnsibleError:
                    unknown.add(role)
    return {
        role: {
            "plan": applied.digest_of(applied.part_of(plan, role)),
            "inputs": "" if role in unknown else applied.digest_of(inputs),
        }
        for role, inputs in own.items()
    }


class ActionModule(ActionBase):
    """No host is touched: there is no connection and no module."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(
            argument_spec={
                "perimeter": {"type": "raw"},
                "hosts": {"type": "list", "elements": "str"},
                "cells": {"type": "bool", "default": True},
                "words": {"type": "bool", "default": True},
                "parts": {"type": "bool", "default": False},
            }
        )
        try:
            return self._compile(arguments, task_vars)
        except IntentError as error:
            faults = [vars(fault) for fault in error.faults]
            return {"failed": True, "changed": False, "msg": str(error), "faults": faults}

    def _compile(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        intent = arguments["perimeter"]
        if intent is None and VARIABLE not in task_vars:
            remedy = "write it in group_vars/all of the inventory; docs/intent.md and inventories/example show how"
            raise IntentError([Fault(VARIABLE, "", "is missing", remedy)])
        if intent is None:
            intent = self._templar.template(task_vars[VARIABLE])
        inventory = read_inventory(task_vars["hostvars"], task_vars["groups"])
        plan = compile_intent(plain(intent), inventory)
        only = arguments["hosts"]
        known = {**plan.hosts, **plan.probes}
        faults = [
            Fault(f"hosts[{index}]", repr(str(name)), "is no host of the perimeter", suggest(name, known))
            for index, name in enumerate(only or ())
            if name not in known
        ]
        if faults:
            raise IntentError(faults)
        if self._display.verbosity:
            for name in plan.hosts:
                self._display.display("\n".join([name, *plan.words(name)]))
        found = plan.to_dict(only, cells=arguments["cells"], words=arguments["words"])
        variables, wanted = task_vars["hostvars"], found["hosts"] if arguments["parts"] else {}
        return {"changed": False, **found, "parts": {name: parts_of(wanted[name], variables[name]) for name in wanted}}
