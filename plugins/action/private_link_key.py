# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Has the host make its key and keeps the public half beside the inventory, in the same task."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.moat.inference.plugins.module_utils import private_link_key
from ansible_collections.moat.inference.plugins.module_utils.private_link import is_key


class ActionModule(ActionBase):
    """One remote execution; a public half that is kept already costs a read on the controller."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        directory = arguments.pop("keys_dir", None)
        result: dict[str, Any] = self._execute_module(
            module_name="moat.inference.private_link_key", module_args=arguments, task_vars=task_vars
        )
        key = result.get("public_key")
        if result.get("failed") or not key or not directory:
            return result
        try:
            return self._keep(str(directory), str(task_vars["inventory_hostname"]), str(key), result)
        except (OSError, ValueError) as error:
            return {**result, "failed": True, "msg": f"keys_dir: {error}"}

    def _keep(self, directory: str, host: str, key: str, result: dict[str, Any]) -> dict[str, Any]:
        if not is_key(key):
            raise ValueError(f"{host} returned no WireGuard key")
        path = private_link_key.public_path(directory, host)
        try:
            before = private_link_key.public_key_of(directory, host)
        except ValueError:
            before = "(no WireGuard key)"
        if before == key:
            return result
        others = private_link_key.owners(directory, key, besides=host)
        if others:
            raise ValueError(
                f"{host} has the same key as {', '.join(others)}: a machine was copied; remove /etc/wireguard/*.key and "
                "*.conf of the link on one of them and converge it"
            )
        if not self._task.check_mode:
            private_link_key.keep_public_key(directory, host, key)
        reason = f"the public half kept in {path} is {'another one' if before else 'missing'}"
        entry = {
            "before_header": path if before else f"{path} (absent)",
            "after_header": path,
            "before": f"{before}\n" if before else "",
            "after": f"{key}\n",
        }
        reasons = [text for text in (result.get("reason"), reason) if text]
        return {
            **result,
            "changed": True,
            "reason": "; ".join(reasons),
            "diff": [*(result.get("diff") or []), entry],
        }
