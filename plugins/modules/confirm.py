#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: confirm
short_description: Keep a change of the network that otherwise undoes itself
version_added: 0.2.0
description:
  - Confirms a change that M(moat.inference.firewall) or M(moat.inference.private_link) has applied and armed a way back for. Their action
    plugins call it over a new connection, so that only a change that lets the operator in is kept.
  - Stops the timer of the way back, then writes what boot loads. When that fails, the change is taken back at once. Then the tracked flows
    that a changed packet filter does not admit any more end.
  - Called over the very connection that the change was applied over it confirms nothing, for that connection proves nothing.
options:
  name:
    description: What was changed, such as V(firewall).
    type: str
    required: true
  token:
    description: Which change is meant, as the module that applied it returned it.
    type: str
    default: ""
  state:
    description: V(confirmed) keeps the change. V(known) only tells what became of it.
    type: str
    choices: [confirmed, known]
    default: confirmed
author:
  - moat.inference contributors (@moat-inference)
attributes:
  check_mode:
    support: full
    description: Tells what became of the change, and keeps nothing.
  diff_mode:
    support: none
    description: The module that applied the change has shown it.
seealso:
  - module: moat.inference.firewall
  - module: moat.inference.private_link
  - name: systemd-run(1)
    description: The timer that takes a change back.
    link: https://www.freedesktop.org/software/systemd/man/latest/systemd-run.html
"""

EXAMPLES = r"""
- name: Ask what became of the last change
  moat.inference.confirm:
    name: firewall
    state: known
"""

RETURN = r"""
confirmed:
  description: Whether the change is kept from now on.
  type: bool
  returned: always
outcome:
  description:
    - V(confirmed); V(waiting) for a change whose time has not come; V(undone) for one that was taken back; V(failed) for one that could not
      be; V(unknown) for one that this host knows nothing of.
  type: str
  returned: always
  sample: confirmed
reason:
  description: Why the change was not confirmed.
  type: str
  returned: when not confirmed
retry:
  description: Whether another connection may confirm it.
  type: bool
  returned: when not confirmed
entries:
  description: How many entries of connection tracking were deleted, as the changed packet filter does not admit them.
  type: int
  returned: when a packet filter was confirmed
sockets:
  description: How many local sockets of such flows were ended.
  type: int
  returned: when a packet filter was confirmed
connection:
  description: The connection that confirmed it, as C(SSH_CONNECTION) of ssh(1) says; empty when it is none of SSH.
  type: str
  returned: always
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import firewall_flows
from ansible_collections.moat.inference.plugins.module_utils.pending import (
    Pending,
    Refused,
    ssh_connection,
)
from ansible_collections.moat.inference.plugins.module_utils.run import Runner


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "token": {"type": "str", "default": "", "no_log": False},
            "state": {"type": "str", "choices": ["confirmed", "known"], "default": "confirmed"},
        },
        supports_check_mode=True,
    )
    name, token = module.params["name"], module.params["token"]
    runner = Runner(module)
    pending, connection = Pending(runner, name), ssh_connection()
    report = {"confirmed": False, "connection": connection, "changed": False}
    if module.check_mode or module.params["state"] == "known":
        module.exit_json(outcome=pending.outcome(token), reason="", retry=False, **report)
    try:
        staged = pending.confirm(token, connection)
    except Refused as refused:
        module.exit_json(outcome=pending.outcome(token), reason=str(refused), retry=refused.retry, **report)
    except OSError as error:
        module.fail_json(msg=str(error), outcome=pending.outcome(token), **report)
    ended: dict[str, Any] = {}
    if staged.policy is not None:
        ended = firewall_flows.cut(runner, staged.policy, connection)
        for fault in ended.pop("faults"):
            module.warn(fault)
        pending.settle()
    module.exit_json(**{**report, **ended, "confirmed": True, "changed": True, "outcome": "confirmed"})


if __name__ == "__main__":
    main()
