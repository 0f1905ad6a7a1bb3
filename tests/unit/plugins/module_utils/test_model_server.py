# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.moat.inference.plugins.module_utils import model_server as ms


def model(name="xray-7b", **other):
    return {
        "name": name,
        "source": f"/srv/models/{name}",
        "engine_args": [],
        "socket": f"/run/moat-model/{name}/engine.sock",
        **other,
    }


def test_what_a_site_needs_is_accepted():
    arguments = ["--max-model-len", "512", "--tensor-parallel-size=2", "--no-enable-prefix-caching", "-tp", "2"]
    arguments += ["--reasoning-parser", "qwen3", "--dtype", "float32", "--enforce_eager", "--config-format", "hf"]
    assert ms.argument_faults(arguments) == []
    assert ms.model_faults([model(engine_args=arguments), model("notes-1b")], {"VLLM_CPU_KVCACHE_SPACE": "1"}) == []


@pytest.mark.parametrize(
    ("argument", "forbidden"),
    [
        ("--host", "--host"),
        ("--host=0.0.0.0", "--host"),
        ("--ho", "--host"),
        ("--po", "--port"),
        ("--ud", "--uds"),
        ("--mi", "--middleware"),
        ("--served_model_name", "--served-model-name"),
        ("--trust_remote_code", "--trust-remote-code"),
        ("--trust-rem", "--trust-remote-code"),
        ("--enable_log_out=true", "--enable-log-outputs"),
        ("--enable-log-requests", "--enable-log-requests"),
        ("--no-disable-uvicorn-access-log", "--disable-uvicorn-access-log"),
        ("--kv-events-config.endpoint", "--kv-events-config"),
        ("--speculative-config.model=/tmp/x", "--speculative-config"),
        ("--tokenizer", "--tokenizer"),
        ("--lora_modules", "--lora-modules"),
        ("--config", "--config"),
        ("--device_ids=1", "--device-ids"),
    ],
)
def test_forbidden_arguments_are_found_in_every_spelling(argument, forbidden):
    faults = ms.argument_faults(["--seed", "1", argument])
    assert [index for index, _reason in faults] == [2]
    assert f"({forbidden}): " in faults[0][1] or faults[0][1].startswith(argument)


def test_no_bare_double_dash_hides_arguments():
    assert [index for index, _reason in ms.argument_faults(["--", "--port", "1"])] == [0, 1]


@pytest.mark.parametrize(
    "name",
    ["CUDA_VISIBLE_DEVICES", "PYTHONOPTIMIZE", "VLLM_SERVER_DEV_MODE", "VLLM_LOGGING_LEVEL", "VLLM_PLUGINS", "HOME"],
)
def test_environment_that_weakens_is_refused(name):
    (fault,) = ms.model_faults([model()], {name: "1"})
    assert fault.startswith(f"model_server_environment.{name}: ")


def test_environment_has_strings_only():
    faults = ms.model_faults([model()], {"OMP_NUM_THREADS": 1, "X": True})
    assert [fault.split(":")[0] for fault in faults] == [
        "model_server_environment.OMP_NUM_THREADS",
        "model_server_environment.X",
    ]


def test_all_faults_come_at_once_each_with_its_key():
    models = [
        model("Bad_Name"),
        model("a", socket="/run/moat-model/b/x.sock"),
        model("b", source="/home/x"),
        model("c", socket="/run/moat-model/c/../../x"),
        model("d", engine_args=["--port", "1"]),
        model("d"),
    ]
    said = "\n".join(ms.model_faults(models, {}))
    for key in ("[0].name", "[1].socket", "[2].source", "[3].socket", "[4].engine_args[0]", "[5].name", "[5].socket"):
        assert f"model_server_models{key}: " in said


def test_socket_that_the_kernel_cannot_bind_is_refused():
    name = "x" * 63
    (fault,) = ms.model_faults([model(name, socket=f"/run/moat-model/{name}/" + "y" * 30)], {})
    assert "longer than 107 bytes" in fault


@pytest.mark.parametrize("source", ["/srv/../etc", "/srv/models/../../root", "relative", "/etc", "/srv"])
def test_source_outside_the_places_for_weights_is_refused(source):
    assert any(".source: " in fault for fault in ms.model_faults([model(source=source)], {}))


@pytest.mark.parametrize(
    "source", ["/srv/models/a b", "/srv/models/%i", "/srv/x\nExecStart=/bin/sh", '/srv/"', "/srv/$HOME"]
)
def test_source_that_a_unit_file_would_read_otherwise_is_refused(source):
    assert any(".source: " in fault for fault in ms.model_faults([model(source=source)], {}))


def test_users_fit_useradd_and_differ():
    names = ["xray-7b", "x" * 63, "x" * 62 + "y", "y" * 20, "y" * 21]
    users = [ms.system_user(name) for name in names]
    assert users[0] == "moat-model-xray-7b"
    assert len(set(users)) == len(names) and all(len(user) <= 31 for user in users)


def test_only_units_of_models_that_are_not_wanted_are_stale():
    present = ["moat-model@old.service", "moat-model@new.service", "moat-gateway.service", "moat-model@.service", "x"]
    assert ms.stale_units(present, ["new"]) == ["old"]


def test_names_of_gpus_are_checked_with_all_the_rest():
    good = model(gpus=["0", "MIG-77777777-2222-3333-4444-555555555555"])
    assert ms.model_faults([good], {}) == []
    faults = ms.model_faults([model(gpus=["0", "first"], socket="/tmp/s")], {})
    assert [fault.split(": ")[0] for fault in faults] == [
        "model_server_models[0].socket",
        "model_server_models[0].gpus[1]",
    ]
