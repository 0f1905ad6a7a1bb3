# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.module_utils.pending import Refused, Staged
from ansible_collections.moat.inference.plugins.modules import confirm


class Change:
    """Stands for the change on the host."""

    errors = ()
    policy = None
    settled = False

    def __init__(self, runner, name):
        assert name == "firewall"

    def settle(self):
        Change.settled = True

    def outcome(self, token):
        return "waiting" if token == "t" else "unknown"

    def confirm(self, token, connection):
        for error in self.errors:
            raise error
        return Staged(policy=self.policy)


def run(monkeypatch, capsys, **arguments):
    monkeypatch.setattr(confirm, "Pending", Change)
    monkeypatch.setattr(confirm, "ssh_connection", lambda: "a connection")
    with patch_module_args({"name": "firewall", "token": "t", **arguments}), pytest.raises(SystemExit):
        confirm.main()
    return json.loads(capsys.readouterr().out)


def test_a_change_is_kept_and_the_flows_that_it_ends_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(Change, "policy", {"rules": []})
    cut, warned = [], []
    monkeypatch.setattr(confirm.AnsibleModule, "warn", lambda self, text: warned.append(text))

    def end(runner, policy, connection):
        cut.append((policy, connection))
        return {"entries": 3, "sockets": 1, "faults": ["conntrack is missing"]}

    monkeypatch.setattr(confirm.firewall_flows, "cut", end)
    answer = run(monkeypatch, capsys)
    assert (answer["confirmed"], answer["outcome"], answer["entries"], answer["sockets"]) == (True, "confirmed", 3, 1)
    assert cut == [({"rules": []}, "a connection")]
    assert warned == ["conntrack is missing"] and Change.settled


def test_a_change_without_a_policy_ends_no_flow(monkeypatch, capsys):
    assert "entries" not in run(monkeypatch, capsys)


def test_a_refusal_is_told_and_fails_nothing(monkeypatch, capsys):
    monkeypatch.setattr(Change, "errors", (Refused("the very connection", retry=True),))
    answer = run(monkeypatch, capsys)
    assert (answer["confirmed"], answer["retry"], answer["reason"]) == (False, True, "the very connection")
    assert not answer.get("failed")


def test_an_error_fails(monkeypatch, capsys):
    monkeypatch.setattr(Change, "errors", (OSError("No space left on device"),))
    answer = run(monkeypatch, capsys)
    assert answer["failed"] and "No space left" in answer["msg"]


@pytest.mark.parametrize("arguments", [{"state": "known"}, {"_ansible_check_mode": True}])
def test_to_ask_keeps_nothing(monkeypatch, capsys, arguments):
    monkeypatch.setattr(Change, "errors", (AssertionError("it was confirmed"),))
    answer = run(monkeypatch, capsys, **arguments)
    assert (answer["confirmed"], answer["outcome"], answer["changed"]) == (False, "waiting", False)
