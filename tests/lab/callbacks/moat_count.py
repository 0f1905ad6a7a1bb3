"""Write down, for each task on each host, which role it belongs to, how long it took and each command that went over SSH.

A callback of the benchmark only: it wraps the SSH connection in the worker processes, which are forked from this one.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.executor.task_executor import TaskExecutor
from ansible.plugins.callback import CallbackBase
from ansible.plugins.connection.ssh import Connection

DOCUMENTATION = """
name: moat_count
type: aggregate
short_description: Counts remote executions
description: For the lab's benchmark.
"""
TARGET = os.environ.get("MOAT_COUNT", "")
CURRENT: dict[str, str] = {}


def note(**fields: Any) -> None:
    """One line, in one write, so that the workers' lines do not mix."""
    with open(TARGET, "ab", buffering=0) as handle:
        handle.write((json.dumps(fields) + "\n").encode())


def watch() -> None:
    """Note what goes over SSH, under the task that it is for."""
    run, command, put = TaskExecutor.run, Connection.exec_command, Connection.put_file

    def run_noted(self: Any) -> Any:
        role = self._task._role
        CURRENT.update(host=str(self._host), role=role.get_name().rpartition(".")[2] if role else "play")
        CURRENT["task"] = str(self._task.get_name())
        return run(self)

    def command_noted(self: Any, *arguments: Any, **options: Any) -> Any:
        note(kind="remote", **CURRENT)
        return command(self, *arguments, **options)

    def put_noted(self: Any, *arguments: Any, **options: Any) -> Any:
        note(kind="transfer", **CURRENT)
        return put(self, *arguments, **options)

    TaskExecutor.run, Connection.exec_command, Connection.put_file = run_noted, command_noted, put_noted


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "moat_count"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.started: dict[tuple[str, str], float] = {}
        if TARGET:
            watch()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self.started[(str(host), task._uuid)] = time.monotonic()

    def _end(self, result: Any, skipped: bool = False) -> None:
        task, host = result._task, str(result._host)
        seconds = time.monotonic() - self.started.get((host, task._uuid), time.monotonic())
        role = task._role.get_name().rpartition(".")[2] if task._role else "play"
        note(kind="task", host=host, role=role, task=task.get_name(), seconds=round(seconds, 3), skipped=skipped)

    def v2_runner_on_ok(self, result: Any) -> None:
        self._end(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._end(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._end(result, skipped=True)
