#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: private_link
short_description: Bring a WireGuard interface to what is planned without taking it down
version_added: 0.1.0
description:
  - Compares configuration file, unit, peers, addresses, routes and MTU of a wg-quick(8) interface with what is planned, so what was changed by
    hand is drift and is shown.
  - A change is checked, the file replaced atomically, and the running interface brought along by C(wg syncconf) from a checked file and by
    C(ip), so tunnels that do not change lose nothing. The unit is restarted only if it does not run or its own files changed.
  - If anything fails, the previous files come back and the interface gets its previous configuration.
  - The key must be there, see M(moat.inference.private_link_key).
notes:
  - A change of the running link is confirmed over a new connection before it is kept. Armed before it is applied, a timer of the host takes
    back what is not confirmed in time, the task fails with RV(rolled_back), and a next run begins from the state before. Configuration and
    enablement, which boot loads, follow only then, so a host that restarts meanwhile has its last confirmed link, or none before the first.
  - A change of files alone, with the link running as planned, needs no confirmation.
author:
  - moat.inference contributors (@moat-inference)
options:
  interface:
    description: Name of the interface.
    type: str
    default: moat0
  state:
    description: V(absent) stops the link and removes its configuration, its key and the public half that was kept for this host.
    type: str
    choices: [present, absent]
    default: present
  port:
    description: UDP port of this host and of all peers.
    type: int
    default: 51820
  addresses:
    description: Addresses of this host on the link.
    type: list
    elements: str
    default: []
  mtu:
    description: MTU of the interface. The default fits a path of 1500 bytes over IPv6.
    type: int
    default: 1420
  peers:
    description: All peers. One that is not listed is removed.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the peer's host in the inventory., type: str, required: true}
      endpoint: {description: Address of the peer outside the link., type: str, required: true}
      allowed_ips:
        description: Addresses that the peer may use inside the link, and that are routed to it.
        type: list
        elements: str
        required: true
      public_key:
        description:
          - The peer's public key.
          - If omitted, it is read from O(keys_dir). If it is not there, the key that the host's own configuration has for that name stays; if there
            is none either, the peer is left out with a warning.
        type: str
  keys_dir:
    description: Directory on the controller with the public keys, a file C(<name>.pub) for each host.
    type: path
  unit_files:
    description: Files that belong to the unit C(wg-quick@<interface>.service), removed when O(state=absent).
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      content: {description: The whole text in UTF-8., type: str, required: true}
      mode: {description: Permission bits in octal., type: str, default: "0644"}
  confirm_timeout:
    description: Seconds until a change of the running link that was not confirmed over a new connection is taken back, 5 to 600.
    type: int
    default: 45
  confirm_token:
    description: Name of this change, made by the action plugin.
    type: str
    default: ""
attributes:
  action:
    support: full
    description:
      - The peers' public keys are read by an action plugin on the controller, which also confirms the change; the rest is done by a module
        on the host.
  check_mode:
    support: full
    description: The configuration is compared, but not handed to wg-quick(8), which may not be there yet.
  diff_mode:
    support: full
    description: Shows the configuration without its secrets, the running interface and the unit.
"""

EXAMPLES = r"""
- name: Bring up the link
  moat.inference.private_link:
    interface: moat0
    port: 51820
    addresses: [100.64.0.1/32, "fd00:200::1/128"]
    keys_dir: "{{ inventory_dir }}/.moat-state/link-keys"
    peers:
      - {name: app1, endpoint: 10.110.0.11, allowed_ips: [100.64.0.2/32, "fd00:200::2/128"]}
"""

RETURN = r"""
reason:
  description: Why something was, or in check mode would be, changed.
  type: str
  returned: always
peers:
  description: Names of the peers that the interface has.
  type: list
  elements: str
  returned: when present
unresolved:
  description: Names of the peers that were left out, for no public key of theirs is known yet.
  type: list
  elements: str
  returned: when present
confirmed:
  description: Whether the change of the running link was confirmed over a new connection.
  type: bool
  returned: when the running link was changed
rolled_back:
  description: Whether the host has taken the change back.
  type: bool
  returned: when the change was not confirmed
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import files, private_link, private_link_key
from ansible_collections.moat.inference.plugins.module_utils.pending import terms_of, timeout_fault
from ansible_collections.moat.inference.plugins.module_utils.private_link_change import Change, Removal, Work
from ansible_collections.moat.inference.plugins.module_utils.private_link_host import NAME, Host
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


def keys(module: AnsibleModule, runner: Runner) -> tuple[str, str]:
    """The host's private and public key; both are empty in check mode on a host that has none yet."""
    path = private_link_key.key_path(module.params["interface"])
    key = private_link_key.read_key(files.read_state(path), path)
    if not key and not module.check_mode:
        raise ValueError(f"{path} is missing; have it made by moat.inference.private_link_key first")
    if not key:
        return "", ""
    module.no_log_values.add(key)
    result = runner.run(["wg", "pubkey"], stdin=key + "\n", ok=(0, 127) if module.check_mode else (0,))
    return key, result.stdout.strip()


def bring_up(module: AnsibleModule, runner: Runner, host: Host) -> tuple[Work, dict[str, Any]]:
    """Plan the link, and return with the plan what only a link that is there has to report."""
    change = Change(module.params, host, *keys(module, runner))
    for name in change.unresolved:
        module.warn(
            f"{host.interface}: no public key of {name} is known yet, so it is left out until {name} is converged"
        )
    return change, {"peers": [peer.name for peer in change.desired.peers], "unresolved": change.unresolved}


def run(module: AnsibleModule, runner: Runner, host: Host) -> dict[str, Any]:
    """Return the module's result."""
    if host.pending.waits:
        module.warn("a change of the private link waits that was never confirmed; it is taken back first")
        if not module.check_mode:
            host.pending.recover()
    if module.params["state"] == "present":
        work, more = bring_up(module, runner, host)
    else:
        work, more = Removal(module.params, host), {}
    reasons = work.reasons()
    report = {"changed": bool(reasons), "diff": work.diff(), "reason": "; ".join(reasons), **more}
    if reasons and not module.check_mode:
        terms = terms_of(module.params)
        work.apply(terms)
        if work.waits:
            report["pending"] = terms.report(NAME)
    return report


def main() -> None:
    addresses = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "interface": {"type": "str", "default": "moat0"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "port": {"type": "int", "default": 51820},
            "addresses": {**addresses, "default": []},
            "mtu": {"type": "int", "default": 1420},
            "peers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "endpoint": {"type": "str", "required": True},
                    "allowed_ips": {**addresses, "required": True},
                    "public_key": {"type": "str", "no_log": False},
                },
            },
            "keys_dir": {"type": "path", "no_log": False},
            "unit_files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "confirm_timeout": {"type": "int", "default": 45},
            "confirm_token": {"type": "str", "default": "", "no_log": False},
        },
        supports_check_mode=True,
    )
    faults = [*private_link.faults_of(module.params), timeout_fault(module.params["confirm_timeout"])]
    if any(faults):
        module.fail_json(msg="; ".join(filter(None, faults)))
    runner = Runner(module)
    try:
        report = run(module, runner, Host(runner, module.params["interface"]))
    except (OSError, ValueError, RuntimeError, CommandError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**report)


if __name__ == "__main__":
    main()
