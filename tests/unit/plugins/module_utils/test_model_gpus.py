# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which GPUs the models of a host get, against GPUs as gpu_smi reads them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import model_gpus as mg

FIRST, SECOND, THIRD = (f"GPU-{digit * 8}-2222-3333-4444-555555555555" for digit in "123")
ONE, TWO = (f"MIG-{digit * 8}-2222-3333-4444-555555555555" for digit in "78")


def gpu(
    slot: str, uuid: str | None, minor: int | None, *instances: dict[str, Any], mig: bool = False
) -> dict[str, Any]:
    return {
        "slot": slot,
        "uuid": uuid,
        "minor": minor,
        "mig": {"current": mig or bool(instances), "instances": list(instances)},
    }


def instance(uuid: str, *caps: int) -> dict[str, Any]:
    return {"index": 0, "gi": 1, "ci": 0, "uuid": uuid, "caps": list(caps)}


def model(name: str, *gpus: str, shared: bool = False) -> dict[str, Any]:
    return {"name": name, "gpus": list(gpus), "shared": shared}


# the driver's minor numbers need not follow the bus
WHOLE = [gpu("0000:81:00.0", SECOND, 0), gpu("0000:3b:00.0", FIRST, 1)]
DIVIDED = [gpu("0000:3b:00.0", FIRST, 0, instance(ONE, 21, 22), instance(TWO, 30, 31)), gpu("0000:81:00.0", SECOND, 1)]


def assigned(*models: dict[str, Any], gpus: list[dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    found, faults = mg.assign(models, WHOLE if gpus is None else gpus)
    assert faults == []
    return found


def test_numbers_go_by_the_bus_and_nodes_by_the_driver() -> None:
    found = assigned(model("a", "0"), model("b", "1"))
    assert found["a"] == {"visible": [FIRST], "nodes": [*mg.COMMON, "/dev/nvidia1"], "minors": {FIRST: 1}}
    assert found["b"] == {"visible": [SECOND], "nodes": [*mg.COMMON, "/dev/nvidia0"], "minors": {SECOND: 0}}


def test_the_order_written_is_the_order_of_the_ordinals() -> None:
    assert assigned(model("a", SECOND, "0"))["a"]["visible"] == [SECOND, FIRST]


def test_a_model_that_names_none_gets_every_gpu_when_it_is_alone() -> None:
    assert assigned(model("a"))["a"]["visible"] == [FIRST, SECOND]
    _found, faults = mg.assign([model("a"), model("b")], WHOLE)
    assert faults == [
        f"model_server_models[1].gpus: b and a would both have {FIRST}; give each model GPUs of its own, or say shared: true in both"
    ]


def test_a_mig_instance_comes_with_its_capability_nodes() -> None:
    found = assigned(model("a", ONE), model("b", TWO), model("c", "1"), gpus=DIVIDED)
    assert found["a"]["visible"] == [ONE]
    assert found["a"]["nodes"] == [
        *mg.COMMON,
        "/dev/nvidia0",
        "/dev/nvidia-caps/nvidia-cap21",
        "/dev/nvidia-caps/nvidia-cap22",
    ]
    assert found["a"]["minors"] == {FIRST: 0}
    assert found["c"] == {"visible": [SECOND], "nodes": [*mg.COMMON, "/dev/nvidia1"], "minors": {SECOND: 1}}


def test_one_gpu_for_two_models_only_when_both_share() -> None:
    for shared, refused in (((True, True), False), ((True, False), True), ((False, False), True)):
        models = [model("a", "0", shared=shared[0]), model("b", FIRST, shared=shared[1])]
        _found, faults = mg.assign(models, WHOLE)
        assert bool(faults) is refused, (shared, faults)


@pytest.mark.parametrize(
    ("name", "gpus", "said"),
    [
        ("2", WHOLE, f"2 is no GPU that the driver of this host shows; it has: 0 is {FIRST}, 1 is {SECOND}"),
        (THIRD, WHOLE, f"{THIRD} is no GPU"),
        (ONE, WHOLE, f"{ONE} is no MIG instance of this host; it has: none"),
        ("0", DIVIDED, "0 is divided by MIG, so no model can have it whole"),
        (FIRST, DIVIDED, f"{FIRST} is divided by MIG"),
        ("0", [gpu("0000:3b:00.0", FIRST, 0, mig=True)], "0 is divided by MIG"),
        ("0", [gpu("0000:3b:00.0", None, 0)], "0 at 0000:3b:00.0 does not tell its UUID"),
        ("0", [gpu("0000:3b:00.0", FIRST, None)], "0 at 0000:3b:00.0 does not tell its UUID and minor number"),
        (ONE, [gpu("0000:3b:00.0", FIRST, 0, instance(ONE, 21))], f"{ONE} has no capability nodes"),
    ],
)
def test_what_the_host_has_not_is_refused(name: str, gpus: list[dict[str, Any]], said: str) -> None:
    _found, faults = mg.assign([model("a", name)], gpus)
    assert len(faults) == 1 and faults[0].startswith(f"model_server_models[0].gpus: {said}"), faults


def test_a_host_without_gpus_is_told_what_to_run() -> None:
    _found, faults = mg.assign([model("a")], [])
    assert faults == [
        "model_server_models[0].gpus: the driver shows no GPU, and a needs one; run the playbook gpu.yml first"
    ]


def test_all_faults_come_at_once() -> None:
    _found, faults = mg.assign([model("a", "7"), model("b", ONE, TWO), model("c", "1"), model("d", "1")], DIVIDED)
    assert [fault.split(":")[0] for fault in faults] == [f"model_server_models[{at}].gpus" for at in (0, 1, 3)]


@pytest.mark.parametrize("name", ["0", "7", "15", FIRST, ONE])
def test_names(name: str) -> None:
    assert mg.is_name(name)


@pytest.mark.parametrize(
    "name", ["", "00", "01", "-1", "100", "1\n", "all", "GPU-1", FIRST.lower(), FIRST + "\n", FIRST[:-1], "0,1"]
)
def test_what_is_no_name(name: str) -> None:
    assert not mg.is_name(name)


def test_clashes_of_names() -> None:
    def pairs(*models: dict[str, Any]) -> list[tuple[int, int, str]]:
        return mg.clashes(models)

    assert pairs(model("a", "0"), model("b", "1")) == []
    assert pairs(model("a", "0"), model("b", "0", "1")) == [(0, 1, "0")]
    assert pairs(model("a"), model("b", "0")) == [(0, 1, "every GPU")]
    assert pairs(model("a", shared=True), model("b", "0", shared=True)) == []
