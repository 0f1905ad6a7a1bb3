"""Kernels, modules, DKMS, the driver's libraries and drivers of another source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_kernel
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_host import Host, captured, gpu_host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_releases_in_the_order_of_their_versions() -> None:
    releases = [
        "5.15.0-9-generic",
        "5.15.0-100-generic",
        "6.1~rc7-amd64",
        "6.1.0-9-amd64",
        "6.1.0-42-amd64",
        "6.1.0-42-cloud-amd64",
        "6.12.74+deb13+1-amd64",
    ]
    assert sorted(releases[3:] + releases[:3], key=gpu_kernel.version_key) == releases
    assert gpu_kernel.version_key("580.159.04") > gpu_kernel.version_key("580.95.05")


def test_kernels_with_and_without_headers(host: Host) -> None:
    host.link("lib", "usr/lib")
    host.file("proc/sys/kernel/osrelease", "6.1.0-9-amd64\n")
    host.kernel("6.1.0-9-amd64")
    host.kernel("6.1.0-42-amd64", headers=False)
    host.file("usr/lib/modules/6.1.0-30-amd64/modules.builtin")
    # only the headers of one, and what DKMS left of one that was purged
    host.directory("usr/lib/modules/6.1.0-41-amd64/build")
    host.directory("usr/lib/modules/6.1.0-43-amd64/updates/dkms")
    host.file("usr/lib/modules/README")
    assert gpu_kernel.kernels(host.root) == {
        "running": "6.1.0-9-amd64",
        "newest": "6.1.0-42-amd64",
        "installed": ["6.1.0-9-amd64", "6.1.0-30-amd64", "6.1.0-42-amd64"],
        "headers": ["6.1.0-9-amd64", "6.1.0-41-amd64"],
    }


def test_the_running_kernel_by_uname_and_none(host: Host) -> None:
    nothing = {"running": None, "newest": None, "installed": [], "headers": []}
    assert gpu_kernel.kernels(host.root) == nothing
    host.program("uname", "6.1.0-42-amd64\n")
    assert gpu_kernel.kernels(host.root) == {**nothing, "running": "6.1.0-42-amd64"}


def test_loaded_modules(host: Host) -> None:
    host.file("proc/modules", "nouveau 1 2 drm, Live 0x0\nnvidia 1 - - Live 0x0 (O)\nshort\n")
    assert gpu_kernel.loaded_modules(host.root) == {"nouveau": 2, "nvidia": 0}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"version": "proc-version-open.txt"}, ("580.159.04", "open")),
        ({"version": "proc-version-proprietary.txt"}, ("535.183.06", "proprietary")),
        ({"sysfs": "580.159.04\n", "taint": "O\n"}, ("580.159.04", "open")),
        ({"sysfs": "535.183.06\n", "taint": "POE\n"}, ("535.183.06", "proprietary")),
        ({}, (None, None)),
    ],
)
def test_the_driver_that_is_loaded(host: Host, files: dict[str, str], expected: tuple[Any, Any]) -> None:
    if "version" in files:
        host.file("proc/driver/nvidia/version", captured(files["version"]))
    if "sysfs" in files:
        host.file("sys/module/nvidia/version", files["sysfs"])
        host.file("sys/module/nvidia/taint", files["taint"])
    assert gpu_kernel.loaded_driver(host.root, ["nvidia_uvm"]) is None
    found = gpu_kernel.loaded_driver(host.root, ["nvidia"])
    assert found == {"loaded": True, "version": expected[0], "flavour": expected[1]}


def test_the_driver_on_disk(host: Host) -> None:
    host.program("modinfo", captured("modinfo-open.txt"), directory="usr/sbin")
    assert gpu_kernel.driver_on_disk(host.root, "6.8.0-49-generic") == {
        "version": "580.159.04",
        "flavour": "open",
        "path": "/lib/modules/6.8.0-49-generic/updates/dkms/nvidia.ko.zst",
    }
    assert host.commands.ran[-1][1:] == ["-k", "6.8.0-49-generic", "nvidia"]


def test_debians_renamed_module_is_found(host: Host) -> None:
    host.answers(
        "modinfo",
        {
            "*nvidia-current": (captured("modinfo-proprietary.txt"), 0, ""),
            "*": ("", 1, "modinfo: ERROR: Module nvidia not found.\n"),
        },
    )
    found = gpu_kernel.driver_on_disk(host.root, None)
    assert found is not None and (found["version"], found["flavour"]) == ("535.183.01", "proprietary")


def test_no_driver_on_disk(host: Host) -> None:
    root = host.root
    host.program("modinfo", rc=1, stderr="modinfo: ERROR: Module nvidia not found.\n")
    assert gpu_kernel.driver_on_disk(root, "6.1.0-42-amd64") is None and root.unread == []
    (host.path / "usr/bin/modinfo").unlink()
    assert gpu_kernel.driver_on_disk(root, "6.1.0-42-amd64") is None
    assert root.unread == [{"what": "the module on disk", "why": "modinfo is not there"}]


def test_the_library_bears_the_exact_version(host: Host) -> None:
    assert gpu_kernel.driver_library(host.root) is None
    host.file("usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.535.183.01")
    host.link("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "/etc/alternatives/libnvidia-ml")
    host.link("etc/alternatives/libnvidia-ml", "/usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.1")
    dangling = gpu_kernel.driver_library(host.root)
    host.link("usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.1", "libnvidia-ml.so.535.183.01")
    found = gpu_kernel.driver_library(host.root)
    assert dangling is None
    assert found == ("/usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.535.183.01", "535.183.01")


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        ({}, False),
        ({"etc/modprobe.d/nouveau.conf": "# blacklist nouveau\nblacklist nouveaux\n"}, False),
        ({"etc/modprobe.d/nouveau.conf": "options nouveau modeset=0\nblacklist  nouveau\n"}, True),
        ({"usr/lib/modprobe.d/nvidia.conf": "install nouveau /bin/false\n"}, True),
        ({"etc/modprobe.d/split.conf": "blacklist \\\n nouveau\n"}, True),
        ({"etc/modprobe.d/nouveau.bak": "blacklist nouveau\n"}, False),
        # a file of /etc replaces the one of the same name below /usr
        ({"usr/lib/modprobe.d/nvidia.conf": "blacklist nouveau\n", "etc/modprobe.d/nvidia.conf": "\n"}, False),
        ({"proc/cmdline": "quiet modprobe.blacklist=pcspkr,nouveau\n"}, True),
        ({"proc/cmdline": "quiet module_blacklist=pcspkr\n"}, False),
    ],
)
def test_whether_nouveau_is_kept_from_loading(host: Host, files: dict[str, str], kept: bool) -> None:
    for path, text in files.items():
        host.file(path, text)
    assert gpu_kernel.blacklisted(host.root, "nouveau") is kept


@pytest.mark.parametrize(
    ("loaded", "driver", "expected"),
    [
        ({}, "", (False, False)),
        ({"nouveau": 0}, "nvidia", (True, False)),
        ({"nouveau": 0}, "nouveau", (True, True)),
        ({"nouveau": 1}, "", (True, True)),
    ],
)
def test_whether_nouveau_is_in_use(
    host: Host, loaded: dict[str, int], driver: str, expected: tuple[bool, bool]
) -> None:
    found = gpu_kernel.nouveau(host.root, loaded, [{"driver": driver}])
    assert (found["loaded"], found["in_use"]) == expected


LIBRARY = ("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.159.04", "580.159.04")


@pytest.mark.parametrize(
    ("stdout", "rc", "stderr", "foreign"),
    [
        ("libnvidia-compute: " + LIBRARY[0], 0, "", False),
        ("libnvidia-compute: " + LIBRARY[0][4:], 1, f"dpkg-query: no path found matching pattern {LIBRARY[0]}", False),
        ("", 1, f"dpkg-query: no path found matching pattern {LIBRARY[0]}", True),
        ("", 2, "dpkg-query: error: database is locked", False),
    ],
)
def test_a_library_of_no_package_is_foreign(host: Host, stdout: str, rc: int, stderr: str, foreign: bool) -> None:
    host.program("dpkg-query", stdout, rc, stderr)
    expected = {"path": LIBRARY[0], "why": "no package has the driver's library"} if foreign else None
    assert gpu_kernel.foreign(host.root, LIBRARY) == expected
    assert gpu_kernel.foreign(host.root, None) is None


def test_the_installers_traces_are_foreign(host: Host) -> None:
    host.file("var/log/nvidia-installer.log", "stays after the driver has gone")
    assert gpu_kernel.foreign(host.root, None) is None
    host.file("usr/bin/nvidia-uninstall")
    found = gpu_kernel.foreign(host.root, None)
    assert found == {"path": "/usr/bin/nvidia-uninstall", "why": "the vendor's installer (.run) put it there"}


def entry(module: str, version: str, kernel: str | None, state: str) -> dict[str, str | None]:
    return {"module": module, "version": version, "kernel": kernel, "state": state}


def test_dkms_of_several_versions() -> None:
    assert gpu_kernel.parse_dkms(captured("dkms-2.txt")) == [
        entry("nvidia", "470.57.02", "5.4.0-80-generic", "installed"),
        entry("nvidia", "470.57.02", "5.4.0-77-generic", "installed"),
        entry("nvidia", "450.89", None, "added"),
    ]
    assert gpu_kernel.parse_dkms(captured("dkms-3.txt")) == [
        entry("nvidia-current", "535.183.01", "6.1.0-21-amd64", "installed"),
        entry("nvidia", "580.159.04", "6.8.0-31-generic", "built"),
        entry("nvidia", "580.159.04", "6.8.0-49-generic", "installed"),
        entry("nvidia", "570.86.16", None, "broken"),
        entry("nvidia", "550.90.07", None, "added"),
    ]


@pytest.mark.parametrize("name", ["dkms-2.txt", "dkms-3.txt", "modinfo-open.txt"])
def test_outputs_cut_anywhere_raise_nothing(name: str) -> None:
    text = captured(name)
    whole = gpu_kernel.parse_dkms(text)
    for end in range(len(text)):
        entries = gpu_kernel.parse_dkms(text[:end])
        # the last one may be cut itself
        assert entries[:-1] == whole[: max(len(entries) - 1, 0)]
        found = gpu_kernel.parse_modinfo(text[:end])
        assert found is None or found["version"]


def test_a_host_without_dkms_and_one_whose_dkms_fails(host: Host) -> None:
    root = host.root
    assert gpu_kernel.dkms(root) == [] and root.unread == []
    host.program("dkms", rc=6, stderr="Error! Could not locate dkms.conf file.\n")
    assert gpu_kernel.dkms(root) == []
    assert root.unread == [{"what": "dkms status", "why": "Error! Could not locate dkms.conf file."}]


def test_the_whole_host_is_as_it_was_made(tmp_path: Path) -> None:
    host = gpu_host(tmp_path)
    assert gpu_kernel.driver_library(host.root) == (LIBRARY[0], LIBRARY[1])
    assert gpu_kernel.dkms(host.root) == [entry("nvidia", "580.159.04", "6.8.0-49-generic", "installed")]
