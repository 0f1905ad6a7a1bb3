#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: ca_pki
short_description: Make and keep the keys of a step-ca authority, and write its configuration
version_added: 0.1.0
description:
  - Refuses, all at once, inputs that step-ca would misread or take as permission for every name.
  - Makes the root, the intermediate and the provisioner on the host, each key under a password that is born there, and puts
    them in place in one step. Keys that are there are never replaced.
  - Returns the text of step-ca's configuration, for M(moat.inference.deploy) to put in place. Nothing that it returns is secret.
author:
  - moat.inference contributors (@moat-inference)
options:
  name:
    description: Name of the authority, the beginning of the subjects of its certificates.
    type: str
    required: true
  trust_domain:
    description: Domain to which the intermediate certificate is constrained; the host of every SPIFFE URI.
    type: str
    required: true
  port:
    description: TCP port.
    type: int
    required: true
  dns_names:
    description: Names and addresses of the authority's own certificate. It listens on the addresses among them.
    type: list
    elements: str
    required: true
  allowed_names:
    description: Names that may be issued. One without a dot is good for a common name only.
    type: list
    elements: str
    required: true
  lifetime:
    description: Lifetime of certificates, the default and the longest, such as V(24h).
    type: str
    default: 24h
  directory:
    description: Directory of the authority's state.
    type: path
    default: /var/lib/moat-ca
  user:
    description: User of the service.
    type: str
    default: moat-ca
  step:
    description: Path of step.
    type: path
    default: /usr/local/bin/step
  step_ca:
    description: Path of step-ca.
    type: path
    default: /usr/local/bin/step-ca
  known_root:
    description: Root certificate, in PEM, that the other hosts trust already; empty when there is none yet.
    type: str
    default: ""
  replace_root:
    description: Whether this host's root may take the place of another known one.
    type: bool
    default: false
  export_requested:
    description: Whether the root key is about to be exported. Without it a root key on the host gives a warning.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Without keys yet, the configuration holds a placeholder for the provisioner's public key.
  diff_mode:
    support: full
    description: Names what is made; no key is shown.
"""

EXAMPLES = r"""
- name: Make the authority's keys
  moat.inference.ca_pki:
    name: inference.internal
    trust_domain: inference.internal
    port: 9443
    dns_names: [ca1.ca.inference.internal, 10.140.0.10]
    allowed_names: [gpu1.gateway.inference.internal, portal.client.inference.internal, portal]
  register: pki
"""

RETURN = r"""
root_certificate:
  description: The root certificate in PEM; empty in check mode when there is none yet.
  type: str
  returned: success
root_fingerprint:
  description: SHA-256 of the root certificate.
  type: str
  returned: success
root_key_present:
  description: Whether the root key is on the host.
  type: bool
  returned: success
config:
  description: Text of step-ca's configuration.
  type: str
  returned: success
listeners:
  description: Addresses with port to listen on; step-ca's own comes first.
  type: list
  elements: str
  returned: success
versions:
  description: Version of each installed program; empty for one that is missing.
  type: dict
  returned: success
reason:
  description: Why something was made or changed.
  type: list
  elements: str
  returned: success
"""

import grp
import os
import pwd
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import ca_config, ca_pki, ca_programs, files
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner

PLACEHOLDER = {"kty": "EC", "use": "sig", "crv": "P-256", "alg": "ES256", "kid": "made on the host"}
WARNING = (
    "The root key is on the serving host, under a password beside it. Give ca_root_export_recipient and ca_root_export_path "
    "and run the play again: it is then encrypted to you, checked, and removed from the host."
)


def specification() -> dict[str, Any]:
    """Return the module's argument specification."""
    names = {"type": "list", "elements": "str", "required": True}
    return {
        "name": {"type": "str", "required": True},
        "trust_domain": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
        "dns_names": names,
        "allowed_names": names,
        "lifetime": {"type": "str", "default": "24h"},
        "directory": {"type": "path", "default": "/var/lib/moat-ca"},
        "user": {"type": "str", "default": "moat-ca"},
        "step": {"type": "path", "default": "/usr/local/bin/step"},
        "step_ca": {"type": "path", "default": "/usr/local/bin/step-ca"},
        "known_root": {"type": "str", "default": ""},
        "replace_root": {"type": "bool", "default": False},
        "export_requested": {"type": "bool", "default": False},
    }


def owner_of(params: dict[str, Any]) -> tuple[str, str] | None:
    """Return user and group of the service, None when the host does not know the user yet."""
    try:
        return params["user"], grp.getgrgid(pwd.getpwnam(params["user"]).pw_gid).gr_name
    except KeyError:
        return None


def carry_out(
    module: AnsibleModule,
    runner: Runner,
    plan: ca_pki.Plan,
    owner: tuple[str, str] | None,
    settings: ca_config.Settings,
) -> None:
    """Make what is missing and finish what was begun."""
    directory = module.params["directory"]
    if owner is None:
        raise ValueError(f"there is no user {module.params['user']}; make it first")
    if not os.path.isdir(directory):
        os.mkdir(directory, 0o700)
    files.set_attributes(directory, files.FileState("directory", None, 0o700, *owner))
    if plan.create:
        ca_pki.make(runner, module.params["step"], directory, settings.name, settings.trust_domain, owner)
    if plan.finish_removal:
        ca_pki.remove_root_key(os.path.join(directory, "pki"))


def main() -> None:
    module = AnsibleModule(argument_spec=specification(), supports_check_mode=True)
    params, runner = module.params, Runner(module)
    directory, pki = params["directory"], os.path.join(params["directory"], "pki")
    settings = ca_config.settings_from(params)
    owner = owner_of(params)
    try:
        state = ca_pki.inspect(directory)
        plan = ca_pki.plan(state, settings.trust_domain, params["known_root"], params["replace_root"])
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"the authority in {directory} cannot be read: {error}")
    faults = ca_config.faults(settings) + plan.faults
    if faults:
        module.fail_json(msg="; ".join(faults))
    try:
        wrong = []
        if owner is not None:
            wrong = ca_pki.drifted(ca_pki.attributes(pki, owner) + ca_pki.database_attributes(directory, owner))
        if (plan.create or plan.finish_removal or wrong) and not module.check_mode:
            if plan.create or plan.finish_removal:
                carry_out(module, runner, plan, owner, settings)
            for path, _present, after in wrong:
                if os.path.lexists(path):
                    files.set_attributes(path, after)
            state = ca_pki.inspect(directory)
        key = ca_pki.public_key(pki) if state.present else PLACEHOLDER
    except (OSError, ValueError, KeyError, CommandError) as error:
        module.fail_json(msg=f"the authority's keys: {error}")
    diff = [files.diff_entry(*change) for change in wrong]
    if plan.create:
        after = files.FileState("directory", None, 0o700, params["user"], params["user"])
        diff.append(files.diff_entry(pki, files.ABSENT, after))
    if plan.finish_removal:
        diff.append({"before_header": pki, "after_header": pki, "before": "root key\n", "after": ""})
    if state.root_key and not params["export_requested"]:
        module.warn(WARNING)
    module.exit_json(
        changed=bool(plan.create or plan.finish_removal or wrong),
        diff=diff,
        root_certificate=state.root_certificate,
        root_fingerprint=ca_pki.fingerprint(state.root_certificate) if state.root_certificate else "",
        root_key_present=state.root_key,
        config=ca_config.render(ca_config.build(settings, key, directory)),
        listeners=settings.listeners(),
        versions={
            name: ca_programs.version_of(runner, name, params[name.replace("-", "_")]) for name in ca_programs.PROGRAMS
        },
        reason=plan.reason,
    )


if __name__ == "__main__":
    main()
