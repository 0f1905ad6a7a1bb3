# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters of the proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import reach


def reach_verdict(cells: Mapping[str, Any], probes: Mapping[str, Any]) -> dict[str, Any]:
    """Return counts and faults of the probes against the cells."""
    return reach.summary(reach.judge(cells, probes))


class FilterModule:
    """The filters that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"reach_verdict": reach_verdict}
