"""The controller's half of a change that undoes itself. The host is given as what its two modules answer, one after the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.moat.inference.plugins.action import firewall
from ansible_collections.moat.inference.plugins.plugin_utils import commit_confirm

LOST = AnsibleConnectionFailure("Failed to connect\nssh: connect to host 10.0.0.1 port 22: Connection timed out")
WAITING = {"changed": True, "reason": "r", "pending": {"name": "firewall", "token": "t", "timeout": 45, "ssh": True}}
CONFIRMED = {"confirmed": True, "outcome": "confirmed", "entries": 2, "sockets": 1}
SAME = {"confirmed": False, "outcome": "waiting", "reason": "this is the connection", "retry": True}
UNDONE = {"confirmed": False, "outcome": "undone", "reason": "the change is undone", "retry": False}
UNKNOWN = {"confirmed": False, "outcome": "unknown", "reason": "no such change waits", "retry": False}


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Run:
    """Runs the action against answers; an exception among them is raised. The last one is repeated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.clock = Time()
        self.handed: list[tuple[str, dict[str, Any]]] = []
        self.resets = 0

    def __call__(self, *answers: Any, check: bool = False, **arguments: Any) -> dict[str, Any]:
        left = list(answers)

        def execute(_action: Any, module_name: str, module_args: dict[str, Any], **_more: Any) -> dict[str, Any]:
            self.handed.append((module_name, module_args))
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, Exception):
                # what a connection attempt takes until it is given up
                self.clock.sleep(10)
                raise answer
            return dict(answer)

        def reset() -> None:
            self.resets += 1

        self._monkeypatch.setattr(firewall.ActionModule, "_execute_module", execute)
        self._monkeypatch.setattr(commit_confirm, "time", self.clock)
        task = SimpleNamespace(args=arguments, check_mode=check, diff=True, async_val=0, no_log=False)
        connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None), reset=reset)
        action = firewall.ActionModule(task, connection, SimpleNamespace(check_mode=check), None, None, None)
        return dict(action.run(task_vars={}))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def test_nothing_that_waits_costs_one_execution_and_keeps_the_connection(run: Run) -> None:
    assert run({"changed": False, "reason": ""}, rules=[]) == {"changed": False, "reason": ""}
    assert [name for name, _arguments in run.handed] == ["moat.inference.firewall"]
    assert run.resets == 0 and run.handed[0][1]["confirm_token"]


def test_a_change_is_confirmed_over_a_new_connection(run: Run) -> None:
    result = run(WAITING, CONFIRMED)
    assert result == {"changed": True, "reason": "r", "confirmed": True, "cut_entries": 2, "cut_sockets": 1}
    assert run.handed[1] == ("moat.inference.confirm", {"name": "firewall", "token": "t", "state": "confirmed"})
    assert run.resets == 1


def test_a_connection_that_is_the_old_one_is_reset_again(run: Run) -> None:
    assert run(WAITING, SAME, SAME, CONFIRMED)["confirmed"]
    assert run.resets == 3


def test_a_host_that_is_slow_is_asked_until_the_time_is_over(run: Run) -> None:
    assert run(WAITING, LOST, LOST, CONFIRMED)["confirmed"]


def test_a_host_that_is_not_reached_has_taken_the_change_back(run: Run) -> None:
    result = run(WAITING, *[LOST] * 5, UNDONE)
    assert result["failed"] and result["rolled_back"] and not result["changed"]
    assert result["msg"].startswith("rolled back: the host was not reached over a new connection (ssh: connect to host")
    assert run.handed[-1][1]["state"] == "known"
    assert run.clock.now >= 100 + 45 + commit_confirm.GRACE


def test_a_confirmation_that_comes_too_late_is_a_roll_back(run: Run) -> None:
    result = run(WAITING, LOST, UNDONE)
    assert result["rolled_back"] and result["msg"].startswith("rolled back: the change is undone")


def test_a_plugin_that_opens_no_new_connection_confirms_nothing(run: Run) -> None:
    result = run(WAITING, *[SAME] * 45, UNDONE)
    assert result["rolled_back"] and "this is the connection" in result["msg"]


def test_a_host_that_stays_silent_is_not_said_to_be_rolled_back(run: Run) -> None:
    result = run(WAITING, LOST)
    assert result["failed"] and not result["rolled_back"]
    assert "takes the change back by itself" in result["msg"]


def test_what_boot_loads_that_cannot_be_written_fails_with_its_reason(run: Run) -> None:
    result = run(WAITING, {"failed": True, "msg": "No space left on device", "outcome": "undone", "confirmed": False})
    assert result["rolled_back"] and "No space left on device" in result["msg"]


def test_a_change_that_cuts_its_own_connection_is_asked_for(run: Run) -> None:
    result = run(LOST, LOST, {**SAME, "outcome": "waiting"}, UNDONE, confirm_timeout=20)
    assert result["rolled_back"] and "the connection was lost while the change was applied" in result["msg"]
    token = run.handed[0][1]["confirm_token"]
    assert {arguments["token"] for _name, arguments in run.handed[1:]} == {token}


@pytest.mark.parametrize("answers", [(LOST, UNKNOWN), (LOST,)])
def test_a_host_that_was_lost_for_another_reason_is_unreachable(run: Run, answers: tuple[Any, ...]) -> None:
    with pytest.raises(AnsibleConnectionFailure):
        run(*answers, confirm_timeout="no number")


def test_in_check_mode_a_lost_host_is_unreachable_at_once(run: Run) -> None:
    with pytest.raises(AnsibleConnectionFailure):
        run(LOST, check=True)
    assert len(run.handed) == 1


def test_without_ssh_no_connection_is_reset(run: Run) -> None:
    local = {**WAITING, "pending": {"name": "firewall", "token": "t", "timeout": 45, "ssh": False}}
    assert run(local, CONFIRMED)["confirmed"] and run.resets == 0
