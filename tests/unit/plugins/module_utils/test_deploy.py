"""The planner of deploy."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import deploy
from ansible_collections.moat.inference.plugins.module_utils.files import ABSENT, FileState

UNIT: dict[str, Any] = {"name": "x.service", "enabled": None, "state": None, "on_change": "none", "restart_on": []}


def state(active: str = "active", enabled: str = "enabled", **more: Any) -> deploy.UnitState:
    return deploy.UnitState(active, enabled, False, **more)


@pytest.mark.parametrize(
    ("unit", "found", "changed", "actions"),
    [
        ({}, state("inactive", ""), ["/a"], ()),
        ({"enabled": True}, state(enabled=""), [], ("enable",)),
        ({"enabled": True}, state(enabled="disabled"), [], ("enable",)),
        ({"enabled": True}, state(enabled="enabled-runtime"), [], ("enable",)),
        ({"enabled": True}, state(enabled="masked"), [], ("enable",)),
        ({"enabled": True}, state(enabled="static"), [], ()),
        ({"enabled": True}, state(enabled="generated"), [], ()),
        ({"enabled": True}, state(enabled="enabled"), [], ()),
        ({"enabled": False}, state(enabled="enabled"), [], ("disable",)),
        ({"enabled": False}, state(enabled=""), [], ()),
        ({"enabled": False, "state": "stopped"}, state(), [], ("disable", "stop")),
        ({"state": "stopped"}, state("failed"), [], ()),
        ({"state": "started"}, state("failed"), [], ("start",)),
        ({"state": "started"}, state("deactivating"), [], ("start",)),
        ({"state": "started"}, state("activating"), [], ()),
        ({"state": "started", "on_change": "reload"}, state(), [], ()),
        ({"state": "started", "on_change": "reload"}, state(), ["/a"], ("reload",)),
        ({"state": "started", "on_change": "restart"}, state(), ["/a"], ("restart",)),
        ({"state": "started", "on_change": "reload", "restart_on": ["/b"]}, state(), ["/a", "/b"], ("restart",)),
        ({"state": "started", "restart_on": ["/b"]}, state(), ["/a"], ()),
        ({"state": "started", "on_change": "reload"}, state("inactive"), ["/a"], ("start",)),
    ],
)
def test_plan_unit(unit: dict[str, Any], found: deploy.UnitState, changed: list[str], actions: tuple[str, ...]) -> None:
    assert deploy.plan_unit({**UNIT, **unit}, found, changed).actions == actions


def test_parse_show_keeps_the_order_asked() -> None:
    text = (
        "ActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=yes\nLoadState=loaded\n"
        "\nActiveState=inactive\nUnitFileState=\nNeedDaemonReload=no\nLoadState=not-found\nSubState=dead\nResult=success\n"
    )
    found = deploy.parse_show(text, ["a.service", "b.service"])
    assert found["a.service"] == deploy.UnitState("active", "enabled", True)
    assert found["b.service"] == deploy.UnitState("inactive", "", False, "not-found", "dead", "success")


@pytest.mark.parametrize("text", ["", "\n", "System has not been booted"])
def test_parse_show_without_systemd(text: str) -> None:
    assert deploy.parse_show(text, ["a.service"])["a.service"] == deploy.UnitState("inactive", "", False, "not-found")


def test_only_unit_files_ask_for_a_daemon_reload() -> None:
    item = {"content": "a", "mode": "0644", "owner": "root", "group": "root", "sensitive": False, "validate": []}
    for path, wanted in (("/etc/systemd/system/x.service.d/a.conf", True), ("/etc/moat/x", False)):
        assert deploy.plan_paths([], [{**item, "path": path}], [], {path: ABSENT}).daemon_reload is wanted


def test_a_unit_that_systemd_knows_in_an_old_form_asks_for_one_too() -> None:
    plan = deploy.Plan()
    deploy.plan_units(plan, [UNIT], {"x.service": deploy.UnitState("active", "enabled", True)})
    assert plan.daemon_reload and plan.changed


def test_mode_owner_group_and_content_each_count() -> None:
    item = {"path": "/x", "content": "a", "mode": "0644", "owner": "root", "group": "root"}
    item.update(sensitive=False, validate=[])
    good = FileState("file", b"a", 0o644, "root", "root")
    for other in (
        FileState("file", b"b", 0o644, "root", "root"),
        FileState("file", b"a", 0o600, "root", "root"),
        FileState("file", b"a", 0o644, "other", "root"),
        FileState("file", b"a", 0o644, "root", "other"),
        ABSENT,
    ):
        assert deploy.plan_paths([], [item], [], {"/x": other}).changed
    assert not deploy.plan_paths([], [item], [], {"/x": good}).changed


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("[Unit]\n[Install]\nWantedBy=a\n", "WantedBy=a"),
        ("[Install]\nWantedBy=a\n[Service]\nNice=1\n", "WantedBy=a"),
        ("[Service]\nX=[Install]\n", ""),
        ("", ""),
    ],
)
def test_install_section(text: str, section: str) -> None:
    assert deploy.install_section(FileState("file", text.encode())) == section


@pytest.mark.parametrize(("text", "paths"), [('["/a"]', ["/a"]), ('["/a', ["?"]), ("{}", ["?"]), ("", ["?"])])
def test_decode_pending(text: str, paths: list[str]) -> None:
    assert deploy.decode_pending(text) == paths


@pytest.mark.parametrize(
    "name", ["x", "x@.service", "../x.service", "x y.service", "x.conf", "-x/y.service", "x.service.d", ""]
)
def test_names_that_are_no_units(name: str) -> None:
    params = {"directories": [], "files": [], "absent": [], "units": [{"name": name}]}
    assert len(deploy.parameter_faults(params)) == 1


@pytest.mark.parametrize("name", ["wg-quick@moat0.service", "moat-certificate@connector-portal.timer", "x.target"])
def test_names_that_are_units(name: str) -> None:
    params = {"directories": [], "files": [], "absent": [], "units": [{"name": name}]}
    assert deploy.parameter_faults(params) == []
