"""Secure Boot and its keys, Xid errors, open devices, disk space and the need of a reboot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_boot
from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root
from ansible_collections.moat.inference.plugins.module_utils.run import Runner
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_host import Commands, Host, captured


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("value", "state", "enabled"),
    [
        (b"\x06\0\0\0\x01", "", True),
        (b"\x06\0\0\0\0", "", False),
        (b"\x06\0\0\0", "SecureBoot enabled\n", True),
        (None, "SecureBoot disabled\n", False),
        (None, "This system doesn't support Secure Boot\n", False),
        (None, "EFI variables are not supported on this system\n", None),
    ],
)
def test_secure_boot_of_a_host_with_uefi(host: Host, value: bytes | None, state: str, enabled: bool | None) -> None:
    host.directory("sys/firmware/efi/efivars")
    if value is not None:
        host.file(gpu_boot.SECURE_BOOT, value)
    host.program("mokutil", state)
    root = host.root
    assert gpu_boot.secure_boot(root) == {"enabled": enabled, "mok_enrolled": None, "mok_key": None}
    assert [entry["what"] for entry in root.unread] == (["Secure Boot"] if enabled is None else [])


def test_secure_boot_of_a_host_without_uefi_and_of_a_container(host: Host) -> None:
    host.directory("sys/firmware")
    hidden = host.root
    assert gpu_boot.secure_boot(hidden)["enabled"] is None
    assert hidden.unread == [{"what": "Secure Boot", "why": "/sys/firmware is not to be seen"}]
    host.directory("sys/firmware/acpi")
    bios = host.root
    assert gpu_boot.secure_boot(bios)["enabled"] is False and bios.unread == []


@pytest.mark.parametrize(
    ("text", "rc", "enrolled"),
    [
        ("/var/lib/dkms/mok.pub is not enrolled\n", 0, False),
        ("/var/lib/dkms/mok.pub is already enrolled\n", 1, True),
        ("/var/lib/dkms/mok.pub is already in the enrollment request\n", 1, False),
        ("EFI variables are not supported on this system\n", 255, None),
    ],
)
def test_whether_the_key_is_enrolled(host: Host, text: str, rc: int, enrolled: bool | None) -> None:
    host.directory("sys/firmware/acpi")
    host.file("var/lib/dkms/mok.pub", b"certificate")
    host.program("mokutil", text, rc)
    root = host.root
    found = gpu_boot.secure_boot(root)
    assert found == {"enabled": False, "mok_enrolled": enrolled, "mok_key": "/var/lib/dkms/mok.pub"}
    assert root.unread == ([] if enrolled is not None else [{"what": "the machine owner keys", "why": text.strip()}])
    assert host.commands.ran[-1][1:] == ["--test-key", "/var/lib/dkms/mok.pub"]


def test_which_key_dkms_signs_with(host: Host) -> None:
    assert gpu_boot.mok_key(host.root) is None
    host.file("var/lib/dkms/mok.pub")
    assert gpu_boot.mok_key(host.root) == "/var/lib/dkms/mok.pub"
    host.file("var/lib/shim-signed/mok/MOK.der")
    assert gpu_boot.mok_key(host.root) == "/var/lib/shim-signed/mok/MOK.der"
    host.file("etc/dkms/framework.conf", "# mok_certificate=/no\nmok_certificate=/etc/dkms/none.der\n")
    assert gpu_boot.mok_key(host.root) == "/var/lib/shim-signed/mok/MOK.der"
    host.file("etc/dkms/framework.conf.d/site.conf", 'mok_certificate="/etc/dkms/site.der"\n')
    host.file("etc/dkms/site.der")
    assert gpu_boot.mok_key(host.root) == "/etc/dkms/site.der"


XIDS = [
    {
        "slot": "0000:01:00.0",
        "xid": 32,
        "count": 2,
        "first": 1399.140323,
        "last": 1399.140655,
        "text": "Channel ID 00000009 intr 00800000",
    },
    {
        "slot": "0000:3b:00.0",
        "xid": 79,
        "count": 1,
        "first": 2410.001,
        "last": 2410.001,
        "text": "pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    },
    {
        "slot": "0000:3b:00.0",
        "xid": 154,
        "count": 1,
        "first": 2410.002,
        "last": 2410.002,
        "text": "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
    },
]


def test_errors_of_the_kernels_log(host: Host) -> None:
    host.program("dmesg", captured("dmesg-xid.txt"))
    root = host.root
    assert gpu_boot.xids(root) == XIDS and root.unread == []
    host.program("dmesg", captured("dmesg-h100.txt"))
    assert gpu_boot.xids(root) == [] and root.unread == []


def test_a_log_that_lost_its_beginning_is_completed_by_the_journal(host: Host) -> None:
    host.program("dmesg", captured("dmesg-xid.txt").split("\n", 1)[1])
    host.program("journalctl", captured("journal-xid.txt"))
    root = host.root
    assert [(item["xid"], item["text"]) for item in gpu_boot.xids(root)] == [
        (79, "pid=4711, name=python3, GPU has fallen off the bus.")
    ]
    assert root.unread == []


@pytest.mark.parametrize(
    ("dmesg", "journal", "count", "why"),
    [
        (
            ("", 1, "dmesg: read kernel buffer failed: Operation not permitted\n"),
            ("", 1, "No journal files were opened due to insufficient permissions.\n"),
            0,
            "the kernel's log: dmesg: read kernel buffer failed: Operation not permitted; "
            "the journal: No journal files were opened due to insufficient permissions.",
        ),
        (
            ("[ 99.0] NVRM: Xid (PCI:0000:01:00): 13, Graphics Exception\n", 0, ""),
            ("", 0, ""),
            1,
            "the kernel's log: it has lost its beginning; the journal: it is empty",
        ),
        (("", 0, ""), None, 0, "the kernel's log: it is empty; the journal: there is no journalctl"),
    ],
)
def test_logs_that_cannot_be_read_are_told(host: Host, dmesg: Any, journal: Any, count: int, why: str) -> None:
    host.program("dmesg", *dmesg)
    if journal:
        host.program("journalctl", *journal)
    root = host.root
    assert len(gpu_boot.xids(root)) == count
    assert root.unread == [{"what": "Xid errors", "why": why}]


def test_an_error_without_time_or_text() -> None:
    assert gpu_boot.parse_xids("NVRM: Xid (PCI:0000:01:00): 31\nNVRM: Xid (PCI:garbage): 31, x\n") == [
        {"slot": "0000:01:00.0", "xid": 31, "count": 1, "first": None, "last": None, "text": ""}
    ]


def test_logs_cut_anywhere_raise_nothing() -> None:
    text = captured("dmesg-xid.txt")
    for end in range(len(text)):
        assert len(gpu_boot.parse_xids(text[:end])) <= 4


def test_processes_that_have_a_device_open(host: Host) -> None:
    for pid, name, target in (
        (10, "python3", "/dev/nvidia0"),
        (11, "nvidia-persiste", "/dev/nvidiactl"),
        (12, "nv-fabricmanage", "/dev/nvidia-caps/nvidia-cap1"),
        (13, "bash", "/dev/null"),
        (14, "editor", "/home/a/dev/nvidia0"),
    ):
        host.file(f"proc/{pid}/comm", name + "\n")
        host.link(f"proc/{pid}/fd/3", target)
    host.directory("proc/self/fd")
    gpus = [
        {
            "processes": [
                {"pid": 10, "name": "/usr/bin/python3"},
                {"pid": 99, "name": "/opt/vllm"},
                {"pid": None, "name": None},
            ]
        }
    ]
    root = host.root
    assert gpu_boot.users(root, gpus) == [
        {"pid": 10, "name": "python3"},
        {"pid": 11, "name": "nvidia-persiste"},
        {"pid": 12, "name": "nv-fabricmanage"},
        {"pid": 99, "name": "vllm"},
    ]
    assert root.unread == []


def test_processes_of_others_are_counted_not_looked_at(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.file("proc/10/comm", "python3\n")
    host.link("proc/10/fd/3", "/dev/nvidia0")
    host.directory("proc/11")
    assert gpu_boot.users(host.root, []) == [{"pid": 10, "name": "python3"}]
    listdir = os.listdir

    def refuse(path: str) -> list[str]:
        if str(path).endswith("/fd"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    root = host.root
    assert gpu_boot.users(root, []) == []
    assert root.unread == [
        {"what": "open devices", "why": "2 processes of other users cannot be looked at without root"}
    ]


def test_this_very_process(tmp_path: Path) -> None:
    node = tmp_path / "nvidia0"
    node.write_text("")
    root = Root("/", Runner(Commands()))
    with node.open():
        # the file is no device, so its path does not match
        assert os.getpid() not in [user["pid"] for user in gpu_boot.users(root, [])]
        assert gpu_boot._opened(root, str(os.getpid())) == (False, True)


def test_disk_space_by_mount_point(host: Host) -> None:
    host.program(
        "df",
        "Filesystem 1024-blocks Used Available Capacity Mounted on\n"
        "/dev/vda1 4096000 1024000 3072000 25% /\n/dev/vda2 102400 51200 51200 50% /boot\n/dev/vda3 1 1 0 100% /var\n",
    )
    for place in ("boot", "usr"):
        host.directory(place)
    assert gpu_boot.disk_free_mib(host.root) == {"/": 3000, "/boot": 50, "/usr": 3000, "/var": None}
    assert host.commands.ran[-1][1:] == ["-P", "-k", "--", "/", "/boot", "/usr"]


def test_disk_space_of_this_machine_and_of_none(host: Host) -> None:
    free = gpu_boot.disk_free_mib(Root("/", Runner(Commands())))
    assert all(isinstance(free[place], int) for place in ("/", "/usr", "/var"))
    root = host.root
    assert set(gpu_boot.disk_free_mib(root).values()) == {None}
    assert root.unread == [{"what": "disk space", "why": "df is not there"}]


@pytest.mark.parametrize(
    ("module", "on_disk", "nouveau", "asked", "needed"),
    [
        (None, None, (False, True), "", False),
        ("580.159.04", "580.159.04", (False, True), "", False),
        ("580.159.04", "580.126.20", (False, True), "", True),
        ("580.159.04", None, (False, False), "", False),
        (None, "580.159.04", (True, True), "", True),
        (None, None, (True, False), "", False),
        ("580.159.04", "580.159.04", (False, True), "linux-image-6.1.0-42-amd64\n", False),
        ("580.159.04", "580.159.04", (False, True), "nvidia-kernel-open-dkms\n", True),
    ],
)
def test_when_a_reboot_is_needed(
    host: Host, module: str | None, on_disk: str | None, nouveau: tuple[bool, bool], asked: str, needed: bool
) -> None:
    host.file("run/reboot-required.pkgs", asked)
    driver = {
        "module": {"version": module} if module else None,
        "on_disk": {"version": on_disk} if on_disk else None,
        "nouveau": {"loaded": nouveau[0], "blacklisted": nouveau[1]},
    }
    assert gpu_boot.reboot_required(host.root, driver) is needed
