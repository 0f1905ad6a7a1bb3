# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What counts as another firewall, and what is said of it."""

from __future__ import annotations

import pytest
from ansible_collections.moat.inference.plugins.module_utils import deploy
from ansible_collections.moat.inference.plugins.module_utils import (
    firewall_conflicts as conflicts,
)

MISSING = deploy.UnitState("inactive", "", False, "not-found")
IDLE = deploy.UnitState("inactive", "disabled", False)
ACTIVE = deploy.UnitState("active", "disabled", False)
BOOTED = deploy.UnitState("inactive", "enabled", False)
BOTH = deploy.UnitState("active", "enabled", False)


def judge(configuration="", **units):
    """The faults of a host whose units are as given and otherwise not installed."""
    return conflicts.conflicts(
        {name: units.get(name.partition(".")[0], MISSING) for name in conflicts.OTHERS}, configuration
    )


@pytest.mark.parametrize(
    ("name", "state", "word"),
    [
        ("firewalld", ACTIVE, "active"),
        ("firewalld", BOTH, "active"),
        ("firewalld", BOOTED, "enabled"),
        ("nftables", ACTIVE, "active"),
        ("nftables", BOTH, "active"),
        ("nftables", BOOTED, "enabled"),
        ("nftables", deploy.UnitState("inactive", "enabled-runtime", False), "enabled"),
    ],
)
def test_a_unit_that_filters_now_or_from_the_next_boot_on_is_refused(name, state, word):
    (fault,) = judge(**{name: state})
    assert f" is {word}" in fault
    assert fault.endswith(f"run: systemctl disable --now {name}.service")


@pytest.mark.parametrize("state", [MISSING, IDLE, deploy.UnitState("failed", "disabled", False)])
@pytest.mark.parametrize("name", ["firewalld", "nftables"])
def test_a_unit_that_never_filters_is_none(name, state):
    assert judge(**{name: state}) == []


@pytest.mark.parametrize("state", [IDLE, ACTIVE, BOOTED, BOTH])
@pytest.mark.parametrize("text", ["# comment\nENABLED=yes\nLOGLEVEL=low\n", 'ENABLED="yes"\n', "ENABLED=YES # on\n"])
def test_ufw_is_asked_by_its_configuration_because_enabling_it_starts_no_unit(text, state):
    assert judge(text, ufw=state) == ["ufw is enabled and would filter as well; run: ufw disable"]


@pytest.mark.parametrize("text", ["", "ENABLED=no\n", "#ENABLED=yes\n", "ENABLED=\n", "NOT_ENABLED=yes\n"])
def test_ufw_that_is_installed_and_off_is_none(text):
    assert judge(text, ufw=BOTH) == []


def test_the_configuration_that_a_removed_ufw_left_is_none():
    assert judge("ENABLED=yes\n") == []


def test_all_are_named_at_once():
    assert len(judge("ENABLED=yes\n", firewalld=BOTH, ufw=BOTH, nftables=BOTH)) == 3
