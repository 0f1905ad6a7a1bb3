# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of a change that undoes itself: apply, drop the connection, reach the host anew, confirm.

The host's half is in module_utils/pending.py. A host that is not reached takes the change back by itself; here it is then only asked what
became of it.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

CONFIRM = "moat.inference.confirm"
TIMEOUT = 45  # seconds, the default of the modules
PAUSE = 1.0  # seconds between two attempts
GRACE = 5.0  # what the host's timer, its script and a module's start may take


class ConfirmedActionBase(ActionBase):
    """Runs a module, and confirms the change that it leaves waiting."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def _apply(self, module: str, name: str, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return the module's result, failed with rolled_back when the change did not let a new connection in."""
        begun, token = time.monotonic(), secrets.token_hex(8)
        try:
            result: dict[str, Any] = self._execute_module(
                module_name=module, module_args={**arguments, "confirm_token": token}, task_vars=task_vars
            )
        except AnsibleConnectionFailure as error:
            if self._task.check_mode:
                raise
            deadline = begun + _seconds(arguments.get("confirm_timeout"))
            return self._after_loss({"name": name, "token": token, "ssh": True}, deadline, task_vars, error)
        waiting = result.pop("pending", None)
        if not waiting:
            return result
        return {**result, **self._confirm(waiting, time.monotonic() + waiting["timeout"], task_vars)}

    def _confirm(self, waiting: dict[str, Any], deadline: float, task_vars: dict[str, Any]) -> dict[str, Any]:
        reason = ""
        while time.monotonic() < deadline:
            try:
                answer = self._anew(waiting, "confirmed", task_vars)
            except AnsibleConnectionFailure as error:
                reason = f"the host was not reached over a new connection ({_brief(error)})"
            else:
                if answer.get("confirmed"):
                    cut = {f"cut_{key}": answer[key] for key in ("entries", "sockets") if key in answer}
                    return {"confirmed": True, **cut}
                if answer.get("failed"):
                    return _failed(f"what boot loads could not be written: {answer.get('msg')}", answer)
                reason = str(answer.get("reason") or "")
                if not answer.get("retry"):
                    return _failed(reason, answer)
            time.sleep(PAUSE)
        return self._settled(waiting, deadline, task_vars, reason)

    def _settled(
        self, waiting: dict[str, Any], deadline: float, task_vars: dict[str, Any], reason: str
    ) -> dict[str, Any]:
        """Ask the host what became of the change once its time is over."""
        time.sleep(max(0.0, deadline + GRACE - time.monotonic()))
        for _attempt in range(3):
            try:
                answer = self._anew(waiting, "known", task_vars)
            except AnsibleConnectionFailure as error:
                silent = _brief(error)
            else:
                return _failed(reason, answer)
            time.sleep(PAUSE)
        return _failed(f"{reason}, nor after the time of its way back ({silent})", {})

    def _after_loss(
        self, waiting: dict[str, Any], deadline: float, task_vars: dict[str, Any], error: AnsibleConnectionFailure
    ) -> dict[str, Any]:
        """The connection ended before the module answered: was it the change that ended it?"""
        while True:
            try:
                answer = self._anew(waiting, "known", task_vars)
            except AnsibleConnectionFailure:
                answer = {}
            if answer.get("outcome") in ("undone", "failed"):
                return _failed(f"the connection was lost while the change was applied ({_brief(error)})", answer)
            # a host that was reached and has nothing waiting was lost for another reason
            if answer.get("outcome") == "unknown" or time.monotonic() > deadline + GRACE:
                raise error
            time.sleep(PAUSE)

    def _anew(self, waiting: dict[str, Any], state: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        if waiting["ssh"]:
            self._connection.reset()
        arguments = {"name": waiting["name"], "token": waiting["token"], "state": state}
        answer: dict[str, Any] = self._execute_module(module_name=CONFIRM, module_args=arguments, task_vars=task_vars)
        return answer


def _failed(reason: str, answer: dict[str, Any]) -> dict[str, Any]:
    outcome = answer.get("outcome", "unknown")
    words = {
        "undone": "rolled back: {}. The host has its last confirmed state again.",
        "failed": "rolled back, but not completely: {}. Look at the journal of the host, then run again.",
        "waiting": "not confirmed: {}. The host takes the change back by itself.",
        "unknown": "not confirmed: {}. Nothing is known of the host's state; it takes the change back by itself.",
    }
    message = words.get(outcome, words["unknown"]).format(reason)
    return {"failed": True, "changed": False, "confirmed": False, "rolled_back": outcome == "undone", "msg": message}


def _seconds(given: Any) -> int:
    """The time that the module has; what is no number is refused by the module itself."""
    try:
        return int(given)
    except (TypeError, ValueError):
        return TIMEOUT


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
