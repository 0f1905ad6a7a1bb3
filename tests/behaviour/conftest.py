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

from tests.lab import internet as lab_internet
from tests.lab import site
from tests.lab.table import load

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


@pytest.fixture(scope="session")
def internet(inventory: str) -> lab_internet.Internet:
    """What the lab's internet serves, which other inventories have not."""
    found = lab_internet.internet() if Path(inventory).resolve() == LAB else None
    if found is None:
        raise LookupError("the inventory has no stand-in for the internet, so a refusal would prove nothing")
    return found


@pytest.fixture(scope="session")
def model_user(plan: Any, at: Callable[[str], Any]) -> str:
    """The user that models run as."""
    host, models = next(
        (name, item["model_server"])
        for name in sorted(plan.hosts)
        for item in [plan.host(name)]
        if "model_server" in item
    )
    return str(at(host).check_output(f"systemctl show -p User --value moat-model@{models[0]['name']}.service")).strip()


@pytest.fixture(scope="session")
def stranger(plan: Any) -> str:
    """A host that nobody manages, in the segment of the models: what it reaches, they would without the perimeter."""
    hosts = load().hosts
    segment = next(
        hosts[name].interfaces[0].network for name in sorted(plan.hosts) if "model_server" in plan.host(name)
    )
    return next(
        host.name for host in hosts.values() if host.probe and not host.router and host.interfaces[0].network == segment
    )
