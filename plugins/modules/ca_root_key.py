#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: ca_root_key
short_description: Export an authority's root key to its operator, and remove it from the serving host
version_added: 0.1.0
description:
  - With O(state=exported), returns root certificate and root key encrypted to the holder of a certificate. Neither the key nor
    a password leaves the host in clear, and no passphrase is needed.
  - With O(state=removed), overwrites and removes the key and its password, after the caller has looked at the stored export.
author:
  - moat.inference contributors (@moat-inference)
options:
  state:
    description: Which of both.
    type: str
    choices: [exported, removed]
    required: true
  recipient:
    description: Certificate of the operator in PEM, RSA or elliptic curve. Needed for O(state=exported).
    type: str
  sha256:
    description: SHA-256 of the export as it was stored. Needed for O(state=removed).
    type: str
  directory:
    description: Directory of the authority's state.
    type: path
    default: /var/lib/moat-ca
attributes:
  check_mode:
    support: full
    description: The export is made, for it changes nothing on the host; nothing is removed.
  diff_mode:
    support: none
    description: There is nothing to show of a key.
"""

EXAMPLES = r"""
- name: Encrypt the root key to the operator
  moat.inference.ca_root_key:
    state: exported
    recipient: "{{ lookup('ansible.builtin.file', 'operator.crt') }}"
  register: export
"""

RETURN = r"""
content:
  description: The export, with a few words of text before the encrypted message.
  type: str
  returned: when state is exported
sha256:
  description: SHA-256 of the export.
  type: str
  returned: success
"""

import hashlib
import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import ca_archive, ca_pki, files
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner

TEXT = """Root certificate and root key of {name}, encrypted to the operator.
SHA-256 of the root certificate: {fingerprint}
Open with: openssl cms -decrypt -inform PEM -in THIS_FILE -recip operator.crt -inkey operator.key

{message}"""


def export(runner: Runner, state: ca_pki.State, pki: str, recipient: str) -> str:
    """Return the text of the export."""
    fault = ca_archive.recipient_fault(runner, recipient)
    if fault:
        raise ValueError(f"ca_root_export_recipient: {fault}")
    key_file, password_file = (os.path.join(pki, name) for name in ca_pki.ROOT_FILES)
    key = runner.run(["openssl", "pkey", "-in", key_file, "-passin", "file:" + password_file]).stdout
    message = ca_archive.encrypt(runner, recipient, state.root_certificate + key)
    fingerprint = ca_pki.fingerprint(state.root_certificate)
    return TEXT.format(name=state.settings.get("name", ""), fingerprint=fingerprint, message=message)


def remove(state: ca_pki.State, pki: str, sha256: str) -> None:
    """Write down that the export was verified, then remove the key; a run that is killed in between is finished by the next."""
    marker = {"fingerprint": ca_pki.fingerprint(state.root_certificate), "export_sha256": sha256}
    content = (json.dumps(marker) + "\n").encode("utf-8")
    files.write(os.path.join(pki, ca_pki.MARKER), files.FileState("file", content, 0o600, "root", "root"))
    ca_pki.remove_root_key(pki)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["exported", "removed"], "required": True},
            "recipient": {"type": "str"},
            "sha256": {"type": "str"},
            "directory": {"type": "path", "default": "/var/lib/moat-ca"},
        },
        required_if=[("state", "exported", ["recipient"]), ("state", "removed", ["sha256"])],
        supports_check_mode=True,
    )
    params, runner = module.params, Runner(module)
    pki = os.path.join(params["directory"], "pki")
    try:
        state = ca_pki.inspect(params["directory"])
        if params["state"] == "exported":
            if not all(os.path.isfile(os.path.join(pki, name)) for name in ca_pki.ROOT_FILES):
                raise ValueError("the root key is not on this host any more")
            content = export(runner, state, pki, params["recipient"])
            module.exit_json(changed=False, content=content, sha256=hashlib.sha256(content.encode("utf-8")).hexdigest())
        if state.root_key and not module.check_mode:
            remove(state, pki, params["sha256"])
    except (OSError, ValueError, CommandError) as error:
        module.fail_json(msg=f"the root key: {error}")
    module.exit_json(changed=state.root_key, sha256=params["sha256"])


if __name__ == "__main__":
    main()
