# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The model_ready module against a systemctl and a journalctl that say what a test wants."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.modules import model_ready


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the module; answers are the probe's, states are lines 'ActiveState NRestarts', the last one stays."""
    monkeypatch.setattr(model_ready, "INTERVAL", 0.01)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def run(answers: list[str], states: list[str], check: bool = False, timeout: int = 30) -> dict[str, Any]:
        (tmp_path / "states").write_text("\n".join(states) + "\n")
        lines = 'read a b < "$d"; [ "$(wc -l < "$d")" -gt 1 ] && sed -i 1d "$d"; printf "ActiveState=%s\\nNRestarts=%s\\n" $a $b'
        programs = {
            "systemctl": f"d={tmp_path}/states; {lines}",
            "journalctl": "echo start; echo 'ValueError: no memory'; echo end",
        }
        for name, text in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        left = list(answers)
        monkeypatch.setattr(
            model_ready.model_ready, "probe", lambda *_arguments: left.pop(0) if len(left) > 1 else left[0]
        )
        options = {"models": [{"name": "m", "socket": "/s"}], "timeout": timeout, "_ansible_check_mode": check}
        with patch_module_args(options), pytest.raises(SystemExit):
            model_ready.main()
        return dict(json.loads(capsys.readouterr().out))

    return run


def test_waits_for_the_token(call: Any) -> None:
    result = call(["status 503", "status 503", ""], ["active 0"])
    assert result["ready"] == ["m"] and result["changed"] is False and "m" in result["seconds"]


def test_a_unit_that_failed_ends_the_wait_with_what_its_journal_says(call: Any) -> None:
    result = call(["refused"], ["active 0", "active 0", "failed 0"])
    assert result["failed"] and result["msg"] == "moat-model@m.service is failed: ValueError: no memory"


def test_a_unit_that_falls_again_and_again_ends_the_wait(call: Any) -> None:
    result = call(["refused"], ["active 4", "activating 5", "activating 6"])
    assert result["failed"] and "restarted 2 times: ValueError: no memory" in result["msg"]


def test_one_restart_is_borne(call: Any) -> None:
    assert call(["x", "x", "x", ""], ["active 4", "activating 5"])["ready"] == ["m"]


def test_the_wait_ends(call: Any) -> None:
    result = call(["status 503"], ["active 0"], timeout=0)
    assert result["failed"] and result["msg"] == "not ready after 0 s: m (status 503)"


def test_check_mode_asks_once_and_does_not_fail(call: Any) -> None:
    result = call(["refused"], ["inactive 0"], check=True)
    assert "failed" not in result and result["ready"] == []
