# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Carries a plan of files and units out on the host, with a way back for every step."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError

OPPOSITE = {"enable": "disable", "disable": "enable", "start": "stop", "stop": "start"}


class Steps:
    """What was done, so that it can be undone, newest first."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._undo: list[Callable[[], Any]] = []

    def later(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have something called when the steps are undone."""
        self._undo.append(lambda: function(*arguments))

    def paths(self, plan: deploy.Plan) -> None:
        """Make, replace and remove what the plan names."""
        if plan.daemon_reload:
            # steps are undone in reverse order, so systemd reads the units again once all files are back
            self.later(self._runner.run, ["systemctl", "daemon-reload"])
        for change in plan.directories:
            if change.before.kind == "absent":
                os.mkdir(change.path, 0o700)
                self.later(os.rmdir, change.path)
            else:
                self.later(files.set_attributes, change.path, change.before)
            files.set_attributes(change.path, change.after)
        for change in plan.files:
            if change.after.kind == "absent":
                os.unlink(change.path)
            else:
                files.write(change.path, change.after)
            if change.before.kind == "absent":
                self.later(os.unlink, change.path)
            else:
                self.later(files.write, change.path, change.before)
        if plan.daemon_reload:
            self._runner.run(["systemctl", "daemon-reload"])

    def unit(self, name: str, actions: Sequence[str]) -> None:
        """Run verbs of systemctl(1) that have an opposite."""
        for action in actions:
            self.later(self._runner.run, ["systemctl", OPPOSITE[action], "--", name])
            self._runner.run(["systemctl", action, "--", name])

    def undo(self) -> list[str]:
        """Put everything back, newest first, and return what could not be put back."""
        faults = []
        while self._undo:
            try:
                self._undo.pop()()
            except (OSError, KeyError, CommandError) as error:
                faults.append(str(error))
        return faults
