# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Other programs that would decide over the same packets, or flush the perimeter's table: named with what to do about each."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ansible_collections.moat.inference.plugins.module_utils import deploy

FIREWALLD, UFW, NFTABLES = "firewalld.service", "ufw.service", "nftables.service"
OTHERS = (FIREWALLD, UFW, NFTABLES)
UFW_CONFIGURATION = "/etc/ufw/ufw.conf"
# ufw-init(8) reads the file as a shell does
UFW_ENABLED = re.compile(r"^\s*ENABLED=[\"']?(yes|YES)[\"']?\s*(#.*)?$", re.M)
BOOTED = ("enabled", "enabled-runtime")


def conflicts(states: Mapping[str, deploy.UnitState], ufw: str) -> list[str]:
    """Name every other firewall that filters now or would from the next boot on; ufw is the text of its ufw.conf."""
    faults = []
    if _at_work(states[FIREWALLD]):
        faults.append(
            f"firewalld is {_when(states[FIREWALLD])} and would filter as well; run: systemctl disable --now {FIREWALLD}"
        )
    # `ufw enable` loads its rules itself, whatever its unit does; the file of a package that was removed says nothing
    if states[UFW].load != "not-found" and UFW_ENABLED.search(ufw):
        faults.append("ufw is enabled and would filter as well; run: ufw disable")
    if _at_work(states[NFTABLES]):
        faults.append(
            f"{NFTABLES} is {_when(states[NFTABLES])}, and its configuration and its stop flush every table, the perimeter's too;"
            " load its tables by a unit that flushes none, and have container engines load theirs again after its last flush;"
            f" run: systemctl disable --now {NFTABLES}"
        )
    return faults


def _at_work(state: deploy.UnitState) -> bool:
    return state.active in deploy.SETTLED or state.enabled in BOOTED


def _when(state: deploy.UnitState) -> str:
    return "active" if state.active in deploy.SETTLED else "enabled"
