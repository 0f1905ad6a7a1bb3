# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from types import SimpleNamespace

from ansible_collections.moat.inference.plugins.action import routes


def run(monkeypatch, result):
    handed = []

    def execute(_action, module_name, module_args, **_more):
        handed.append((module_name, module_args))
        return {"confirmed": True} if module_name.endswith(".confirm") else dict(result)

    monkeypatch.setattr(routes.ActionModule, "_execute_module", execute)
    task = SimpleNamespace(args={"via": []}, check_mode=False, diff=False, async_val=0, no_log=False)
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None), reset=lambda: handed.append(("reset", {})))
    action = routes.ActionModule(task, connection, SimpleNamespace(check_mode=False), None, None, None)
    return action.run(task_vars={}), handed


def test_a_change_is_confirmed_over_a_new_connection(monkeypatch):
    pending = {"name": "routes", "token": "abc", "timeout": 45, "ssh": True}
    result, handed = run(monkeypatch, {"changed": True, "pending": pending})
    assert result == {"changed": True, "confirmed": True}
    assert [name for name, _arguments in handed] == ["moat.inference.routes", "reset", "moat.inference.confirm"]
    assert handed[-1][1]["name"] == "routes"


def test_a_host_that_is_as_it_shall_be_is_asked_once(monkeypatch):
    result, handed = run(monkeypatch, {"changed": False})
    assert result == {"changed": False} and len(handed) == 1
