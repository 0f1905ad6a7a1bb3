# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What gpu_info and gpu_driver know of a host: one dict whose keys are always there."""

from __future__ import annotations

from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import (
    gpu_boot,
    gpu_kernel,
    gpu_packages,
    gpu_pci,
    gpu_smi,
    preflight,
)
from ansible_collections.moat.inference.plugins.module_utils.gpu_root import NOT_FOUND, Root, failure
from ansible_collections.moat.inference.plugins.module_utils.run import Runner

# seconds; without the persistence daemon each call starts every GPU first
SMI_LIMIT = 120


def distribution(root: Root) -> dict[str, str]:
    """Return id, version, codename and family of os-release(5); each is "" where it is not said."""
    text = root.text("/etc/os-release") or root.text("/usr/lib/os-release") or ""
    try:
        fields = preflight.parse_os_release(text)
    except ValueError as error:
        root.tell("/etc/os-release", str(error))
        fields = {}
    return {
        "id": fields.get("ID", ""),
        "version": fields.get("VERSION_ID", ""),
        "codename": fields.get("VERSION_CODENAME", ""),
        "family": preflight.os_family(fields),
    }


def machine(root: Root) -> str | None:
    """Return the machine's architecture as uname(1) has it."""
    result = root.run(["uname", "-m"])
    return result.stdout.strip() or None if result.rc == 0 else None


def smi(root: Root) -> gpu_smi.Report:
    """Return what nvidia-smi tells of the GPUs; an empty report where there is none."""
    result = root.run(["nvidia-smi", "-q", "-x"], limit=SMI_LIMIT)
    if result.rc == NOT_FOUND:
        return gpu_smi.Report()
    report = gpu_smi.parse(result.stdout)
    if result.rc != 0:
        # what it says of itself is worth more than that its text is no XML
        report.unread = [failure(result), *(report.unread if report.gpus else [])]
    for why in report.unread:
        root.tell("nvidia-smi", why)
    if any(gpu["mig"]["current"] for gpu in report.gpus):
        listed = root.run(["nvidia-smi", "-L"], limit=SMI_LIMIT)
        gpu_smi.add_migs(report.gpus, gpu_smi.parse_list(listed.stdout))
    if report.gpus:
        links = gpu_smi.parse_nvlinks(root.run(["nvidia-smi", "nvlink", "--status"], limit=SMI_LIMIT).stdout)
        for gpu in report.gpus:
            gpu["nvlinks"] = links.get(gpu["uuid"])
    return report


def driver(
    root: Root, loaded: dict[str, int], devices: list[dict[str, Any]], running: str | None, told: str | None
) -> dict[str, Any]:
    """Return the driver's userspace, loaded module, module on disk, whether they match, nouveau and a foreign driver.

    told is the version that nvidia-smi gives, which counts where no library bears one in its name.
    """
    library = gpu_kernel.driver_library(root)
    userspace = library[1] if library else told
    module = gpu_kernel.loaded_driver(root, loaded)
    known = bool(userspace and module and module["version"])
    return {
        "userspace": userspace,
        "module": module,
        "on_disk": gpu_kernel.driver_on_disk(root, running),
        "match": module["version"] == userspace if module and known else None,
        "nouveau": gpu_kernel.nouveau(root, loaded, devices),
        "foreign": gpu_kernel.foreign(root, library),
    }


def collect(root: Root, runner: Runner | None = None) -> dict[str, Any]:
    """Return what is known of the host; unknown is None. runner, when given, runs the programs in place of the root's own.

    Nothing is changed, and nothing is raised: what could not be read is in unread, with the reason.
    """
    if runner is not None:
        root = Root(root.path, runner)
    system = distribution(root)
    kernel = gpu_kernel.kernels(root)
    devices = gpu_pci.devices(root)
    loaded = gpu_kernel.loaded_modules(root)
    report = smi(root)
    architectures = {device["slot"]: device["architecture"] for device in devices}
    for gpu in report.gpus:
        gpu["architecture"] = gpu["architecture"] or architectures.get(gpu["slot"], "unknown")
    found = driver(root, loaded, devices, kernel["running"], report.driver)
    packages = gpu_packages.packages(root, system["family"])
    needed = gpu_pci.needs_fabric_manager(devices, report.gpus)
    return {
        "distribution": system,
        "machine": machine(root),
        "kernel": kernel,
        "devices": devices,
        "gpus": report.gpus,
        "driver": found,
        "dkms": gpu_kernel.dkms(root),
        "packages": packages,
        "secure_boot": gpu_boot.secure_boot(root),
        "fabric_manager": gpu_packages.fabric_manager(root, packages, needed),
        "xids": gpu_boot.xids(root),
        "users": gpu_boot.users(root, report.gpus),
        "modules_loaded": sorted(loaded),
        "disk_free_mib": gpu_boot.disk_free_mib(root),
        "reboot_required": gpu_boot.reboot_required(root, found),
        "unread": root.unread,
    }
