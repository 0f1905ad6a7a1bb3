"""The controller's halves: which public keys are kept, read and removed. The host's half is given as its module's result."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.action import private_link, private_link_key

KEY = base64.b64encode(b"k" * 32).decode("ascii")
OTHER = base64.b64encode(b"o" * 32).decode("ascii")


class Run:
    """Runs an action with a given result of its module and keeps what the module was handed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.handed: list[tuple[str, dict[str, Any]]] = []
        self.tokens: list[str] = []
        self.answer: dict[str, Any] = {}

    def __call__(
        self, plugin: Any, arguments: dict[str, Any], result: dict[str, Any], host: str = "gpu1", check: bool = False
    ) -> dict[str, Any]:
        def execute(_action: Any, module_name: str, module_args: dict[str, Any], **_more: Any) -> dict[str, Any]:
            given = dict(module_args)
            self.tokens.append(given.pop("confirm_token", given.get("token")))
            self.handed.append((module_name, given))
            return self.answer if module_name.endswith(".confirm") else dict(result)

        self._monkeypatch.setattr(plugin.ActionModule, "_execute_module", execute)
        task = SimpleNamespace(args=arguments, check_mode=check, diff=True, async_val=0, no_log=False)
        connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None))
        action = plugin.ActionModule(task, connection, SimpleNamespace(check_mode=check), None, None, None)
        return dict(action.run(task_vars={"inventory_hostname": host}))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def made(key: str = KEY, changed: bool = False) -> dict[str, Any]:
    return {"changed": changed, "public_key": key, "implementation": "kernel", "reason": "made" if changed else ""}


def test_the_public_half_is_kept_once(run: Run, tmp_path: Path) -> None:
    arguments = {"interface": "moat0", "keys_dir": str(tmp_path / "link-keys")}
    check = run(private_link_key, arguments, made(), check=True)
    assert check["changed"] and not (tmp_path / "link-keys").exists()
    first = run(private_link_key, arguments, made(changed=True))
    assert (first["changed"], first["reason"].split("; ")[0]) == (True, "made")
    assert (tmp_path / "link-keys" / "gpu1.pub").read_text() == KEY + "\n"
    assert run(private_link_key, arguments, made()) == made()
    assert run.handed[-1] == ("moat.inference.private_link_key", {"interface": "moat0"})


def test_another_key_replaces_the_kept_one_and_shows_both(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gpu1.pub").write_text(OTHER + "\n")
    result = run(private_link_key, {"keys_dir": str(tmp_path)}, made())
    assert (result["diff"][0]["before"], result["diff"][0]["after"]) == (OTHER + "\n", KEY + "\n")
    assert (tmp_path / "gpu1.pub").read_text() == KEY + "\n"


def test_a_broken_file_is_written_anew(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gpu1.pub").write_text("hello")
    assert run(private_link_key, {"keys_dir": str(tmp_path)}, made())["changed"] is True
    assert (tmp_path / "gpu1.pub").read_text() == KEY + "\n"


def test_a_copied_machine_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gpu2.pub").write_text(KEY + "\n")
    result = run(private_link_key, {"keys_dir": str(tmp_path)}, made())
    assert result["failed"] and "gpu1 has the same key as gpu2" in result["msg"]
    assert not (tmp_path / "gpu1.pub").exists()


@pytest.mark.parametrize("key", ["../../etc/passwd", "x\ny", KEY + "\n" + OTHER])
def test_what_is_no_key_is_never_written(run: Run, tmp_path: Path, key: str) -> None:
    result = run(private_link_key, {"keys_dir": str(tmp_path)}, made(key))
    assert result["failed"] and "returned no WireGuard key" in result["msg"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("result", [{"failed": True, "msg": "x"}, made("")])
def test_without_a_key_nothing_is_kept(run: Run, tmp_path: Path, result: dict[str, Any]) -> None:
    assert run(private_link_key, {"keys_dir": str(tmp_path)}, result) == result
    assert list(tmp_path.iterdir()) == []


def test_peers_get_the_keys_that_are_kept(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gpu1.pub").write_text(KEY + "\n")
    peers = [{"name": "gpu1"}, {"name": "gpu2"}, {"name": "app1", "public_key": OTHER}, {"endpoint": "x"}, "x"]
    run(private_link, {"peers": peers, "keys_dir": str(tmp_path), "port": 1}, {"changed": False})
    handed = run.handed[0][1]
    assert handed == {
        "port": 1,
        "peers": [{"name": "gpu1", "public_key": KEY}, {"name": "gpu2"}, *peers[2:]],
    }
    assert peers[0] == {"name": "gpu1"}


def test_all_broken_files_are_named_and_the_host_is_left_alone(run: Run, tmp_path: Path) -> None:
    for name in ("gpu1", "gpu2"):
        (tmp_path / f"{name}.pub").write_text("hello")
    peers = [{"name": "gpu1"}, {"name": "gpu2"}, {"name": "../gpu3"}]
    result = run(private_link, {"peers": peers, "keys_dir": str(tmp_path)}, {"changed": False})
    assert result["failed"]
    for words in ("converge gpu1", "converge gpu2", "'../gpu3' makes no file name"):
        assert words in result["msg"]
    assert run.handed == []


def test_a_link_that_is_gone_takes_its_public_half_along(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gpu1.pub").write_text(KEY + "\n")
    (tmp_path / "gpu2.pub").write_text(OTHER + "\n")
    arguments = {"state": "absent", "keys_dir": str(tmp_path)}
    assert run(private_link, arguments, {"failed": True})["failed"]
    assert run(private_link, arguments, {"changed": False}, check=True)["changed"] is True
    assert (tmp_path / "gpu1.pub").exists()
    assert run(private_link, arguments, {"changed": False})["changed"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["gpu2.pub"]
    assert run(private_link, arguments, {"changed": False})["changed"] is False


def test_a_change_that_waits_is_confirmed(run: Run) -> None:
    waiting = {"name": "private_link", "token": "abc", "timeout": 45, "ssh": False}
    run.answer = {"confirmed": True}
    result = run(private_link, {"peers": []}, {"changed": True, "pending": waiting})
    assert result == {"changed": True, "confirmed": True}
    assert [name for name, _given in run.handed] == ["moat.inference.private_link", "moat.inference.confirm"]
    assert run.tokens[0] and run.tokens[1] == "abc"


def test_a_link_that_came_back_keeps_its_public_half(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gpu1.pub").write_text(KEY + "\n")
    waiting = {"name": "private_link", "token": "abc", "timeout": 45, "ssh": False}
    run.answer = {"confirmed": False, "retry": False, "reason": "the change is undone", "outcome": "undone"}
    result = run(private_link, {"state": "absent", "keys_dir": str(tmp_path)}, {"changed": True, "pending": waiting})
    assert result["failed"] and result["rolled_back"] and result["msg"].startswith("rolled back: ")
    assert (tmp_path / "gpu1.pub").exists()
