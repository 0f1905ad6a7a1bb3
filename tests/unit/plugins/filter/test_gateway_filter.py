# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.moat.inference.plugins.filter.gateway import FilterModule

SETTINGS = {
    "port": 8443,
    "addresses": ["100.120.0.11"],
    "certificate": "gateway",
    "models": [],
    "clients": [],
    "endpoints": [],
    "metrics": {},
    "connections": 4096,
    "threads": 4,
    "timeout": 3600,
    "drain_timeout": 1800,
}


def test_the_files_are_those_of_the_group() -> None:
    files = FilterModule().filters()["gateway_config"](SETTINGS, "-- lua", "www")
    assert files[-1]["path"] == "/etc/moat/gateway/haproxy.cfg"
    assert {item["group"] for item in files} == {"www"}


def test_faults_fail_the_task_with_all_of_them() -> None:
    with pytest.raises(AnsibleFilterError, match=r"gateway_port is 0.*gateway_addresses is empty"):
        FilterModule().filters()["gateway_config"]({**SETTINGS, "port": 0, "addresses": []}, "")


def test_what_the_role_removes_is_what_it_writes() -> None:
    roles = Path(__file__).parents[4] / "roles"
    text = (roles / "gateway" / "vars" / "main.yml").read_text(encoding="utf-8")
    named = re.search(r"^__gateway_names:\n((?:  - .+\n)+)", text, re.MULTILINE)
    assert named is not None
    files = FilterModule().filters()["gateway_config"](SETTINGS, "-- lua")
    assert re.findall(r"- (\S+)", named[1]) == [item["path"].rpartition("/")[2] for item in files]
