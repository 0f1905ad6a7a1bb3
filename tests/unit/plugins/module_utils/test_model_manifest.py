# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import hashlib
import json
import os
import socket

import pytest
from ansible_collections.moat.inference.plugins.module_utils import model_manifest as mm

ME = os.getuid()
SUM = "a" * 64


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A model's directory. What lies above the test's own directory is not ours to judge."""
    real = mm.attribute_faults
    monkeypatch.setattr(mm, "attribute_faults", lambda p, i, o: real(p, i, o) if p.startswith(str(tmp_path)) else [])
    folder = tmp_path / "above" / "model"
    folder.mkdir(parents=True, mode=0o755)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "config.json").write_text("{}")
    for path in (tmp_path, folder.parent, folder):
        path.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o444)
    return folder


def refusal(folder, entries=None):
    with pytest.raises(mm.ManifestError) as caught:
        mm.verify(str(folder), mm.record(str(folder), ME) if entries is None else entries, owner=ME)
    return str(caught.value)


def test_recorded_manifest_comes_back_from_its_text_and_verifies(weights):
    entries = mm.record(str(weights), ME)
    assert set(entries) == {"model.safetensors", "config.json"}
    assert entries["model.safetensors"] == mm.Entry(hashlib.sha256(b"weights" * 1000).hexdigest(), 7000)
    assert mm.parse(mm.render(entries)) == entries
    mm.verify(str(weights), entries, owner=ME)


def test_order_of_files_never_changes_the_text():
    one = {"b": mm.Entry(SUM, 1), "a": mm.Entry(SUM, None)}
    assert mm.render(one) == mm.render(dict(reversed(list(one.items()))))
    assert mm.render(one).splitlines()[1:] == [f"{SUM} - a", f"{SUM} 1 b"]


def test_output_of_sha256sum_is_read():
    entries = mm.parse(f"{SUM}  config.json\n{SUM} *./sub/model.safetensors\n")
    assert entries == {"config.json": mm.Entry(SUM, None), "sub/model.safetensors": mm.Entry(SUM, None)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no file"),
        ("# only a remark\n", "names no file"),
        ("garbage\n", "line 1 is neither"),
        (f"{SUM[:-1]}g  x\n", "line 1 is neither"),
        (f"{SUM.upper()}  x\n", "line 1 is neither"),
        (f"{SUM}  /etc/passwd\n", "does not lie below"),
        (f"{SUM}  ../other\n", "does not lie below"),
        (f"{SUM}  a//b\n", "does not lie below"),
        (f"{SUM} 1 x\n{SUM} 1 x\n", "is there twice"),
    ],
)
def test_malformed_manifest_is_refused(text, said):
    with pytest.raises(mm.ManifestError, match=said):
        mm.parse(text)


def test_all_faults_of_a_manifest_come_at_once():
    with pytest.raises(mm.ManifestError) as caught:
        mm.parse(f"garbage\n{SUM}  /abs\n")
    assert len(caught.value.faults) == 2


def test_changed_byte_of_same_size_is_refused(weights):
    entries = mm.record(str(weights), ME)
    path = weights / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"Weights" + b"weights" * 999)
    assert "model.safetensors has another content" in refusal(weights, entries)
    mm.verify(
        str(weights), entries, full=False, owner=ME
    )  # names, sizes and modes alone: the contents are the launcher's part


def test_missing_added_and_resized_files_are_all_named(weights):
    entries = mm.record(str(weights), ME)
    (weights / "config.json").unlink()
    (weights / "more.json").write_text("{}")
    (weights / "model.safetensors").chmod(0o644)
    (weights / "model.safetensors").write_bytes(b"short")
    said = refusal(weights, entries)
    for part in ("config.json is missing", "more.json is not in the manifest", "has 5 bytes instead of 7000"):
        assert part in said


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "x.pkl", "modeling_evil.py", "a.so", ".x"]
)
def test_files_that_could_run_code_are_refused(weights, name):
    (weights / name).write_text("x")
    assert f"{name} is of no known harmless kind" in refusal(weights)


def test_symbolic_links_pipes_and_open_modes_are_refused(weights):
    (weights / "tokenizer.json").symlink_to("/etc/passwd")
    os.mkfifo(weights / "x.json")
    (weights / "config.json").chmod(0o666)
    said = refusal(weights)
    for part in ("tokenizer.json is a symbolic link", "x.json is no regular file", "config.json is writable by group"):
        assert part in said


def test_directory_above_that_others_may_change_is_refused(weights):
    weights.parent.chmod(0o775)
    assert f"{weights.parent} is writable by group or others" in refusal(weights)


def test_other_owner_is_refused(weights):
    with pytest.raises(mm.ManifestError, match="belongs to uid"):
        mm.record(str(weights), ME + 1)


def test_directory_without_weights_or_no_directory_is_refused(weights, tmp_path):
    (weights / "model.safetensors").unlink()
    assert "has no *.safetensors file" in refusal(weights)
    assert "is no directory" in refusal(tmp_path / "nothing")


class Became(Exception):
    """Stands for the engine that the launcher becomes."""


@pytest.fixture
def settings(weights, tmp_path, monkeypatch):
    def execve(path, argv, environment):
        raise Became(path, argv, environment)

    monkeypatch.setattr(os, "execve", execve)
    text = mm.render(mm.record(str(weights), ME))
    (tmp_path / "m.sha256").write_text(text)
    return {
        "manifest": str(tmp_path / "m.sha256"),
        "manifest_sha256": mm.digest(text),
        "source": str(weights),
        "socket": str(tmp_path / "s"),
        "environment": {"A": "1"},
        "command": ["/engine", "serve"],
    }


def test_launcher_becomes_the_engine_on_right_weights(settings):
    with pytest.raises(Became) as caught:
        mm.launch(settings, ME)
    path, argv, environment = caught.value.args
    assert (path, argv, environment["A"]) == ("/engine", ["/engine", "serve"], "1")


def test_launcher_removes_the_socket_of_a_killed_engine_and_nothing_else(settings):
    left = socket.socket(socket.AF_UNIX)
    left.bind(settings["socket"])
    left.close()
    with pytest.raises(Became):
        mm.launch(settings, ME)
    assert not os.path.lexists(settings["socket"])
    with open(settings["socket"], "w") as handle:
        handle.write("a file")
    with pytest.raises(Became):
        mm.launch(settings, ME)
    assert os.path.isfile(settings["socket"])


def test_launcher_refuses_changed_weights(settings, weights):
    (weights / "model.safetensors").chmod(0o644)
    (weights / "model.safetensors").write_bytes(b"evil" * 1750)
    with pytest.raises(mm.ManifestError, match="another content"):
        mm.launch(settings, ME)


def test_launcher_refuses_a_manifest_that_was_changed_with_the_weights(settings, weights):
    (weights / "model.safetensors").chmod(0o644)
    (weights / "model.safetensors").write_bytes(b"evil" * 1750)
    with open(settings["manifest"], "w") as handle:
        handle.write(mm.render(mm.record(str(weights), ME)))
    with pytest.raises(mm.ManifestError, match="not the manifest that was deployed"):
        mm.launch(settings, ME)


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json"])
def test_launcher_ends_with_the_status_that_stops_restarts(tmp_path, capsys, content):
    (tmp_path / "x.json").write_text(content)
    assert mm.main([str(tmp_path / "x.json")]) == 78
    assert "cannot start" in capsys.readouterr().err


def test_launcher_says_what_is_wrong_with_the_weights(settings, weights, tmp_path, capsys, monkeypatch):
    (weights / "x.pkl").write_text("x")
    (tmp_path / "x.json").write_text(json.dumps(settings))
    real = mm.launch
    monkeypatch.setattr(mm, "launch", lambda s: real(s, ME))
    assert mm.main([str(tmp_path / "x.json")]) == 78
    assert "weights refused: " in capsys.readouterr().err
    assert mm.main([]) == 78
    assert mm.main([str(tmp_path / "nothing.json")]) == 78


UUID = "GPU-11111111-2222-3333-4444-555555555555"
# as driver 580.159.04 wrote it on an H100, with another UUID
INFORMATION = (
    f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 41\nGPU UUID: \t {UUID}\nBus Type: \t PCIe\nDevice Minor: \t 3\n"
)


@pytest.fixture
def with_gpu(settings, tmp_path):
    directory = tmp_path / "gpus" / "0000:00:06.0"
    directory.mkdir(parents=True)
    (directory / "information").write_text(INFORMATION)
    settings["gpus"] = {"minors": {UUID: 3}, "information": str(tmp_path / "gpus")}
    return settings


def test_launcher_becomes_the_engine_on_the_gpus_that_the_unit_was_made_for(with_gpu):
    with pytest.raises(Became):
        mm.launch(with_gpu, ME)


@pytest.mark.parametrize(
    ("minors", "said"),
    [
        ({UUID: 2}, f"GPU {UUID} is /dev/nvidia3 now and not /dev/nvidia2; run the play"),
        ({UUID.replace("1", "2"): 3}, f"is not there (the driver shows {UUID})"),
    ],
)
def test_launcher_refuses_other_gpus(with_gpu, tmp_path, capsys, minors, said):
    with_gpu["gpus"]["minors"] = minors
    (tmp_path / "x.json").write_text(json.dumps(with_gpu))
    assert mm.main([str(tmp_path / "x.json")]) == 78
    told = capsys.readouterr().err
    assert told.startswith("GPUs refused: ") and said in told


def test_launcher_refuses_a_host_without_a_driver(with_gpu, tmp_path):
    with_gpu["gpus"]["information"] = str(tmp_path / "nothing")
    with pytest.raises(mm.GpuError, match="the driver shows none"):
        mm.launch(with_gpu, ME)
