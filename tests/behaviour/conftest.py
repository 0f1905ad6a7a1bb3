"""What the behaviour tests share. They run against any converged inventory: pytest tests/behaviour --ansible-inventory=DIR."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import testinfra
from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import Plan, compile_intent

LAB = Path(__file__).parents[2] / "inventories" / "lab"


@pytest.fixture(scope="session")
def inventory(request: pytest.FixtureRequest) -> str:
    """Path of the inventory; the lab's unless --ansible-inventory says otherwise."""
    return str(request.config.getoption("--ansible-inventory") or LAB)


@pytest.fixture(scope="session")
def at(inventory: str) -> Callable[[str], Any]:
    """The testinfra host of an inventory name: at("gpu1").run("true")."""

    ssh_config = LAB.parents[1] / ".lab" / "ssh" / "config"

    @cache
    def host(name: str) -> Any:
        # testinfra does not template an inventory's SSH arguments; the lab's are in a file, others are asked through Ansible.
        if Path(inventory).resolve() == LAB:
            return testinfra.get_host(f"ssh://{name}", ssh_config=str(ssh_config), controlpersist=60)
        return testinfra.get_host(f"ansible://{name}", ansible_inventory=inventory, force_ansible=True)

    return host


@pytest.fixture(scope="session")
def listing(inventory: str) -> dict[str, Any]:
    """The inventory as ansible-inventory prints it."""
    done = subprocess.run(["ansible-inventory", "-i", inventory, "--list"], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="session")
def plan(listing: dict[str, Any]) -> Plan:
    """The compiled perimeter: plan.host("gpu1") is what the roles of gpu1 were handed."""
    variables = listing["_meta"]["hostvars"]
    groups = {name: sorted(_members(listing, name)) for name in listing if name != "_meta"}
    intent = next(item["moat_perimeter"] for item in variables.values() if "moat_perimeter" in item)
    return compile_intent(intent, {"hosts": variables, "groups": groups})


def _members(listing: dict[str, Any], group: str) -> set[str]:
    entry = listing.get(group, {})
    return set(entry.get("hosts", ())).union(*(_members(listing, child) for child in entry.get("children", ())))
