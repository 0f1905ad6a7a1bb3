#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: model_gpus
short_description: Find the GPUs that each model of a host was given
version_added: 0.4.0
description:
  - Turns numbers and UUIDs of GPUs, as the intent has them, into what the unit of a model server needs. These are the UUIDs for
    CUDA_VISIBLE_DEVICES, the character devices that it may see, and the minor number that its launcher checks before each start.
  - Refuses, all at once, a GPU that the driver does not show, a GPU that MIG divides given as a whole, and one GPU for two models
    that do not both share.
  - It reads C(nvidia-smi) and /proc/driver/nvidia, and changes nothing.
author:
  - moat.inference contributors (@moat-inference)
options:
  models:
    description: Models that the host serves.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the model., type: str, required: true}
      gpus:
        description:
          - Its GPUs, each by number in the order of the PCI bus or by UUID, V(GPU-...) or V(MIG-...), in the order of its ordinals.
          - With none it gets every GPU of the host.
        type: list
        elements: str
        default: []
      shared: {description: Whether it may have a GPU together with other models that may too., type: bool, default: false}
  root:
    description: Directory that the host's files and programs are read below, as in M(moat.inference.gpu_info).
    type: path
    default: /
attributes:
  check_mode:
    support: full
    description: The module reads only.
  diff_mode:
    support: none
    description: There is nothing to show.
"""

EXAMPLES = r"""
- name: Find the GPUs of two models
  moat.inference.model_gpus:
    models:
      - {name: xray-7b, gpus: ["0", "1"]}
      - {name: notes-1b, gpus: [MIG-4c60d78c-506f-5593-938d-a136eaa1fa52]}
  register: found
"""

RETURN = r"""
models:
  description: What the unit of each model needs, by name of the model.
  type: dict
  returned: success
  contains:
    visible: {description: "UUIDs for CUDA_VISIBLE_DEVICES, in order.", type: list, elements: str}
    nodes: {description: Paths of the character devices that it may open., type: list, elements: str}
    minors: {description: Minor number of the node of each GPU by UUID of the GPU., type: dict}
  sample:
    xray-7b:
      visible: [GPU-fa5e1afc-4f2f-61f3-290b-82c983300e91]
      nodes: [/dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidia0]
      minors: {GPU-fa5e1afc-4f2f-61f3-290b-82c983300e91: 0}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import model_gpus
from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root
from ansible_collections.moat.inference.plugins.module_utils.run import Runner


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "models": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "gpus": {"type": "list", "elements": "str", "default": []},
                    "shared": {"type": "bool", "default": False},
                },
            },
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    models = module.params["models"]
    gpus, faults = model_gpus.read(Root(module.params["root"], Runner(module)))
    found: dict[str, Any] = {}
    if not faults:
        found, faults = model_gpus.assign(models, gpus)
    if faults:
        module.fail_json(msg="GPUs refused: " + "; ".join(faults))
    module.exit_json(changed=False, models=found)


if __name__ == "__main__":
    main()
