#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Tell what a host has of GPUs, their driver and what the driver needs
version_added: 0.4.0
description:
  - Reads the PCI bus, the kernel, C(nvidia-smi), DKMS, the packages, Secure Boot and the kernel's log, and changes nothing.
  - It works without a GPU, without a driver and without root, and says in RV(host.unread) what it could not read and why.
  - NVIDIA GPUs and NVSwitches are told with their architecture and whether the open kernel modules work with them. GPUs of AMD and Intel are
    told as devices only.
options:
  root:
    description:
      - Directory below which the host's files and programs are. Other than V(/) it is a captured or made-up host, and a program that is not
        in it counts as absent.
    type: path
    default: /
notes:
  - Without root the open devices of other users' processes stay unseen, and where C(kernel.dmesg_restrict) is set, Xid errors may.
  - Packages are told for distributions with dpkg.
  - Serial numbers are not returned.
author:
  - moat.inference contributors (@moat-inference)
attributes:
  check_mode:
    support: full
    description: The module reads only.
  diff_mode:
    support: none
    description: There is nothing to show.
"""

EXAMPLES = r"""
- name: See what the host has
  moat.inference.gpu_info:
  register: gpu

- name: Refuse a host whose GPUs cannot use the open modules
  ansible.builtin.assert:
    that: gpu.host.devices | selectattr('open_module', 'equalto', false) | length == 0
    fail_msg: This host has a GPU older than Turing.
"""

RETURN = r"""
host:
  description: What the host has. All keys are always there, and what is not known is null.
  type: dict
  returned: always
  contains:
    distribution:
      description: Id, version, codename and family, from os-release(5).
      type: dict
    machine:
      description: Architecture of the machine, as uname(1) has it.
      type: str
    kernel:
      description: The running kernel, the newest one installed, all installed in the order of their versions, and those whose headers are
        there.
      type: dict
    devices:
      description: GPUs and NVSwitches on the PCI bus.
      type: list
      elements: dict
      contains:
        slot:
          description: PCI address, such as V(0000:06:00.0).
          type: str
        vendor:
          description: V(nvidia), V(amd) or V(intel). Graphics that is part of an Intel processor is left out.
          type: str
        kind:
          description: V(gpu) or V(nvswitch).
          type: str
        vendor_id:
          description: PCI id of the vendor, four hexadecimal digits.
          type: str
        device_id:
          description: PCI id of the device, four hexadecimal digits.
          type: str
        subsystem:
          description: Vendor and device id of the board.
          type: str
        class:
          description: PCI class and subclass, four hexadecimal digits.
          type: str
        driver:
          description: Kernel driver that has the device, empty without one.
          type: str
        architecture:
          description: Architecture of an NVIDIA GPU, V(legacy) for Fermi and older, V(unknown) for what the module does not know.
          type: str
        open_module:
          description: Whether the open kernel modules work with it, which they do from Turing on.
          type: bool
    gpus:
      description: What C(nvidia-smi) tells of each GPU.
      type: list
      elements: dict
      contains:
        slot:
          description: PCI address.
          type: str
        minor:
          description: Number of the device node C(/dev/nvidia<minor>).
          type: int
        name:
          description: Name of the product.
          type: str
        uuid:
          description: The GPU's UUID.
          type: str
        memory_mib:
          description: Memory in MiB.
          type: int
        architecture:
          description: Architecture, as in RV(host.devices[].architecture).
          type: str
        ecc:
          description: Whether ECC is on now and after the next reset, and how many errors were corrected and not corrected in the GPU's life.
          type: dict
        remapped_rows:
          description: How many rows of memory were remapped after correctable and uncorrectable errors, whether one is pending and whether
            remapping failed.
          type: dict
        mig:
          description: Whether MIG is on now and after the next reset, and the instances with index, GPU and compute instance, UUID, memory in
            MiB and profile.
          type: dict
        power:
          description: The limit that was asked for, the default, least and highest limit and the draw, in W.
          type: dict
        clocks:
          description: Highest clocks and application clocks in MHz. C(nvidia-smi) does not show locked clocks.
          type: dict
        persistence:
          description: Whether persistence mode is on.
          type: bool
        nvlinks:
          description: How many NVLinks are up.
          type: int
        fabric:
          description: State and status of the registration with an NVLink fabric, or null.
          type: dict
        processes:
          description: Processes that use the GPU, with pid, name, memory in MiB and type.
          type: list
          elements: dict
    driver:
      description:
        - Version of the libraries (C(userspace)), of the module that is loaded and of the one on disk for the running kernel, each
          C(open) or C(proprietary), and whether the loaded one matches the libraries.
        - Whether nouveau is loaded, in use and kept from loading at boot, and the traces of a driver that no package brought (C(foreign)).
      type: dict
    dkms:
      description: The NVIDIA modules that DKMS knows, with version, kernel and state.
      type: list
      elements: dict
    packages:
      description: Version, hold and state of each package of the driver or the kernel.
      type: dict
    secure_boot:
      description: Whether Secure Boot is on, the certificate by which DKMS signs, and whether it is enrolled.
      type: dict
    fabric_manager:
      description: Whether Fabric Manager is needed, its version and whether it runs.
      type: dict
    xids:
      description: GPU errors since boot, one entry a GPU and number, with count and the seconds of the first and the last.
      type: list
      elements: dict
    users:
      description: Processes that have an NVIDIA device open, with pid and name.
      type: list
      elements: dict
    modules_loaded:
      description: Kernel modules that are loaded.
      type: list
      elements: str
    disk_free_mib:
      description: Free MiB below V(/), V(/boot), V(/usr) and V(/var).
      type: dict
    reboot_required:
      description: Whether the driver on disk comes into use only by a reboot.
      type: bool
    unread:
      description: What could not be read, and why.
      type: list
      elements: dict
  sample:
    devices:
      - {slot: "0000:06:00.0", vendor: nvidia, kind: gpu, vendor_id: 10de, device_id: "2330", subsystem: "10de:16c1", class: "0302",
         driver: nvidia, architecture: hopper, open_module: true}
    unread:
      - {what: open devices, why: 12 processes of other users cannot be looked at without root}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import gpu_facts
from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root
from ansible_collections.moat.inference.plugins.module_utils.run import Runner


def main() -> None:
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "default": "/"}},
        supports_check_mode=True,
    )
    module.exit_json(changed=False, host=gpu_facts.collect(Root(module.params["root"], Runner(module))))


if __name__ == "__main__":
    main()
