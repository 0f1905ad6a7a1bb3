# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible.utils.display import Display
from ansible_collections.moat.inference.plugins.filter.egress_proxy import FilterModule

SETTINGS = {
    "port": 3128,
    "addresses": ["10.130.0.10"],
    "sources": [],
    "to": [],
    "refused": [],
    "resolvers": ["10.140.0.53"],
    "parents": [],
    "upload_limit": "",
    "connections": 64,
    "workers": 2,
    "extra_config": "",
}


def test_the_file_is_that_of_the_group() -> None:
    (file,) = FilterModule().filters()["egress_proxy_config"](SETTINGS, "squid")
    assert (file["path"], file["group"]) == ("/etc/moat/egress-proxy/squid.conf", "squid")


def test_faults_fail_the_task_with_all_of_them() -> None:
    with pytest.raises(AnsibleFilterError, match=r"(?s)egress_proxy_port is 0.*egress_proxy_addresses is empty"):
        FilterModule().filters()["egress_proxy_config"]({**SETTINGS, "port": 0, "addresses": []})


def test_an_extra_configuration_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Display, "warning", lambda _self, text, *_more: told.append(text))
    FilterModule().filters()["egress_proxy_config"](SETTINGS)
    assert not told
    FilterModule().filters()["egress_proxy_config"]({**SETTINGS, "extra_config": "via on"})
    assert len(told) == 1 and "egress_proxy_extra_config" in told[0]
