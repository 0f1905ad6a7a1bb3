# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters of the role connector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import connector


def connector_faults(
    clients: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    host: Mapping[str, Any],
    check_mode: bool = False,
) -> list[str]:
    """Return everything that is wrong with the input or missing on the host."""
    return connector.faults(clients, settings) + connector.host_faults(clients, host, check_mode)


class FilterModule:
    """The filters that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "connector_needs": connector.needs,
            "connector_faults": connector_faults,
            "connector_plan": connector.plan,
        }
