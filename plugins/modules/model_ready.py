#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: model_ready
short_description: Wait until model servers give a token
version_added: 0.1.0
description:
  - Asks each model server on its Unix socket for a completion of one token until all have answered. All are asked in the
    same call, so the wait is that of the slowest one.
  - A unit that failed, or that was restarted twice meanwhile, ends the wait at once, with what its journal says.
author:
  - moat.inference contributors (@moat-inference)
options:
  models:
    description: Models to wait for.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the model., type: str, required: true}
      socket: {description: Path of the Unix socket., type: path, required: true}
  timeout:
    description: Seconds to wait for all of them.
    type: int
    default: 900
attributes:
  check_mode:
    support: full
    description: Asks once and does not fail, for the servers may not be there yet.
  diff_mode:
    support: none
    description: There is nothing to show.
"""

EXAMPLES = r"""
- name: Wait for the model
  moat.inference.model_ready:
    models: [{name: xray-7b, socket: /run/moat-model/xray-7b/engine.sock}]
    timeout: 600
"""

RETURN = r"""
ready:
  description: Names of the models that gave a token.
  type: list
  elements: str
  returned: success
seconds:
  description: Seconds until each model was ready.
  type: dict
  returned: success
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import model_ready
from ansible_collections.moat.inference.plugins.module_utils.run import Runner

INTERVAL = 1.0


RESTARTS = 2


class Units:
    """Looks whether systemd still tries."""

    def __init__(self, runner: Runner, names: list[str]) -> None:
        self._runner = runner
        self._before = {unit: restarts for unit, (_state, restarts) in self._show(names).items()}

    def _show(self, names: list[str]) -> dict[str, tuple[str, int]]:
        units = [f"moat-model@{name}.service" for name in names]
        argv = ["systemctl", "show", "-p", "ActiveState,NRestarts", "--", *units]
        return model_ready.parse_units(self._runner.run(argv, ok=range(256)).stdout, units)

    def given_up(self, names: list[str]) -> list[str]:
        """Return, for each unit that failed or falls again and again, what its journal says."""
        faults = []
        for unit, (state, restarts) in self._show(names).items():
            more = restarts - self._before.get(unit, 0)
            if state in ("failed", "inactive") or more >= RESTARTS:
                argv = ["journalctl", "-b", "-u", unit, "-n", "200", "--no-pager", "-o", "cat"]
                lines = model_ready.telling_lines(self._runner.run(argv, ok=range(256)).stdout)
                word = state if more < RESTARTS else f"{state}, restarted {more} times"
                faults.append("{} is {}: {}".format(unit, word, " | ".join(lines)))
        return faults


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "models": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "socket": {"type": "path", "required": True},
                },
            },
            "timeout": {"type": "int", "default": 900},
        },
        supports_check_mode=True,
    )
    runner = Runner(module)
    start = time.monotonic()
    units = Units(runner, [model["name"] for model in module.params["models"]])
    pending = {model["name"]: model["socket"] for model in module.params["models"]}
    seconds: dict[str, float] = {}
    while True:
        reasons = {}
        for name, path in list(pending.items()):
            left = module.params["timeout"] - (time.monotonic() - start)
            fault = model_ready.probe(path, name, max(1.0, min(60.0, left)))
            if fault:
                reasons[name] = fault
            else:
                seconds[name] = round(time.monotonic() - start, 1)
                del pending[name]
        if not pending or module.check_mode:
            break
        faults = units.given_up(list(pending))
        if faults:
            module.fail_json(msg="; ".join(faults))
        if time.monotonic() - start > module.params["timeout"]:
            waits = ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
            module.fail_json(msg=f"not ready after {module.params['timeout']} s: {waits}")
        time.sleep(INTERVAL)
    module.exit_json(changed=False, ready=sorted(seconds), seconds=seconds)


if __name__ == "__main__":
    main()
