# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The verdict on a host after a change of its driver; hosts are made up, in the form of gpu_info."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_verify
from ansible_collections.moat.inference.plugins.module_utils.run import Result

GPU = {
    "slot": "0000:01:00.0",
    "uuid": "GPU-1",
    "mig": {"current": False, "instances": []},
    "remapped_rows": {"failure": False},
    "processes": [],
}
HOST: dict[str, Any] = {
    "kernel": {"running": "6.1.0-42-amd64"},
    "devices": [
        {"slot": "0000:01:00.0", "vendor": "nvidia", "kind": "gpu"},
        {"slot": "0000:02:00.0", "vendor": "nvidia", "kind": "nvswitch"},
        {"slot": "0000:03:00.0", "vendor": "amd", "kind": "gpu"},
    ],
    "gpus": [GPU],
    "driver": {
        "userspace": "580.159.04",
        "module": {"loaded": True, "version": "580.159.04", "flavour": "open"},
        "on_disk": {"version": "580.159.04", "flavour": "open", "path": "/lib/modules/x"},
    },
    "fabric_manager": {"needed": False, "installed": None, "active": None},
    "xids": [],
    "unread": [],
}
GOOD = {"GPU-1": {"api": 13000, "devices": [{}], "fault": ""}}


def changed(**keys: Any) -> dict[str, Any]:
    """Return the host with other values; a key such as driver__module goes one level down."""
    host = copy.deepcopy(HOST)
    for key, value in keys.items():
        place, _separator, last = key.rpartition("__")
        (host[place] if place else host)[last] = value
    return host


def faults(host: dict[str, Any], calls: Any = "good", expected: str = "580.159.04", xids: bool = True) -> list[str]:
    return gpu_verify.faults(host, GOOD if calls == "good" else calls, expected, xids)


def test_a_host_that_works_has_no_fault() -> None:
    assert faults(HOST) == [] and faults(HOST, expected="") == []
    assert gpu_verify.state(HOST, []) == (
        "kernel 6.1.0-42-amd64, kernel module 580.159.04 (open), libraries 580.159.04, 1 of 1 GPUs listed, 0 faults"
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"devices": []}, "no NVIDIA GPU on the PCI bus"),
        (
            {"driver__userspace": "580.178.04"},
            "the kernel module is 580.159.04 and the libraries are 580.178.04; reboot",
        ),
        ({"driver__userspace": None}, "the libraries are not there"),
        ({"driver__module": None}, "not loaded; 580.159.04 is on disk"),
        ({"driver__module": None, "driver__on_disk": None}, "none is on disk for the running kernel"),
        ({"gpus": []}, "nvidia-smi does not list 0000:01:00.0"),
        ({"gpus": [], "unread": [{"what": "nvidia-smi", "why": "no devices"}]}, "list 0000:01:00.0: no devices"),
        ({"gpus": [{**GPU, "remapped_rows": {"failure": True}}]}, "replace the GPU"),
        ({"fabric_manager": {"needed": True, "active": False}}, "nvidia-fabricmanager.service is not active"),
        (
            {"xids": [{"slot": "0000:01:00.0", "xid": 79, "count": 1, "text": "fallen off the bus"}]},
            "Xid 79 since boot",
        ),
    ],
)
def test_each_fault_is_told(keys: dict[str, Any], said: str) -> None:
    found = faults(changed(**keys), calls={})
    assert len(found) == 1 and said in found[0]


def test_another_version_than_wanted_is_told() -> None:
    assert faults(HOST, expected="580.178.04") == ["the kernel module is 580.159.04, and 580.178.04 is wanted"]


def test_xids_need_not_count() -> None:
    host = changed(xids=[{"slot": "0000:01:00.0", "xid": 13, "count": 2, "text": "x"}])
    assert faults(host) and not faults(host, xids=False)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"devices": [], "fault": "cuInit gave 999"}, "GPU-1: cuInit gave 999"),
        ({"devices": [{}, {}], "fault": ""}, "GPU-1: CUDA shows 2 devices instead of this one"),
    ],
)
def test_a_call_that_failed_is_told(call: dict[str, Any], said: str) -> None:
    assert faults(HOST, calls={"GPU-1": call}) == [said]
    assert faults(HOST, calls={"": {**call, "fault": "no"}}) == ["CUDA: no"]


def test_all_faults_are_told_at_once() -> None:
    assert len(faults(changed(driver__module=None, gpus=[]), calls={"": {"devices": [], "fault": "x"}})) == 3


def test_cuda_is_asked_for_gpus_and_for_instances_of_those_in_mig_mode() -> None:
    instances = [{"uuid": "MIG-1"}, {"uuid": None}, {"uuid": "MIG-2"}]
    split = {**GPU, "uuid": "GPU-2", "mig": {"current": True, "instances": instances}}
    assert gpu_verify.targets(changed(gpus=[GPU, split])) == ["GPU-1", "MIG-1", "MIG-2"]


def test_a_gpu_on_which_a_process_computes_is_left_alone() -> None:
    for kind, asked in (("C", []), ("C+G", []), ("G", ["GPU-1"]), (None, ["GPU-1"])):
        busy = {**GPU, "processes": [{"pid": 7, "name": "vllm", "memory_mib": 1, "type": kind}]}
        assert gpu_verify.targets(changed(gpus=[busy])) == asked
    assert gpu_verify.targets(changed(gpus=[])) == [""]


def result(rc: int, out: str = "", err: str = "") -> Result:
    return Result(("python3",), rc, out, err)


def test_answers_are_read() -> None:
    told = {"api": 13000, "devices": [{"ordinal": 0}], "fault": ""}
    assert gpu_verify.answer(result(0, json.dumps(told))) == told
    assert gpu_verify.answer(result(-14))["fault"] == "the call took too long"
    assert (
        gpu_verify.answer(result(-11, "", "Fatal\nSegmentation\n"))["fault"]
        == "the call ended with status -11: Segmentation"
    )
    assert gpu_verify.answer(result(0, "[]"))["fault"] == "the call ended with status 0"


def test_settings_that_were_not_had_are_told() -> None:
    assert gpu_verify.settings_faults(None) == [] and gpu_verify.settings_faults('{"faults": []}') == []
    assert gpu_verify.settings_faults('{"faults": ["x"]}') == ["moat-gpu.service: x"]
    assert "no record" in gpu_verify.settings_faults("[")[0] and "no record" in gpu_verify.settings_faults("{}")[0]
