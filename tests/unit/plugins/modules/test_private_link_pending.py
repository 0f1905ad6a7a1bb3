"""A change of the running link between its application and its confirmation, on a model of a host."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import private_link_change, private_link_host
from ansible_collections.moat.inference.plugins.module_utils.pending import UNDO, WAITING
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
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return installed(monkeypatch, tmp_path)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], machine: Machine) -> Call:
    return Call(capsys, machine)


def time_is_over(call: Call, machine: Machine) -> None:
    """What PID 1 does; afterwards no copy and no key is left in memory."""
    machine.run(["/bin/sh", call.waiting.path(UNDO)])
    assert sorted(os.listdir(call.waiting.directory)) == ["outcome", "token", "undo"]
    assert Path(call.waiting.path("outcome")).read_text() == "undone\n"


def drop_in(tmp_path: Path, text: str) -> list[dict[str, str]]:
    return [{"path": str(tmp_path / "unit.d" / "moat.conf"), "content": text, "mode": "0640"}]


def test_the_way_back_is_armed_before_anything_changes(call: Call, machine: Machine) -> None:
    converged(call, machine)
    result = call(confirm=False, **options(peer(2), peer(4)), confirm_timeout=9, confirm_token="abc")
    assert result["pending"] == {"name": "private_link", "token": "abc", "timeout": 9, "ssh": False}
    armed = next(number for number, line in enumerate(machine.calls) if line.startswith("systemd-run"))
    assert "--unit=moat-undo-private_link --on-active=9s" in machine.calls[armed]
    assert armed < machine.calls.index(machine.verbs()[0])


def test_what_boot_loads_is_written_when_the_change_is_confirmed(call: Call, machine: Machine) -> None:
    converged(call, machine)
    before, machine.enabled = machine.state()["files"], "disabled"
    result = call(confirm=False, **options(peer(2), peer(4)))
    assert set(machine.peers or {}) == {key(2), key(4)}
    assert (machine.state()["files"], machine.enabled) == (before, "disabled")
    call.confirm(result)
    assert key(4) in (machine.etc / "moat0.conf").read_text() and machine.enabled == "enabled"
    assert (machine.etc / "moat0.conf").stat().st_mode & 0o777 == 0o600
    assert call(**options(peer(2), peer(4)))["changed"] is False


def test_only_root_reads_what_waits(call: Call, machine: Machine) -> None:
    converged(call, machine)
    call(confirm=False, **options(peer(2), peer(4)))
    assert os.stat(call.waiting.directory).st_mode & 0o777 == 0o700
    held = {entry.name: entry.stat().st_mode & 0o777 for entry in os.scandir(call.waiting.directory)}
    assert set(held.values()) == {0o600} and {"before", "after", WAITING} <= set(held)
    # positive control: the key is what there is to be read
    assert all(OWN in Path(call.waiting.path(name)).read_text() for name in ("before", "after"))
    assert OWN not in Path(call.waiting.path(UNDO)).read_text()


def by_hand(machine: Machine) -> None:
    assert machine.peers is not None
    other = {"allowed": "100.64.0.7/32", "endpoint": "(none)", "keepalive": "off", "preshared": "(none)"}
    machine.peers[key(7)] = other
    machine.peers[key(2)].update(keepalive="25", preshared=key(8))
    machine.addresses.append("100.64.7.7/32")
    machine.routes += ["100.64.0.7/32", "100.64.9.9/32"]
    machine.mtu, machine.fwmark = 1300, "0x7"


def rolled_key(machine: Machine) -> None:
    (machine.etc / "moat0.key").write_text(key(12) + "\n")


def nothing(_machine: Machine) -> None:
    pass


@pytest.mark.parametrize(
    "prepare, changed",
    [
        (nothing, options(peer(3))),
        (nothing, options(peer(2, public_key=key(5)), peer(3))),
        (nothing, options(peer(2, allowed_ips=["100.64.0.99/32"]), peer(3))),
        (nothing, options(peer(2, endpoint="10.9.9.9"), peer(3))),
        (nothing, options(port=51999)),
        (nothing, options(addresses=["100.64.0.1/24"])),
        (nothing, options(mtu=1300)),
        (by_hand, options(peer(2), peer(3))),
        (by_hand, options(peer(4))),
        (rolled_key, options()),
    ],
)
def test_what_is_not_confirmed_is_taken_back(
    call: Call, machine: Machine, prepare: Callable[[Machine], None], changed: dict[str, Any]
) -> None:
    converged(call, machine)
    prepare(machine)
    before = machine.state()
    assert "pending" in call(confirm=False, **changed)
    assert machine.state() != before
    time_is_over(call, machine)
    assert machine.state() == before
    # and the same change can be had afterwards
    assert call(**changed)["changed"] is True
    assert call(**changed)["changed"] is False


def test_a_first_link_is_gone_again_and_never_was_there_at_boot(call: Call, machine: Machine, tmp_path: Path) -> None:
    call(module_key.main)
    before = machine.state()
    wanted = options(unit_files=drop_in(tmp_path, "x"))
    assert "pending" in call(confirm=False, **wanted)
    assert (machine.active, machine.enabled) == ("active", "disabled") and machine.peers
    time_is_over(call, machine)
    assert machine.state() == before and machine.active == "inactive"
    assert not (tmp_path / "unit.d").exists()
    assert call(**wanted)["changed"] and machine.enabled == "enabled"


def test_a_restart_happens_with_what_is_confirmed(call: Call, machine: Machine, tmp_path: Path) -> None:
    converged(call, machine, unit_files=drop_in(tmp_path, "old"))
    before = machine.state()
    result = call(confirm=False, **options(peer(2), peer(4), unit_files=drop_in(tmp_path, "new")))
    verbs = machine.verbs()
    assert verbs[:2] == ["systemctl daemon-reload", f"systemctl restart -- {UNIT}"]
    assert verbs[2].startswith("wg syncconf") and "systemctl disable" not in " ".join(verbs)
    assert set(machine.peers or {}) == {key(2), key(4)}
    assert machine.state()["files"] == before["files"] and machine.enabled == "enabled"
    call.confirm(result)
    assert key(4) in (machine.etc / "moat0.conf").read_text()


def test_a_unit_that_nobody_confirms_gets_its_files_back(call: Call, machine: Machine, tmp_path: Path) -> None:
    converged(call, machine, unit_files=drop_in(tmp_path, "old"))
    path = tmp_path / "unit.d" / "moat.conf"
    by_hand(machine)
    before = machine.state()
    call(confirm=False, **options(peer(4), unit_files=drop_in(tmp_path, "new")))
    assert path.read_text() == "new"
    machine.calls.clear()
    time_is_over(call, machine)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("old", 0o640)
    assert machine.calls.index("systemctl daemon-reload") < machine.calls.index(f"systemctl restart -- {UNIT}")
    # what was there by hand as well: the operator may come by it
    assert machine.state() == before


@pytest.mark.parametrize("text", ["", f"[Interface]\nPrivateKey = {OWN}\nListenPort = 53\nMTU = 1420\n"])
def test_where_what_boot_loads_starts_nothing_the_new_one_does(call: Call, machine: Machine, text: str) -> None:
    converged(call, machine)
    machine.active, machine.peers = "failed", None
    machine.refused.add("ListenPort = 53\n")
    (machine.etc / "moat0.conf").write_text(text)
    before = machine.state()
    result = call(confirm=False, **options())
    # a unit with a configuration that is not confirmed does not start at boot
    assert (machine.active, machine.enabled) == ("active", "disabled")
    time_is_over(call, machine)
    assert machine.state() == before
    assert call(**options())["changed"] and machine.enabled == "enabled"
    assert result["reason"] == f"{machine.etc}/moat0.conf differs; {UNIT} is failed, no interface"


def test_a_link_that_ran_without_its_file_has_one_when_it_comes_back(
    call: Call, machine: Machine, tmp_path: Path
) -> None:
    converged(call, machine, unit_files=drop_in(tmp_path, "old"))
    (machine.etc / "moat0.conf").write_text("")
    before = machine.state()
    call(confirm=False, **options(peer(4), unit_files=drop_in(tmp_path, "new")))
    time_is_over(call, machine)
    after = machine.state()
    assert (after["peers"], after["link"], after["boot"]) == (before["peers"], before["link"], "enabled")


def test_an_interface_made_by_hand_comes_back(call: Call, machine: Machine) -> None:
    converged(call, machine)
    machine.active, machine.enabled = "inactive", "disabled"
    by_hand(machine)
    before = machine.state()
    call(confirm=False, **options())
    assert machine.active == "active"
    time_is_over(call, machine)
    assert machine.state() == before and machine.active == "inactive"


def test_files_alone_need_no_confirmation(call: Call, machine: Machine) -> None:
    wanted = converged(call, machine)
    with (machine.etc / "moat0.conf").open("a") as file:
        file.write("# drifted\n")
    machine.enabled = "disabled"
    result = call(**wanted)
    assert result["changed"] and "pending" not in result
    assert machine.verbs() == [f"systemctl enable -- {UNIT}"]
    assert "drifted" not in (machine.etc / "moat0.conf").read_text()


def test_files_alone_come_back_when_a_step_fails(call: Call, machine: Machine) -> None:
    wanted = converged(call, machine)
    (machine.etc / "moat0.conf").write_text("by hand")
    machine.enabled = "disabled"
    machine.failing.add("systemctl enable")
    result = call(**wanted)
    assert result["failed"] and "restored completely" in result["msg"]
    assert (machine.etc / "moat0.conf").read_text() == "by hand"


def test_what_a_killed_run_left_is_taken_back_first(
    call: Call, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = converged(call, machine, unit_files=drop_in(tmp_path, "old"))
    before = machine.state()

    class Killed(BaseException):
        pass

    def killed(_self: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(private_link_host.Host, "start", killed)
        patched.setattr(private_link_change, "ERRORS", (OSError,))
        with pytest.raises(Killed):
            call(**options(peer(4), unit_files=drop_in(tmp_path, "new")))
    assert (tmp_path / "unit.d" / "moat.conf").read_text() == "new" and call.waiting.waits
    warned: list[str] = []
    monkeypatch.setattr(module_link.AnsibleModule, "warn", lambda _module, text: warned.append(text))
    machine.calls.clear()
    call(check=True, **wanted)
    assert machine.verbs() == [] and call.waiting.waits
    assert call(**wanted)["changed"] is False
    assert len(warned) == 2 and all("never confirmed" in text for text in warned)
    assert machine.state() == before and not call.waiting.waits


def test_what_was_taken_back_meanwhile_is_no_success(
    call: Call, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    converged(call, machine)
    apply = private_link_change.Change.change

    def slow(self: private_link_change.Change) -> None:
        apply(self)
        time_is_over(call, machine)

    monkeypatch.setattr(private_link_change.Change, "change", slow)
    result = call(confirm=False, **options(peer(4)), confirm_token="abc")
    assert result["pending"]["token"] == "abc" and call.waiting.outcome("abc") == "undone"


def test_a_way_back_that_cannot_be_armed_ends_the_call(call: Call, machine: Machine) -> None:
    converged(call, machine)
    before = machine.state()
    machine.failing.add("systemd-run")
    result = call(**options(peer(4)))
    assert result["failed"] and "systemd-run" in result["msg"]
    assert machine.state() == before


def test_an_interface_that_wg_does_not_tell_is_left_alone(
    call: Call, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    converged(call, machine)
    monkeypatch.setattr(machine, "showconf", lambda: "[Interface]\n")
    result = call(**options(peer(4)))
    assert result["failed"] and "could not be taken back" in result["msg"]
    assert machine.verbs() == []


def test_a_link_that_goes_waits_as_well(call: Call, machine: Machine, tmp_path: Path) -> None:
    unit_files = drop_in(tmp_path, "x")
    converged(call, machine, unit_files=unit_files)
    by_hand(machine)
    before = machine.state()
    result = call(confirm=False, state="absent", unit_files=unit_files)
    assert "pending" in result and machine.peers is None
    assert machine.state()["files"] == before["files"] and machine.enabled == "enabled"
    time_is_over(call, machine)
    assert machine.state() == before and machine.active == "active"
    assert call(state="absent", unit_files=unit_files)["changed"]
    assert list(machine.etc.iterdir()) == [] and machine.enabled == "disabled"


def test_what_does_not_run_goes_without_confirmation(call: Call, machine: Machine) -> None:
    converged(call, machine)
    call(confirm=False, **options(peer(4)))
    time_is_over(call, machine)
    machine.active, machine.peers = "inactive", None
    result = call(state="absent")
    assert result["changed"] and "pending" not in result
    assert not os.path.exists(call.waiting.directory)
    assert list(machine.etc.iterdir()) == [] and machine.enabled == "disabled"


def test_a_directory_in_the_way_is_named(call: Call, machine: Machine) -> None:
    call(module_key.main)
    (machine.etc / "moat0.conf").mkdir()
    result = call(**options())
    assert result["failed"] and "moat0.conf is there as something else (directory)" in result["msg"]


@pytest.mark.parametrize("seconds", [0, 4, 601])
def test_a_time_that_cannot_be_had_is_refused(call: Call, machine: Machine, seconds: int) -> None:
    result = call(**options(port=0), confirm_timeout=seconds)
    assert result["failed"] and "port: 0" in result["msg"] and f"confirm_timeout: {seconds}" in result["msg"]
    assert machine.calls == []


def test_no_secret_is_in_a_result_or_an_argument(call: Call, machine: Machine) -> None:
    call(module_key.main)
    results = [call(**options()), call(**options(peer(4)))]
    rolled_key(machine)
    results.append(call(**options(peer(4))))
    results.append(call(state="absent"))
    assert all(item["changed"] for item in results)
    for secret in (OWN, key(12)):
        assert secret not in json.dumps(results)
        assert not any(secret in line for line in machine.calls)
