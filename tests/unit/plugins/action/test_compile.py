"""The compile action with Ansible's own inventory, variables and templates: no host is there to be touched."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from ansible_collections.moat.inference.plugins.action.compile import ActionModule, plain, read_inventory

INVENTORIES = Path(__file__).parents[4] / "inventories"
# The lab's is no part of the built collection.
SHIPPED = [name for name in ("example", "lab") if (INVENTORIES / name).is_dir()]


def run(source: Path, **arguments: Any) -> dict[str, Any]:
    """What the action returns for the first host of an inventory."""
    loader = DataLoader()
    inventory = InventoryManager(loader=loader, sources=[str(source)])
    manager = VariableManager(loader=loader, inventory=inventory)
    HostVars(inventory=inventory, variable_manager=manager, loader=loader)
    variables = manager.get_vars(host=inventory.get_hosts()[0])
    task = SimpleNamespace(args=arguments, async_val=0, action="moat.inference.compile", check_mode=False, diff=False)
    templar = Templar(loader=loader, variables=variables)
    # A connection without any method: whatever would reach a host fails here.
    nowhere = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None))
    action = ActionModule(task, nowhere, None, loader, templar, None)
    return dict(action.run(task_vars=variables))


def write(directory: Path, intent: str, hosts: str) -> Path:
    (directory / "group_vars").mkdir(exist_ok=True)
    (directory / "hosts.yml").write_text(hosts)
    (directory / "group_vars" / "all.yml").write_text(intent)
    return directory


HOSTS = """
all:
  hosts:
    ca1: {moat_segment: services, moat_address4: 10.140.0.10}
    gpu1: {moat_segment: inference, moat_address4: "10.120.0.{{ 10 + 1 }}"}
    app1: {moat_segment: app, moat_address4: 10.110.0.11, secret_of_a_role: "{{ undefined_on_purpose }}"}
    elsewhere: {moat_address4: "{{ undefined_on_purpose }}"}
"""
INTENT = """
gateway_port_of_the_site: 8444
moat_perimeter:
  domain: inference.internal
  segments:
    app: {cidr4: 10.110.0.0/24}
    inference: {cidr4: 10.120.0.0/24}
    services: {cidr4: 10.140.0.0/24}
  admin: {from: [10.90.0.0/28]}
  ca: {host: ca1}
  gateway: {port: "{{ gateway_port_of_the_site }}"}
  models:
    xray-7b: {hosts: gpu1, source: /srv/models/xray-7b}
  clients:
    portal: {hosts: app1, users: [portal], models: [xray-7b]}
"""


@pytest.mark.parametrize("name", SHIPPED)
def test_the_inventories_that_are_shipped_compile(name: str) -> None:
    result = run(INVENTORIES / name)
    assert "failed" not in result, result.get("msg")
    roles = result["roles"]
    assert len(roles["ca"]) == 1 and len(roles["gateway"]) == 2 and len(roles["connector"]) >= 2
    assert set(result["hosts"]) < set(result["cells"])


def test_the_example_has_what_it_promises() -> None:
    result = run(INVENTORIES / "example", cells=False)
    assert result["roles"]["model_server"] == ["gpu1", "gpu2"]
    clients = {item["name"] for plan in result["hosts"].values() for item in plan.get("connector", ())}
    assert clients == {"portal", "reports", "search"}


def test_every_line_of_the_example_is_commented() -> None:
    for path in (INVENTORIES / "example").rglob("*.yml"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert line == "---" or "#" in line, f"{path.name}:{number}"


def test_templates_are_resolved_only_where_they_are_needed(tmp_path: Path) -> None:
    result = run(write(tmp_path, INTENT, HOSTS))
    assert result["hosts"]["gpu1"]["gateway"]["port"] == 8444
    assert result["hosts"]["gpu1"]["firewall"]["segments"][0]["addresses"] == ["10.120.0.11"]
    assert "elsewhere" not in result["hosts"]


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path, INTENT, HOSTS)
    result, whole = run(source, hosts=["gpu1"], cells=False, words=False), run(source)
    assert list(result["hosts"]) == ["gpu1"] and result["cells"] == {} and result["words"] == {}
    assert result["hosts"]["gpu1"] == whole["hosts"]["gpu1"] and result["digest"] == whole["digest"]
    refused = run(source, hosts=["gpu2"])
    assert refused["failed"] and "hosts[0]: 'gpu2' is no host of the perimeter; write 'gpu1'" in refused["msg"]


def test_a_refused_intent_fails_with_all_its_faults(tmp_path: Path) -> None:
    broken = INTENT.replace("hosts: gpu1", "hosts: gpu2").replace("10.90.0.0/28", "0.0.0.0/0")
    result = run(write(tmp_path, broken, HOSTS))
    assert result["failed"] and result["changed"] is False
    assert len(result["msg"].splitlines()) == 3
    assert [fault["path"] for fault in result["faults"]] == [
        "moat_perimeter.admin.from[0]",
        "moat_perimeter.models.xray-7b.hosts",
    ]


def test_an_inventory_without_an_intent(tmp_path: Path) -> None:
    result = run(write(tmp_path, "x: 1", HOSTS))
    assert result["failed"] and "moat_perimeter: is missing" in result["msg"] and "inventories/example" in result["msg"]


def test_the_intent_may_be_an_argument(tmp_path: Path) -> None:
    source = write(tmp_path, INTENT, HOSTS)
    refused = run(source, perimeter={"domain": "Upper"})
    assert refused["failed"] and "moat_perimeter.domain" in refused["msg"]


def test_an_unknown_argument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnsibleError, match="hsts"):
        run(write(tmp_path, INTENT, HOSTS), hsts=["gpu1"])


def test_plain_data() -> None:
    class Text(str):
        pass

    value = plain({Text("a"): [Text("b"), 1, True, None, (1.5,)]})
    assert value == {"a": ["b", 1, True, None, [1.5]]}
    texts = [next(iter(value), None), value["a"][0]]
    assert not any(isinstance(item, Text) for item in texts) and isinstance(value["a"][2], bool)


def test_names_of_other_hosts_variables_are_read_without_their_values() -> None:
    class Unread(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise AssertionError(f"{key} was templated")

    found = read_inventory({"x": Unread(moat_segmnt="app", other=1)}, {"all": ["x"]})
    assert found["hosts"] == {"x": {"moat_segmnt": None}} and found["groups"] == {"all": ["x"]}


def test_parts_tell_the_plan_and_the_inputs_of_a_role(tmp_path: Path) -> None:
    source = write(tmp_path, INTENT, HOSTS)
    assert run(source)["parts"] == {}
    before = run(source, parts=True)["parts"]
    assert before == run(source, parts=True)["parts"]
    assert sorted(before["gpu1"]) == ["certificate", "firewall", "gateway", "model_server", "private_link"]
    write(tmp_path, INTENT + "\ngateway_threads: 2\n", HOSTS)
    after = run(source, parts=True)["parts"]
    assert [role for role in before["gpu1"] if before["gpu1"][role] != after["gpu1"][role]] == ["gateway"]
    assert {host: parts for host, parts in after.items() if host != "gpu1"} == {
        host: parts for host, parts in before.items() if host != "gpu1"
    }


def test_a_part_with_an_input_that_has_no_value_is_empty(tmp_path: Path) -> None:
    source = write(tmp_path, INTENT + "\ngateway_threads: '{{ undefined_on_purpose }}'\n", HOSTS)
    parts = run(source, parts=True)["parts"]["gpu1"]
    assert [role for role in parts if not parts[role]["inputs"]] == ["gateway"]
