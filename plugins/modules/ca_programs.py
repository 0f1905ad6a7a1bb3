#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: ca_programs
short_description: Install step-ca and step in an exact version
version_added: 0.1.0
description:
  - Takes both programs from a directory on the host when they are there, else from the releases of their makers. An archive is
    used only when its SHA-256 is the given one.
  - A program is run for its version before it takes the place of the installed one, which stays when anything fails.
author:
  - moat.inference contributors (@moat-inference)
options:
  version:
    description: Version of both programs.
    type: str
    required: true
  staged:
    description: Directory on the host that may hold both programs.
    type: path
    required: true
  directory:
    description: Directory to install to.
    type: path
    default: /usr/local/bin
  url:
    description: Address below which the releases lie as they do at the makers'.
    type: str
    default: https://github.com/smallstep
  checksums:
    description: SHA-256 by name of the archive.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Nothing is downloaded; a staged program is run for its version.
  diff_mode:
    support: full
    description: Shows the versions before and after.
"""

EXAMPLES = r"""
- name: Install step-ca and step
  moat.inference.ca_programs:
    version: 0.30.2
    staged: /opt/moat/staged
"""

RETURN = r"""
versions:
  description: Version of each installed program before the call; empty for one that is missing.
  type: dict
  returned: success
  sample: {step-ca: 0.30.2, step: 0.30.2}
source:
  description: Where the programs come from.
  type: str
  returned: success
  sample: /opt/moat/staged
"""

import os
import platform
import shutil
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.moat.inference.plugins.module_utils import ca_programs, files
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


def download(url: str, checksum: str, program: str, target: str) -> None:
    """Fetch an archive, check it, and write its program to target."""
    with tempfile.TemporaryFile() as archive:
        shutil.copyfileobj(open_url(url, timeout=60), archive)
        found = ca_programs.sha256_of(archive)
        if found != checksum:
            raise ValueError(f"{url} has the SHA-256 {found}, not {checksum}")
        ca_programs.unpack(archive, program, target)


def install(module: AnsibleModule, runner: Runner, program: str, staged: bool, candidate: str) -> None:
    """Bring one program to a candidate file beside its place, look at its version, and put it in place."""
    params = module.params
    if staged:
        shutil.copyfile(os.path.join(params["staged"], program), candidate)
    else:
        architecture = ca_programs.ARCHITECTURES[platform.machine()]
        name = ca_programs.archive_name(program, params["version"], architecture)
        url = ca_programs.archive_url(params["url"], program, params["version"], architecture)
        download(url, params["checksums"][name], program, candidate)
    files.set_attributes(candidate, files.FileState("file", None, 0o755, "root", "root"))
    version = ca_programs.version_of(runner, program, candidate)
    if version != params["version"]:
        raise ValueError(f"{program} is of version {version or 'unknown'}, not {params['version']}")
    files.commit(candidate, os.path.join(params["directory"], program))


def faults(params: dict[str, Any], staged: bool, found: dict[str, str]) -> list[str]:
    """Return why the programs cannot be installed."""
    if staged:
        return [
            f"{params['staged']}/{program} is of version {version or 'unknown'}, not {params['version']}; "
            "put the right one there, or take it away so that the release is downloaded"
            for program, version in found.items()
            if version != params["version"]
        ]
    machine = platform.machine()
    if machine not in ca_programs.ARCHITECTURES:
        return [f"there is no release for {machine}; put step-ca and step into {params['staged']}"]
    return ca_programs.missing_checksums(params["checksums"], params["version"], ca_programs.ARCHITECTURES[machine])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "staged": {"type": "path", "required": True},
            "directory": {"type": "path", "default": "/usr/local/bin"},
            "url": {"type": "str", "default": "https://github.com/smallstep"},
            "checksums": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    params, runner = module.params, Runner(module)
    installed = {
        program: ca_programs.version_of(runner, program, os.path.join(params["directory"], program))
        for program in ca_programs.PROGRAMS
    }
    wrong = [program for program, version in installed.items() if version != params["version"]]
    in_staged = {program: os.path.join(params["staged"], program) for program in wrong}
    staged = all(os.path.isfile(path) for path in in_staged.values())
    if wrong:
        found = {name: ca_programs.version_of(runner, name, path) for name, path in in_staged.items()} if staged else {}
        problems = faults(params, staged, found)
        if problems:
            module.fail_json(msg="; ".join(problems))
    if wrong and not module.check_mode:
        for program in wrong:
            # always the same name, so that a killed run leaves one candidate at most
            candidate = os.path.join(params["directory"], f".{program}.moat")
            try:
                install(module, runner, program, staged, candidate)
            except (OSError, ValueError, CommandError) as error:
                module.fail_json(msg=f"{program} was not replaced: {error}")
            finally:
                if os.path.exists(candidate):
                    os.unlink(candidate)
    module.exit_json(
        changed=bool(wrong),
        versions=installed,
        source=params["staged"] if staged else params["url"],
        diff=[
            {
                "before_header": program,
                "after_header": program,
                "before": (installed[program] or "not installed") + "\n",
                "after": params["version"] + "\n",
            }
            for program in wrong
        ],
    )


if __name__ == "__main__":
    main()
