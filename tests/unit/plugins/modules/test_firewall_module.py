# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from ipaddress import ip_network

import pytest
from ansible_collections.moat.inference.plugins.module_utils.firewall_policy import Policy, Rule
from ansible_collections.moat.inference.plugins.modules import firewall

POLICY = Policy((), (Rule("in-admin-ssh", "input", "tcp", (22,), (ip_network("10.90.0.0/28"),)),), "10/minute")


@pytest.mark.parametrize(
    ("connection", "locked"),
    [
        ("10.90.0.1 50000 10.90.0.131 22", False),
        ("10.90.0.99 50000 10.90.0.131 22", True),
        ("10.90.0.1 50000 10.90.0.131 2222", True),
        ("fd00:90::1 50000 fd00:90::131 22", True),
        ("", False),
    ],
)
def test_the_operators_connection_must_be_admitted(connection, locked):
    said = firewall.lock_out(POLICY, connection, {})
    assert len(said) == locked
    for text in said:
        assert connection.split()[0] in text and "moat_perimeter.admin.from" in text and "Nothing was touched" in text


def test_the_interface_of_the_connection_counts():
    policy = Policy((), (Rule("in-admin-ssh", "input", "tcp", (22,), (ip_network("10.90.0.0/28"),), "eth1"),), "1/hour")
    connection = "10.90.0.1 50000 10.90.0.131 22"
    assert not firewall.lock_out(policy, connection, {"10.90.0.131": "eth1"})
    assert firewall.lock_out(policy, connection, {"10.90.0.131": "eth0"})


def test_a_user_is_a_number():
    assert firewall.uid_of("root") == 0
    assert firewall.uid_of("nobody-has-this-name") is None
