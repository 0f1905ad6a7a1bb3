"""What the behaviour tests share. They run against any converged inventory.

pytest tests/behaviour --ansible-inventory=DIR
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import testinfra

from tests.lab import site

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
def plan(inventory: str) -> Any:
    """The compiled perimeter: plan.host("gpu1") is what the roles of gpu1 were handed."""
    return site.compiled(inventory)


@pytest.fixture(scope="session", autouse=True)
def reachable(inventory: str) -> None:
    """The lab's router knows the way to the link addresses, so that it is their host that refuses."""
    if Path(inventory).resolve() == LAB:
        site.teach_router()
