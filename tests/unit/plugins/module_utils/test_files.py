"""Reading and replacing files, on real files."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest
from ansible_collections.moat.inference.plugins.module_utils import files

OWNER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name


def test_write_then_read(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    for state in (
        files.FileState("file", b"a\xff", 0o640, OWNER, GROUP),
        files.FileState("file", b"", 0o400, OWNER, GROUP),
    ):
        files.write(path, state)
        assert files.read_state(path) == state
        assert os.listdir(tmp_path) == ["x"]


def test_numbers_stand_for_owners_without_a_name(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    files.write(path, files.FileState("file", b"a", 0o600, str(os.getuid()), str(os.getgid())))
    assert files.read_state(path).owner == OWNER


def test_an_unknown_owner_leaves_no_candidate(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        files.stage(str(tmp_path / "x"), files.FileState("file", b"a", 0o600, "nobody-of-this-name", GROUP))
    assert os.listdir(tmp_path) == []


def test_a_planted_candidate_is_not_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", str(tmp_path / "x")
    victim.write_text("keep")
    Path(files.candidate_path(path)).symlink_to(victim)
    files.write(path, files.FileState("file", b"new", 0o600, OWNER, GROUP))
    assert victim.read_text() == "keep" and Path(path).read_text() == "new"


def test_attributes_follow_no_link(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("keep")
    victim.chmod(0o644)
    link.symlink_to(victim)
    with pytest.raises(OSError):
        files.set_attributes(str(link), files.FileState("file", None, 0o600, OWNER, GROUP))
    assert victim.stat().st_mode & 0o7777 == 0o644


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    kinds = {name: files.read_state(str(tmp_path / name)).kind for name in ("link", "file", "fifo", "none", "file/x")}
    assert kinds == {"link": "link", "file": "file", "fifo": "other", "none": "absent", "file/x": "absent"}
    assert files.read_state(str(tmp_path)).kind == "directory"
    assert files.read_state(str(tmp_path / "link")).content == b"nowhere"


def test_a_diff_names_what_is_not_there() -> None:
    state = files.FileState("file", b"text\n", 0o600, "root", "root")
    entry = files.diff_entry("/x", files.ABSENT, state)
    assert entry["before_header"] == "/x (absent)" and entry["before"] == ""
    assert entry["after"] == "# file 0600 root:root\ntext\n"
    assert "text" not in str(files.diff_entry("/x", files.ABSENT, state, sensitive=True))
