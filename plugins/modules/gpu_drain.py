#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_drain
short_description: Take the models of a host out of service before its GPUs' driver changes
version_added: 0.4.0
description:
  - Drained, the gateway of the host sends no new request to the models, so that the connectors take other hosts; what runs may end; then the
    units of the models stop. They stay stopped over a reboot, until the host is resumed.
  - Resumed, the models that were drained start again. On a host that was not drained nothing happens.
author:
  - moat.inference contributors (@moat-inference)
options:
  state:
    description: What shall be.
    type: str
    choices: [drained, resumed]
    required: true
  grace:
    description: Seconds that running answers have to end. What still runs then ends as it does whenever a model stops.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: Says what it would do.
  diff_mode:
    support: none
    description: There is nothing to show.
"""

EXAMPLES = r"""
- name: Take the models out of service
  moat.inference.gpu_drain:
    state: drained
"""

RETURN = r"""
models:
  description: The models that are out of service, or that came back, with name and socket.
  type: list
  elements: dict
  returned: success
running:
  description: Requests that were still running when the units were stopped, by model.
  type: dict
  returned: when drained and the gateway of the host was asked
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import files, gpu_drain
from ansible_collections.moat.inference.plugins.module_utils.certificate_served import ask_haproxy
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner

INTERVAL = 1.0
MODELS = "/etc/moat/models"


class Host:
    """The models of a host, by its systemd and its gateway."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def alive(self) -> list[str]:
        argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", "moat-model@*.service"]
        return gpu_drain.parse_units(self._runner.run(argv).stdout)

    def systemctl(self, verb: str, names: list[str]) -> None:
        if names:
            self._runner.run(["systemctl", verb, "--", *map(gpu_drain.unit, names)])

    def gateway(self, command: str) -> str:
        """Ask the gateway; empty where there is none that answers."""
        if not os.path.exists(gpu_drain.SOCKET):
            return ""
        try:
            return ask_haproxy(gpu_drain.SOCKET, command)
        except OSError:
            return ""

    def turn(self, names: list[str], state: str) -> None:
        for name in names:
            self.gateway(f"set server {gpu_drain.backend(name)} state {state}")

    def let_end(self, names: list[str], grace: int) -> dict[str, int]:
        """Wait until nothing runs any more, or grace is over; return what runs."""
        deadline = time.monotonic() + grace
        while True:
            running = gpu_drain.parse_sessions(self.gateway("show stat"), names)
            if not any(running.values()) or time.monotonic() >= deadline:
                return running
            time.sleep(INTERVAL)


def described(names: list[str]) -> list[dict[str, str]]:
    """Return name and socket of each model."""
    found = []
    for name in names:
        content = files.read_state(os.path.join(MODELS, name + ".json")).content
        found.append({"name": name, "socket": gpu_drain.socket_of((content or b"").decode("utf-8", "replace"))})
    return found


def drain(module: AnsibleModule, host: Host, kept: list[str] | None) -> None:
    alive = host.alive()
    names = sorted({*alive, *(kept or [])})
    result = {"changed": bool(alive) or kept is None, "models": described(names), "running": {}}
    if result["changed"] and not module.check_mode:
        host.turn(alive, "drain")
        result["running"] = host.let_end(alive, module.params["grace"])
        os.makedirs(os.path.dirname(gpu_drain.RECORD), mode=0o755, exist_ok=True)
        # the record first: a unit that is started meanwhile does not come up again
        owner = files.read_state(os.path.dirname(gpu_drain.RECORD))
        state = files.FileState("file", gpu_drain.record(names), 0o644, owner.owner, owner.group)
        files.write(gpu_drain.RECORD, state)
        host.systemctl("stop", names)
    module.exit_json(**result)


def resume(module: AnsibleModule, host: Host, kept: list[str] | None) -> None:
    if kept is not None and not module.check_mode:
        os.unlink(gpu_drain.RECORD)
        try:
            host.systemctl("start", kept)
        except CommandError as error:
            module.fail_json(msg=f"the models are no longer held back, but did not start: {error}")
        host.turn(kept, "ready")
    module.exit_json(changed=kept is not None, models=described(kept or []))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["drained", "resumed"], "required": True},
            "grace": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    host = Host(Runner(module))
    try:
        there = files.read_state(gpu_drain.RECORD)
        kept = None if there.kind == "absent" else gpu_drain.parse_record(there.content)
        (drain if module.params["state"] == "drained" else resume)(module, host, kept)
    except (CommandError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
