# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What gpu_info and gpu_driver know of a host: one dict whose keys are always there."""

from __future__ import annotations

from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import preflight
from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root
from ansible_collections.moat.inference.plugins.module_utils.run import Runner


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


def collect(root: Root, runner: Runner | None = None) -> dict[str, Any]:
    """Return what is known of the host; unknown is None. runner, when given, runs the programs in place of the root's own."""
    if runner is not None:
        root = Root(root.path, runner)
    return {
        "distribution": distribution(root),
        "machine": machine(root),
        "kernel": {"running": None, "newest": None, "installed": [], "headers": []},
        "devices": [],
        "gpus": [],
        "driver": {
            "userspace": None,
            "module": None,
            "on_disk": None,
            "match": None,
            "nouveau": {"loaded": False, "in_use": False, "blacklisted": False},
            "foreign": None,
        },
        "dkms": [],
        "packages": {},
        "secure_boot": {"enabled": None, "mok_enrolled": None, "mok_key": None},
        "fabric_manager": {"needed": False, "installed": None, "active": None},
        "xids": [],
        "users": [],
        "modules_loaded": [],
        "disk_free_mib": {"/": None, "/boot": None, "/usr": None, "/var": None},
        "reboot_required": None,
        "unread": root.unread,
    }
