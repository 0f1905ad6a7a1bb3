#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_driver
short_description: Have one exact NVIDIA driver on a host, or say why not before anything is touched
version_added: 0.4.0
description:
  - Looks at the host first and names every fault with its remedy. Nothing is changed while there is one.
  - Asks apt with a state of its own what the repository offers and what the one transaction would do, so that a missing package, a wrong key or a foreign
    package in the way is known before anything is touched.
  - Then installs driver, libraries, persistence daemon and, where NVSwitch is, Fabric Manager in that one version and transaction, holds them, keeps
    unattended upgrades away from them, blacklists nouveau and looks whether DKMS has built the module for every kernel that has headers.
  - It does not reboot. A transaction that was cut off is remembered in C(/var/lib/moat/gpu-driver.json) and finished by the next run.
options:
  version:
    description: Exact version of the driver.
    type: str
    default: 580.178.04
  kernel_module:
    description: Which kernel module is built. V(open) needs Turing or newer.
    type: str
    choices: [open, proprietary]
    default: open
  source:
    description: Where the packages come from.
    type: dict
    default: {}
    suboptions:
      kind:
        description:
          - V(vendor) is the vendor's repository, V(distribution) the distribution's own packages, V(local) the vendor's local-repository package, V(mirror)
            a mirror of one of these.
        type: str
        choices: [vendor, distribution, local, mirror]
        default: vendor
      url:
        description: Address of the repository. Without, a source of the kind V(distribution) is one that the host has already.
        type: str
        default: ""
      suite:
        description: Suite of the repository. One that ends with a slash is a flat repository.
        type: str
        default: /
      components:
        description: Components of a suite that is not flat.
        type: list
        elements: str
        default: []
      key:
        description: The key as ASCII-armoured text, or the path of a key file on the host.
        type: str
        default: ""
      fingerprint:
        description: Fingerprint of the key in 40 hex digits. Only that key is trusted.
        type: str
        default: ""
      file:
        description: Path on the host of the vendor's local-repository package.
        type: str
        default: ""
      sha256:
        description: SHA-256 of that file.
        type: str
        default: ""
      names:
        description: Whose names the packages of a mirror have.
        type: str
        choices: [vendor, distribution]
        default: vendor
  packages:
    description: Packages that have the driver's version, for a repository that names them otherwise. Empty for those of the source.
    type: list
    elements: str
    default: []
  required:
    description: Whether a host without an NVIDIA GPU is a fault.
    type: bool
    default: false
  fabric_manager:
    description: Whether Fabric Manager comes with the driver. V(auto) is where NVSwitch is.
    type: str
    choices: [auto, always, never]
    default: auto
  toolkit:
    description: The container toolkit, which keeps the CDI specification up to date.
    type: dict
    default: {}
    suboptions:
      enabled:
        description: Whether it is installed.
        type: bool
        default: true
      version:
        description: Exact version, 1.18 or newer.
        type: str
        default: 1.20.1
      source:
        description: Where it comes from. Without, from the vendor's repository for it, or where the driver comes from if that is none of the vendor's.
        type: dict
        default: {}
        suboptions:
          url:
            description: Address of the repository.
            type: str
            default: ""
          suite:
            description: Suite of the repository.
            type: str
            default: /
          components:
            description: Components of a suite that is not flat.
            type: list
            elements: str
            default: []
          key:
            description: The key as text or as a path on the host.
            type: str
            default: ""
          fingerprint:
            description: Fingerprint of the key.
            type: str
            default: ""
  nouveau:
    description: What to do where nouveau drives a GPU. V(replace) blacklists it and asks for a reboot.
    type: str
    choices: [refuse, replace]
    default: refuse
  busy:
    description: What to do where a process uses a GPU and packages have to change. V(ignore) changes them and asks for a reboot.
    type: str
    choices: [refuse, ignore]
    default: refuse
  persistence:
    description: Whether the persistence daemon keeps the GPUs initialised. It is only returned in RV(settings).
    type: bool
    default: true
  settings:
    description: What GPUs shall have after every boot. It is checked here and returned as the boot program reads it.
    type: list
    elements: dict
    default: []
    suboptions:
      gpu:
        description: V(all) or the UUID of a GPU, whose settings override those of all.
        type: str
        default: all
      power_limit_w:
        description: Power limit in watts.
        type: int
      graphics_clock_mhz:
        description: Range that the graphics clock is locked to.
        type: dict
        suboptions:
          min:
            description: Lowest clock in MHz.
            type: int
            required: true
          max:
            description: Highest clock in MHz.
            type: int
            required: true
      memory_clock_mhz:
        description: Range that the memory clock is locked to.
        type: dict
        suboptions:
          min:
            description: Lowest clock in MHz.
            type: int
            required: true
          max:
            description: Highest clock in MHz.
            type: int
            required: true
      mig:
        description: Profiles of the MIG instances in order. An empty list is MIG off.
        type: list
        elements: str
  phase:
    description: V(check) only looks and never changes anything; V(apply) looks and then acts.
    type: str
    choices: [check, apply]
    default: apply
  root:
    description: Directory in which the host's facts are read. Packages are always those of the host itself; another root is for tests.
    type: path
    default: /
notes:
  - Debian 12 and 13 and Ubuntu 22.04 and 24.04 on x86_64. Any other distribution is refused.
author:
  - moat.inference contributors (@moat-inference)
attributes:
  check_mode:
    support: full
    description: Says what would be installed, after asking apt.
  diff_mode:
    support: full
    description: Shows packages with their versions and the files; keys by their paths alone.
seealso:
  - module: moat.inference.gpu_info
"""

EXAMPLES = r"""
- name: Name every fault at once
  moat.inference.gpu_driver:
    version: 580.178.04
    required: true
    phase: check

- name: Install from a mirror
  moat.inference.gpu_driver:
    version: 580.178.04
    source:
      kind: mirror
      url: https://mirror.internal/nvidia/debian12/x86_64/
      key: /etc/moat/mirror.asc
      fingerprint: EB693B3035CD5710E231E123A4B469963BF863CC
    toolkit: {enabled: false}
"""

RETURN = r"""
state:
  description:
    - V(skipped) without an NVIDIA GPU, V(absent) while the wanted driver is not there, V(incomplete) when a transaction did not complete or a kernel has no
      module, V(reboot_required) or V(installed). In check mode and with O(phase=check) it is that of the host as it is.
  type: str
  returned: always
faults:
  description: Every fault in order, as C(key), C(fault) and C(remedy).
  type: list
  elements: dict
  returned: always
  sample: [{key: headers, fault: the headers of the running kernel 6.1.0-42-amd64 are not there, remedy: run apt-get install linux-headers-6.1.0-42-amd64}]
pending:
  description: Why anything has, or had, to change.
  type: list
  elements: str
  returned: always
packages:
  description: The packages of the transaction, or those that are there already, with their versions.
  type: dict
  returned: always
reboot:
  description: Whether a reboot is needed (C(needed)), and why (C(why)).
  type: dict
  returned: always
  sample: {needed: true, why: [nouveau is loaded]}
fabric_manager:
  description: Whether Fabric Manager belongs to the wanted driver on this host.
  type: bool
  returned: always
settings:
  description: What C(/etc/moat/gpu.json) has to say.
  type: dict
  returned: always
reason:
  description: Why the module changed something, or did not.
  type: str
  returned: always
host:
  description: What M(moat.inference.gpu_info) returns of the host.
  type: dict
  returned: always
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_faults as faults
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_inputs as inputs
from ansible_collections.moat.inference.plugins.module_utils.gpu_driver_host import Incomplete, Refused, Work
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


def specification() -> dict[str, Any]:
    """Return the module's options."""
    words = {"type": "list", "elements": "str", "default": []}
    text = {"type": "str", "default": ""}
    # a public key is no secret
    key = {"type": "str", "default": "", "no_log": False}
    suite = {"type": "str", "default": "/"}
    repository = {"url": text, "suite": suite, "components": words, "key": key, "fingerprint": text}
    number = {"type": "int", "required": True}
    clock = {"type": "dict", "options": {"min": number, "max": number}}
    kinds = ["vendor", "distribution", "local", "mirror"]
    source = {
        **repository,
        "kind": {"type": "str", "choices": kinds, "default": "vendor"},
        "file": text,
        "sha256": text,
        "names": {"type": "str", "choices": ["vendor", "distribution"], "default": "vendor"},
    }
    toolkit = {
        "enabled": {"type": "bool", "default": True},
        "version": {"type": "str", "default": "1.20.1"},
        "source": {"type": "dict", "default": {}, "options": repository, "apply_defaults": True},
    }
    setting = {
        "gpu": {"type": "str", "default": "all"},
        "power_limit_w": {"type": "int"},
        "graphics_clock_mhz": clock,
        "memory_clock_mhz": clock,
        "mig": {"type": "list", "elements": "str"},
    }
    return {
        "version": {"type": "str", "default": "580.178.04"},
        "kernel_module": {"type": "str", "choices": ["open", "proprietary"], "default": "open"},
        "source": {"type": "dict", "default": {}, "options": source, "apply_defaults": True},
        "packages": words,
        "required": {"type": "bool", "default": False},
        "fabric_manager": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
        "toolkit": {"type": "dict", "default": {}, "options": toolkit, "apply_defaults": True},
        "nouveau": {"type": "str", "choices": ["refuse", "replace"], "default": "refuse"},
        "busy": {"type": "str", "choices": ["refuse", "ignore"], "default": "refuse"},
        "persistence": {"type": "bool", "default": True},
        "settings": {"type": "list", "elements": "dict", "default": [], "options": setting},
        "phase": {"type": "str", "choices": ["check", "apply"], "default": "apply"},
        "root": {"type": "path", "default": "/"},
    }


def report(work: Work, changed: bool, reason: str) -> dict[str, Any]:
    """Return what the module returns."""
    why = work.reboot()
    return {
        "changed": changed,
        "diff": work.diff() if changed else [],
        "state": work.state(),
        "faults": work.found,
        "pending": work.pending,
        "packages": work.packages(),
        "reboot": {"needed": bool(why), "why": why},
        "fabric_manager": not work.skipped and inputs.needs_fabric_manager(work.options, work.host),
        "settings": inputs.settings_document(work.options),
        "reason": reason,
        "host": work.host,
    }


def finish(module: AnsibleModule, work: Work) -> None:
    """Say what was found, act where that is asked for, and end the module."""
    others = faults.others(work.host)
    if others and faults.gpus(work.host):
        module.warn(f"{', '.join(others)}: only NVIDIA GPUs are looked after here.")
    if work.found:
        module.fail_json(
            msg=f"Nothing was changed. {faults.sentences(work.found)}", **report(work, False, "the host has faults")
        )
    if work.skipped:
        module.exit_json(**report(work, False, "there is no NVIDIA GPU"))
    if not work.pending:
        module.exit_json(**report(work, False, "all is as it shall be"))
    before = report(work, module.params["phase"] == "apply", "; ".join(work.pending))
    if module.params["phase"] == "check" or module.check_mode:
        module.exit_json(**before)
    try:
        work.apply()
    except Refused as error:
        module.fail_json(msg=str(error), **{**before, "changed": False, "diff": [], "faults": error.found})
    except (Incomplete, OSError, CommandError) as error:
        module.fail_json(msg=f"The driver is incomplete. {error}", **{**before, "state": "incomplete"})
    after = report(work, True, before["reason"])
    module.exit_json(**{**after, "diff": before["diff"], "packages": before["packages"], "pending": before["pending"]})


def main() -> None:
    module = AnsibleModule(argument_spec=specification(), supports_check_mode=True)
    wrong = inputs.faults_of(module.params)
    if wrong:
        module.fail_json(msg="; ".join(wrong))
    work = Work(Runner(module), module.params)
    try:
        work.examine()
        finish(module, work)
    except (OSError, CommandError) as error:
        module.fail_json(msg=f"The host cannot be looked at: {error}")
    finally:
        work.close()


if __name__ == "__main__":
    main()
