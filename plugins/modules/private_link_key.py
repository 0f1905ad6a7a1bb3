#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: private_link_key
short_description: Have a WireGuard key that was born on the host, and keep its public half on the controller
version_added: 0.1.0
description:
  - Makes the private key on the host, in C(/etc/wireguard/<interface>.key), once. A key that is there is never replaced; that of a
    C(/etc/wireguard/<interface>.conf) that is there already is taken over.
  - Writes the public half to a file of its own on the controller, so that peers know it whether or not this host takes part in their run.
  - The private key never leaves the host. It is in no argument, no output and no file but those two.
  - Tells whether the kernel has WireGuard by trying to make an interface in a network namespace that ends with the attempt.
author:
  - moat.inference contributors (@moat-inference)
options:
  interface:
    description: Name of the interface that the key is for.
    type: str
    default: moat0
  keys_dir:
    description:
      - Directory on the controller; the public half goes to C(<inventory_hostname>.pub) in it.
      - If omitted, nothing is kept.
    type: path
attributes:
  action:
    support: full
    description: The public half is written by an action plugin on the controller, the key made by a module on the host.
  check_mode:
    support: full
    description: Tells that a key would be made. It has no public half yet.
  diff_mode:
    support: full
    description: Shows the attributes of the private key's file, never its content, and the public half.
"""

EXAMPLES = r"""
- name: Have a key
  moat.inference.private_link_key:
    interface: moat0
    keys_dir: "{{ inventory_dir }}/.moat-state/link-keys"
  register: link_key
"""

RETURN = r"""
public_key:
  description: Public half of the key, empty in check mode where there is no key yet.
  type: str
  returned: always
implementation:
  description:
    - V(kernel) or V(userspace), as the running interface shows or, where there is none, as an attempt did.
    - V(none) where the kernel cannot make an interface and wireguard-go is not installed.
  type: str
  returned: always
reason:
  description: Why something was, or in check mode would be, changed.
  type: str
  returned: always
"""

import json
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import files, private_link, private_link_key
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner

TRIAL = "moat-trial"


def implementation(runner: Runner, module: AnsibleModule, interface: str) -> str:
    """Say who makes the interface: the running one shows it, else an attempt in a namespace of its own does."""
    live = runner.run(["ip", "-d", "-j", "link", "show", "dev", interface], ok=(0, 1, 127))
    if live.rc == 0:
        kind = json.loads(live.stdout)[0].get("linkinfo", {}).get("info_kind")
        if kind in ("wireguard", "tun"):
            return "kernel" if kind == "wireguard" else "userspace"
    attempt = ["ip", "link", "add", TRIAL, "type", "wireguard"]
    result = runner.run(["unshare", "--net", *attempt], ok=range(256))
    if "unshare" in result.stderr and not module.check_mode:
        # a container may not make namespaces but interfaces
        result = runner.run(attempt, ok=range(256))
        if result.rc == 0:
            runner.run(["ip", "link", "delete", "dev", TRIAL])
    if result.rc == 0:
        return "kernel"
    return "userspace" if module.get_bin_path("wireguard-go") else "none"


def existing_key(interface: str, current: files.FileState) -> tuple[str, str]:
    """Return the private key that the host has, and where it is taken over from when it has no file of its own."""
    key = private_link_key.read_key(current, private_link_key.key_path(interface))
    if key:
        return key, ""
    path = private_link_key.configuration_path(interface)
    content = files.read_state(path).content or b""
    found = private_link.parse_configuration(content.decode("utf-8", "replace")).private_key
    return (found, path) if private_link.is_key(found) else ("", "")


def have_key(runner: Runner, module: AnsibleModule) -> dict[str, Any]:
    """Make or take over the key and return the module's result."""
    interface = module.params["interface"]
    path = private_link_key.key_path(interface)
    current = files.read_state(path)
    key, source = existing_key(interface, current)
    if not key and not module.check_mode:
        key = runner.run(["wg", "genkey"]).stdout.strip()
    public_key = ""
    if key:
        module.no_log_values.add(key)
        result = runner.run(["wg", "pubkey"], stdin=key + "\n", ok=(0, 127) if module.check_mode else (0,))
        public_key = result.stdout.strip()
    desired = files.FileState("file", (key + "\n").encode("ascii"), 0o600, "root", "root")
    reason, diff = "", []
    if current != desired:
        reason = "the key's file is open to others" if current.kind == "file" else "a key is made"
        if source:
            reason = f"the key is taken over from {source}"
        diff = [files.diff_entry(path, current, desired, sensitive=True)]
        if not module.check_mode:
            os.makedirs(private_link_key.DIRECTORY, mode=0o700, exist_ok=True)
            files.write(path, desired)
    return {"changed": bool(reason), "diff": diff, "reason": reason, "public_key": public_key}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "interface": {"type": "str", "default": "moat0"},
            "keys_dir": {"type": "path", "no_log": False},
        },
        supports_check_mode=True,
    )
    if not private_link.INTERFACE.match(module.params["interface"]):
        module.fail_json(msg="interface: use at most 15 letters, digits, '_', '-', '.'")
    runner = Runner(module)
    try:
        report = have_key(runner, module)
        report["implementation"] = implementation(runner, module, module.params["interface"])
    except (OSError, ValueError, CommandError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**report)


if __name__ == "__main__":
    main()
