"""The preflight module on this very host."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.modules import preflight


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(**options: Any) -> dict[str, Any]:
        with patch_module_args(options), pytest.raises(SystemExit):
            preflight.main()
        return dict(json.loads(capsys.readouterr().out))

    return run


def test_what_is_there_and_what_is_not(call: Any, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    result = call(
        commands=["sh", "/bin/sh", "moat-no-such-command"],
        users=[pwd.getpwuid(os.getuid()).pw_name, "moat-no-such-user"],
        groups=["moat-no-such-group"],
        files=[str(tmp_path), str(tmp_path / "dangling"), str(tmp_path / "no")],
    )
    missing = {key: value for key, value in result.items() if key.startswith("missing_")}
    assert missing == {
        "missing_packages": [],
        "missing_commands": ["moat-no-such-command"],
        "missing_users": ["moat-no-such-user"],
        "missing_groups": ["moat-no-such-group"],
        "missing_files": [str(tmp_path / "no")],
    }
    assert result["changed"] is False and result["kernel"] == os.uname().release
    assert isinstance(result["time_synchronized"], bool)


def test_a_package_manager_that_fails_is_named(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "dpkg-query"
    broken.write_text("#!/bin/sh\necho broken database >&2\nexit 2\n")
    broken.chmod(0o755)
    monkeypatch.setattr(preflight.preflight, "os_family", lambda _fields: "debian")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    result = call(packages=["haproxy"])
    assert result["failed"] and "broken database" in result["msg"]


def test_packages_in_the_order_asked(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    query = tmp_path / "dpkg-query"
    query.write_text("#!/bin/sh\nprintf 'b\\t2.0\\tii \\nc\\t\\tun \\n'\nexit 1\n")
    query.chmod(0o755)
    monkeypatch.setattr(preflight.preflight, "os_family", lambda _fields: "debian")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    result = call(packages=["c", "b", "a"])
    assert result["missing_packages"] == ["c", "a"] and result["versions"] == {"b": "2.0"}
