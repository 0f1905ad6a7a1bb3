#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: connector_access
short_description: Decide which local users may use a connector
version_added: 0.1.0
description:
  - Makes a system group for each client of a connector and gives it exactly the users named; the connector's socket belongs to that group.
  - Reports groups and sockets of clients that are no longer there and, when told to, removes them.
  - A process keeps the groups that it was started with, so an application that is added must be restarted before it can connect.
author:
  - moat.inference contributors (@moat-inference)
options:
  groups:
    description: The groups to have, each with all its members.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the group; it begins with O(prefix)., type: str, required: true}
      users: {description: Users that are its members. They must exist., type: list, elements: str, required: true}
  sockets:
    description: Sockets to keep in O(directory).
    type: list
    elements: path
    default: []
  prefix:
    description: Beginning of the names of all groups that belong to connectors.
    type: str
    default: moat-c-
  directory:
    description: Directory of the sockets.
    type: path
    default: /run/moat-connector
  remove_stale:
    description: Whether groups with the prefix and sockets in the directory that are not named here are removed.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: The module reports what it would do.
  diff_mode:
    support: full
    description: Shows the members of every group that differs.
"""

EXAMPLES = r"""
- name: Let portal use its connector
  moat.inference.connector_access:
    groups:
      - {name: moat-c-portal, users: [portal]}
    sockets: [/run/moat-connector/portal.sock]
"""

RETURN = r"""
stale_groups:
  description: Groups with the prefix that were not asked for.
  type: list
  elements: str
  returned: always
stale_sockets:
  description: Sockets in the directory that were not asked for.
  type: list
  elements: str
  returned: always
"""

import os
import stat

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import connector_access
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


def sockets_in(directory: str) -> list[str]:
    """Return the sockets of a directory that may not exist."""
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)]
    except FileNotFoundError:
        return []


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "groups": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "users": {"type": "list", "elements": "str", "required": True},
                },
            },
            "sockets": {"type": "list", "elements": "path", "default": []},
            "prefix": {"type": "str", "default": "moat-c-"},
            "directory": {"type": "path", "default": "/run/moat-connector"},
            "remove_stale": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    with open("/etc/group", encoding="utf-8") as handle:
        current = connector_access.parse_groups(handle.read())
    made = connector_access.plan(
        params["groups"], params["prefix"], current, sockets_in(params["directory"]), params["sockets"]
    )
    stale = params["remove_stale"] and bool(made.stale_groups or made.stale_sockets)
    changed = bool(made.commands or stale)
    if changed and not module.check_mode:
        runner = Runner(module)
        try:
            for command in made.commands:
                runner.run(command)
            if stale:
                for path in made.stale_sockets:
                    os.unlink(path)
                for name in made.stale_groups:
                    runner.run(["groupdel", name])
        except (CommandError, OSError) as error:
            module.fail_json(msg=f"{error}. What was done so far stays; run again once the cause is gone.")
    module.exit_json(
        changed=changed,
        diff=connector_access.diff(made, current, params["remove_stale"]),
        stale_groups=list(made.stale_groups),
        stale_sockets=list(made.stale_sockets),
    )


if __name__ == "__main__":
    main()
