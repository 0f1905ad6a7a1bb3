# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import subprocess

import pytest
from ansible_collections.moat.inference.plugins.module_utils import routes, routes_host
from ansible_collections.moat.inference.plugins.module_utils.pending import Terms
from ansible_collections.moat.inference.plugins.module_utils.routes import RoutesError, Via
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result

LOCAL = {"priority": 0, "src": "all", "table": "local", "protocol": "kernel"}
MAIN = {"priority": 32766, "src": "all", "table": "main", "protocol": "kernel"}
NEAR = {"type": "unicast", "dst": "10.41.0.0/24", "dev": "eth0", "protocol": "kernel", "scope": "link", "flags": []}
DEFAULT = {"type": "unicast", "dst": "default", "gateway": "10.41.0.1", "dev": "eth0", "protocol": "boot", "flags": []}
OPTIONS = {"state": "present", "default": False, "via": [{"to": "10.50.0.0/16", "via": "10.41.0.12"}]}
CONNECTION = "192.0.2.7 50000 10.41.0.11 22"


class Host:
    """Stands for Runner: answers what ip and systemctl list; a change is recorded, and made where it is a rule or a route."""

    def __init__(self, fail=""):
        self.rules, self.routes, self.calls, self.fail = [LOCAL, MAIN], [DEFAULT, NEAR], [], fail

    def run(self, argv, stdin=None, ok=(0,), env=None, cwd=None):
        self.calls.append(list(argv))
        said, rc = "", int(bool(self.fail) and self.fail in " ".join(argv))
        if argv[:4] == ["ip", "-j", "-d", "-4"]:
            said = json.dumps(self.rules if argv[4] == "rule" else self.routes)
        elif argv[:3] == ["ip", "-j", "route"]:
            said = '[{"dst":"192.0.2.7","gateway":"10.41.0.1","dev":"eth0","flags":[]}]'
        elif argv[:2] == ["ip", "-4"] and not rc:
            self.change(argv)
        if rc not in ok:
            raise CommandError(Result(tuple(argv), rc, "", "it says no"))
        return Result(tuple(argv), rc, said, "")

    def change(self, argv):
        if argv[2:4] == ["rule", "add"]:
            number = int(argv[5])
            self.rules.append(routes.made_rule(number, 4))
        elif argv[2:4] == ["route", "replace"]:
            self.routes.append(
                {"dst": argv[4], "gateway": argv[6], "table": "188", "protocol": "kernel", "dev": "eth0"}
            )
        elif argv[2:5] == ["route", "delete", "default"]:
            self.routes.remove(DEFAULT)

    def changes(self):
        return [call for call in self.calls if call[:2] == ["ip", "-4"]]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    real = routes_host.files.read_state
    monkeypatch.setattr(routes_host.files, "read_state", lambda path: real(f"{tmp_path}{path}"))
    monkeypatch.setattr(routes_host.os.path, "exists", lambda path: False)  # IPv6, and a waiting change
    monkeypatch.setattr(routes_host, "Pending", Pending)
    ARMED.clear()
    return tmp_path


ARMED = []


class Pending:
    def __init__(self, runner, name):
        self.name, self.waits, self._runner = name, False, runner

    def prepare(self, texts):
        pass

    def arm(self, undo, staged, terms):
        self._runner.calls.append(["armed"])
        ARMED.append((undo, staged))
        self.waits = True

    def undo(self):
        self._runner.calls.append(["undone"])
        self.waits = False
        return []


TERMS = Terms("abc", 45, CONNECTION)


def test_the_way_back_is_armed_first_and_boot_loads_nothing_yet(root):
    host = Host()
    work = routes_host.Work(host, OPTIONS, "", False)
    assert work.changed and work.waits
    work.apply(TERMS)
    kinds = [
        call[0] if call == ["armed"] else "change"
        for call in host.calls
        if call == ["armed"] or call[:2] == ["ip", "-4"]
    ]
    assert kinds[0] == "armed" and kinds.count("change") == 5
    (undo, staged), paths = ARMED[0], list(root.iterdir())
    assert paths == []
    assert undo[0][:5] == ["ip", "-4", "route", "replace", "default"]
    assert {unit.name: unit.actions for unit in staged.plan.units} == {
        "moat-routes.service": ("enable", "start"), "moat-routes-follow.service": ("enable", "start")
    }  # fmt: skip
    files = {change.path: change.after.content for change in staged.plan.files}
    assert files["/etc/moat/routes/ipv4"] == b"route replace 10.50.0.0/16 via 10.41.0.12 table 188 protocol kernel\n"
    assert json.loads(files["/etc/moat/routes/state.json"]) == {"kept": [], "own": [[4, DEFAULT]]}


def test_a_step_that_fails_takes_the_change_back():
    host = Host(fail="rule add pref 10190")
    work = routes_host.Work(host, OPTIONS, "", False)
    with pytest.raises(RuntimeError, match="restored completely"):
        work.apply(TERMS)
    assert host.calls[-1] == ["undone"]


def test_what_the_kernel_did_not_take_is_seen():
    host = Host()
    host.change = lambda argv: None
    with pytest.raises(RuntimeError, match=r"the kernel has not what was planned: .*rule 10188 is missing"):
        routes_host.Work(host, OPTIONS, "", False).apply(TERMS)


def test_an_operator_from_elsewhere_keeps_a_route():
    work = routes_host.Work(Host(), OPTIONS, CONNECTION, False)
    assert work.target.kept == [Via("192.0.2.7/32", "10.41.0.1", "eth0")]
    near = routes_host.Work(Host(), OPTIONS, "10.41.0.9 50000 10.41.0.11 22", False)
    assert near.target.kept == []


def test_a_foreign_rule_is_refused_before_anything_is_touched():
    host = Host()
    host.rules.append({"priority": 500, "src": "all", "table": "77"})
    host.routes.append({**DEFAULT, "table": "77"})
    with pytest.raises(RoutesError, match="rule 500"):
        routes_host.Work(host, OPTIONS, "", False)
    assert not host.changes()


def test_a_bare_host_is_shown_and_not_refused():
    work = routes_host.Work(Host(), OPTIONS, CONNECTION, True)
    assert work.changed and "10.50.0.0/16" in work.diff()[0]["after"]


def test_a_host_that_never_had_it_has_nothing_to_lose():
    work = routes_host.Work(Host(), {**OPTIONS, "state": "absent", "via": []}, "", False)
    assert not work.changed and not work.reasons()
    assert not routes_host.Work(Host(), {**OPTIONS, "default": True, "via": []}, "", False).changed


def test_the_state_is_read_as_it_was_written():
    kept, own = [Via("192.0.2.7/32", "10.41.0.1", "eth0")], [(4, DEFAULT)]
    assert routes_host.read_text(routes_host.state_text(kept, own)) == (kept, own)


@pytest.mark.parametrize("text", ["{ broken", "[]", "{}", '{"kept": [{}], "own": []}', '{"kept": [], "own": [1]}'])
def test_a_state_that_cannot_be_read_is_refused(text):
    with pytest.raises(RoutesError, match="put it back, or remove it"):
        routes_host.read_text(text)


@pytest.mark.parametrize(("shell", "text"), [("sh", routes_host.hold_text()), ("bash", routes_host.FOLLOW_TEXT)])
def test_the_programs_are_what_their_shell_reads(shell, text):
    assert subprocess.run([shell, "-n"], input=text, text=True, check=False).returncode == 0


def test_all_six_rules_are_there_before_the_network():
    assert routes_host.hold_text().count(" rule add ") == 6
    assert "Before=network-pre.target" in routes_host.HOLD_UNIT_TEXT
    assert "ExecStop" not in routes_host.HOLD_UNIT_TEXT.replace("no ExecStop", "")
