# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The gpu_drain module against a systemctl that remembers its calls and a gateway that is a double of HAProxy's admin socket."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.module_utils import gpu_drain as parsers
from ansible_collections.moat.inference.plugins.modules import gpu_drain

UNITS = """\
moat-model@xray-7b.service loaded active running Model xray-7b
moat-model@notes-1b.service loaded inactive dead Model notes-1b
moat-model@echo.service loaded activating auto-restart Model echo
other.service loaded active running x
"""
STAT = "# pxname,svname,qcur,qmax,scur,smax\nmodel-xray-7b,engine,0,0,{0},9\nmodel-xray-7b,BACKEND,0,0,7,9\nmodel-echo,engine,,,1,9\n"


class Host:
    """The host of a test: systemctl lists units and writes down what else it is asked; stat is what the gateway shows."""

    def __init__(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.place, self.capsys = place, capsys
        self.record = place / "lib" / "gpu-drained.json"
        self.asked: list[str] = []
        self.stat: list[str] = []
        self.units(UNITS)

    def units(self, text: str, status: int = 0) -> None:
        (self.place / "units").write_text(text)
        script = (
            f'[ "$1" = list-units ] && exec cat {self.place}/units\necho "$@" >> {self.place}/calls\nexit {status}\n'
        )
        (self.place / "systemctl").write_text(f"#!/bin/sh\n{script}")
        (self.place / "systemctl").chmod(0o755)

    def calls(self) -> list[str]:
        path = self.place / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def gateway(self, _socket: str, command: str) -> str:
        self.asked.append(command)
        if command != "show stat":
            return "\n"
        return STAT.format(self.stat.pop(0) if len(self.stat) > 1 else self.stat[0])

    def run(self, state: str, **options: Any) -> dict[str, Any]:
        with patch_module_args({"state": state, **options}), pytest.raises(SystemExit):
            gpu_drain.main()
        return dict(json.loads(self.capsys.readouterr().out))


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path, capsys)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(gpu_drain, "INTERVAL", 0.01)
    monkeypatch.setattr(gpu_drain, "MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(parsers, "RECORD", str(made.record))
    monkeypatch.setattr(parsers, "SOCKET", str(tmp_path / "admin.sock"))
    monkeypatch.setattr(gpu_drain, "ask_haproxy", made.gateway)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "xray-7b.json").write_text('{"socket": "/run/moat-model/xray-7b/engine.sock"}')
    return made


def test_drained_models_are_stopped_recorded_and_come_back(host: Host) -> None:
    models = [
        {"name": "echo", "socket": ""},
        {"name": "xray-7b", "socket": "/run/moat-model/xray-7b/engine.sock"},
    ]
    result = host.run("drained")
    assert result["changed"] and result["models"] == models and result["running"] == {}
    assert host.calls() == ["stop -- moat-model@echo.service moat-model@xray-7b.service"]
    assert json.loads(host.record.read_text()) == {"models": ["echo", "xray-7b"]}
    host.units("")
    again = host.run("drained")
    assert not again["changed"] and again["models"] == models and len(host.calls()) == 1
    back = host.run("resumed")
    assert back["changed"] and back["models"] == models and not host.record.exists()
    assert host.calls()[1:] == ["start -- moat-model@echo.service moat-model@xray-7b.service"]
    assert not host.run("resumed")["changed"] and len(host.calls()) == 2


def test_check_mode_tells_and_does_nothing(host: Host) -> None:
    result = host.run("drained", _ansible_check_mode=True)
    assert result["changed"] and len(result["models"]) == 2 and not host.calls() and not host.record.exists()
    host.run("drained")
    assert host.run("resumed", _ansible_check_mode=True)["changed"] and host.record.exists()


def test_the_gateway_sends_new_requests_elsewhere_and_what_runs_may_end(host: Host) -> None:
    (host.place / "admin.sock").touch()
    host.stat = ["3", "2", "0"]
    host.units(UNITS.replace("moat-model@echo", "moat-other@echo"))
    assert host.run("drained")["running"] == {"xray-7b": 0}
    assert host.asked == ["set server model-xray-7b/engine state drain", "show stat", "show stat", "show stat"]
    host.asked.clear()
    host.run("resumed")
    assert host.asked == ["set server model-xray-7b/engine state ready"]


def test_the_wait_for_what_runs_is_bounded(host: Host) -> None:
    (host.place / "admin.sock").touch()
    host.stat = ["3"]
    result = host.run("drained", grace=0)
    assert result["running"] == {"xray-7b": 3, "echo": 1} and len(host.calls()) == 1


def test_a_host_without_models_is_drained_all_the_same(host: Host) -> None:
    host.units("")
    assert host.run("drained")["changed"] and host.calls() == [] and host.record.exists()
    assert host.run("resumed")["changed"] and host.calls() == []


def test_models_that_do_not_start_again_are_told(host: Host) -> None:
    host.run("drained")
    host.units("", status=1)
    assert "no longer held back, but did not start" in host.run("resumed")["msg"]


@pytest.mark.parametrize("text", ["", "[]", '{"models": "x"}', '{"models": ["../x"]}', '{"models": [1]}'])
def test_a_record_that_is_none_is_refused(host: Host, text: str) -> None:
    host.record.parent.mkdir()
    host.record.write_text(text)
    result = host.run("resumed")
    assert result["failed"] and "no record of drained models" in result["msg"] and host.record.exists()


def test_the_launchers_settings_may_be_anything() -> None:
    assert [parsers.socket_of(text) for text in ("", "[]", '{"socket": 1}', '{"socket": "/s"}')] == ["", "", "", "/s"]
