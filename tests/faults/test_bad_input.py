"""What is refused is refused before any host is touched, all faults at once, each with its key and the remedy."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults import run

BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an unknown key": ({"clients__portal__modles": ["xray-7b"]}, ["moat_perimeter.clients.portal.modles", "models"]),
    "a typo in a group": ({"models__xray-7b__hosts": "gpu_host"}, ["moat_perimeter.models.xray-7b.hosts", "gpu_hosts"]),
    "a public address": ({"segments__app__cidr4": "8.8.8.0/24"}, ["moat_perimeter.segments.app.cidr4", "public"]),
    "everybody, IPv4": ({"admin__from": ["0.0.0.0/0"]}, ["moat_perimeter.admin.from", "0.0.0.0/0"]),
    "everybody, IPv6": ({"admin__from": ["::/0"]}, ["moat_perimeter.admin.from", "::/0"]),
}
HOSTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a host outside its segment": ({"gpu2": {"moat_address4": "10.110.0.77"}}, ["hostvars.gpu2.moat_address4"]),
    "two hosts with one address": ({"gpu2": {"moat_address4": "10.120.0.11"}}, ["moat_address4", "10.120.0.11"]),
}


class Recorder:
    """Stands in the place of ssh, writes down that it was called, and fails."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "calls"
        self.program = folder / "ssh"
        self.program.write_text(f'#!/bin/sh\necho called >> "{self.calls}"\nexit 255\n', encoding="utf-8")
        self.program.chmod(0o755)

    @property
    def settings(self) -> dict[str, str]:
        return {"ANSIBLE_SSH_EXECUTABLE": str(self.program)}

    def called(self) -> int:
        return len(self.calls.read_text(encoding="utf-8").splitlines()) if self.calls.exists() else 0


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_intent_touches_no_host(name: str, recorder: Recorder) -> None:
    parts, words = BAD[name]
    ended = run.play(intent=run.changed_intent(**parts), settings=recorder.settings)
    assert ended.rc not in (0, 4)
    assert not [word for word in words if word not in ended.out], ended.out[-3000:]
    assert recorder.called() == 0


@pytest.mark.parametrize("name", HOSTS)
def test_a_bad_host_touches_no_host(name: str, recorder: Recorder, tmp_path: Path) -> None:
    variables, words = HOSTS[name]
    overlay = tmp_path / "overlay.yml"
    overlay.write_text(yaml.safe_dump({"all": {"hosts": variables}}), encoding="utf-8")
    ended = run.play(inventory=(str(overlay),), settings=recorder.settings)
    assert ended.rc not in (0, 4)
    assert not [word for word in words if word not in ended.out], ended.out[-3000:]
    assert recorder.called() == 0


def test_all_faults_come_in_one_message(recorder: Recorder) -> None:
    intent = copy.deepcopy(run.INTENT)
    expected = []
    for parts, words in BAD.values():
        if "IPv6" in json.dumps(parts):
            continue
        changed = run.changed_intent(**parts)
        for key in parts:
            top = key.split("__")[0]
            intent[top] = changed[top] if intent[top] == run.INTENT[top] else {**intent[top], **changed[top]}
        expected += words[:1]
    ended = run.play("moat.inference.plan", intent=intent, settings=recorder.settings)
    assert ended.rc not in (0, 4)
    assert not [word for word in expected if word not in ended.out], ended.out[-3000:]


def test_the_recorder_sees_a_host_that_is_touched(recorder: Recorder) -> None:
    ended = run.play("moat.inference.site", "--check", "--limit", "app2", settings=recorder.settings)
    assert ended.rc == 4
    assert recorder.called() > 0
