"""The whole of what is told of a host: the same keys whatever is there, and nothing changed by asking."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_facts
from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root
from ansible_collections.moat.inference.plugins.module_utils.run import Runner
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_host import (
    Commands,
    Host,
    captured,
    gpu_host,
)

SHAPE: dict[str, Any] = {
    "distribution": {"id", "version", "codename", "family"},
    "machine": None,
    "kernel": {"running", "newest", "installed", "headers"},
    "devices": None,
    "gpus": None,
    "driver": {"userspace", "module", "on_disk", "match", "nouveau", "foreign"},
    "dkms": None,
    "packages": None,
    "secure_boot": {"enabled", "mok_enrolled", "mok_key"},
    "fabric_manager": {"needed", "installed", "active"},
    "xids": None,
    "users": None,
    "modules_loaded": None,
    "disk_free_mib": {"/", "/boot", "/usr", "/var"},
    "reboot_required": None,
    "unread": None,
}


def shape(host: dict[str, Any]) -> dict[str, Any]:
    return {key: set(value) if SHAPE.get(key) else None for key, value in host.items()}


def listing(path: Path) -> list[tuple[str, int, int]]:
    found = []
    for directory, _names, files in os.walk(path):
        for name in [".", *files]:
            status = os.lstat(os.path.join(directory, name))
            found.append((os.path.join(directory, name), status.st_size, status.st_mtime_ns))
    return sorted(found)


def test_a_host_as_it_should_be(tmp_path: Path) -> None:
    host = gpu_host(tmp_path)
    before = listing(tmp_path)
    found = gpu_facts.collect(host.root)
    assert listing(tmp_path) == before
    assert shape(found) == SHAPE
    assert found["unread"] == []
    gpus = found.pop("gpus")
    packages = found.pop("packages")
    assert [gpu["name"] for gpu in gpus] == ["NVIDIA H100 80GB HBM3"] and "nvidia-open" in packages
    assert found == {
        "distribution": {"id": "ubuntu", "version": "24.04", "codename": "noble", "family": "debian"},
        "machine": "x86_64",
        "kernel": {
            "running": "6.8.0-49-generic",
            "newest": "6.8.0-49-generic",
            "installed": ["6.8.0-31-generic", "6.8.0-49-generic"],
            "headers": ["6.8.0-49-generic"],
        },
        "devices": [
            {
                "slot": "0000:00:06.0",
                "vendor": "nvidia",
                "kind": "gpu",
                "vendor_id": "10de",
                "device_id": "2330",
                "subsystem": "10de:16c1",
                "class": "0302",
                "driver": "nvidia",
                "architecture": "hopper",
                "open_module": True,
            }
        ],
        "driver": {
            "userspace": "580.159.04",
            "module": {"loaded": True, "version": "580.159.04", "flavour": "open"},
            "on_disk": {
                "version": "580.159.04",
                "flavour": "open",
                "path": "/lib/modules/6.8.0-49-generic/updates/dkms/nvidia.ko.zst",
            },
            "match": True,
            "nouveau": {"loaded": False, "in_use": False, "blacklisted": False},
            "foreign": None,
        },
        "dkms": [{"module": "nvidia", "version": "580.159.04", "kernel": "6.8.0-49-generic", "state": "installed"}],
        "secure_boot": {"enabled": False, "mok_enrolled": False, "mok_key": "/var/lib/shim-signed/mok/MOK.der"},
        "fabric_manager": {"needed": False, "installed": "580.159.04", "active": False},
        "xids": [],
        "users": [],
        "modules_loaded": ["nvidia", "nvidia_uvm"],
        "disk_free_mib": {"/": 50000, "/boot": 512, "/usr": 50000, "/var": 50000},
        "reboot_required": False,
        "unread": [],
    }


def test_an_empty_host_has_all_keys_and_says_what_it_lacks(tmp_path: Path) -> None:
    found = gpu_facts.collect(Host(tmp_path).root)
    assert shape(found) == SHAPE
    assert found["distribution"] == {"id": "", "version": "", "codename": "", "family": ""}
    assert (found["devices"], found["gpus"], found["packages"], found["machine"]) == ([], [], {}, None)
    assert found["driver"]["userspace"] is None and found["driver"]["match"] is None
    assert sorted(entry["what"] for entry in found["unread"]) == [
        "/proc/modules",
        "/sys/bus/pci/devices",
        "Secure Boot",
        "Xid errors",
        "disk space",
        "packages",
        "the module on disk",
    ]


def test_this_machine_whoever_runs_this() -> None:
    found = gpu_facts.collect(Root("/", Runner(Commands())))
    assert shape(found) == SHAPE
    assert found["kernel"]["running"] == os.uname().release and found["machine"] == os.uname().machine
    json.dumps(found)


def test_a_runner_that_is_given_runs_the_programs(tmp_path: Path) -> None:
    host, other = gpu_host(tmp_path), Commands()
    gpu_facts.collect(host.root, Runner(other))
    assert host.commands.ran == [] and len(other.ran) > 5


def test_an_os_release_that_cannot_be_parsed(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.file("etc/os-release", 'ID="debian\n')
    root = host.root
    assert gpu_facts.distribution(root)["id"] == "" and root.unread[0]["what"] == "/etc/os-release"


def test_mig_instances_and_links(tmp_path: Path) -> None:
    host = gpu_host(tmp_path)
    uuid = "GPU-00000001-1111-2222-3333-000000000001"
    host.answers(
        "nvidia-smi",
        {
            "-q*": (captured("a100-mig-535.xml"), 0, ""),
            "-L": (captured("list-mig.txt"), 0, ""),
            "nvlink*": (captured("nvlink.txt"), 0, ""),
        },
    )
    gpu = gpu_facts.collect(host.root)["gpus"][0]
    assert (gpu["uuid"], gpu["nvlinks"]) == (uuid, 4)
    assert [item["profile"] for item in gpu["mig"]["instances"]] == ["1g.20gb"] * 4


def test_the_architecture_comes_from_the_bus_where_the_branch_does_not_tell_it(tmp_path: Path) -> None:
    host = gpu_host(tmp_path)
    host.answers("nvidia-smi", {"-q*": (captured("quadro-p400-418.xml"), 0, ""), "nvlink*": ("", 0, "")})
    assert gpu_facts.collect(host.root)["gpus"][0]["architecture"] == "unknown"
    host.device("0000:43:00.0", "10de", "1cb3", "030000", "nvidia")
    assert gpu_facts.collect(host.root)["gpus"][0]["architecture"] == "pascal"


@pytest.mark.parametrize(
    ("stdout", "rc", "why"),
    [
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
            "driver is installed and running.\n\n",
            9,
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
            "driver is installed and running.",
        ),
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.159\n",
            18,
            "Failed to initialize NVML: Driver/library version mismatch",
        ),
        ("No devices were found\n", 6, "No devices were found"),
    ],
)
def test_nvidia_smi_that_fails_says_why(tmp_path: Path, stdout: str, rc: int, why: str) -> None:
    host = gpu_host(tmp_path)
    host.program("nvidia-smi", stdout, rc)
    found = gpu_facts.collect(host.root)
    assert found["gpus"] == [] and found["unread"] == [{"what": "nvidia-smi", "why": why}]


def test_a_module_that_differs_from_the_libraries(tmp_path: Path) -> None:
    host = gpu_host(tmp_path)
    host.file("sys/module/nvidia/version", "580.126.20\n")
    found = gpu_facts.collect(host.root)
    assert found["driver"]["match"] is False and found["reboot_required"] is True


def test_without_a_library_nvidia_smi_tells_the_version(tmp_path: Path) -> None:
    host = gpu_host(tmp_path)
    (tmp_path / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1").unlink()
    assert gpu_facts.collect(host.root)["driver"]["userspace"] == "580.159.04"
    (tmp_path / "usr/bin/nvidia-smi").unlink()
    assert gpu_facts.collect(host.root)["driver"]["userspace"] is None


@pytest.mark.parametrize("keep", range(0, 100, 7))
def test_a_host_whose_programs_answer_in_part(tmp_path: Path, keep: int) -> None:
    host = gpu_host(tmp_path)
    for place in sorted(tmp_path.glob("usr/*bin/*")):
        text = place.read_text()
        begin = text.index("printf %s") if "printf %s" in text else 0
        place.write_text(f"#!/bin/sh\nhead -c {keep * 40} <<'END'\n{text[begin:]}\nEND\nexit {keep % 3}\n")
    found = gpu_facts.collect(host.root)
    assert shape(found) == SHAPE
    json.dumps(found)


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff\xfe\x00", b"-1", b"garbage\n" * 3])
def test_a_host_whose_files_hold_nonsense(tmp_path: Path, content: bytes) -> None:
    host = gpu_host(tmp_path)
    for top in ("etc", "proc", "sys", "run"):
        for place in (tmp_path / top).rglob("*"):
            if place.is_file() and not place.is_symlink():
                place.write_bytes(content)
    found = gpu_facts.collect(host.root)
    assert shape(found) == SHAPE
    json.dumps(found)
