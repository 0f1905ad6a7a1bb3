#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: connector_access
short_description: Decide which local users may use a connector
version_added: 0.1.0
description:
  - Makes a system group for each client of a connector and gives it exactly the users named; the connector's socket belongs to that group.
  - Puts a socket back to its group that was opened to others by hand.
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
      socket: {description: "Socket of the group. When it is there, it gets mode 0660, owner root and this group.", type: path}
  sockets:
    description: Further sockets to keep in O(directory).
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
      - {name: moat-c-portal, users: [portal], socket: /run/moat-connector/portal.sock}
    sockets: [/run/moat-connector/admin.sock, /run/moat-connector/master.sock]
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

import grp
import os
import pwd
import stat
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import connector_access
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


def name_of(lookup: Callable[[int], Any], number: int) -> str:
    """Return the name of a user or group, or its number when it has none."""
    try:
        return str(lookup(number)[0])
    except KeyError:
        return str(number)


def sockets_in(directory: str) -> dict[str, str]:
    """Return the attributes of each socket in a directory that may not exist."""
    try:
        with os.scandir(directory) as entries:
            found = {entry.path: entry.stat(follow_symlinks=False) for entry in entries}
    except FileNotFoundError:
        return {}
    return {
        path: connector_access.attributes(
            name_of(grp.getgrgid, info.st_gid), name_of(pwd.getpwuid, info.st_uid), stat.S_IMODE(info.st_mode)
        )
        for path, info in found.items()
        if stat.S_ISSOCK(info.st_mode)
    }


def carry_out(made: connector_access.Plan, runner: Runner, remove_stale: bool) -> None:
    """Make groups before sockets need them, and take sockets away before their groups."""
    for command in made.commands:
        runner.run(command)
    for path, name in made.repair:
        os.chmod(path, 0o600)
        os.chown(path, 0, grp.getgrnam(name).gr_gid)
        os.chmod(path, 0o660)
    if remove_stale:
        for path in made.stale_sockets:
            os.unlink(path)
        for name in made.stale_groups:
            runner.run(["groupdel", name])


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
                    "socket": {"type": "path"},
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
    sockets = sockets_in(params["directory"])
    made = connector_access.plan(params["groups"], params["prefix"], current, sockets, params["sockets"])
    stale = params["remove_stale"] and bool(made.stale_groups or made.stale_sockets)
    changed = bool(made.commands or made.repair or stale)
    if changed and not module.check_mode:
        try:
            carry_out(made, Runner(module), params["remove_stale"])
        except (CommandError, OSError, KeyError) as error:
            module.fail_json(msg=f"{error}. What was done so far stays; run again once the cause is gone.")
    module.exit_json(
        changed=changed,
        diff=connector_access.diff(made, current, sockets, params["remove_stale"]),
        stale_groups=list(made.stale_groups),
        stale_sockets=list(made.stale_sockets),
    )


if __name__ == "__main__":
    main()
