# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os

import pytest
from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result
from ansible_collections.moat.inference.plugins.module_utils.steps import Steps


class Recorder:
    """Stands for Runner: keeps what was run, and fails where it is told to."""

    def __init__(self, fail=""):
        self.commands = []
        self.fail = fail

    def run(self, argv, **_options):
        self.commands.append(" ".join(argv))
        if self.fail and self.fail in self.commands[-1]:
            raise CommandError(Result(tuple(argv), 1, "", "it says no"))


def plan(tmp_path):
    """A directory made, a file replaced, one made and one removed."""
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "gone").write_bytes(b"gone")

    def change(name, after):
        path = str(tmp_path / name)
        return deploy.Change(path, files.read_state(path), after)

    folder = deploy.Change(str(tmp_path / "d"), files.ABSENT, files.FileState("directory", None, 0o750))
    changes = [
        change("old", files.FileState("file", b"new", 0o600)),
        change("d/made", files.FileState("file", b"made", 0o600)),
        change("gone", files.ABSENT),
    ]
    return deploy.Plan(directories=[folder], files=changes, daemon_reload=True)


def look(tmp_path):
    return {
        str(path.relative_to(tmp_path)): path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")
    }


def test_paths_are_made_replaced_and_removed_and_all_of_it_can_be_undone(tmp_path):
    wanted = plan(tmp_path)
    before = look(tmp_path)
    runner = Recorder()
    steps = Steps(runner)
    steps.paths(wanted)
    assert look(tmp_path) == {"d": None, "d/made": b"made", "old": b"new"}
    assert os.stat(tmp_path / "d").st_mode & 0o777 == 0o750
    assert runner.commands == ["systemctl daemon-reload"]
    assert steps.undo() == []
    assert look(tmp_path) == before
    assert runner.commands == ["systemctl daemon-reload"] * 2


def test_units_are_undone_by_the_opposite_verbs_and_the_failed_one_too():
    runner = Recorder(fail="systemctl start")
    steps = Steps(runner)
    with pytest.raises(CommandError):
        steps.unit("x.service", ("enable", "start"))
    assert steps.undo() == []
    assert runner.commands[2:] == ["systemctl stop -- x.service", "systemctl disable -- x.service"]


def test_what_cannot_be_put_back_is_named_and_the_rest_is(tmp_path):
    wanted = plan(tmp_path)
    steps = Steps(Recorder())
    steps.paths(wanted)
    os.unlink(tmp_path / "d" / "made")
    (fault,) = [text for text in steps.undo() if "made" in text]
    assert "No such file" in fault
    assert look(tmp_path) == {"old": b"old", "gone": b"gone"}
