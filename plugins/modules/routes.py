#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: routes
short_description: Have no default route, and exactly the routes that are planned
version_added: 0.3.0
description:
  - Three rules of policy routing hold whatever DHCP, ifupdown or a router advertisement adds to the main table later. Looked up are the main
    table, but for its default routes; table 188, which has the planned routes; and then nothing, so every other destination is unreachable.
    IPv4 and IPv6, packets that the host forwards for containers included.
  - The rules are there before the network is (C(moat-routes.service)). The planned routes come back by themselves when the kernel took
    them away with an interface (C(moat-routes-follow.service)).
  - In the main table, a default route is removed, and so is any other route with a gateway. One that the kernel or a routing daemon
    made stays, and one inside an encapsulation of a container network does. A default route of a DHCP client or a router advertisement stays
    as well, without effect, since it would come back with the next lease or advertisement.
  - A planned route to within a network that the host is connected to is left out.
  - An address that the operator's SSH connection comes from keeps a route by the gateway that serves it now if neither a connected network nor a
    planned route covers it.
options:
  default:
    description: Whether the host keeps its own default route. With V(true), everything is as with O(state=absent).
    type: bool
    default: false
  via:
    description: The planned routes.
    type: list
    elements: dict
    default: []
    suboptions:
      to: {description: Network that is reached by it., type: str, required: true}
      via: {description: Address of the router., type: str, required: true}
  state:
    description:
      - V(absent) removes the rules and the planned routes, and puts back what was removed from the main table the first time.
    type: str
    choices: [present, absent]
    default: present
  confirm_timeout:
    description: Seconds until a change that was not confirmed over a new connection is taken back, 5 to 600.
    type: int
    default: 45
  confirm_token:
    description: Name of this change, made by the action plugin.
    type: str
    default: ""
notes:
  - A change of rules or routes is confirmed over a new connection before it is kept. Armed before it is applied, a timer of the host takes back
    what is not confirmed in time, the task fails with RV(rolled_back), and a next run begins from the state before. The files that boot
    loads are written only then, so a host that restarts meanwhile has its last confirmed state.
  - The rules have the priorities 10188 to 10190. A rule that comes before them and leads to a gateway is refused. They are of protocol
    C(kernel), for systemd-networkd removes all others that it has not made.
author:
  - moat.inference contributors (@moat-inference)
attributes:
  check_mode:
    support: full
    description: On a host without ip(8) all is shown as missing.
  diff_mode:
    support: full
    description: Shows rules and routes, the files and what happens to the units.
seealso:
  - name: ip-rule(8)
    description: Policy routing.
    link: https://man7.org/linux/man-pages/man8/ip-rule.8.html
"""

EXAMPLES = r"""
- name: Leave two routes
  moat.inference.routes:
    via:
      - {to: 10.110.0.0/24, via: 10.120.0.254}
      - {to: "fd00:110::/64", via: "fd00:120::254"}

- name: Give the host its own default route back
  moat.inference.routes:
    state: absent
"""

RETURN = r"""
reason:
  description: Why something is, or in check mode would be, changed; empty when nothing is.
  type: str
  returned: always
  sample: route 10.110.0.0/24 via 10.120.0.254 is missing
routes:
  description: The planned routes that the host has, with those that are kept for an operator.
  type: list
  elements: str
  returned: always
left_out:
  description: The planned routes that the host does not need, and why.
  type: list
  elements: str
  returned: always
kept:
  description: Routes that are not planned, to where an operator came from.
  type: list
  elements: str
  returned: always
without_effect:
  description: Default routes that are in the main table and never looked up.
  type: list
  elements: str
  returned: always
removed:
  description: Routes that were, or in check mode would be, removed.
  type: list
  elements: str
  returned: always
confirmed:
  description: Whether the change was confirmed over a new connection.
  type: bool
  returned: when rules or routes were changed
rolled_back:
  description: Whether the host has taken the change back.
  type: bool
  returned: when the change was not confirmed
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import routes
from ansible_collections.moat.inference.plugins.module_utils.pending import (
    Pending,
    ssh_connection,
    terms_of,
    timeout_fault,
)
from ansible_collections.moat.inference.plugins.module_utils.routes_host import NAME, Work
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


def run(module: AnsibleModule, runner: Runner, bare: bool) -> dict[str, Any]:
    """Return the module's result."""
    pending = Pending(runner, NAME)
    if pending.waits:
        module.warn("a change of the routes waits that was never confirmed; it is taken back first")
        if not module.check_mode:
            pending.recover()
    work = Work(runner, module.params, ssh_connection(), bare)
    for route in work.target.kept:
        module.warn(
            f"the route {route} is not of the plan: an operator came from there. Admit that address for administration"
            " (in an intent moat_perimeter.admin.from), so that the plan has it."
        )
    for foreign in work.delta.foreign:
        module.warn(
            f"the route {foreign} is not of the plan; it belongs to a routing daemon or a container network and stays"
        )
    removed = [*work.delta.routes_removed, *work.delta.main_removed]
    report = {
        "changed": work.changed,
        "diff": work.diff(),
        "reason": "; ".join(work.reasons()),
        "routes": [str(route) for route in work.target.routes],
        "kept": [str(route) for route in work.target.kept],
        "left_out": work.target.left_out,
        "without_effect": work.delta.idle,
        "removed": [routes.words(item) for _family, item in removed],
    }
    if work.changed and not module.check_mode:
        terms = terms_of(module.params)
        work.apply(terms)
        if work.waits:
            report["pending"] = terms.report(NAME)
    return report


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "default": {"type": "bool", "default": False},
            "via": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"to": {"type": "str", "required": True}, "via": {"type": "str", "required": True}},
            },
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "confirm_timeout": {"type": "int", "default": 45},
            "confirm_token": {"type": "str", "default": "", "no_log": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    faults = [*routes.option_faults(params["default"], params["via"]), timeout_fault(params["confirm_timeout"])]
    if any(faults):
        module.fail_json(msg="; ".join(filter(None, faults)))
    bare = not module.get_bin_path("ip")
    if bare and not module.check_mode:
        module.fail_json(msg="ip is not installed; install the package iproute2")
    try:
        report = run(module, Runner(module), bare)
    except (OSError, ValueError, RuntimeError, CommandError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**report)


if __name__ == "__main__":
    main()
