"""Devices on the PCI bus: which are told, with which architecture, and who needs Fabric Manager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_pci
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_host import Host


@pytest.mark.parametrize(
    ("device_id", "architecture", "open_module"),
    [
        ("20b2", "ampere", True),  # A100-SXM4-80GB
        ("20f1", "ampere", True),  # A100-PCIE-40GB
        ("1eb8", "turing", True),  # T4
        ("2184", "turing", True),  # GTX 1660 Ti
        ("25b6", "ampere", True),  # A2, A16
        ("2235", "ampere", True),  # A40
        ("2237", "ampere", True),  # A10G
        ("26b9", "ada", True),  # L40S
        ("27b8", "ada", True),  # L4
        ("2330", "hopper", True),  # H100 SXM5
        ("2335", "hopper", True),  # H200 SXM
        ("2342", "hopper", True),  # GH200
        ("2901", "blackwell", True),  # B200
        ("2941", "blackwell", True),  # GB200
        ("2bb5", "blackwell", True),  # RTX PRO 6000 Blackwell Server Edition
        ("3182", "blackwell", True),  # B300
        ("1db1", "volta", False),  # V100-SXM2
        ("1df6", "volta", False),  # V100S
        ("1bb3", "pascal", False),  # P4
        ("15f8", "pascal", False),  # P100
        ("17fd", "maxwell", False),  # M40
        ("13f2", "maxwell", False),  # M60
        ("102d", "kepler", False),  # K80
        ("1180", "kepler", False),  # GTX 680
        ("1140", "legacy", False),  # GF117
        ("0a20", "legacy", False),  # GT216
        ("3fff", "unknown", None),
    ],
)
def test_architecture_of_a_device_id(device_id: str, architecture: str, open_module: bool | None) -> None:
    assert gpu_pci.architecture(device_id) == architecture
    assert gpu_pci.open_module(architecture) is open_module


def test_ranges_do_not_overlap() -> None:
    ranges = sorted(gpu_pci.ARCHITECTURES)
    assert all(first <= last for first, last, _name in ranges)
    assert all(one[1] < next_one[0] for one, next_one in zip(ranges, ranges[1:]))


@pytest.mark.parametrize(
    ("vendor", "device", "device_class", "slot", "kind"),
    [
        ("10de", "2330", "0302", "0000:18:00.0", "gpu"),
        ("10de", "2bb5", "0300", "0000:18:00.0", "gpu"),
        ("10de", "22bb", "0403", "0000:18:00.1", None),
        ("10de", "1af1", "0680", "0000:c1:00.0", "nvswitch"),
        ("10de", "22a3", "0680", "0000:07:00.0", "nvswitch"),
        ("10de", "0752", "0680", "0000:00:01.0", None),
        ("1002", "740c", "0380", "0000:c1:00.0", "gpu"),
        ("1002", "74a1", "1200", "0000:c1:00.0", "gpu"),
        ("1002", "1637", "0403", "0000:c1:00.1", None),
        ("8086", "0bd5", "0380", "0000:c1:00.0", "gpu"),
        ("8086", "56a0", "0300", "0000:03:00.0", "gpu"),
        ("8086", "4680", "0300", "0000:00:02.0", None),
        ("8086", "591d", "0380", "0000:00:02.0", None),
        ("8086", "7d1d", "1200", "0000:00:0b.0", None),
        ("1a03", "2000", "0300", "0000:04:00.0", None),
    ],
)
def test_what_is_of_interest(vendor: str, device: str, device_class: str, slot: str, kind: str | None) -> None:
    assert gpu_pci.kind(vendor, device, device_class, slot) == kind


def test_devices_of_a_host(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.device("0000:07:00.0", "10de", "22a3", "068000", "nvidia-nvswitch", "10de:1796")
    host.device("0000:06:00.0", "10de", "2330", "030200", "nouveau")
    host.device("0000:05:00.0", "1002", "740c", "038000", subsystem="1002:0b0c")
    host.device("0000:04:00.0", "1a03", "2000", "030000", "ast")
    root = host.root
    assert gpu_pci.devices(root) == [
        {
            "slot": "0000:05:00.0",
            "vendor": "amd",
            "kind": "gpu",
            "vendor_id": "1002",
            "device_id": "740c",
            "subsystem": "1002:0b0c",
            "class": "0380",
            "driver": "",
            "architecture": "unknown",
            "open_module": None,
        },
        {
            "slot": "0000:06:00.0",
            "vendor": "nvidia",
            "kind": "gpu",
            "vendor_id": "10de",
            "device_id": "2330",
            "subsystem": "10de:16c1",
            "class": "0302",
            "driver": "nouveau",
            "architecture": "hopper",
            "open_module": True,
        },
        {
            "slot": "0000:07:00.0",
            "vendor": "nvidia",
            "kind": "nvswitch",
            "vendor_id": "10de",
            "device_id": "22a3",
            "subsystem": "10de:1796",
            "class": "0680",
            "driver": "nvidia-nvswitch",
            "architecture": "unknown",
            "open_module": None,
        },
    ]
    assert root.unread == []


def test_a_device_that_makes_no_sense_is_left_out_and_told(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.device("0000:05:00.0", "10de", "2330", "030200")
    host.device("0000:06:00.0", "10de", "2330", "030200")
    host.file("sys/devices/pci0000:00/0000:06:00.0/device", "garbage")
    root = host.root
    assert [device["slot"] for device in gpu_pci.devices(root)] == ["0000:05:00.0"]
    assert root.unread == [
        {"what": "/sys/bus/pci/devices/0000:06:00.0/device", "why": "not a hexadecimal number: 'garbage'"}
    ]


def test_a_host_without_a_bus_says_so(tmp_path: Path) -> None:
    root = Host(tmp_path).root
    assert gpu_pci.devices(root) == [] and [entry["what"] for entry in root.unread] == [gpu_pci.DEVICES]


def device(device_id: str, kind: str = "gpu") -> dict[str, Any]:
    return {"kind": kind, "vendor_id": "10de", "device_id": device_id}


def gpu(name: str, state: str | None) -> dict[str, Any]:
    return {"name": name, "fabric": {"state": state, "status": None} if state else None}


@pytest.mark.parametrize(
    ("devices", "gpus", "needed"),
    [
        ([], [], False),
        ([device("2330")], [], False),
        ([device("2330"), device("22a3", "nvswitch")], [], True),
        ([device("2330")], [gpu("NVIDIA H100 80GB HBM3", None)], False),
        ([device("2901")], [gpu("NVIDIA B200", "In Progress")], True),
        ([device("2901")], [gpu("NVIDIA B200", "Not Supported")], False),
        ([device("2901"), device("2901")], [], True),
        ([device("2901")], [], False),
        ([device("2901"), device("2901")], [gpu("NVIDIA B200", None)], False),
        ([device("2342")], [gpu("NVIDIA GH200 480GB", "Completed")], False),
        ([device("2941")], [gpu("NVIDIA GB200", "Completed")], False),
    ],
)
def test_who_needs_fabric_manager(devices: list[dict[str, Any]], gpus: list[dict[str, Any]], needed: bool) -> None:
    assert gpu_pci.needs_fabric_manager(devices, gpus) is needed
