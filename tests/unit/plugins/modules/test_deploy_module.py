"""The deploy module on real files in a temporary directory. Only systemctl and journalctl are recorded instead of run."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.module_utils.files import candidate_path
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result
from ansible_collections.moat.inference.plugins.modules import deploy

OWNER = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}
INSTALL = "[Install]\nWantedBy=multi-user.target\n"


class Killed(BaseException):
    """Stands for SIGKILL: nothing that catches exceptions gets to run."""


class Systemd:
    """Records systemctl; any other command runs for real."""

    def __init__(self) -> None:
        self.units: dict[str, dict[str, str]] = {}
        self.verbs: list[str] = []
        self.failing: set[str] = set()
        self.after: dict[str, dict[str, str]] = {}
        self.kill_at = ""
        self.booted = True

    def run(self, argv: Sequence[str], ok: Sequence[int] = (0,), **_options: Any) -> Result:
        if argv[0] == "systemctl":
            result = self._systemctl(argv)
        elif argv[0] == "journalctl":
            result = Result(tuple(argv), 0, "the last words\n", "")
        else:
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            result = Result(tuple(argv), done.returncode, done.stdout, done.stderr)
        if result.rc not in ok:
            raise CommandError(result)
        return result

    def _systemctl(self, argv: Sequence[str]) -> Result:
        if argv[1] == "show":
            names = argv[argv.index("--") + 1 :]
            text = "\n".join(self._shown(name) for name in names) if self.booted else ""
            return Result(tuple(argv), 0 if self.booted else 1, text, "" if self.booted else "not booted with systemd")
        line = " ".join(argument for argument in argv[1:] if argument != "--")
        if line == self.kill_at:
            raise Killed
        self.verbs.append(line)
        if line in self.failing:
            return Result(tuple(argv), 1, "", f"{line} failed")
        if argv[1] != "daemon-reload":
            self._apply(argv[1], argv[-1])
        return Result(tuple(argv), 0, "", "")

    def _shown(self, name: str) -> str:
        unknown = {"ActiveState": "inactive", "UnitFileState": "", "LoadState": "not-found"}
        return "".join(f"{key}={value}\n" for key, value in self.units.get(name, unknown).items())

    def _apply(self, verb: str, name: str) -> None:
        unit = self.units.setdefault(
            name, {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "disabled"}
        )
        change = {
            "start": {"ActiveState": "active"},
            "stop": {"ActiveState": "inactive"},
            "enable": {"UnitFileState": "enabled"},
            "disable": {"UnitFileState": "disabled"},
        }
        unit.update(self.after.get(f"{verb} {name}", change.get(verb, {})))


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Systemd:
    recorder = Systemd()
    monkeypatch.setattr(deploy, "Runner", lambda _module: recorder)
    monkeypatch.setattr(deploy, "PENDING", str(tmp_path / "pending"))
    return recorder


@contextmanager
def arguments(options: dict[str, Any], check: bool) -> Iterator[None]:
    with patch_module_args({**options, "_ansible_check_mode": check, "_ansible_diff": True}):
        yield


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(check: bool = False, **options: Any) -> dict[str, Any]:
        with arguments(options, check), pytest.raises(SystemExit):
            deploy.main()
        return dict(json.loads(capsys.readouterr().out))

    return run


def entry(path: Path, content: str, **more: Any) -> dict[str, Any]:
    return {"path": str(path), "content": content, "mode": "0640", **OWNER, **more}


def running(enabled: str = "enabled") -> dict[str, str]:
    return {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": enabled}


def service(**more: Any) -> dict[str, Any]:
    return {"name": "x.service", "state": "started", "enabled": True, "on_change": "reload", **more}


def test_the_four_runs_tell_the_truth(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    directory, path = tmp_path / "etc", tmp_path / "etc" / "x.conf"
    options = {
        "directories": [{"path": str(directory), "mode": "0750", **OWNER}],
        "files": [entry(path, "good\n", validate=["grep", "-q", "good", "%s"])],
        "units": [service()],
    }
    check = call(check=True, **options)
    assert check["changed"] and not directory.exists() and systemd.verbs == []
    first = call(**options)
    assert {key: first[key] for key in ("changed", "diff", "changed_files", "unit_actions")} == {
        key: check[key] for key in ("changed", "diff", "changed_files", "unit_actions")
    }
    assert path.read_text() == "good\n"
    assert path.stat().st_mode & 0o7777 == 0o640 and directory.stat().st_mode & 0o7777 == 0o750
    assert systemd.verbs == ["enable x.service", "start x.service"]
    again = (call(check=True, **options), call(**options))
    assert [(item["changed"], item["diff"]) for item in again] == [(False, []), (False, [])]
    assert len(systemd.verbs) == 2
    assert os.listdir(directory) == ["x.conf"]


def test_a_changed_file_reloads_and_a_named_one_restarts(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    systemd.units["x.service"] = running()
    conf, unit = tmp_path / "x.conf", tmp_path / "x.unit"
    units = [service(restart_on=[str(unit)])]
    call(files=[entry(conf, "a"), entry(unit, "b")], units=units)
    call(files=[entry(conf, "a2"), entry(unit, "b")], units=units)
    call(files=[entry(conf, "a2", mode="0600"), entry(unit, "b")], units=units)
    assert systemd.verbs == ["restart x.service", "reload x.service", "reload x.service"]


def test_a_refused_candidate_leaves_everything(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    systemd.units["x.service"] = running()
    path, other = tmp_path / "x.conf", tmp_path / "other.conf"
    path.write_text("good\n")
    files = [entry(other, "new\n"), entry(path, "bad\n", validate=["grep", "-q", "good", "%s"])]
    result = call(files=files, units=[service()])
    assert result["failed"] and "ended with status 1" in result["msg"] and "restored completely" in result["msg"]
    assert path.read_text() == "good\n"
    assert [name for name in os.listdir(tmp_path) if name != "pending"] == ["x.conf"]
    assert systemd.verbs == []


def test_a_candidate_keeps_the_ending_that_checkers_look_at(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    validate = ["/bin/sh", "-c", 'case "$1" in */.*.service) exit 0;; esac; exit 1', "sh", "%s"]
    assert call(files=[entry(tmp_path / "x.service", "a", validate=validate)])["changed"]


@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_a_unit_that_refuses_gets_the_last_good_state_back(
    call: Any, systemd: Systemd, tmp_path: Path, verb: str
) -> None:
    systemd.units["x.service"] = running()
    path = tmp_path / "x.conf"
    path.write_text("old\n")
    path.chmod(0o600)
    systemd.failing = {f"{verb} x.service"}
    result = call(files=[entry(path, "new\n")], units=[service(on_change=verb)])
    back = {"reload": "reload-or-restart", "restart": "restart"}[verb]
    assert result["failed"] and path.read_text() == "old\n" and path.stat().st_mode & 0o7777 == 0o600
    assert systemd.verbs == [f"{verb} x.service", f"{back} x.service"]
    assert f"{verb} x.service failed\nthe last words. " in result["msg"]
    # when the way back fails as well, the message says so
    assert ("but not completely: x.service, restart" in result["msg"]) == (verb == "restart")


def test_a_start_that_fails_is_taken_back_whole(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    directory = tmp_path / "etc"
    systemd.failing = {"start x.service"}
    result = call(
        directories=[{"path": str(directory), **OWNER}], files=[entry(directory / "x.conf", "a")], units=[service()]
    )
    assert "the last words. The previous state was restored completely" in result["msg"] and not directory.exists()
    assert systemd.verbs == ["enable x.service", "start x.service", "stop x.service", "disable x.service"]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"ActiveState": "failed"}, "x.service failed right after its start: the last words"),
        ({"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"}, "ended (exit-code)"),
        ({"ActiveState": "inactive", "SubState": "dead", "Result": "oom-kill"}, "ended (oom-kill)"),
    ],
)
def test_a_unit_that_dies_at_once_is_no_success(
    call: Any, systemd: Systemd, tmp_path: Path, state: dict[str, str], words: str
) -> None:
    systemd.after["start x.service"] = state
    result = call(files=[entry(tmp_path / "x.conf", "a")], units=[service()])
    assert result["failed"] and words in result["msg"] and not (tmp_path / "x.conf").exists()


def test_a_oneshot_that_ended_well_is_a_success(call: Any, systemd: Systemd) -> None:
    systemd.after["start x.service"] = {"ActiveState": "inactive", "SubState": "dead", "Result": "success"}
    assert "failed" not in call(units=[service()])


def test_an_unknown_owner_shows_in_no_check_and_leaves_nothing(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    options = {
        "directories": [{"path": str(tmp_path / "etc"), "owner": "nobody-of-this-name", "group": OWNER["group"]}],
        "files": [entry(tmp_path / "x.conf", "a")],
    }
    assert call(check=True, **options)["changed"]
    result = call(**options)
    assert result["failed"] and "no such user or group" in result["msg"] and "nobody-of-this-name" in result["msg"]
    assert not (tmp_path / "etc").exists() and not (tmp_path / "x.conf").exists()


def test_check_mode_on_a_host_whose_systemd_is_not_up(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    systemd.booted = False
    result = call(check=True, files=[entry(tmp_path / "x.conf", "a")], units=[service()])
    assert result["unit_actions"] == {"x.service": ["enable", "start"]}


def test_a_killed_run_is_finished_by_the_next(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    systemd.units["x.service"] = running()
    path = tmp_path / "x.conf"
    options: dict[str, Any] = {"files": [entry(path, "new\n")], "units": [service(restart_on=[str(path)])]}
    systemd.kill_at = "restart x.service"
    with arguments(options, False), pytest.raises(Killed):
        deploy.main()
    assert path.read_text() == "new\n" and systemd.verbs == []
    systemd.kill_at = ""
    check = call(check=True, **options)
    assert check["changed"] and check["unit_actions"] == {"x.service": ["restart"]}
    assert call(**options)["unit_actions"] == {"x.service": ["restart"]}
    assert systemd.verbs == ["restart x.service"]
    assert not call(**options)["changed"]


def test_what_is_pending_survives_a_failed_run_in_between(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    systemd.units["x.service"] = running()
    path = tmp_path / "x.conf"
    options: dict[str, Any] = {"files": [entry(path, "new\n")], "units": [service()]}
    systemd.kill_at = "reload x.service"
    with arguments(options, False), pytest.raises(Killed):
        deploy.main()
    systemd.kill_at = ""
    bad = entry(tmp_path / "bad.conf", "bad", validate=["false", "%s"])
    assert call(files=[*options["files"], bad], units=options["units"])["failed"]
    assert call(**options)["unit_actions"] == {"x.service": ["reload"]}
    assert not call(**options)["changed"]


def test_a_marker_that_was_cut_off_counts(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    systemd.units["x.service"] = running()
    (tmp_path / "pending").mkdir()
    (tmp_path / "pending" / "x.service").write_text('["/etc')
    assert call(units=[service()])["unit_actions"] == {"x.service": ["reload"]}
    assert os.listdir(tmp_path / "pending") == []


def test_what_a_killed_run_staged_is_removed(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    path = tmp_path / "x.conf"
    options = {"files": [entry(path, "a")]}
    call(**options)
    candidate = Path(candidate_path(str(path)))
    candidate.write_text("half")
    check = call(check=True, **options)
    assert check["changed"] and candidate.exists() and str(candidate) in check["diff"][0]["before_header"]
    assert call(**options)["changed"] and not candidate.exists()
    assert not call(**options)["changed"]


def test_a_unit_is_stopped_before_its_file_goes(
    call: Any, systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.units["x.service"] = running()
    path = tmp_path / "x.unit"
    path.write_text("unit")
    seen: list[bool] = []
    systemd_run = systemd.run

    def run(argv: Sequence[str], **options: Any) -> Result:
        if argv[1] in ("stop", "disable"):
            seen.append(path.exists())
        return systemd_run(argv, **options)

    monkeypatch.setattr(systemd, "run", run)
    options = {"absent": [str(path)], "units": [{"name": "x.service", "enabled": False, "state": "stopped"}]}
    assert call(check=True, **options)["unit_actions"] == {"x.service": ["disable", "stop"]}
    call(**options)
    assert seen == [True, True] and not path.exists()
    assert not call(**options)["changed"]


def test_removal_is_undone(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    systemd.units["x.service"] = running()
    systemd.failing = {"start y.service"}
    path, link = tmp_path / "x.unit", tmp_path / "link"
    path.write_text("unit")
    link.symlink_to("x.unit")
    options = {
        "absent": [str(path), str(link)],
        "units": [{"name": "x.service", "state": "stopped"}, service(name="y.service", enabled=None)],
    }
    assert "restored completely" in call(**options)["msg"]
    assert path.read_text() == "unit" and os.readlink(link) == "x.unit"
    assert systemd.verbs == ["stop x.service", "start y.service", "stop y.service", "start x.service"]


@pytest.mark.parametrize("option", ["directories", "files"])
def test_what_is_there_as_something_else_is_refused(call: Any, systemd: Systemd, tmp_path: Path, option: str) -> None:
    path = tmp_path / "x"
    path.symlink_to(tmp_path / "elsewhere")
    other = tmp_path / "y"
    if option == "files":
        other.mkdir()
        options: dict[str, Any] = {"files": [entry(path, "a"), entry(other, "a")]}
    else:
        other.write_text("file")
        options = {"directories": [{"path": str(path), **OWNER}, {"path": str(other), **OWNER}]}
    result = call(**options)
    kind = {"files": "file", "directories": "directory"}[option]
    assert f"{path} is a symbolic link and is no {kind}" in result["msg"]
    assert f"{other} is there and is no {kind}; move it away" in result["msg"]
    assert path.is_symlink() and not (tmp_path / "elsewhere").exists()


def test_a_link_in_the_way_of_a_path_is_followed(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    options = {"files": [entry(tmp_path / "way" / "x.conf", "a")]}
    assert call(**options)["changed"] and (tmp_path / "real" / "x.conf").read_text() == "a"
    assert not call(**options)["changed"]


def test_all_bad_options_in_one_message(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    path = tmp_path / "x.conf"
    result = call(
        files=[entry(path, "a", mode="416"), entry(path, "b"), entry(Path("relative"), "c")],
        absent=[str(path)],
        units=[service(name="x"), service(name="x@.service")],
    )
    for words in (
        "files[0].mode: 416 is not four octal digits",
        f"files[1]: {path} is there twice; remove it here or from files[0]",
        "files[2]: relative is no absolute path",
        f"absent[0]: {path} is there twice",
        "units[0].name: x is no full name of a unit",
        "units[1].name: x@.service is no full name",
    ):
        assert words in result["msg"]
    assert not path.exists()


def test_a_missing_parent_is_named_and_nothing_remains(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    result = call(files=[entry(tmp_path / "x.conf", "a"), entry(tmp_path / "no" / "y.conf", "b")])
    assert result["failed"] and str(tmp_path / "no") in result["msg"]
    assert os.listdir(tmp_path) == []


def test_a_sensitive_content_is_shown_nowhere(call: Any, systemd: Systemd, tmp_path: Path) -> None:
    path = tmp_path / "x.key"
    path.write_text("the old secret of all\n")
    result = call(files=[entry(path, "the new secret of all\n", sensitive=True)])
    assert result["changed"] and path.read_text() == "the new secret of all\n"
    text = json.dumps(result)
    assert "secret of all" not in text and "content changed" in text
    # the positive control: without the word it is shown
    assert "the old text" in json.dumps(call(files=[entry(path, "the old text")]))


def test_a_changed_install_section_is_enabled_anew(
    call: Any, systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.deploy, "UNIT_DIRECTORIES", (str(tmp_path),))
    path = tmp_path / "x@.service"
    name = "x@a.b.service"
    systemd.units[name] = running("static")
    unit = service(name=name, on_change="none")
    call(files=[entry(path, "[Service]\n")], units=[unit])
    assert systemd.verbs == ["daemon-reload"]
    result = call(files=[entry(path, "[Service]\n" + INSTALL)], units=[unit])
    assert result["unit_actions"] == {name: ["reenable"]}
    systemd.units[name]["UnitFileState"] = "enabled"
    call(files=[entry(path, "[Service]\nNice=1\n" + INSTALL)], units=[unit])
    assert systemd.verbs == ["daemon-reload", "daemon-reload", f"reenable {name}", "daemon-reload"]
