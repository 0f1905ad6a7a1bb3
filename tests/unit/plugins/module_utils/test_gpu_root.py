"""Files and programs below a root: links stay inside, and nothing of the machine's own is asked."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_root
from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root, failure
from ansible_collections.moat.inference.plugins.module_utils.run import Result, Runner
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_host import Commands, Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "outside").write_text("outside")
    (tmp_path / "root").mkdir()
    return Host(tmp_path / "root")


def test_links_are_followed_inside_the_root(host: Host) -> None:
    host.file("usr/lib/os-release", "inside")
    host.link("etc/os-release", "../usr/lib/os-release")
    host.link("lib", "/usr/lib")
    host.link("etc/absolute", "/lib/os-release")
    host.link("etc/escaping", "../../../../../usr/lib/os-release")
    for path in ("/etc/os-release", "/lib/os-release", "/etc/absolute", "/etc/escaping", "/etc/./../lib//os-release"):
        assert (path, host.root.text(path)) == (path, "inside")
    assert host.root.real("/etc/absolute") == "/usr/lib/os-release"
    assert host.root.link("/etc/absolute") == "/lib/os-release" and host.root.link("/usr/lib/os-release") is None


def test_a_link_to_the_machine_finds_nothing(host: Host) -> None:
    host.link("etc/machine", str(host.path.parent / "outside"))
    host.link("etc/parent", "../../outside")
    root = host.root
    assert (host.path / "etc/parent").resolve().read_text() == "outside"
    for path in ("/etc/machine", "/etc/parent", "/../outside"):
        assert (path, root.text(path), root.exists(path)) == (path, None, False)
    assert root.unread == []


def test_a_loop_of_links_ends(host: Host) -> None:
    host.link("a", "b")
    host.link("b", "a")
    root = host.root
    assert root.text("/a") is None and root.names("/a/c") == [] and root.link("/a") == "b"


def test_what_is_absent_is_no_complaint_and_what_cannot_be_read_is(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.file("etc/secret", "x")
    root = host.root
    assert root.text("/etc/none") is None and root.text("/etc/secret/below") is None and root.names("/none") == []
    assert root.unread == []

    def refuse(*_arguments: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    for _again in range(2):
        assert root.text("/etc/secret") is None and root.names("/etc") == []
    assert root.unread == [
        {"what": "/etc/secret", "why": "Permission denied"},
        {"what": "/etc", "why": "Permission denied"},
    ]


def test_only_regular_files_are_read(host: Host) -> None:
    os.mkfifo(host.file("etc/x").with_name("pipe"))
    root = host.root
    assert root.text("/etc/pipe") is None and root.content("/etc") is None
    assert [entry["what"] for entry in root.unread] == ["/etc/pipe", "/etc"]


def test_text_of_any_bytes(host: Host) -> None:
    host.file("a", b"\xff\xfe name \0\n")
    host.file("large", b"x" * 200_000)
    assert host.root.text("/a") == "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} name"
    assert len(host.root.content("/large") or b"") == 200_000
    assert host.root.content("/a") == b"\xff\xfe name \0\n"


def test_a_program_is_the_roots_own(host: Host) -> None:
    host.program("modinfo", "found by $0", directory="usr/sbin")
    host.link("sbin", "usr/sbin")
    result = host.root.run(["modinfo", "nvidia"])
    assert (result.rc, result.stdout) == (0, "found by $0")
    assert host.commands.ran == [[str(host.path / "usr/sbin/modinfo"), "nvidia"]]


def test_a_programs_last_link_is_not_resolved(host: Host) -> None:
    host.file("usr/bin/kmod", '#!/bin/sh\nbasename "$0"\n').chmod(0o755)
    host.link("usr/sbin/modinfo", "../bin/kmod")
    assert host.root.run(["modinfo"]).stdout == "modinfo\n"


def test_the_machines_programs_are_never_asked(host: Host) -> None:
    assert Root("/", Runner(Commands())).run(["true"]).rc == 0
    host.link("usr/bin/true", "/bin/true")
    host.link("usr/bin/false", os.path.relpath("/bin/sh", host.path / "usr/bin"))
    host.directory("usr/bin/sh")
    host.file("usr/bin/ls", "#!/bin/sh\n")
    for name in ("true", "false", "sh", "ls", "uname"):
        assert (name, host.root.run([name]).rc) == (name, 127)
    assert host.commands.ran == []


def test_a_program_on_this_machine_is_absent_or_there() -> None:
    commands = Commands()
    root = Root("/", Runner(commands))
    assert root.run(["moat-no-such-program"]).rc == 127 and commands.ran == []
    assert root.run(["sh", "-c", "exit 3"]).rc == 3


def test_a_program_that_hangs_is_ended() -> None:
    result = Root("/", Runner(Commands())).run(["sleep", "30"], limit=1)
    assert result.rc == 124 and failure(result) == "sleep did not answer in time"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Result(("a",), 1, "out", "\n error \nmore"), "error"),
        (Result(("a",), 9, "out\n", ""), "out"),
        (Result(("a",), 9, "", ""), "status 9"),
        (Result(("/usr/bin/nvidia-smi",), 137, "", ""), "nvidia-smi did not answer in time"),
    ],
)
def test_failure_in_one_line(result: Result, text: str) -> None:
    assert failure(result) == text


def test_names_on_this_machine() -> None:
    root = Root("/", Runner(Commands()))
    assert "self" in root.names("/proc") and root.is_dir("/proc") and root.exists("/proc/self/status")
    # a sysctl file, which wants as much room in the kernel as is asked for
    assert root.text("/proc/sys/kernel/ostype") == "Linux" and gpu_root.CHUNK < gpu_root.LARGEST
