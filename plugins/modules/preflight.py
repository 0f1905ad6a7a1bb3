#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Read in one call what a role needs to know of a host
version_added: 0.1.0
description:
  - Reports which packages, commands, users, groups and files are missing, and a few facts of the host.
  - It changes nothing, so a role asks once, refuses all faults at once and installs only what is missing.
author:
  - moat.inference contributors (@moat-inference)
options:
  packages:
    description: Names of packages as the distribution's package manager has them.
    type: list
    elements: str
    default: []
  commands:
    description: Names of programs to look for on the search path of the system, or absolute paths.
    type: list
    elements: str
    default: []
  users:
    description: Names of local users.
    type: list
    elements: str
    default: []
  groups:
    description: Names of local groups.
    type: list
    elements: str
    default: []
  files:
    description: Absolute paths that must exist.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
    description: The module reads only.
  diff_mode:
    support: none
    description: There is nothing to show.
"""

EXAMPLES = r"""
- name: See what the host lacks
  moat.inference.preflight:
    packages: [haproxy]
    users: [portal]
  register: preflight

- name: Install it
  ansible.builtin.package:
    name: "{{ preflight.missing_packages }}"
  when: preflight.missing_packages | length > 0
"""

RETURN = r"""
missing_packages:
  description: Packages that are not installed, in the order asked for.
  type: list
  elements: str
  returned: always
missing_commands:
  description: Programs that are not on the search path.
  type: list
  elements: str
  returned: always
missing_users:
  description: Users that the host does not know.
  type: list
  elements: str
  returned: always
missing_groups:
  description: Groups that the host does not know.
  type: list
  elements: str
  returned: always
missing_files:
  description: Paths that do not exist.
  type: list
  elements: str
  returned: always
versions:
  description: Version of each package asked for that is installed.
  type: dict
  returned: always
os_family:
  description: V(debian), V(redhat) or the distribution's own id, from os-release(5).
  type: str
  returned: always
distribution:
  description: The distribution's id, from os-release(5).
  type: str
  returned: always
distribution_version:
  description: The distribution's version, from os-release(5).
  type: str
  returned: always
kernel:
  description: Release of the running kernel, as in uname(2).
  type: str
  returned: always
interfaces:
  description: Name of the interface that has each global address, from ip-address(8).
  type: dict
  returned: always
time_synchronized:
  description: Whether the kernel says that its clock is synchronised, as in adjtimex(2).
  type: bool
  returned: always
"""

import ctypes
import grp
import os
import pwd
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import preflight
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


def installed_versions(runner: Runner, family: str, packages: list[str]) -> dict[str, str]:
    """Return the version of each of the packages that is installed."""
    if not packages:
        return {}
    if family == "debian":
        fields = "${Package}\\t${Version}\\t${db:Status-Abbrev}\\n"
        return preflight.parse_dpkg(runner.run(["dpkg-query", "-W", "-f", fields, *packages], ok=(0, 1)).stdout)
    fields = "%{NAME}\\t%{VERSION}-%{RELEASE}\\n"
    # rpm's status is the number of packages that are not installed
    return preflight.parse_rpm(runner.run(["rpm", "-q", "--qf", fields, *packages], ok=range(256)).stdout)


def lacks(names: list[str], lookup: Callable[[str], Any]) -> list[str]:
    """Return the names for which lookup raises KeyError."""
    missing = []
    for name in names:
        try:
            lookup(name)
        except KeyError:
            missing.append(name)
    return missing


def clock_is_synchronized() -> bool:
    """Ask the kernel; adjtimex(2) with no modes set only reads."""
    buffer = ctypes.create_string_buffer(512)
    return bool(ctypes.CDLL(None).adjtimex(buffer) not in (-1, preflight.TIME_ERROR))


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "packages": names,
            "commands": names,
            "users": names,
            "groups": names,
            "files": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    runner = Runner(module)
    wanted = module.params
    with open("/etc/os-release", encoding="utf-8") as handle:
        release = preflight.parse_os_release(handle.read())
    family = preflight.os_family(release)
    try:
        versions = installed_versions(runner, family, wanted["packages"])
    except CommandError as error:
        module.fail_json(msg=f"The package manager cannot be asked: {error}")
    addresses = runner.run(["ip", "-j", "address"], ok=(0, 127))
    module.exit_json(
        changed=False,
        missing_packages=[name for name in wanted["packages"] if name not in versions],
        missing_commands=[name for name in wanted["commands"] if not module.get_bin_path(name)],
        missing_users=lacks(wanted["users"], pwd.getpwnam),
        missing_groups=lacks(wanted["groups"], grp.getgrnam),
        missing_files=[path for path in wanted["files"] if not os.path.lexists(path)],
        versions=versions,
        os_family=family,
        distribution=release.get("ID", ""),
        distribution_version=release.get("VERSION_ID", ""),
        kernel=os.uname().release,
        interfaces=preflight.interfaces_by_address(addresses.stdout) if addresses.rc == 0 else {},
        time_synchronized=clock_is_synchronized(),
    )


if __name__ == "__main__":
    main()
