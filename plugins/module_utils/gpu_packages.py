# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The packages of a host that have to do with its GPU driver or its kernel."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.gpu_root import NOT_FOUND, Root, failure

# for dpkg-query, which knows shell patterns, and RELEVANT then
PATTERNS = (
    "*nvidia*",
    "cuda-drivers*",
    "cuda-keyring",
    "cuda-compat*",
    "libcuda*",
    "libnvcuvid1",
    "libnvoptix1",
    "libnvsdm*",
    "nvlsm",
    "nvlink*",
    "datacenter-gpu-manager*",
    "dkms",
    "linux-image*",
    "linux-headers*",
)
RELEVANT = re.compile(
    r"(?:nvidia|libnvidia|cuda-drivers|cuda-keyring|cuda-compat|libcuda1|libcudadebugger1|libnvcuvid1|libnvoptix1|libnvsdm"
    r"|nvlsm|nvlink|firmware-nvidia|datacenter-gpu-manager|xserver-xorg-video-nvidia|linux-(?:modules|objects|signatures)-nvidia"
    r"|linux-(?:image|headers)).*|dkms"
)
FIELDS = "${Package}\\t${Version}\\t${Architecture}\\t${db:Status-Want}\\t${db:Status-Status}\\n"
# architectures whose packages stand beside the host's own
FOREIGN = ("i386", "armhf", "armel")
ABSENT = ("not-installed", "config-files")
FABRIC_MANAGER = re.compile(r"(?:nvidia-|cuda-drivers-)fabricmanager(?:-[0-9]+)?")
FABRIC_MANAGER_VERSION = re.compile(r"version is\s*:\s*([0-9.]+[0-9])")


def packages(root: Root, family: str) -> dict[str, dict[str, Any]]:
    """Return name -> version, held and state of dpkg(1), for what is on the host at all; none and a note for other families."""
    if family != "debian":
        root.tell("packages", f"only dpkg is read, and this host is of the family {family or 'unknown'}")
        return {}
    result = root.run(["dpkg-query", "-W", "-f", FIELDS, *PATTERNS])
    if result.rc == NOT_FOUND or result.rc not in (0, 1):
        root.tell("packages", failure(result))
        return {}
    return parse_dpkg(result.stdout)


def parse_dpkg(text: str) -> dict[str, dict[str, Any]]:
    """Return the packages of dpkg-query(1)'s lines in the form FIELDS; one of another architecture is named name:architecture."""
    found = {}
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) != 5:
            continue
        name, version, architecture, want, state = (field.strip() for field in fields)
        if state in ABSENT or not version or not RELEVANT.fullmatch(name):
            continue
        key = f"{name}:{architecture}" if architecture in FOREIGN else name
        found[key] = {"version": version, "held": want == "hold", "state": state}
    return dict(sorted(found.items()))


def upstream(version: str) -> str:
    """Return the vendor's part of a package's version: 580.159.04 of 580.159.04-1 or 1:580.159.04-0ubuntu1."""
    return version.partition(":")[2].partition("-")[0] if ":" in version else version.partition("-")[0]


def fabric_manager(root: Root, found: dict[str, dict[str, Any]], needed: bool) -> dict[str, Any]:
    """Return whether Fabric Manager is needed, the version that is installed, and whether its service runs (systemctl(1))."""
    installed = next(
        (upstream(item["version"]) for name, item in found.items() if FABRIC_MANAGER.fullmatch(name)), None
    )
    if installed is None:
        result = root.run(["nv-fabricmanager", "--version"], limit=30)
        version = FABRIC_MANAGER_VERSION.search(result.stdout)
        installed = version.group(1) if version else None
    active = None
    if installed is not None or needed:
        result = root.run(["systemctl", "is-active", "nvidia-fabricmanager.service"])
        state = result.stdout.strip()
        if state in ("active", "activating", "reloading", "inactive", "failed", "deactivating", "unknown"):
            active = state == "active"
        else:
            root.tell("nvidia-fabricmanager.service", failure(result))
    return {"needed": needed, "installed": installed, "active": active}
