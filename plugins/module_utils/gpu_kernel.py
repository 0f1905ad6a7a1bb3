# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Kernels, kernel modules, DKMS and the driver's libraries of a host."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.gpu_root import NOT_FOUND, Root, failure

MODULES = "/lib/modules"
# the first directory that has a file of a name decides, modprobe.d(5)
MODPROBE = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)
# Debian renames the file so that several branches can be there at once; its alias nvidia is known to modprobe alone
MODULE_NAMES = ("nvidia", "nvidia-current", "nvidia-current-open")
LIBRARY_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/lib",
)
LIBRARY = re.compile(r"(?:libnvidia-ml|libcuda)\.so\.([0-9]+\.[0-9]+(?:\.[0-9]+)*)")
# what the vendor's installer leaves and no package has; its log stays after the driver has gone and says nothing
RUN_FILE_TRACES = ("/usr/bin/nvidia-uninstall", "/usr/bin/nvidia-installer")
VERSION = re.compile(r"\b([0-9]{2,4}\.[0-9]{1,4}(?:\.[0-9]{1,3})?)\b")
COUNT = re.compile("[0-9]{1,9}")
TOKEN = re.compile(r"[0-9]{1,18}|[A-Za-z]+|~")
# 2.x: `nvidia, 470.57.02, 5.4.0-80-generic, x86_64: installed`; 3.x: `nvidia/535.183.01, 6.1.0-21-amd64, x86_64: installed`
DKMS = re.compile(r"([A-Za-z0-9_.+-]+)(?:/|,\s*)([^,:\s]+)(?:,\s*([^,\s]+),\s*([^,:\s]+))?:\s*([a-z]+)\b.*")
DKMS_STATES = ("added", "built", "installed", "broken")


def version_key(text: str) -> list[tuple[int, int, str]]:
    """Return a key that orders kernel releases and driver versions; as for dpkg, ~ sorts before the end."""
    keys = []
    for token in TOKEN.findall(text):
        if token == "~":
            keys.append((-1, 0, ""))
        elif token[0].isdigit():
            keys.append((2, int(token), ""))
        else:
            keys.append((1, 0, token))
    return [*keys, (0, 0, "")]


def kernels(root: Root) -> dict[str, Any]:
    """Return the running kernel, the newest one installed, all installed and those whose headers are there."""
    running = root.text("/proc/sys/kernel/osrelease")
    if not running:
        result = root.run(["uname", "-r"])
        running = result.stdout.strip() if result.rc == 0 else ""
    names = [name for name in root.names(MODULES) if root.is_dir(os.path.join(MODULES, name))]
    installed = [
        name for name in names if any(root.exists(f"{MODULES}/{name}/{part}") for part in ("kernel", "modules.builtin"))
    ]
    installed.sort(key=version_key)
    headers = sorted((name for name in names if root.exists(f"{MODULES}/{name}/build")), key=version_key)
    return {
        "running": running or None,
        "newest": installed[-1] if installed else None,
        "installed": installed,
        "headers": headers,
    }


def loaded_modules(root: Root) -> dict[str, int]:
    """Return each loaded kernel module and how many use it, of /proc/modules; a count that is not kept is 0."""
    text = root.text("/proc/modules")
    if text is None:
        root.tell("/proc/modules", "it is not there: a kernel without modules, or no procfs")
    found = {}
    for line in (text or "").splitlines():
        fields = line.split()
        if len(fields) >= 3:
            found[fields[0]] = int(fields[2]) if COUNT.fullmatch(fields[2]) else 0
    return found


def loaded_driver(root: Root, loaded: Iterable[str]) -> dict[str, Any] | None:
    """Return version and flavour of the nvidia module that is loaded, or None.

    Source: /proc/driver/nvidia/version, as chapter "Open Linux Kernel Modules" of the driver's README tells them apart.
    """
    if "nvidia" not in loaded:
        return None
    text = root.text("/proc/driver/nvidia/version")
    version = root.text("/sys/module/nvidia/version") or None
    first = (text or "").partition("\n")[0]
    if version is None and (found := VERSION.search(first)):
        version = found.group(1)
    flavour = None
    if first:
        flavour = "open" if "Open Kernel Module" in first else "proprietary"
    elif (taint := root.text("/sys/module/nvidia/taint")) is not None:
        flavour = "proprietary" if "P" in taint else "open"
    return {"loaded": True, "version": version, "flavour": flavour}


def driver_on_disk(root: Root, running: str | None) -> dict[str, str] | None:
    """Return version, flavour and path of the nvidia module that the running kernel would load, by modinfo(8); None without one."""
    for name in MODULE_NAMES:
        result = root.run(["modinfo", *(["-k", running] if running else []), name])
        if result.rc == NOT_FOUND:
            root.tell("the module on disk", failure(result))
            return None
        if result.rc == 0 and (found := parse_modinfo(result.stdout)):
            return found
    return None


def parse_modinfo(text: str) -> dict[str, str] | None:
    """Return version, flavour and path of what modinfo(8) tells of a module, or None when it tells no version."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            fields.setdefault(name.strip(), value.strip())
    if not fields.get("version"):
        return None
    flavour = "open" if "GPL" in fields.get("license", "") else "proprietary"
    return {"version": fields["version"], "flavour": flavour, "path": fields.get("filename", "")}


def driver_library(root: Root) -> tuple[str, str] | None:
    """Return path and version of the driver's library, whose file name bears the exact version, or None."""
    for directory in LIBRARY_DIRECTORIES:
        for soname in ("libnvidia-ml.so.1", "libcuda.so.1"):
            path = root.real(os.path.join(directory, soname))
            if (found := LIBRARY.fullmatch(os.path.basename(path))) and root.exists(path):
                return path, found.group(1)
    return None


def nouveau(root: Root, loaded: dict[str, int], devices: list[dict[str, Any]]) -> dict[str, bool]:
    """Return whether nouveau is loaded, drives a device or is used by another module, and is kept from loading at boot."""
    return {
        "loaded": "nouveau" in loaded,
        "in_use": any(device["driver"] == "nouveau" for device in devices) or loaded.get("nouveau", 0) > 0,
        "blacklisted": blacklisted(root, "nouveau"),
    }


def blacklisted(root: Root, module: str) -> bool:
    """Whether modprobe.d(5) or the kernel's command line keeps a module from loading by itself."""
    texts: dict[str, str] = {}
    for directory in MODPROBE:
        for name in root.names(directory):
            if name.endswith(".conf") and name not in texts:
                texts[name] = root.text(os.path.join(directory, name)) or ""
    for text in texts.values():
        for line in text.replace("\\\n", " ").splitlines():
            fields = line.split()
            if fields[:2] == ["blacklist", module]:
                return True
            if (
                fields[:2] == ["install", module]
                and fields[2:3]
                and os.path.basename(fields[2]) in ("false", "true", ":")
            ):
                return True
    for argument in (root.text("/proc/cmdline") or "").split():
        name, _sign, value = argument.partition("=")
        if name in ("module_blacklist", "modprobe.blacklist", "rd.driver.blacklist") and module in value.split(","):
            return True
    return False


def foreign(root: Root, found: tuple[str, str] | None) -> dict[str, str] | None:
    """Return path and reason where a driver came from the vendor's installer or is no package's, or None.

    found is the driver's library; whose it is is asked of dpkg-query(1), so elsewhere only the installer's traces count.
    """
    for path in RUN_FILE_TRACES:
        if root.exists(path):
            return {"path": path, "why": "the vendor's installer (.run) put it there"}
    if found is None:
        return None
    # a file may be recorded below /lib where /lib is a link into /usr
    places = [found[0], *([found[0][4:]] if found[0].startswith("/usr/lib") else [])]
    result = root.run(["dpkg-query", "-S", *places])
    if result.rc == 1 and not result.stdout.strip() and "no path found matching" in result.stderr:
        return {"path": found[0], "why": "no package has the driver's library"}
    return None


def dkms(root: Root) -> list[dict[str, str | None]]:
    """Return what dkms(8) tells of the nvidia modules: module, version, kernel (None before it was built) and state."""
    result = root.run(["dkms", "status"], limit=60)
    if result.rc == NOT_FOUND:
        return []
    found = parse_dkms(result.stdout + "\n" + result.stderr)
    if result.rc != 0 and not found:
        root.tell("dkms status", failure(result))
    return found


def parse_dkms(text: str) -> list[dict[str, str | None]]:
    """Return the nvidia modules of `dkms status` of DKMS 2 and 3.

    A note such as `(WARNING! Diff between built and installed module!)` changes nothing: DKMS gives it for compressed modules too.
    """
    found: list[dict[str, str | None]] = []
    for line in text.splitlines():
        match = DKMS.fullmatch(line.strip())
        if match is None or not match.group(1).startswith("nvidia"):
            continue
        module, version, kernel, _machine, state = match.groups()
        if state not in DKMS_STATES:
            continue
        entry = {"module": module, "version": version, "kernel": kernel, "state": state}
        if entry not in found:
            found.append(entry)
    return found
