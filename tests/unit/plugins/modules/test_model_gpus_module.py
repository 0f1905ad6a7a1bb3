# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The model_gpus module on a host below a directory, whose nvidia-smi prints what a test wants. A double: there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.modules import model_gpus

FIRST, SECOND = (f"GPU-{digit * 8}-2222-3333-4444-555555555555" for digit in "12")
SLICE = "MIG-77777777-2222-3333-4444-555555555555"
TWO_GPUS = Path(__file__).parents[2] / "fixtures" / "two_gpus"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "usr/bin").mkdir(parents=True)
    program = tmp_path / "usr/bin/nvidia-smi"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in "-q -x") cat {TWO_GPUS}/q.xml;; -L) cat {TWO_GPUS}/list;; *) exit 2;; esac\n'
    )
    program.chmod(0o755)
    instance = tmp_path / "proc/driver/nvidia/capabilities/gpu0/mig/gi3"
    (instance / "ci0").mkdir(parents=True)
    (instance / "access").write_text("DeviceFileMinor: 30\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    (instance / "ci0/access").write_text("DeviceFileMinor: 31\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], host: Path) -> Any:
    def run(*models: dict[str, Any], check: bool = False) -> dict[str, Any]:
        given = {"models": list(models), "root": str(host), "_ansible_check_mode": check}
        with patch_module_args(given), pytest.raises(SystemExit):
            model_gpus.main()
        return dict(json.loads(capsys.readouterr().out))

    return run


@pytest.mark.parametrize("check", [True, False])
def test_a_mig_instance_and_a_whole_gpu(call: Any, check: bool) -> None:
    result = call({"name": "a", "gpus": [SLICE]}, {"name": "b", "gpus": [1]}, check=check)
    assert result["changed"] is False
    assert result["models"]["a"] == {
        "visible": [SLICE],
        "nodes": [
            "/dev/nvidiactl",
            "/dev/nvidia-uvm",
            "/dev/nvidia0",
            "/dev/nvidia-caps/nvidia-cap30",
            "/dev/nvidia-caps/nvidia-cap31",
        ],
        "minors": {FIRST: 0},
    }
    assert result["models"]["b"]["visible"] == [SECOND]


def test_every_fault_at_once(call: Any) -> None:
    result = call({"name": "a", "gpus": [0]}, {"name": "b", "gpus": ["5"]})
    assert result["failed"] and result["msg"].startswith("GPUs refused: ")
    assert "[0].gpus: 0 is divided by MIG" in result["msg"] and "[1].gpus: 5 is no GPU" in result["msg"]


def test_a_host_without_a_driver(call: Any, host: Path) -> None:
    (host / "usr/bin/nvidia-smi").unlink()
    result = call({"name": "a"})
    assert result["failed"] and "nvidia-smi is not on this host" in result["msg"] and "gpu.yml" in result["msg"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "version mismatch"),
        ("exit 9", "ended with status 9: it said nothing"),
        ("printf '%s' '<?xml version=\"1.0\" ?><nvidia_smi_log>'", "ended with status 0"),
    ],
)
def test_a_driver_that_does_not_answer(call: Any, host: Path, script: str, said: str) -> None:
    (host / "usr/bin/nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    result = call({"name": "a"})
    assert result["failed"] and said in result["msg"], result["msg"]
