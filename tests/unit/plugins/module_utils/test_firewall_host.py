# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import re
from ipaddress import ip_network

import pytest
from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils import firewall_host as host
from ansible_collections.moat.inference.plugins.module_utils import firewall_nft as nft
from ansible_collections.moat.inference.plugins.module_utils.firewall_policy import Policy, Rule
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result

POLICY = Policy((), (Rule("in-admin-ssh", "input", "tcp", (22,), (ip_network("10.90.0.0/28"),)),), "10/minute")
IDLE = deploy.UnitState("inactive", "disabled", False)
BUSY = deploy.UnitState("active", "enabled", False)


class Recorder:
    """Stands for Runner: keeps what was run, and fails where it is told to."""

    def __init__(self, fail="", listing="table inet moat {\n}\n"):
        self.calls = []
        self.fail = fail
        self.listing = listing

    def run(self, argv, stdin=None, ok=(0,), env=None, cwd=None):
        self.calls.append((" ".join(argv), stdin))
        result = Result(tuple(argv), 0, "", "")
        if self.fail and self.fail in " ".join(argv):
            result = Result(tuple(argv), 1, "", "it says no")
        elif argv[:3] == ["nft", "list", "table"]:
            result = Result(
                tuple(argv), 0 if self.listing else 1, self.listing, "" if self.listing else "No such file or directory"
            )
        if result.rc not in ok:
            raise CommandError(result)
        return result

    @property
    def commands(self):
        return [command for command, _stdin in self.calls]


def work(tmp_path, had_table=True, actions=("enable", "start"), kind="table"):
    path = str(tmp_path / "ruleset.nft")
    change = deploy.Change(path, files.read_state(path), files.FileState("file", b"new", 0o600))
    units = [deploy.UnitPlan(host.UNIT, tuple(actions))]
    plan = deploy.Plan(files=[change], daemon_reload=True, units=units)
    return host.Work(nft.Difference(kind), plan, {host.UNIT: IDLE}, had_table, "ruleset", "transaction")


def states(**active):
    names = dict.fromkeys((host.UNIT, *host.OTHERS), IDLE)
    names.update({f"{name}.service": state for name, state in active.items()})
    return names


def test_kernel_then_files_then_unit(tmp_path):
    runner = Recorder()
    host.Host(runner, True).apply(work(tmp_path), POLICY)
    assert runner.calls == [
        ("nft list table inet moat", None),
        ("nft -c -f -", "transaction"),
        ("nft -f -", "transaction"),
        ("systemctl daemon-reload", None),
        ("systemctl enable -- moat-firewall.service", None),
        ("systemctl start -- moat-firewall.service", None),
    ]
    assert (tmp_path / "ruleset.nft").read_bytes() == b"new"


def test_a_candidate_that_fails_the_check_touches_nothing(tmp_path):
    (tmp_path / "ruleset.nft").write_bytes(b"old")
    runner = Recorder(fail="nft -c")
    machine = host.Host(runner, True)
    with pytest.raises(CommandError):
        machine.apply(work(tmp_path), POLICY)
    assert machine.undo() == []
    assert "nft -f -" not in runner.commands
    assert (tmp_path / "ruleset.nft").read_bytes() == b"old"


@pytest.mark.parametrize("before", [b"old", None])
def test_a_unit_that_fails_brings_table_and_files_back(tmp_path, before):
    path = tmp_path / "ruleset.nft"
    if before is not None:
        path.write_bytes(before)
    runner = Recorder(fail="systemctl start")
    machine = host.Host(runner, True)
    with pytest.raises(CommandError):
        machine.apply(work(tmp_path), POLICY)
    assert machine.undo() == []
    assert (path.read_bytes() if path.exists() else None) == before
    assert ("nft -f -", nft.DELETE + "table inet moat {\n}\n") in runner.calls
    assert "systemctl disable -- moat-firewall.service" in runner.commands


def test_a_first_table_that_is_taken_back_leaves_none(tmp_path):
    runner = Recorder(fail="systemctl start", listing="")
    machine = host.Host(runner, True)
    with pytest.raises(CommandError):
        machine.apply(work(tmp_path, had_table=False), POLICY)
    assert machine.undo() == []
    assert runner.calls[-1] == ("nft -f -", nft.DELETE)


def test_what_cannot_be_put_back_is_named(tmp_path):
    runner = Recorder(fail="systemctl start")
    machine = host.Host(runner, True)
    with pytest.raises(CommandError):
        machine.apply(work(tmp_path), POLICY)
    os.unlink(tmp_path / "ruleset.nft")
    (fault,) = machine.undo()
    assert "ruleset.nft" in fault


def test_the_first_table_hands_admitted_connections_over(tmp_path, monkeypatch):
    runner = Recorder(listing="")
    machine = host.Host(runner, True)
    monkeypatch.setattr(machine, "connections", lambda: ["head\n 0: 83005A0A:0016 01005A0A:C738 01 0\n"])
    monkeypatch.setattr("sys.byteorder", "little")
    machine.apply(work(tmp_path, had_table=False), POLICY)
    assert runner.calls[-1] == ("nft -f -", "add element inet moat handover_4 { 10.90.0.1 . 51000 }\n")


def test_a_table_that_was_there_has_tracked_its_connections(tmp_path):
    runner = Recorder()
    host.Host(runner, True).apply(work(tmp_path, actions=()), POLICY)
    assert not any("handover" in (stdin or "") for _command, stdin in runner.calls)


def test_without_nft_there_is_no_table():
    runner = Recorder()
    assert host.Host(runner, False).live() is None
    assert runner.calls == []


def test_a_listing_that_fails_otherwise_is_an_error():
    with pytest.raises(CommandError):
        host.Host(Recorder(fail="nft list"), True).table()


@pytest.mark.parametrize(
    ("units", "ufw", "word"),
    [
        ({"firewalld": BUSY}, "", "disable --now firewalld"),
        ({"ufw": BUSY}, "# comment\nENABLED=yes\n", "ufw disable"),
        ({"nftables": BUSY}, "", "disable --now nftables"),
        ({"nftables": deploy.UnitState("inactive", "enabled", False)}, "", "disable --now nftables"),
    ],
)
def test_another_firewall_is_refused_with_the_remedy(units, ufw, word):
    (fault,) = host.conflicts(states(**units), ufw)
    assert word in fault


def test_a_firewall_that_is_not_at_work_is_no_conflict():
    assert host.conflicts(states(ufw=BUSY), "ENABLED=no\n") == []
    assert host.conflicts(states(), "ENABLED=yes\n") == []


def test_the_unit_loads_before_the_network_and_never_opens():
    text = host.UNIT_TEXT
    assert "Before=network-pre.target" in text and "Wants=network-pre.target" in text
    assert "DefaultDependencies=no" in text
    assert not re.search(r"^ExecStop", text, re.M)
    assert [line for line in text.splitlines() if line.startswith("Exec")] == [
        f"ExecStartPre=-/usr/sbin/nft -f {host.CLOSED}",
        f"ExecStart=/usr/sbin/nft -f {host.RULESET}",
        f"ExecReload=/usr/sbin/nft -f {host.RULESET}",
    ]


def test_the_unit_needs_no_mount_namespace_and_has_no_limit():
    """Either makes the unit fail at boot or after a few starts: systemd-tmpfiles empties /tmp, where systemd prepares one, meanwhile."""
    keys = {line.partition("=")[0] for line in host.UNIT_TEXT.splitlines()}
    assert not [key for key in keys if key.startswith(("Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible"))]
    assert "\nStartLimitIntervalSec=0\n" in host.UNIT_TEXT


def test_reasons_say_what_differs(tmp_path):
    item = work(tmp_path, actions=("start",))
    assert item.reason().split("; ") == [
        "table in the kernel differs",
        f"{tmp_path}/ruleset.nft is missing",
        "moat-firewall.service needs start",
    ]
    nothing = host.Work(nft.Difference("none"), deploy.Plan(units=[deploy.UnitPlan(host.UNIT, ())]), {}, True, "x")
    assert (nothing.changed, nothing.reason()) == (False, "")
    members = host.Work(nft.Difference("elements", ("a_4", "b_6")), nothing.paths, {}, True, "x")
    assert (members.changed, members.reason()) == (True, "elements of a_4, b_6 differ")
