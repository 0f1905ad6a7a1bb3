"""The record on the controller: written whole, by host, never in check mode, and never for another inventory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.moat.inference.plugins.action.applied import ActionModule, collection_digest

KEYS = {"app1": "A" * 42 + "A=", "gpu1": "B" * 42 + "A="}
PLANS: dict[str, Any] = {
    "gpu1": {
        "roles": ["firewall", "private_link", "gateway"],
        "private_link": {"interface": "moat0", "peers": [{"name": "app1"}]},
    },
    "app1": {
        "roles": ["firewall", "private_link", "certificate"],
        "private_link": {"interface": "moat0", "peers": [{"name": "gpu1"}]},
        "certificate": [{"name": "connector-portal"}],
    },
}
PARTS = {
    host: {role: {"plan": f"{host}-{role}", "inputs": "i"} for role in plan["roles"]} for host, plan in PLANS.items()
}


class Site:
    """A state directory and what the two tasks of a run do with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.inventory = ["app1", "gpu1"]
        self.plans, self.parts = PLANS, PARTS
        (directory / "link-keys").mkdir()
        for host in KEYS:
            self.key(host, KEYS[host])
        (directory / "ca-root.pem").write_text("root")

    def key(self, host: str, text: str) -> None:
        (self.directory / "link-keys" / f"{host}.pub").write_text(text + "\n")

    def act(self, check_mode: bool = False, **arguments: Any) -> dict[str, Any]:
        given = {"state_dir": str(self.directory), "plans": self.plans, "parts": self.parts, **arguments}
        task = SimpleNamespace(
            args=given, async_val=0, action="moat.inference.applied", check_mode=check_mode, diff=False
        )
        loader = DataLoader()
        nowhere = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None))
        action = ActionModule(task, nowhere, None, loader, Templar(loader=loader, variables={}), None)
        return dict(action.run(task_vars={"groups": {"all": self.inventory}}))

    def begin(self, hosts: list[str] | None = None, **more: Any) -> dict[str, Any]:
        return self.act(state="begun", hosts=hosts or self.inventory, changes_only=True, **more)

    def end(self, work: dict[str, Any], hosts: list[str] | None = None, **more: Any) -> dict[str, Any]:
        done = {"due": work["due"], "retire": work["retire"]}
        return self.act(state="succeeded", hosts=self.inventory if hosts is None else hosts, **done, **more)

    def record(self, host: str) -> dict[str, Any]:
        return dict(json.loads((self.directory / "applied" / f"{host}.json").read_text())["roles"])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_second_run_has_nothing_to_do_and_still_names_a_host(site: Site) -> None:
    first = site.begin()
    assert first["due"] == {host: plan["roles"] for host, plan in PLANS.items()}
    assert not site.end(first)["changed"]
    second = site.begin()
    assert (second["due"], second["retire"], second["hosts"]) == ({}, {}, ["app1"])
    assert sorted(os.listdir(site.directory / "applied")) == [".gitignore", "app1.json", "gpu1.json"]


def test_check_mode_writes_nothing(site: Site) -> None:
    work = site.begin(check_mode=True)
    assert work["due"]
    site.end(work, check_mode=True)
    assert not (site.directory / "applied").exists()


def test_a_host_that_failed_is_taken_up_again(site: Site) -> None:
    site.end(site.begin(), hosts=["gpu1"])
    assert site.begin()["due"] == {"app1": PLANS["app1"]["roles"]}


def test_another_key_of_a_peer_or_another_root_is_a_change(site: Site) -> None:
    site.end(site.begin())
    site.key("app1", "C" * 42 + "A=")
    assert site.begin()["due"] == {"app1": ["private_link"], "gpu1": ["private_link"]}
    site.end(site.begin())
    (site.directory / "ca-root.pem").write_text("another root")
    assert site.begin()["due"] == {"app1": ["certificate"]}


def test_a_peer_without_a_key_keeps_its_other_end_due_until_it_has_one(site: Site) -> None:
    (site.directory / "link-keys" / "app1.pub").unlink()
    site.end(site.begin())
    work = site.begin()
    assert work["due"] == {"app1": ["private_link"], "gpu1": ["private_link"]}
    assert work["known"]["gpu1"] == ["firewall", "gateway"]
    site.key("app1", KEYS["app1"])
    site.end(site.begin())
    assert site.begin()["due"] == {}


def test_a_host_that_lost_its_key_is_not_known(site: Site) -> None:
    site.end(site.begin())
    (site.directory / "link-keys" / "app1.pub").unlink()
    work = site.begin()
    assert "private_link" not in work["known"]["app1"]
    assert "private_link" in work["known"]["gpu1"]


def test_limit_narrows_what_is_due(site: Site) -> None:
    work = site.begin(hosts=["app1"])
    assert list(work["due"]) == ["app1"]
    site.end(work, hosts=["app1"])
    assert list(site.begin()["due"]) == ["gpu1"]


def test_tags_narrow_what_is_kept(site: Site) -> None:
    tags = {"run_tags": ["all"], "skip_tags": ["gateway"]}
    site.end(site.begin(**tags), **tags)
    assert site.begin()["due"] == {"gpu1": ["gateway"]}


def test_a_host_that_left_the_perimeter_loses_all_but_its_packet_filter(site: Site) -> None:
    site.end(site.begin())
    site.plans = {"gpu1": PLANS["gpu1"]}
    work = site.begin()
    assert work["retire"] == {"app1": [{"role": "certificate"}, {"role": "private_link", "interface": "moat0"}]}
    assert "app1" in work["hosts"]
    site.end(work)
    assert list(site.record("app1")) == ["firewall"]


def test_a_host_that_left_the_inventory_is_named_with_the_remedy(site: Site) -> None:
    site.end(site.begin())
    site.inventory = ["gpu1"]
    site.plans = {"gpu1": PLANS["gpu1"]}
    work = site.begin()
    assert work["retire"] == {}
    assert "app1.json" in work["warnings"][0] and "remove the file" in work["warnings"][0]


def test_a_broken_record_is_named(site: Site) -> None:
    site.end(site.begin())
    (site.directory / "applied" / "app1.json").write_text("{")
    result = site.begin()
    assert result["failed"] and "app1.json" in result["msg"] and "remove it" in result["msg"]


def test_the_collection_is_told_by_its_files() -> None:
    assert len(collection_digest()) == 64


def test_hosts_are_linked_at_once_when_no_peer_of_theirs_may_get_another_key(site: Site) -> None:
    assert "link" in site.begin()["steps"]["app1"]["serve"]
    site.end(site.begin())
    (site.directory / "applied" / "app1.json").unlink()
    site.parts = {**PARTS, "gpu1": {**PARTS["gpu1"], "private_link": {"plan": "changed", "inputs": "i"}}}
    work = site.begin()
    assert "private_link" in work["due"]["gpu1"] and "private_link" in work["due"]["app1"]
    assert "link" in work["steps"]["app1"]["prepare"]
    assert "link" in work["steps"]["gpu1"]["serve"]
