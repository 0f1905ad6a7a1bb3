#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_verify
short_description: Prove that the GPUs of a host work with its driver
version_added: 0.4.0
description:
  - Compares kernel module and libraries, looks whether nvidia-smi lists every GPU of the PCI bus and whether the kernel had an Xid error since
    boot, whether moat-gpu.service had the declared settings, and makes a tiny call of CUDA on every GPU, or on every instance of one in MIG mode.
  - Names all faults at once. Nothing on the host is changed.
author:
  - moat.inference contributors (@moat-inference)
options:
  expected_version:
    description: Version that the driver shall have. Empty for any.
    type: str
    default: ""
  xids:
    description: Whether an Xid error since boot is a fault.
    type: bool
    default: true
  cuda:
    description: Whether CUDA is called. A GPU on which a process computes is left alone in any case.
    type: bool
    default: true
  library:
    description: Library of the CUDA driver, by name or path.
    type: str
    default: libcuda.so.1
  timeout:
    description: Seconds that a call of CUDA on one device may take.
    type: int
    default: 120
  root:
    description: Where the host's facts are read. Another root is for tests.
    type: path
    default: /
attributes:
  check_mode:
    support: full
    description: It only looks, so it does the same.
  diff_mode:
    support: none
    description: There is nothing to show.
"""

EXAMPLES = r"""
- name: Prove that the GPUs work with the new driver
  moat.inference.gpu_verify:
    expected_version: 580.178.04
"""

RETURN = r"""
host:
  description: Facts of the host, as of M(moat.inference.gpu_info).
  type: dict
  returned: always
cuda:
  description: Answer of CUDA by the UUID of the GPU or MIG instance, with the version of its interface, the devices and the fault, if any.
  type: dict
  returned: always
faults:
  description: What is wrong.
  type: list
  elements: str
  returned: always
state:
  description: What state the host is in, in one sentence.
  type: str
  returned: always
"""

import inspect
import sys

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import gpu_cuda, gpu_facts, gpu_verify
from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root
from ansible_collections.moat.inference.plugins.module_utils.run import Runner


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "expected_version": {"type": "str", "default": ""},
            "xids": {"type": "bool", "default": True},
            "cuda": {"type": "bool", "default": True},
            "library": {"type": "str", "default": gpu_cuda.LIBRARY},
            "timeout": {"type": "int", "default": gpu_cuda.SECONDS},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    options = module.params
    runner = Runner(module)
    root = Root(options["root"], runner)
    host = gpu_facts.collect(root)
    calls = {}
    if options["cuda"] and gpu_verify.gpu_slots(host):
        # a process of its own for each: a driver that hangs or crashes takes its caller along
        program = inspect.getsource(gpu_cuda)
        argv = [sys.executable, "-I", "-", options["library"], str(options["timeout"])]
        for uuid in gpu_verify.targets(host):
            visible = {"CUDA_VISIBLE_DEVICES": uuid} if uuid else {}
            calls[uuid] = gpu_verify.answer(runner.run(argv, stdin=program, ok=range(-64, 256), env=visible))
    faults = gpu_verify.faults(host, calls, options["expected_version"], options["xids"])
    faults += gpu_verify.settings_faults(root.text("/run/moat/gpu.json"))
    result = {"changed": False, "host": host, "cuda": calls, "faults": faults, "state": gpu_verify.state(host, faults)}
    if faults:
        module.fail_json(msg="{} ({})".format("; ".join(faults), result["state"]), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
