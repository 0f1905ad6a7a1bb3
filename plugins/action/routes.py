# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Applies the module of the same name and confirms its change over a new connection."""

from __future__ import annotations

from typing import Any

from ansible_collections.moat.inference.plugins.plugin_utils.commit_confirm import ConfirmedActionBase


class ActionModule(ConfirmedActionBase):
    """One remote execution on a host that is as it shall be, two when its routes change."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        return self._apply("moat.inference.routes", "routes", arguments, task_vars or {})
