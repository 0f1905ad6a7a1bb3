#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: ca_backup
short_description: Write a backup of an authority, encrypted to its operator
version_added: 0.1.0
description:
  - Stops the authority, reads keys, configuration and database, starts it again, and writes what it read to one file that only
    the holder of the recipient's key can open. Nothing is written in clear.
  - The database cannot be read consistently while step-ca runs; certificates are not issued meanwhile, for a second or so.
author:
  - moat.inference contributors (@moat-inference)
options:
  recipient:
    description: Certificate of the operator in PEM.
    type: str
    required: true
  path:
    description: Path of the backup on the host.
    type: path
    required: true
  directory:
    description: Directory of the authority's state.
    type: path
    default: /var/lib/moat-ca
  unit:
    description: Unit of the authority. It is started again when it was running.
    type: str
    default: moat-ca.service
attributes:
  check_mode:
    support: full
    description: Looks whether there is an authority and whether the recipient can be encrypted to.
  diff_mode:
    support: none
    description: There is nothing to show of what is encrypted.
"""

EXAMPLES = r"""
- name: Write a backup
  moat.inference.ca_backup:
    recipient: "{{ lookup('ansible.builtin.file', 'operator.crt') }}"
    path: /var/lib/moat-ca/backup.cms
"""

RETURN = r"""
root_fingerprint:
  description: SHA-256 of the root certificate.
  type: str
  returned: success
sha256:
  description: SHA-256 of the backup.
  type: str
  returned: when one was written
root_key_included:
  description: Whether the root key was still on the host and is in the backup.
  type: bool
  returned: success
"""

import hashlib
import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import ca_archive, ca_pki, files
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner

TEXT = """Backup of the authority {name}, {when}, encrypted to the operator.
SHA-256 of the root certificate: {fingerprint}
Restore with the playbook moat.inference.ca_restore.

{message}"""


def read_stopped(runner: Runner, directory: str, unit: str) -> str:
    """Return the archive of a stopped authority, which runs again afterwards when it ran before."""
    running = runner.run(["systemctl", "is-active", "--quiet", unit], ok=range(256)).rc == 0
    if not running:
        return ca_archive.pack(directory)
    try:
        runner.run(["systemctl", "stop", unit])
        return ca_archive.pack(directory)
    finally:
        runner.run(["systemctl", "start", unit])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "recipient": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "directory": {"type": "path", "default": "/var/lib/moat-ca"},
            "unit": {"type": "str", "default": "moat-ca.service"},
        },
        supports_check_mode=True,
    )
    params, runner = module.params, Runner(module)
    try:
        state = ca_pki.inspect(params["directory"])
        if not state.present or state.missing:
            lacking = ", ".join(state.missing) or "all keys"
            module.fail_json(msg=f"there is no whole authority in {params['directory']} to back up: it lacks {lacking}")
        fault = ca_archive.recipient_fault(runner, params["recipient"])
        if fault:
            module.fail_json(msg=f"moat_ca_recipient: {fault}")
        fingerprint = ca_pki.fingerprint(state.root_certificate)
        report = {"changed": True, "root_fingerprint": fingerprint, "root_key_included": state.root_key}
        if not module.check_mode:
            message = ca_archive.encrypt(
                runner, params["recipient"], read_stopped(runner, params["directory"], params["unit"])
            )
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            text = TEXT.format(name=state.settings.get("name", ""), when=when, fingerprint=fingerprint, message=message)
            content = text.encode("utf-8")
            files.write(os.path.realpath(params["path"]), files.FileState("file", content, 0o600, "root", "root"))
            report["sha256"] = hashlib.sha256(content).hexdigest()
    except (OSError, ValueError, CommandError) as error:
        module.fail_json(msg=f"there is no backup: {error}")
    module.exit_json(**report)


if __name__ == "__main__":
    main()
