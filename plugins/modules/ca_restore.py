#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: ca_restore
short_description: Put a backup of an authority in place
version_added: 0.1.0
description:
  - Checks a decrypted backup and puts its keys, configuration and database in the place of what is on the host. The role ca then
    gives the files their owners, writes the configuration anew and starts the service.
  - Refuses to replace an authority that runs, or one with another root, unless told to.
author:
  - moat.inference contributors (@moat-inference)
options:
  archive:
    description: The decrypted backup, as C(openssl cms -decrypt) prints it. The calling task must use C(no_log).
    type: str
    required: true
  directory:
    description: Directory of the authority's state.
    type: path
    default: /var/lib/moat-ca
  unit:
    description: Unit of the authority.
    type: str
    default: moat-ca.service
  replace:
    description: Whether an authority that runs, or has another root, may be replaced. What it did since the backup is forgotten.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: The backup is checked in a temporary directory that is removed again.
  diff_mode:
    support: none
    description: There is nothing to show of keys.
"""

EXAMPLES = r"""
- name: Put the backup in place
  moat.inference.ca_restore:
    archive: "{{ decrypted.stdout }}"
  no_log: true
"""

RETURN = r"""
root_fingerprint:
  description: SHA-256 of the restored root certificate.
  type: str
  returned: success
"""

import os
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import ca_archive, ca_pki, files
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


def refusal(state: ca_pki.State, fingerprint: str, running: bool) -> str:
    """Return why the authority on the host must not be replaced, empty when it may be."""
    if running:
        return (
            "the authority runs, and would forget what it did since the backup; stop it, or set moat_ca_replace to true"
        )
    if state.root_certificate and ca_pki.fingerprint(state.root_certificate) != fingerprint:
        return "the host has an authority with another root; set moat_ca_replace to true to give it up"
    return ""


def put_in_place(directory: str, new: str) -> None:
    """Take the old parts away and put the new ones in place, the keys last: without them the role refuses to go on."""
    old = os.path.join(directory, ".old")
    shutil.rmtree(old, ignore_errors=True)
    os.mkdir(old, 0o700)
    for part in reversed(ca_archive.PARTS):
        if os.path.lexists(os.path.join(directory, part)):
            os.rename(os.path.join(directory, part), os.path.join(old, part))
    for part in ca_archive.PARTS:
        if os.path.lexists(os.path.join(new, part)):
            os.rename(os.path.join(new, part), os.path.join(directory, part))
    files.sync_directory(directory)
    shutil.rmtree(old)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "str", "required": True, "no_log": True},
            "directory": {"type": "path", "default": "/var/lib/moat-ca"},
            "unit": {"type": "str", "default": "moat-ca.service"},
            "replace": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params, runner = module.params, Runner(module)
    directory = params["directory"]
    if module.check_mode:
        work = tempfile.mkdtemp(prefix="moat-ca-restore.")
    else:
        # beside the parts that it replaces, so that a rename is enough; what a killed run left there goes
        work = os.path.join(directory, ".restore")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        os.mkdir(work, 0o700)
    try:
        new = os.path.join(work, "new")
        ca_archive.extract(ca_archive.load(params["archive"]), new)
        roots = [os.path.join(new, "pki", name) for name in ca_pki.PUBLIC]
        runner.run(["openssl", "verify", "-CAfile", *roots])
        fingerprint = ca_pki.fingerprint(ca_pki.read(roots[0]))
        running = runner.run(["systemctl", "is-active", "--quiet", params["unit"]], ok=range(256)).rc == 0
        reason = "" if params["replace"] else refusal(ca_pki.inspect(directory), fingerprint, running)
        if reason:
            raise ValueError(reason)
        if not module.check_mode:
            if running:
                runner.run(["systemctl", "stop", params["unit"]])
            put_in_place(directory, new)
    except (OSError, ValueError, CommandError) as error:
        shutil.rmtree(work, ignore_errors=True)
        module.fail_json(msg=f"nothing was restored: {error}")
    shutil.rmtree(work, ignore_errors=True)
    module.exit_json(changed=True, root_fingerprint=fingerprint)


if __name__ == "__main__":
    main()
