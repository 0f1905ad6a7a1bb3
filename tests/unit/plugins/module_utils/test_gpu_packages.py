"""Packages of the driver and the kernel, their holds, and Fabric Manager."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_packages
from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root
from ansible_collections.moat.inference.plugins.module_utils.run import Runner
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_host import Commands, Host, captured


def package(version: str, held: bool = False, state: str = "installed") -> dict[str, Any]:
    return {"version": version, "held": held, "state": state}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_packages_holds_and_states(host: Host) -> None:
    host.program("dpkg-query", captured("dpkg.txt"), 1, "dpkg-query: no packages found matching nvlsm\n")
    root = host.root
    assert gpu_packages.packages(root, "debian") == {
        "dkms": package("3.0.10-8+deb12u1"),
        "linux-headers-6.1.0-42-amd64": package("6.1.158-1"),
        "linux-image-amd64": package("6.1.158-1"),
        "linux-modules-nvidia-580-server-open-6.8.0-49-generic": package("6.8.0-49.49"),
        "nvidia-driver-libs": package("580.159.04-1", held=True),
        "nvidia-driver-libs:i386": package("580.159.04-1"),
        "nvidia-fabricmanager": package("580.159.04-1", held=True),
        "nvidia-kernel-open-dkms": package("580.159.04-1", held=True, state="half-configured"),
        "nvidia-open": package("580.159.04-1", held=True),
    }
    assert root.unread == []


def test_lines_cut_anywhere_raise_nothing() -> None:
    text = captured("dpkg.txt")
    for end in range(len(text)):
        assert all(set(item) == {"version", "held", "state"} for item in gpu_packages.parse_dpkg(text[:end]).values())


@pytest.mark.parametrize(
    ("family", "rc", "stderr", "why"),
    [
        ("redhat", 0, "", "only dpkg is read, and this host is of the family redhat"),
        ("", 0, "", "only dpkg is read, and this host is of the family unknown"),
        ("debian", 2, "dpkg-query: error: database is broken\n", "dpkg-query: error: database is broken"),
    ],
)
def test_packages_that_are_not_read_are_told(host: Host, family: str, rc: int, stderr: str, why: str) -> None:
    host.program("dpkg-query", captured("dpkg.txt"), rc, stderr)
    root = host.root
    assert gpu_packages.packages(root, family) == {}
    assert root.unread == [{"what": "packages", "why": why}]


def test_this_machines_dpkg_knows_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_packages, "PATTERNS", ("dpkg",))
    monkeypatch.setattr(gpu_packages, "RELEVANT", re.compile("dpkg"))
    root = Root("/", Runner(Commands()))
    found = gpu_packages.packages(root, "debian")
    if shutil.which("dpkg-query"):
        assert list(found) == ["dpkg"] and found["dpkg"]["state"] == "installed" and found["dpkg"]["version"]
    else:
        assert found == {} and root.unread == [{"what": "packages", "why": "dpkg-query is not there"}]


@pytest.mark.parametrize(
    ("version", "upstream"),
    [("580.159.04-1", "580.159.04"), ("1:580.159.04-0ubuntu1", "580.159.04"), ("580.159.04", "580.159.04")],
)
def test_the_vendors_part_of_a_version(version: str, upstream: str) -> None:
    assert gpu_packages.upstream(version) == upstream


@pytest.mark.parametrize("name", ["nvidia-fabricmanager", "nvidia-fabricmanager-580", "cuda-drivers-fabricmanager-535"])
def test_fabric_manager_of_a_package(host: Host, name: str) -> None:
    host.program("systemctl", "active\n")
    found = gpu_packages.fabric_manager(host.root, {"nvidia-open": package("1-1"), name: package("580.159.04-1")}, True)
    assert found == {"needed": True, "installed": "580.159.04", "active": True}


def test_fabric_manager_of_no_package(host: Host) -> None:
    host.program("nv-fabricmanager", "Fabric Manager version is : 535.104.05\n")
    host.program("systemctl", "inactive\n", rc=3)
    found = gpu_packages.fabric_manager(host.root, {"nvidia-fabricmanager-dev": package("1-1")}, False)
    assert found == {"needed": False, "installed": "535.104.05", "active": False}


def test_fabric_manager_that_is_not_there(host: Host) -> None:
    root = host.root
    absent = {"needed": False, "installed": None, "active": None}
    assert gpu_packages.fabric_manager(root, {}, False) == absent and root.unread == []
    assert gpu_packages.fabric_manager(root, {}, True) == {**absent, "needed": True}
    assert root.unread == [{"what": "nvidia-fabricmanager.service", "why": "systemctl is not there"}]
