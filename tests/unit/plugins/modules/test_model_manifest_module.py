# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The model_manifest module: a check, a run, a check again and a run again, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.module_utils import files
from ansible_collections.moat.inference.plugins.modules import model_manifest

MODEL = {"name": "m", "source": "/srv/models/m", "socket": "/run/moat-model/m/engine.sock"}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the module; /srv/models/m is a folder of the test's, which belongs to whoever runs it."""
    weights = tmp_path / "m"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "moat-model@old.service").write_text("")
    backend = model_manifest.model_manifest
    monkeypatch.setattr(backend, "attribute_faults", lambda *_arguments: [])
    verify, record = backend.verify, backend.record
    monkeypatch.setattr(backend, "verify", lambda _source, entries, full: verify(str(weights), entries, full))
    monkeypatch.setattr(backend, "record", lambda _source: record(str(weights)))
    monkeypatch.setattr(files, "set_attributes", lambda path, state: os.chmod(path, state.mode))
    monkeypatch.setattr(files, "_owner_name", lambda _uid: "root")
    monkeypatch.setattr(files, "_group_name", lambda _gid: "root")

    def run(check: bool = False, **options: Any) -> dict[str, Any]:
        given = {
            "models": [MODEL],
            "directory": str(tmp_path / "etc"),
            "unit_directory": str(tmp_path / "units"),
            "_ansible_check_mode": check,
            **options,
        }
        with patch_module_args(given), pytest.raises(SystemExit):
            model_manifest.main()
        return dict(json.loads(capsys.readouterr().out))

    return run


def test_four_runs(call: Any, tmp_path: Path) -> None:
    first = call(check=True)
    assert first["changed"] and not (tmp_path / "etc").exists()
    assert "weights refused" not in str(first) and first["reason"] == ["m: manifest written (trust on first use)"]
    second = call()
    assert (
        second["changed"] and (tmp_path / "etc" / "m.sha256").read_text() == first["diff"][0]["after"].split("\n", 1)[1]
    )
    assert second["models"][0]["manifest_sha256"] == first["models"][0]["manifest_sha256"]
    assert second["models"][0]["origin"] == "recorded" and second["stale"] == ["old"]
    for check in (True, False):
        again = call(check=check)
        assert not again["changed"] and again["models"][0]["origin"] == "present" and again["diff"] == []


def test_a_recorded_manifest_is_never_replaced_by_itself(call: Any, tmp_path: Path) -> None:
    call()
    (tmp_path / "m" / "model.safetensors").write_bytes(b"other weights")
    refused = call()
    assert refused["failed"] and "has 13 bytes instead of 7; restore it" in refused["msg"]


def test_a_given_manifest_decides(call: Any, tmp_path: Path) -> None:
    call()
    text = (tmp_path / "etc" / "m.sha256").read_text()
    assert not call(manifests={"m": text})["changed"]
    refused = call(manifests={"m": text.replace(" 7 ", " 8 ")})
    assert refused["failed"] and "has 7 bytes instead of 8" in refused["msg"]
    assert (tmp_path / "etc" / "m.sha256").read_text() == text


def test_all_faults_of_the_input_at_once(call: Any, tmp_path: Path) -> None:
    refused = call(
        models=[{**MODEL, "engine_args": ["--port", "1"]}],
        environment={"PYTHONOPTIMIZE": "1"},
        manifests={"other": "x"},
    )
    for part in ("engine_args[0]", "model_server_environment.PYTHONOPTIMIZE", "model_server_manifests.other"):
        assert part in refused["msg"]
    assert not (tmp_path / "etc").exists()
