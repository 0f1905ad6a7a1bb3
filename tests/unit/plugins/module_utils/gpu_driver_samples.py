"""A sound host as gpu_facts.collect tells it, and the options of gpu_driver: what its tests begin with."""

from __future__ import annotations

import copy
from typing import Any

VERSION = "580.178.04"
RUNNING, NEWEST = "6.1.0-42-amd64", "6.1.0-44-amd64"
GPU = {
    "slot": "0000:3b:00.0",
    "vendor": "nvidia",
    "kind": "gpu",
    "vendor_id": "10de",
    "device_id": "2330",
    "subsystem": "10de:16c1",
    "class": "0302",
    "driver": "",
    "architecture": "hopper",
    "open_module": True,
}
HOST: dict[str, Any] = {
    "distribution": {"id": "debian", "version": "12", "codename": "bookworm", "family": "debian"},
    "machine": "x86_64",
    "kernel": {
        "running": RUNNING,
        "newest": NEWEST,
        "installed": [RUNNING, NEWEST],
        "headers": [RUNNING, NEWEST],
    },
    "devices": [GPU],
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
    "secure_boot": {"enabled": False, "mok_enrolled": None, "mok_key": None},
    "fabric_manager": {"needed": False, "installed": None, "active": None},
    "xids": [],
    "users": [],
    "modules_loaded": [],
    "disk_free_mib": {"/": 90000, "/boot": 90000, "/usr": 90000, "/var": 90000},
    "reboot_required": False,
    "unread": [],
}
REPOSITORY = {"url": "", "suite": "/", "components": [], "key": "", "fingerprint": ""}
SOURCE = {**REPOSITORY, "kind": "vendor", "file": "", "sha256": "", "names": "vendor"}
OPTIONS: dict[str, Any] = {
    "version": VERSION,
    "kernel_module": "open",
    "source": SOURCE,
    "packages": [],
    "required": False,
    "fabric_manager": "auto",
    "toolkit": {"enabled": True, "version": "1.20.1", "source": REPOSITORY},
    "nouveau": "refuse",
    "busy": "refuse",
    "persistence": True,
    "settings": [],
    "phase": "apply",
    "root": "/",
}
NAMES = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "nvidia-persistenced")


def changed(sample: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy in which what the dotted path leads to is another value."""
    result = copy.deepcopy(sample)
    *way, last = path.split(".")
    place = result
    for part in way:
        place = place[part]
    place[last] = value
    return result


def host(**values: Any) -> dict[str, Any]:
    """The sound host with other values; two underscores stand for a dot."""
    result = HOST
    for path, value in values.items():
        result = changed(result, path.replace("__", "."), value)
    return copy.deepcopy(result)


def options(**values: Any) -> dict[str, Any]:
    """The options with other values; two underscores stand for a dot."""
    result = OPTIONS
    for path, value in values.items():
        result = changed(result, path.replace("__", "."), value)
    return copy.deepcopy(result)


def package(version: str, held: bool = True, state: str = "installed") -> dict[str, Any]:
    return {"version": version, "held": held, "state": state}


def converged(**values: Any) -> dict[str, Any]:
    """A host that has all that the options ask for."""
    packages = {name: package(f"{VERSION}-1") for name in NAMES}
    packages["nvidia-container-toolkit-base"] = package("1.20.1-1")
    built = [
        {"module": "nvidia", "version": VERSION, "kernel": kernel, "state": "installed"} for kernel in (RUNNING, NEWEST)
    ]
    module = {"loaded": True, "version": VERSION, "flavour": "open"}
    return host(packages=packages, dkms=built, driver__module=module, driver__userspace=VERSION, **values)
