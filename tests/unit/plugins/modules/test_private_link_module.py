"""The modules of the link on a model of a host; a change that waits is confirmed at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible_collections.moat.inference.plugins.modules import private_link as module_link
from ansible_collections.moat.inference.plugins.modules import private_link_key as module_key
from ansible_collections.moat.inference.tests.unit.plugins.modules.private_link_model import (
    OWN,
    UNIT,
    Call,
    Machine,
    converged,
    installed,
    key,
    options,
    peer,
    public,
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return installed(monkeypatch, tmp_path)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], machine: Machine) -> Call:
    return Call(capsys, machine)


def test_the_four_runs_of_the_key(call: Call, machine: Machine) -> None:
    check = call(module_key.main, check=True)
    assert (check["changed"], check["public_key"], list(machine.etc.iterdir())) == (True, "", [])
    first = call(module_key.main)
    assert (first["changed"], first["public_key"], first["diff"]) == (True, public(OWN), check["diff"])
    path = machine.etc / "moat0.key"
    assert path.read_text() == OWN + "\n"
    assert path.stat().st_mode & 0o777 == 0o600
    for again in (call(module_key.main, check=True), call(module_key.main)):
        assert (again["changed"], again["public_key"], again["diff"]) == (False, public(OWN), [])
    assert machine.calls.count("wg genkey") == 1


def test_a_key_open_to_others_is_closed_and_stays(call: Call, machine: Machine) -> None:
    call(module_key.main)
    (machine.etc / "moat0.key").chmod(0o644)
    result = call(module_key.main)
    assert result["reason"] == "the key's file is open to others"
    assert (machine.etc / "moat0.key").stat().st_mode & 0o777 == 0o600
    assert (machine.etc / "moat0.key").read_text() == OWN + "\n"


def test_the_key_of_a_configuration_is_taken_over(call: Call, machine: Machine) -> None:
    (machine.etc / "moat0.conf").write_text(f"[Interface]\nPrivateKey = {OWN}\n")
    result = call(module_key.main)
    assert result["reason"].startswith("the key is taken over from")
    assert result["public_key"] == public(OWN)
    assert "wg genkey" not in machine.calls


def test_a_broken_key_is_never_replaced(call: Call, machine: Machine) -> None:
    (machine.etc / "moat0.key").write_text("")
    result = call(module_key.main)
    assert result["failed"] and "holds no WireGuard key" in result["msg"]
    assert (machine.etc / "moat0.key").read_text() == ""


def test_who_makes_the_interface_is_tried(
    call: Call, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert call(module_key.main)["implementation"] == "kernel"
    machine.kernel = False
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module_key.AnsibleModule, "get_bin_path", lambda *_words, **_more: None)
    assert call(module_key.main)["implementation"] == "none"
    monkeypatch.setattr(module_key.AnsibleModule, "get_bin_path", lambda *_words, **_more: "/usr/bin/wireguard-go")
    assert call(module_key.main)["implementation"] == "userspace"
    machine.peers, machine.kind = {}, "wireguard"
    machine.calls.clear()
    assert call(module_key.main)["implementation"] == "kernel"
    assert not any("unshare" in line for line in machine.calls)


def test_the_four_runs_of_the_link(call: Call, machine: Machine, tmp_path: Path) -> None:
    call(module_key.main)
    drop_in = tmp_path / "unit.d" / "moat.conf"
    wanted = options(unit_files=[{"path": str(drop_in), "content": "[Service]\n"}])
    check = call(check=True, **wanted)
    assert check["changed"] and machine.peers is None and not drop_in.exists()
    first = call(**wanted)
    assert (first["changed"], first["diff"], first["reason"]) == (True, check["diff"], check["reason"])
    assert first["peers"] == ["gpu2", "gpu3"]
    assert (machine.etc / "moat0.conf").stat().st_mode & 0o777 == 0o600
    assert drop_in.read_text() == "[Service]\n"
    assert (machine.active, machine.enabled) == ("active", "enabled")
    machine.calls.clear()
    for again in (call(check=True, **wanted), call(**wanted)):
        assert (again["changed"], again["diff"], again["reason"]) == (False, [], "")
    assert machine.verbs() == []
    assert list((tmp_path / "run" / "pending").iterdir()) == []


def test_a_bare_host_in_check_mode_has_neither_key_nor_peers_and_does_not_fail(
    call: Call, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(module_link.AnsibleModule, "warn", lambda _module, text: warned.append(text))
    result = call(check=True, **options(peer(2, public_key=None)))
    assert result["changed"] is True
    assert result["unresolved"] == ["gpu2"]
    assert len(warned) == 1 and "no public key of gpu2" in warned[0]
    assert "peer gpu2: (no public key yet)" in json.dumps(result["diff"])


def test_without_a_key_nothing_is_applied(call: Call, machine: Machine) -> None:
    result = call(**options())
    assert result["failed"] and "private_link_key" in result["msg"]
    assert machine.verbs() == []


def test_a_changed_peer_is_synchronised_without_a_restart(call: Call, machine: Machine) -> None:
    converged(call, machine, peer(2), peer(3))
    result = call(**options(peer(2), peer(4)))
    assert result["changed"] and result["peers"] == ["gpu2", "gpu4"]
    assert set(machine.peers or {}) == {key(2), key(4)}
    assert sorted(machine.routes) == sorted(["100.64.0.2/32", "fd00:200::2/128", "100.64.0.4/32", "fd00:200::4/128"])
    verbs = machine.verbs()
    assert verbs[0].startswith("wg syncconf moat0 ")
    assert [line.split()[2] for line in verbs[1:]] == ["add", "add", "delete", "delete"]
    assert not any("systemctl" in line for line in verbs)


def test_what_was_changed_by_hand_is_shown_and_undone(call: Call, machine: Machine) -> None:
    wanted = converged(call, machine)
    assert machine.peers is not None
    machine.peers[key(7)] = {
        "allowed": "100.64.0.7/32",
        "endpoint": "(none)",
        "keepalive": "off",
        "preshared": "(none)",
    }
    machine.peers[key(2)].update(keepalive="25", preshared=key(8))
    machine.addresses.append("100.64.7.7/32")
    machine.routes.append("100.64.9.9/32")
    machine.mtu, machine.fwmark, machine.enabled = 1300, "0x7", "disabled"
    check = call(check=True, **wanted)
    shown = json.dumps(check["diff"])
    for words in (key(7), "keepalive 25 s", "preshared key set", "100.64.7.7/32", "route 100.64.9.9/32", "mtu 1300"):
        assert words in shown
    assert key(8) not in shown
    assert key(7) in machine.peers
    assert call(**wanted)["reason"] == check["reason"]
    assert set(machine.peers or {}) == {key(2), key(3)}
    assert call(**wanted)["changed"] is False


def test_a_peer_whose_public_half_is_lost_stays_with_its_known_key(call: Call, machine: Machine) -> None:
    converged(call, machine)
    result = call(**options(peer(2, public_key=None), peer(3)))
    assert (result["changed"], result["unresolved"], result["peers"]) == (False, [], ["gpu2", "gpu3"])


def test_a_stopped_unit_is_started(call: Call, machine: Machine) -> None:
    wanted = converged(call, machine)
    machine.active, machine.peers = "inactive", None
    assert call(**wanted)["reason"] == f"{UNIT} is inactive, no interface"
    assert machine.verbs() == [f"systemctl restart -- {UNIT}"]
    assert machine.peers is not None


def test_an_interface_made_by_hand_gives_way_to_the_unit(call: Call, machine: Machine) -> None:
    wanted = converged(call, machine)
    machine.active = "inactive"
    assert call(**wanted)["changed"] is True
    assert machine.verbs() == ["ip link delete dev moat0", f"systemctl restart -- {UNIT}"]


def test_a_foreign_interface_is_refused(call: Call, machine: Machine) -> None:
    call(module_key.main)
    machine.peers = {}
    machine.failing.add("wg show")
    result = call(**options())
    assert result["failed"] and "is no WireGuard interface" in result["msg"]


@pytest.mark.parametrize("cut", ["", "[Interface]\nListenPort = 51820\n", "[Interface]\nPrivateKey = " + OWN + "\n"])
def test_a_cut_configuration_never_reaches_the_interface(call: Call, machine: Machine, cut: str) -> None:
    converged(call, machine, peer(2), peer(3))
    before = (machine.etc / "moat0.conf").read_text()
    machine.strip = lambda _text: cut
    result = call(**options(peer(2), peer(4)))
    assert result["failed"] and "was not applied" in result["msg"]
    assert machine.verbs() == []
    assert (machine.etc / "moat0.conf").read_text() == before


@pytest.mark.parametrize("step", ["wg syncconf", "ip route add", "ip route delete"])
def test_a_failed_step_brings_the_previous_state_back(call: Call, machine: Machine, step: str, tmp_path: Path) -> None:
    converged(call, machine, peer(2), peer(3))
    before, routes = (machine.etc / "moat0.conf").read_text(), sorted(machine.routes)
    machine.failing.add(step + (" 100.64.0.4" if "add" in step else "") + (" 100.64.0.3" if "delete" in step else ""))
    result = call(**options(peer(2), peer(4)))
    assert result["failed"] and "restored completely" in result["msg"]
    assert (machine.etc / "moat0.conf").read_text() == before
    assert set(machine.peers or {}) == {key(2), key(3)}
    assert sorted(machine.routes) == routes
    assert sorted(os.listdir(tmp_path / "run" / "pending" / "private_link")) == ["outcome", "token", "undo"]


def test_a_first_start_that_fails_leaves_nothing_but_the_key(call: Call, machine: Machine, tmp_path: Path) -> None:
    call(module_key.main)
    machine.failing.add("systemctl restart")
    drop_in = tmp_path / "unit.d" / "moat.conf"
    result = call(**options(unit_files=[{"path": str(drop_in), "content": "x"}]))
    assert result["failed"] and "the last words" in result["msg"]
    assert [path.name for path in machine.etc.iterdir()] == ["moat0.key"]
    assert not drop_in.exists()
    assert not drop_in.parent.exists()
    assert (machine.active, machine.enabled, machine.peers) == ("inactive", "disabled", None)
    assert f"systemctl stop -- {UNIT}" in machine.verbs()


def test_absent_takes_everything_and_then_has_nothing_to_do(call: Call, machine: Machine, tmp_path: Path) -> None:
    unit_files = [{"path": str(tmp_path / "wg-quick@moat0.service.d" / "moat.conf"), "content": "x"}]
    converged(call, machine, unit_files=unit_files)
    check = call(check=True, state="absent", unit_files=unit_files)
    assert check["changed"] and machine.peers is not None
    result = call(state="absent", unit_files=unit_files)
    assert (result["changed"], result["diff"]) == (True, check["diff"])
    assert machine.peers is None and list(machine.etc.iterdir()) == []
    assert not (tmp_path / "wg-quick@moat0.service.d").exists()
    assert (machine.active, machine.enabled) == ("inactive", "disabled")
    assert call(state="absent", unit_files=unit_files)["changed"] is False


def test_all_faults_come_at_once_and_nothing_is_asked_of_the_host(call: Call, machine: Machine) -> None:
    result = call(port=0, mtu=1, addresses=[], peers=[peer(2, endpoint="x")])
    assert result["failed"]
    assert [word.split(":")[0] for word in result["msg"].split("; ") if ":" in word] == [
        "port",
        "mtu",
        "addresses",
        "peers[gpu2].endpoint",
    ]
    assert machine.calls == []
