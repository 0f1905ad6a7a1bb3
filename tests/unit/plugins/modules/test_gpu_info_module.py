"""The gpu_info module on this very host and on a made-up one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.modules import gpu_info
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_host import gpu_host


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(**options: Any) -> dict[str, Any]:
        with patch_module_args(options), pytest.raises(SystemExit) as ended:
            gpu_info.main()
        assert ended.value.code == 0
        return dict(json.loads(capsys.readouterr().out))

    return run


def test_this_host(call: Any) -> None:
    result = call()
    assert result["changed"] is False and result["host"]["kernel"]["running"] == os.uname().release


@pytest.mark.parametrize("check", [False, True])
def test_a_host_below_a_root(call: Any, tmp_path: Path, check: bool) -> None:
    gpu_host(tmp_path)
    result = call(root=str(tmp_path), _ansible_check_mode=check)
    assert result["changed"] is False and result["host"]["unread"] == []
    assert [device["architecture"] for device in result["host"]["devices"]] == ["hopper"]
    assert result["host"]["gpus"][0]["memory_mib"] == 81559


def test_a_root_that_is_not_there(call: Any, tmp_path: Path) -> None:
    host = call(root=str(tmp_path / "none"))["host"]
    assert host["devices"] == [] and host["gpus"] == [] and len(host["unread"]) > 3
