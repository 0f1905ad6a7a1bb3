from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.moat.inference.plugins.filter.private_dns import FilterModule, private_dns_config


def test_faults_are_errors_of_the_filter() -> None:
    settings = {"domain": "a.b", "addresses": [], "clients": ["10.0.0.1"], "forward": {}, "records": []}
    with pytest.raises(AnsibleFilterError, match="private_dns_addresses is empty"):
        private_dns_config(settings)
    assert [file["group"] for file in private_dns_config({**settings, "addresses": ["10.0.0.2"]}, "dns")] == ["dns"]
    assert list(FilterModule().filters()) == ["private_dns_config"]
