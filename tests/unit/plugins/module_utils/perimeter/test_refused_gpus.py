"""The GPUs of models: what they become in the plan, what is refused, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import (
    P,
    Refusals,
    assert_refused,
    compiled,
    faults_of,
)

FIRST = "GPU-11111111-2222-3333-4444-555555555555"
SECOND = "GPU-66666666-2222-3333-4444-555555555555"
SLICE = "MIG-77777777-2222-3333-4444-555555555555"
OTHER_SLICE = "MIG-88888888-2222-3333-4444-555555555555"
XRAY, NOTES = f"{P}.models.xray-7b", f"{P}.models.notes-1b"

# what is written -> path, value, problem, remedy
REFUSED: Refusals = {
    # names
    "a count instead of a list": ({f"{NOTES}.gpus": 1}, f"{NOTES}.gpus", "1", "is an integer, not a list", "[0, 1]"),
    "no GPU in the list": ({f"{NOTES}.gpus": []}, f"{NOTES}.gpus", "", "is an empty list", "remove it"),
    "no host in the map": ({f"{NOTES}.gpus": {}}, f"{NOTES}.gpus", "", "is an empty map", "remove it"),
    "an abbreviated UUID": (
        {f"{XRAY}.gpus": {"gpu1": ["GPU-11111111"], "gpu2": [0]}, f"{NOTES}.gpus": [1]},
        f"{XRAY}.gpus.gpu1[0]",
        "'GPU-11111111'",
        "names no GPU",
        "nvidia-smi -L",
    ),
    "a negative number": (
        {f"{XRAY}.gpus": [0], f"{NOTES}.gpus": [1, -1]},
        f"{NOTES}.gpus[1]",
        "-1",
        "names no GPU",
        "number",
    ),
    "a boolean": (
        {f"{XRAY}.gpus": [0], f"{NOTES}.gpus": [1, True]},
        f"{NOTES}.gpus[1]",
        "true",
        "names no GPU",
        "number",
    ),
    "a GPU twice": (
        {f"{XRAY}.gpus": [0], f"{NOTES}.gpus": [1, 1]},
        f"{NOTES}.gpus[1]",
        "1",
        "is there twice",
        "remove one",
    ),
    "a number in two forms": (
        {f"{XRAY}.gpus": [0], f"{NOTES}.gpus": [1, "1"]},
        f"{NOTES}.gpus[1]",
        "'1'",
        "is there twice",
        "remove one",
    ),
    "two MIG instances": (
        {f"{XRAY}.gpus": [1], f"{NOTES}.gpus": [SLICE, OTHER_SLICE]},
        f"{NOTES}.gpus",
        "",
        "more than one MIG instance",
        "name one",
    ),
    "a MIG instance beside a GPU": (
        {f"{XRAY}.gpus": [1], f"{NOTES}.gpus": [SLICE, 0]},
        f"{NOTES}.gpus",
        "",
        "names a MIG instance beside a GPU",
        "one kind",
    ),
    "a word for shared": ({f"{NOTES}.shared": "yes"}, f"{NOTES}.shared", "'yes'", "not a boolean", "true or false"),
    # hosts
    "GPUs of a host that does not serve the model": (
        {f"{XRAY}.gpus": [1], f"{NOTES}.gpus": {"gpu1": [0], "gpu3": [0]}},
        f"{NOTES}.gpus.gpu3",
        "",
        "is no host of model notes-1b",
        "write 'gpu1'",
    ),
    "a host left out": (
        {f"{XRAY}.gpus": {"gpu1": [1]}, f"{NOTES}.gpus": [0]},
        f"{XRAY}.gpus",
        "'gpu2'",
        "has no GPUs here",
        "add gpu2: [0]",
    ),
    "a UUID for two hosts": (
        {f"{XRAY}.gpus": [FIRST], f"{NOTES}.gpus": [SECOND]},
        f"{XRAY}.gpus[0]",
        f"'{FIRST}'",
        "is a GPU of gpu1",
        "write the GPUs by host",
    ),
    # one GPU, two models
    "one GPU for two models": (
        {f"{XRAY}.gpus": [0, 1], f"{NOTES}.gpus": [1]},
        f"{XRAY}.gpus[1]",
        "'1'",
        "is given to model notes-1b on gpu1 too",
        "shared: true in both",
    ),
    "one GPU for two models, of which one would share": (
        {f"{XRAY}.gpus": [0, 1], f"{XRAY}.shared": True, f"{NOTES}.gpus": [1]},
        f"{XRAY}.gpus[1]",
        "'1'",
        "is given to model notes-1b on gpu1 too",
        "shared: true in both",
    ),
    "one UUID for two models": (
        {f"{XRAY}.gpus": {"gpu1": [FIRST], "gpu2": [0]}, f"{NOTES}.gpus": [FIRST]},
        f"{XRAY}.gpus.gpu1[0]",
        f"'{FIRST}'",
        "is given to model notes-1b on gpu1 too",
        "GPUs of its own",
    ),
    "every GPU beside one": (
        {f"{NOTES}.gpus": [0]},
        f"{XRAY}.gpus",
        "'every GPU'",
        "is given to model notes-1b on gpu1 too",
        "GPUs of its own",
    ),
}


@pytest.mark.parametrize("title", REFUSED)
def test_refused_with_path_value_and_remedy(title: str) -> None:
    assert_refused(*REFUSED[title])


def models(host: str, edits: dict[str, Any]) -> dict[str, Any]:
    return {model["name"]: model for model in compiled(edits).host(host)["model_server"]}


def test_each_host_gets_its_own_in_the_order_written() -> None:
    edits = {
        f"{XRAY}.gpus": {"gpu1": [SECOND, FIRST], "gpu2": ["1", 0]},
        f"{NOTES}.gpus": [SLICE],
    }
    assert models("gpu1", edits)["xray-7b"]["gpus"] == [SECOND, FIRST]
    assert models("gpu2", edits)["xray-7b"]["gpus"] == ["1", "0"]
    assert models("gpu1", edits)["notes-1b"]["gpus"] == [SLICE]
    told = compiled(edits).words("gpu1")
    assert f"model xray-7b on gpu1 has the GPUs {SECOND} and {FIRST}." in told


def test_models_that_both_share_may_have_one_gpu() -> None:
    edits = {f"{XRAY}.gpus": [0], f"{XRAY}.shared": True, f"{NOTES}.gpus": [0], f"{NOTES}.shared": True}
    found = models("gpu1", edits)
    assert [(found[name]["gpus"], found[name]["shared"]) for name in ("notes-1b", "xray-7b")] == [(["0"], True)] * 2
    assert "model xray-7b on gpu2 has the GPUs 0, which it may share." in compiled(edits).words("gpu2")


def test_gpus_of_different_models_do_not_clash_on_different_hosts() -> None:
    edits = {f"{XRAY}.gpus": {"gpu1": [1], "gpu2": [0]}, f"{NOTES}.gpus": [0]}
    assert models("gpu1", edits)["xray-7b"]["gpus"] == ["1"]


def test_an_intent_without_gpus_keeps_plan_and_digest() -> None:
    plain = compiled()
    assert all("gpus" not in model and "shared" not in model for model in plain.host("gpu1")["model_server"])
    assert compiled({f"{XRAY}.gpus": None, f"{NOTES}.shared": False}).digest == plain.digest
    assert compiled({f"{XRAY}.gpus": [0], f"{NOTES}.gpus": [1]}).digest != plain.digest


def test_one_fault_for_two_models_however_many_hosts() -> None:
    edits = {f"{XRAY}.gpus": [0], f"{NOTES}.hosts": "gpu_hosts", f"{NOTES}.gpus": [0]}
    assert [fault.path for fault in faults_of(edits)] == [f"{XRAY}.gpus[0]"]


def test_what_follows_from_a_refused_list_is_not_told() -> None:
    edits = {f"{XRAY}.gpus": {"gpu1": ["first"], "gpu2": [0]}, f"{NOTES}.gpus": [0]}
    assert [fault.path for fault in faults_of(edits)] == [f"{XRAY}.gpus.gpu1[0]"]
