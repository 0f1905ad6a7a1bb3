#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: ca_token
short_description: Make single-use tokens for certificates on the authority's host
version_added: 0.1.0
description:
  - Makes one token for each certificate asked for, good for one use within a few minutes and for exactly the given subject and
    names. Whoever has it may get that certificate, so the calling task must use C(no_log).
  - Runs on the authority's host, where the provisioner's key is; the key and its password stay there. The names are judged by
    the authority's policy when the token is used.
author:
  - moat.inference contributors (@moat-inference)
options:
  items:
    description: Certificates, of any number of hosts.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name by which the caller knows the item; given back with the token., type: str, required: true}
      common_name: {description: Common name of the certificate., type: str, required: true}
      sans: {description: DNS names and URIs of the certificate; all of them and no others., type: list, elements: str, required: true}
  ca_url:
    description: Address of the authority as the client will call it; a token for another address is refused.
    type: str
    required: true
  lifetime:
    description: How long a token may wait for its use, up to one hour.
    type: str
    default: 5m
  key_file:
    description: Private key of the provisioner, encrypted.
    type: path
    default: /var/lib/moat-ca/pki/provisioner/private.json
  password_file:
    description: File with the password of that key.
    type: path
    default: /var/lib/moat-ca/pki/provisioner/password
  root:
    description: Root certificate of the authority.
    type: path
    default: /var/lib/moat-ca/pki/root_ca.crt
  step:
    description: Path of step.
    type: path
    default: /usr/local/bin/step
attributes:
  check_mode:
    support: full
    description: No token is made; RV(tokens) is empty.
  diff_mode:
    support: none
    description: A token changes nothing on the host.
"""

EXAMPLES = r"""
- name: Ask for a token
  moat.inference.ca_token:
    ca_url: https://10.140.0.10:9443
    items:
      - name: app1/connector-portal
        common_name: portal
        sans: [portal.client.inference.internal, "spiffe://inference.internal/client/portal"]
  delegate_to: ca1
  no_log: true
  register: tokens
"""

RETURN = r"""
tokens:
  description: Name and token of each item, in the order asked for; empty in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{name: app1/connector-portal, token: the token}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import ca_token
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


def main() -> None:
    state = "/var/lib/moat-ca/pki"
    module = AnsibleModule(
        argument_spec={
            "items": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "common_name": {"type": "str", "required": True},
                    "sans": {"type": "list", "elements": "str", "required": True},
                },
            },
            "ca_url": {"type": "str", "required": True},
            "lifetime": {"type": "str", "default": "5m"},
            "key_file": {"type": "path", "default": state + "/provisioner/private.json", "no_log": False},
            "password_file": {"type": "path", "default": state + "/provisioner/password", "no_log": False},
            "root": {"type": "path", "default": state + "/root_ca.crt"},
            "step": {"type": "path", "default": "/usr/local/bin/step"},
        },
        supports_check_mode=True,
    )
    params, runner = module.params, Runner(module)
    faults = ca_token.faults(params["items"], params["ca_url"], params["lifetime"])
    if faults:
        module.fail_json(msg="; ".join(faults))
    tokens = []
    for item in [] if module.check_mode else params["items"]:
        try:
            output = runner.run(ca_token.command(item, params)).stdout
            tokens.append({"name": item["name"], "token": ca_token.parse(output)})
        except (CommandError, ValueError) as error:
            module.fail_json(msg=f"there is no token for {item['name']}: {error}")
    module.exit_json(changed=False, tokens=tokens)


if __name__ == "__main__":
    main()
