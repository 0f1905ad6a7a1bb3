# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from ansible_collections.moat.inference.plugins.module_utils import deploy, files, pending
from ansible_collections.moat.inference.plugins.module_utils.pending import Pending, Refused, Staged, Terms
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result

OLD, NEW = "10.90.0.1 50000 10.90.0.131 22", "10.90.0.1 50001 10.90.0.131 22"
TERMS = Terms("abc", 45, OLD)


class Host:
    """Stands for Runner: systemd is recorded, everything else runs."""

    def __init__(self, fail=""):
        self.calls = []
        self.fail = fail

    def run(self, argv, stdin=None, ok=(0,), env=None, cwd=None):
        self.calls.append(list(argv))
        if self.fail and self.fail in " ".join(argv):
            result = Result(tuple(argv), 1, "", "it says no")
        elif argv[0] in ("systemctl", "systemd-run"):
            result = Result(tuple(argv), 0, "", "")
        else:
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            result = Result(tuple(argv), done.returncode, done.stdout, done.stderr)
        if result.rc not in ok:
            raise CommandError(result)
        return result


def armed(tmp_path, host=None, commands=(), terms=TERMS):
    """A change of a file and a unit that waits, with a live state that a command puts back."""
    (tmp_path / "live").write_text("new")
    target = str(tmp_path / "boot")
    plan = deploy.Plan(
        files=[deploy.Change(target, files.read_state(target), files.FileState("file", b"new", 0o640))],
        units=[deploy.UnitPlan("x.service", ("enable", "start"))],
    )
    change = Pending(host or Host(), "firewall", str(tmp_path / "run"))
    change.prepare({"before": "old\n"})
    undo = [["sh", "-c", f"cat before > {tmp_path}/live"]]
    change.arm(undo, Staged(plan, [list(argv) for argv in commands], {"rules": []}), terms)
    return change


def test_the_way_back_is_a_timer_of_pid_1_and_nobody_else_reads_it(tmp_path):
    host = Host()
    change = armed(tmp_path, host)
    (timer,) = [call for call in host.calls if call[0] == "systemd-run"]
    assert {"--on-active=45s", "--timer-property=AccuracySec=100ms", "--unit=moat-undo-firewall"} <= set(timer)
    assert timer[-2:] == ["/bin/sh", change.path("undo")]
    assert os.stat(change.directory).st_mode & 0o777 == 0o700
    assert all(os.stat(entry.path).st_mode & 0o077 == 0 for entry in os.scandir(change.directory))
    assert change.waits and change.outcome("abc") == "waiting"
    assert not (tmp_path / "boot").exists()


def test_a_way_back_that_cannot_be_armed_is_an_error(tmp_path):
    with pytest.raises(CommandError):
        armed(tmp_path, Host(fail="systemd-run"))


def test_another_connection_keeps_the_change(tmp_path):
    host = Host()
    change = armed(tmp_path, host, [["touch", str(tmp_path / "ran")]])
    staged = change.confirm("abc", NEW)
    assert staged.policy == {"rules": []}
    assert (tmp_path / "boot").read_text() == "new" and os.stat(tmp_path / "boot").st_mode & 0o777 == 0o640
    assert (tmp_path / "ran").exists() and (tmp_path / "live").read_text() == "new"
    assert ["systemctl", "stop", "--", "moat-undo-firewall.timer"] in host.calls
    assert host.calls[-3:-1] == [["systemctl", "enable", "--", "x.service"], ["systemctl", "start", "--", "x.service"]]
    # a confirmation that is killed here is finished by the next run
    assert change.owed() == {"rules": []} and not change.waits and "claimed.json" not in os.listdir(change.directory)
    change.settle()
    assert not os.path.exists(change.directory) and change.owed() is None


def test_the_connection_of_the_change_proves_nothing(tmp_path):
    change = armed(tmp_path)
    with pytest.raises(Refused) as caught:
        change.confirm("abc", OLD)
    assert caught.value.retry and change.waits and not (tmp_path / "boot").exists()


def test_without_ssh_there_is_nobody_to_lock_out(tmp_path):
    armed(tmp_path, terms=Terms("abc", 45, "")).confirm("abc", "")
    assert (tmp_path / "boot").read_text() == "new"


def test_another_token_confirms_nothing(tmp_path):
    change = armed(tmp_path)
    with pytest.raises(Refused, match="no such change"):
        change.confirm("abd", NEW)
    assert change.waits and change.outcome("abd") == "unknown"


def test_the_script_puts_the_state_back_and_leaves_no_secret(tmp_path):
    change = armed(tmp_path)
    subprocess.run(["/bin/sh", change.path("undo")], check=True, capture_output=True)
    assert (tmp_path / "live").read_text() == "old\n" and not (tmp_path / "boot").exists()
    assert change.outcome("abc") == "undone"
    assert sorted(os.listdir(change.directory)) == ["outcome", "token", "undo"]
    with pytest.raises(Refused, match="undone") as caught:
        change.confirm("abc", NEW)
    assert not caught.value.retry


def test_a_confirmed_change_is_not_taken_back_by_a_timer_that_comes_late(tmp_path):
    change = armed(tmp_path)
    script = tmp_path / "script"
    shutil.copy(change.path("undo"), script)
    os.rename(change.path("change.json"), change.path("claimed.json"))
    subprocess.run(["/bin/sh", str(script)], check=True)
    assert (tmp_path / "live").read_text() == "new"


def test_every_command_of_the_way_back_runs_and_a_failure_is_told(tmp_path):
    host = Host()
    change = Pending(host, "firewall", str(tmp_path / "run"))
    change.prepare({})
    change.arm([["false"], ["touch", f"{tmp_path}/a file"]], Staged(), TERMS)
    assert change.undo() != []
    assert (tmp_path / "a file").exists() and change.outcome("abc") == "failed"


def test_a_killed_run_is_taken_back_by_the_next_one(tmp_path):
    assert "taken back" in armed(tmp_path).recover()
    assert (tmp_path / "live").read_text() == "old\n"
    assert Pending(Host(), "firewall", str(tmp_path / "run")).recover() == ""
    assert Pending(Host(), "other", str(tmp_path / "run")).recover() == ""


@pytest.mark.parametrize("before", [b"first", None])
@pytest.mark.parametrize("fail", ["systemctl enable", "systemctl start", "touch"])
def test_what_cannot_be_made_to_last_is_taken_back(tmp_path, before, fail):
    if before is not None:
        (tmp_path / "boot").write_bytes(before)
    change = armed(tmp_path, Host(fail=fail), [["touch", "x"]])
    with pytest.raises(OSError, match="it says no"):
        change.confirm("abc", NEW)
    path = tmp_path / "boot"
    assert (path.read_bytes() if path.exists() else None) == before
    assert (tmp_path / "live").read_text() == "old\n" and change.outcome("abc") == "undone"


def test_a_disk_that_is_full_takes_the_change_back(tmp_path, monkeypatch):
    change = armed(tmp_path)

    def full(path, state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(OSError, match="No space left"):
        change.confirm("abc", NEW)
    assert (tmp_path / "live").read_text() == "old\n" and not (tmp_path / "boot").exists()


def test_what_is_staged_comes_back_from_its_file(tmp_path):
    binary = files.FileState("file", bytes(range(256)), 0o600, "root", "root")
    plan = deploy.Plan(
        directories=[deploy.Change("/d", files.ABSENT, files.FileState("directory", None, 0o700, "root", "root"))],
        files=[deploy.Change("/f", binary, files.ABSENT)],
        daemon_reload=True,
        units=[deploy.UnitPlan("x.service", ("enable",))],
    )
    staged = Staged(plan, [["a", "b c"]], {"k": 1})
    assert pending.decode(json.loads(json.dumps(pending.encode(staged)))) == staged


@pytest.mark.parametrize("seconds", [0, 4, 601, -1])
def test_a_time_that_cannot_be_had_is_named(seconds):
    assert "confirm_timeout" in pending.timeout_fault(seconds)


def test_a_time_that_can_be_had():
    assert [pending.timeout_fault(seconds) for seconds in (5, 45, 600)] == ["", "", ""]


def test_the_connection_is_known_from_the_environment(monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", OLD)
    assert pending.ssh_connection() == OLD


def test_the_connection_is_known_although_sudo_cleared_the_environment(monkeypatch):
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    environment = {**os.environ, "SSH_CONNECTION": NEW}
    script = "env -i sleep 30 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        try:
            monkeypatch.setattr(os, "getppid", lambda: child)
            assert pending.ssh_connection() == NEW
        finally:
            os.kill(child, 15)


def test_a_removed_filter_leaves_nothing_of_its_last_change_and_all_of_another(tmp_path):
    root = tmp_path / "moat" / "pending"
    change, other = Pending(Host(), "firewall", str(root)), Pending(Host(), "private_link", str(root))
    change.prepare({"before": ""})
    other.prepare({})
    change.forget()
    assert [path.name for path in root.iterdir()] == ["private_link"]
    other.forget()
    assert not (tmp_path / "moat").exists()
