# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Adds to each peer the public half that is kept for it beside the inventory, and confirms the change over a new connection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import private_link_key
from ansible_collections.moat.inference.plugins.plugin_utils.commit_confirm import ConfirmedActionBase


class ActionModule(ConfirmedActionBase):
    """One remote execution on a host that is as it shall be, two when the running link changes.

    Keys are read when the task runs, after the whole batch of hosts has kept its own.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        directory = arguments.pop("keys_dir", None)
        if directory and arguments.get("state") != "absent":
            try:
                arguments["peers"] = self._with_keys(str(directory), arguments.get("peers") or [])
            except ValueError as error:
                return {"failed": True, "changed": False, "msg": f"keys_dir: {error}"}
        result: dict[str, Any] = self._apply("moat.inference.private_link", "private_link", arguments, task_vars)
        if directory and arguments.get("state") == "absent" and not result.get("failed"):
            return self._forget(str(directory), str(task_vars["inventory_hostname"]), result)
        return result

    def _with_keys(self, directory: str, peers: Any) -> Any:
        """Leave to the module to judge what is no list of mappings with a name."""
        if not isinstance(peers, list):
            return peers
        found, faults = [], []
        for peer in peers:
            if isinstance(peer, Mapping) and "name" in peer and not peer.get("public_key"):
                try:
                    key = private_link_key.public_key_of(directory, str(peer["name"]))
                except ValueError as error:
                    faults.append(str(error))
                    continue
                peer = {**peer, "public_key": key} if key else peer
            found.append(peer)
        if faults:
            raise ValueError("; ".join(faults))
        return found

    def _forget(self, directory: str, host: str, result: dict[str, Any]) -> dict[str, Any]:
        """Remove the public half of a key that is gone."""
        path = Path(private_link_key.public_path(directory, host))
        if not path.exists():
            return result
        entry = {
            "before_header": str(path),
            "after_header": f"{path} (absent)",
            "before": path.read_text(encoding="ascii", errors="replace"),
            "after": "",
        }
        if not self._task.check_mode:
            path.unlink()
        return {**result, "changed": True, "diff": [*(result.get("diff") or []), entry]}
