"""Every reason to stop, each with the host that differs from a sound one in that alone; the sound one has none."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_faults as faults
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_driver_samples import (
    GPU,
    NEWEST,
    RUNNING,
    VERSION,
    converged,
    host,
    options,
)

NVSWITCH = {**GPU, "slot": "0000:c5:00.0", "kind": "nvswitch", "class": "0680", "open_module": None}
PASSED = {**GPU, "driver": "vfio-pci"}
AMD = {**GPU, "vendor": "amd", "vendor_id": "1002", "open_module": None}
INTEL = {**GPU, "vendor": "intel", "vendor_id": "8086", "open_module": None}
PASCAL = {**GPU, "architecture": "pascal", "open_module": False}
VLLM = {"pid": 4321, "name": "vllm"}


def keys(found: list[dict[str, str]]) -> list[str]:
    return [item["key"] for item in found]


def test_a_sound_host_has_no_fault() -> None:
    assert faults.find(host(), options(), True) == []
    assert faults.find(converged(), options(), False) == []


STOPS: dict[str, tuple[dict[str, Any], dict[str, Any], str, tuple[str, ...]]] = {
    "no device": ({"devices": []}, {"required": True}, "device", ("no NVIDIA GPU", "set required to false")),
    "passed through": ({"devices": [PASSED]}, {"required": True}, "device", ("vfio-pci", "give one back")),
    "AMD": ({"devices": [AMD]}, {}, "device", ("AMD GPU 0000:3b:00.0", "take the host out")),
    "Intel": ({"devices": [INTEL]}, {}, "device", ("Intel GPU 0000:3b:00.0", "take the host out")),
    "old GPU": ({"devices": [PASCAL]}, {}, "architecture", ("older than Turing", "to proprietary")),
    "new GPU": (
        {"devices": [{**GPU, "architecture": "blackwell"}]},
        {"kernel_module": "proprietary"},
        "architecture",
        ("not known to the proprietary module", "to open"),
    ),
    "EL 9": (
        {"distribution": {"id": "rhel", "version": "9.4", "codename": "", "family": "redhat"}},
        {},
        "distribution",
        ("rhel 9.4, whose packages come by dnf, is not supported", "use Debian 12 or 13"),
    ),
    "Debian 11": (
        {"distribution__version": "11", "distribution__codename": "bullseye"},
        {},
        "distribution",
        ("debian 11 is not supported", "Ubuntu 22.04 or 24.04"),
    ),
    "no os-release": (
        {"distribution": {"id": "", "version": "", "codename": "", "family": ""}},
        {},
        "distribution",
        ("a distribution without a name is not supported",),
    ),
    "machine": ({"machine": "aarch64"}, {}, "distribution", ("aarch64", "x86_64")),
    "kernel not known": ({"kernel__running": None}, {}, "kernel", ("not known", "uname -r")),
    "old kernel": (
        {"kernel__running": "5.10.0-30-amd64", "kernel__headers": ["5.10.0-30-amd64", NEWEST]},
        {},
        "kernel",
        ("5.10.0-30-amd64 is older", "6.1 or newer"),
    ),
    "kernel without modules": (
        {"kernel__installed": [NEWEST]},
        {},
        "kernel",
        (f"{RUNNING} has no modules", "a package of the distribution"),
    ),
    "nouveau": (
        {"driver__nouveau": {"loaded": True, "in_use": True, "blacklisted": False}},
        {},
        "nouveau",
        ("nouveau drives a GPU", "set nouveau to replace"),
    ),
    "nouveau until the reboot": (
        {"driver__nouveau": {"loaded": True, "in_use": True, "blacklisted": True}},
        {},
        "nouveau",
        ("though it is blacklisted", "reboot"),
    ),
    "key not enrolled": (
        {"secure_boot": {"enabled": True, "mok_enrolled": False, "mok_key": "/var/lib/dkms/mok.pub"}},
        {},
        "secure_boot",
        ("is not enrolled", "mokutil --import /var/lib/dkms/mok.pub"),
    ),
    "key not known": (
        {"secure_boot": {"enabled": True, "mok_enrolled": None, "mok_key": "/var/lib/dkms/mok.pub"}},
        {},
        "secure_boot",
        ("may not be enrolled", "mokutil --import"),
    ),
    "no key": (
        {"secure_boot": {"enabled": True, "mok_enrolled": None, "mok_key": None}},
        {},
        "secure_boot",
        ("there is no key", "dkms generate_mok"),
    ),
    "headers of the running kernel": (
        {"kernel__headers": [NEWEST]},
        {},
        "headers",
        (f"running kernel {RUNNING}", f"apt-get install linux-headers-{RUNNING}"),
    ),
    "headers of the newest kernel": (
        {"kernel__headers": [RUNNING]},
        {},
        "headers",
        (f"newest kernel {NEWEST}", f"apt-get install linux-headers-{NEWEST}"),
    ),
    "busy": ({"users": [VLLM]}, {}, "busy", ("vllm (4321)", "stop them")),
    "Fabric Manager": (
        {"devices": [GPU, NVSWITCH], "fabric_manager__needed": True},
        {"fabric_manager": "never"},
        "fabric_manager",
        ("behind NVSwitch", "set fabric_manager to auto"),
    ),
    "room": (
        {"disk_free_mib": {"/": 500, "/boot": 500, "/usr": 90000, "/var": 500}},
        {},
        "disk",
        ("/var has 500 MiB free of the 3072", "make room"),
    ),
    ".run file": (
        {"driver__foreign": {"path": "/usr/bin/nvidia-uninstall", "why": "the vendor's installer put it there"}},
        {},
        "foreign",
        ("/usr/bin/nvidia-uninstall", "run nvidia-uninstall"),
    ),
}


@pytest.mark.parametrize("name", STOPS)
def test_each_stop_is_told_with_its_remedy_and_alone(name: str) -> None:
    seen, asked, key, words = STOPS[name]
    found = faults.find(host(**seen), options(**asked), True)
    assert keys(found) == [key]
    told = faults.sentences(found)
    assert told.startswith(f"[{key}] ") and [word for word in words if word not in told] == []


def test_all_stops_are_told_at_once_and_in_order() -> None:
    seen = host(
        devices=[PASCAL, NVSWITCH],
        machine="aarch64",
        kernel={"running": "5.4.0", "newest": NEWEST, "installed": [NEWEST], "headers": []},
        driver__nouveau={"loaded": True, "in_use": True, "blacklisted": False},
        driver__foreign={"path": "/x", "why": "y"},
        secure_boot={"enabled": True, "mok_enrolled": False, "mok_key": "/k"},
        users=[VLLM],
        fabric_manager__needed=True,
        disk_free_mib={"/": 1, "/boot": 1, "/usr": 1, "/var": 1},
    )
    found = faults.find(seen, options(fabric_manager="never"), True)
    assert list(dict.fromkeys(keys(found))) == [
        *("architecture", "distribution", "kernel", "nouveau", "secure_boot"),
        *("headers", "busy", "fabric_manager", "disk", "foreign"),
    ]
    assert len([item for item in found if item["key"] == "headers"]) == 2
    assert len([item for item in found if item["key"] == "disk"]) == 3


def test_without_a_gpu_that_is_not_required_nothing_else_is_looked_at() -> None:
    bare = host(devices=[], users=[VLLM], machine="aarch64")
    assert faults.find(bare, options(), True) == []
    assert keys(faults.find(bare, options(required=True), True)) == ["device"]
    assert faults.find(host(devices=[PASSED]), options(), True) == []


def test_another_vendors_gpu_beside_one_of_nvidias_is_no_fault() -> None:
    beside = host(devices=[GPU, AMD])
    assert faults.find(beside, options(), True) == []
    assert faults.others(beside) == ["AMD GPU 0000:3b:00.0"]


@pytest.mark.parametrize(
    ("seen", "asked"),
    [
        ({"devices": [PASCAL]}, {"kernel_module": "proprietary"}),
        ({"devices": [{**GPU, "architecture": "unknown", "open_module": None}]}, {}),
        ({"driver__nouveau": {"loaded": True, "in_use": True, "blacklisted": False}}, {"nouveau": "replace"}),
        ({"driver__nouveau": {"loaded": True, "in_use": False, "blacklisted": False}}, {}),
        ({"secure_boot": {"enabled": True, "mok_enrolled": True, "mok_key": "/k"}}, {}),
        ({"secure_boot": {"enabled": None, "mok_enrolled": None, "mok_key": None}}, {}),
        ({"users": [VLLM]}, {"busy": "ignore"}),
        ({"users": [{"pid": 7, "name": "nvidia-persiste"}, {"pid": 8, "name": "nv-fabricmanage"}]}, {}),
        ({"devices": [GPU, NVSWITCH], "fabric_manager__needed": True}, {}),
        ({"disk_free_mib": {"/": None, "/boot": None, "/usr": None, "/var": None}}, {}),
        ({"distribution": {"id": "ubuntu", "version": "22.04", "codename": "jammy", "family": "debian"}}, {}),
    ],
)
def test_what_allows_it_is_the_control_of_each_stop(seen: dict[str, Any], asked: dict[str, Any]) -> None:
    assert faults.find(host(**seen), options(**asked), True) == []


def test_a_running_model_and_a_full_disk_are_no_fault_where_nothing_has_to_change() -> None:
    seen = converged(users=[VLLM], disk_free_mib={"/": 1, "/boot": 1, "/usr": 1, "/var": 1})
    assert faults.find(seen, options(), False) == []
    assert keys(faults.find(seen, options(), True)) == ["busy", "disk", "disk", "disk"]


def test_headers_are_not_asked_for_where_the_module_is_built_already() -> None:
    assert faults.find(converged(kernel__headers=[]), options(), False) == []
    older = converged(kernel__headers=[])
    for entry in older["dkms"]:
        entry["version"] = "580.1.1"
    assert keys(faults.find(older, options(), False)) == ["headers", "headers"]


def test_one_kernel_without_headers_is_named_once() -> None:
    one = host(kernel={"running": RUNNING, "newest": RUNNING, "installed": [RUNNING], "headers": []})
    assert len(faults.find(one, options(), True)) == 1


def test_the_local_repository_needs_more_room() -> None:
    room = {"/": 9000, "/boot": 9000, "/usr": 9000, "/var": 4000}
    local = options(source__kind="local", source__file="/x.deb", source__sha256="0" * 64)
    assert keys(faults.find(host(disk_free_mib=room), local, True)) == ["disk"]
    assert faults.find(host(disk_free_mib=room), options(), True) == []


def test_many_users_are_counted() -> None:
    many = [{"pid": number, "name": "python3"} for number in range(1, 9)]
    (found,) = faults.find(host(users=many), options(), True)
    assert found["fault"].count("python3") == 5 and "and 3 more" in found["fault"]


def test_the_version_is_that_of_the_samples() -> None:
    assert faults.built(converged(), VERSION) == {RUNNING, NEWEST}
