# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The gpu_verify module with facts that a test makes up and, for the CUDA call, a program that is a double of gpu_cuda."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.modules import gpu_verify

PROGRAM = """
import json, os, sys
uuid = os.environ.get("CUDA_VISIBLE_DEVICES", "")
fault = "broken" if "bad" in uuid else ""
print(json.dumps({"api": 13000, "devices": [{"asked": [uuid, *sys.argv[1:]]}], "fault": fault}))
"""
GPU = {
    "slot": "0000:01:00.0",
    "uuid": "GPU-1",
    "mig": {"current": False, "instances": []},
    "remapped_rows": {"failure": False},
    "processes": [],
}
HOST: dict[str, Any] = {
    "kernel": {"running": "6.1.0-42-amd64"},
    "devices": [{"slot": "0000:01:00.0", "vendor": "nvidia", "kind": "gpu"}],
    "gpus": [GPU],
    "driver": {
        "userspace": "580.159.04",
        "module": {"loaded": True, "version": "580.159.04", "flavour": "open"},
        "on_disk": None,
    },
    "fabric_manager": {"needed": False, "active": None},
    "xids": [],
    "unread": [],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a host on which moat-gpu.service never ran."""
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, root: Path) -> Any:
    def run(program: str | None = PROGRAM, gpus: Any = (), **options: Any) -> dict[str, Any]:
        host = {**copy.deepcopy(HOST), **({"gpus": list(gpus)} if gpus else {})}
        monkeypatch.setattr(gpu_verify.gpu_facts, "collect", lambda *_arguments: host)
        if program is not None:
            monkeypatch.setattr(gpu_verify.inspect, "getsource", lambda _module: program)
        with patch_module_args({"root": str(root), **options}), pytest.raises(SystemExit):
            gpu_verify.main()
        return dict(json.loads(capsys.readouterr().out))

    return run


def test_a_host_that_works_passes(call: Any) -> None:
    for check in (False, True):
        result = call(expected_version="580.159.04", timeout=7, library="x.so", _ansible_check_mode=check)
        assert not result.get("failed") and result["changed"] is False and result["faults"] == []
        assert result["cuda"]["GPU-1"]["devices"] == [{"asked": ["GPU-1", "x.so", "7"]}]


def test_a_host_that_does_not_fails_and_says_what_state_it_is_in(call: Any) -> None:
    result = call(gpus=[{**GPU, "uuid": "GPU-bad"}], expected_version="570.1")
    assert result["failed"] and len(result["faults"]) == 2
    assert "GPU-bad: broken" in result["msg"] and "kernel module 580.159.04 (open)" in result["msg"]


def test_cuda_need_not_be_asked(call: Any) -> None:
    assert call(gpus=[{**GPU, "uuid": "GPU-bad"}], cuda=False)["cuda"] == {}


def test_the_real_program_tells_what_the_machine_lacks(call: Any) -> None:
    result = call(program=None, library="libno-such-cuda.so.1")
    assert result["failed"] and "the library of the CUDA driver cannot be loaded" in result["msg"]


def test_settings_that_were_not_had_fail_it(call: Any, root: Path) -> None:
    (root / "run" / "moat").mkdir(parents=True)
    (root / "run" / "moat" / "gpu.json").write_text('{"faults": ["MIG is off"]}')
    assert "moat-gpu.service: MIG is off" in call()["msg"]
