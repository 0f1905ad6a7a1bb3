# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from ansible_collections.moat.inference.plugins.module_utils import deploy, files, firewall_flows
from ansible_collections.moat.inference.plugins.module_utils import firewall_host as host
from ansible_collections.moat.inference.plugins.module_utils import firewall_nft as nft
from ansible_collections.moat.inference.plugins.module_utils.firewall_policy import Policy, Rule
from ansible_collections.moat.inference.plugins.module_utils.pending import Pending, Terms
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result

POLICY = Policy((), (Rule("in-admin-ssh", "input", "tcp", (22,), (ip_network("10.90.0.0/28"),)),), "10/minute")
IDLE = deploy.UnitState("inactive", "disabled", False)


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
        elif argv[0] == "/bin/sh":
            # the way back: its script is tested for itself, and would ask this machine's systemd here
            Path(argv[1]).with_name("change.json").unlink()
        if result.rc not in ok:
            raise CommandError(result)
        return result

    @property
    def commands(self):
        return [command for command, _stdin in self.calls]


LIVE = nft.Listing({}, {}, {"in-web_4": ["10.0.0.1"]})
TABLE = nft.Difference("table")
TERMS = Terms("abc", 45, "10.90.0.1 50000 10.90.0.131 22")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A host whose waiting changes lie in a directory of the test."""

    def make(runner):
        made = host.Host(runner, True)
        made.pending = Pending(runner, host.NAME, str(tmp_path / "run"))
        monkeypatch.setattr(made, "connections", lambda: ["head\n 0: 83005A0A:0016 01005A0A:C738 01 0\n"])
        monkeypatch.setattr("sys.byteorder", "little")
        return made

    return make


def work(tmp_path, live=LIVE, actions=("enable", "start"), difference=TABLE):
    path = str(tmp_path / "ruleset.nft")
    change = deploy.Change(path, files.read_state(path), files.FileState("file", b"new", 0o600))
    units = [deploy.UnitPlan(host.UNIT, tuple(actions))]
    plan = deploy.Plan(files=[change], daemon_reload=True, units=units)
    return host.Work(difference, plan, {host.UNIT: IDLE}, live, "ruleset", "transaction")


def test_the_way_back_is_armed_before_the_table_is_loaded_and_boot_waits(tmp_path, machine):
    runner = Recorder()
    changed = machine(runner)
    changed.apply(work(tmp_path), POLICY, TERMS)
    assert [command.split()[0] for command in runner.commands] == ["nft", "nft", "systemctl", "systemd-run", "nft"]
    assert runner.calls[1] == ("nft -c -f -", nft.DELETE + "table inet moat {\n}\n")
    assert runner.calls[-1] == ("nft -f -", "transaction")
    assert changed.pending.waits and not (tmp_path / "ruleset.nft").exists()


def test_a_confirmed_change_writes_what_boot_loads(tmp_path, machine):
    runner = Recorder()
    changed = machine(runner)
    changed.apply(work(tmp_path), POLICY, TERMS)
    staged = changed.pending.confirm("abc", "another")
    assert (tmp_path / "ruleset.nft").read_bytes() == b"new"
    assert runner.commands[-3:] == [
        "systemctl daemon-reload",
        "systemctl enable -- moat-firewall.service",
        "systemctl start -- moat-firewall.service",
    ]
    assert staged.policy == firewall_flows.policy_json(POLICY)


def test_the_way_back_loads_the_table_before_and_where_it_cannot_what_boot_loads(tmp_path, machine):
    changed = machine(Recorder())
    changed.apply(work(tmp_path), POLICY, TERMS)
    with open(changed.pending.path("before.nft"), encoding="utf-8") as handle:
        assert handle.read() == nft.DELETE + "table inet moat {\n}\n"
    with open(changed.pending.path("undo"), encoding="utf-8") as handle:
        assert f"nft -f {changed.pending.path('before.nft')} || systemctl restart {host.UNIT}" in handle.read()


def test_a_change_of_elements_is_taken_back_by_elements(tmp_path, machine):
    runner = Recorder()
    changed = machine(runner)
    changed.apply(work(tmp_path, difference=nft.Difference("elements", ("in-web_4",))), POLICY, TERMS)
    with open(changed.pending.path("before.nft"), encoding="utf-8") as handle:
        assert handle.read() == nft.elements_undo(LIVE, ("in-web_4",))
    assert "nft list table inet moat" not in runner.commands


@pytest.mark.parametrize("fail", ["nft -c", "systemd-run"])
def test_without_a_way_back_nothing_is_loaded(tmp_path, machine, fail):
    (tmp_path / "ruleset.nft").write_bytes(b"old")
    runner = Recorder(fail=fail)
    with pytest.raises(CommandError):
        machine(runner).apply(work(tmp_path), POLICY, TERMS)
    assert "nft -f -" not in runner.commands
    assert (tmp_path / "ruleset.nft").read_bytes() == b"old"


def test_a_table_that_does_not_load_leaves_nothing_waiting(tmp_path, machine):
    changed = machine(Recorder(fail="nft -f -"))
    with pytest.raises(CommandError):
        changed.apply(work(tmp_path), POLICY, TERMS)
    assert not changed.pending.waits


def test_a_timer_that_cannot_be_armed_leaves_nothing_waiting(tmp_path, machine):
    changed = machine(Recorder(fail="systemd-run"))
    with pytest.raises(CommandError):
        changed.apply(work(tmp_path), POLICY, TERMS)
    assert not changed.pending.waits


def test_files_alone_wait_for_nobody_and_a_unit_that_fails_brings_them_back(tmp_path, machine):
    path = tmp_path / "ruleset.nft"
    path.write_bytes(b"old")
    same = nft.Difference("none")
    changed = machine(Recorder())
    changed.apply(work(tmp_path, difference=same), POLICY, TERMS)
    assert path.read_bytes() == b"new" and not changed.pending.waits
    path.write_bytes(b"old")
    runner = Recorder(fail="systemctl start")
    changed = machine(runner)
    with pytest.raises(CommandError):
        changed.apply(work(tmp_path, difference=same), POLICY, TERMS)
    assert changed.steps.undo() == []
    assert path.read_bytes() == b"old" and "systemctl disable -- moat-firewall.service" in runner.commands


def test_the_first_table_hands_admitted_connections_over_now_and_after_the_start_of_the_unit(tmp_path, machine):
    runner = Recorder(listing="")
    changed = machine(runner)
    changed.apply(work(tmp_path, live=None), POLICY, TERMS)
    elements = "add element inet moat handover_4 { 10.90.0.1 . 51000 }\n"
    assert runner.calls[-1] == ("nft -f -", elements)
    with open(changed.pending.path("handover.nft"), encoding="utf-8") as handle:
        assert handle.read() == elements
    changed.pending.confirm("abc", "another")
    assert runner.commands[-2:] == [
        "systemctl start -- moat-firewall.service",
        "nft -f " + changed.pending.path("handover.nft"),
    ]


def test_a_table_that_was_there_has_tracked_its_connections(tmp_path, machine):
    runner = Recorder()
    machine(runner).apply(work(tmp_path, actions=()), POLICY, TERMS)
    assert not any("handover" in (stdin or "") for _command, stdin in runner.calls)


def test_a_host_that_is_opened_and_fails_is_closed_again(tmp_path, machine):
    runner = Recorder(fail="systemctl disable")
    changed = machine(runner)
    item = work(tmp_path, actions=("disable",))
    with pytest.raises(CommandError):
        changed.apply(item, None, TERMS)
    changed.steps.undo()
    assert "nft -f -" not in runner.commands


def test_without_nft_there_is_no_table():
    runner = Recorder()
    assert host.Host(runner, False).live() is None
    assert runner.calls == []


def test_a_listing_that_fails_otherwise_is_an_error():
    with pytest.raises(CommandError):
        host.Host(Recorder(fail="nft list"), True).table()


def test_the_unit_loads_before_the_network_and_never_opens():
    text = host.unit_text(POLICY)
    assert "Before=network-pre.target" in text and "Wants=network-pre.target" in text
    assert "DefaultDependencies=no" in text
    assert not re.search(r"^ExecStop", text, re.M)
    kinds = [line.partition("=")[0] for line in text.splitlines() if line.startswith("Exec")]
    assert kinds == ["ExecStartPre", "ExecStart", "ExecReload"]


def test_the_unit_needs_no_mount_namespace_and_has_no_limit():
    """Either makes the unit fail at boot or after a few starts: systemd-tmpfiles empties /tmp, where systemd prepares one, meanwhile."""
    text = host.unit_text(POLICY)
    keys = {line.partition("=")[0] for line in text.splitlines()}
    assert not [key for key in keys if key.startswith(("Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible"))]
    assert "\nStartLimitIntervalSec=0\n" in text


@pytest.mark.parametrize("text", ['a "b" c', "back\\slash", "50%", "$HOME ${x}", "plain"])
def test_systemd_reads_an_argument_as_it_was_meant(text):
    read = host.quoted(text).replace("%%", "%").replace("$$", "$")
    assert shlex.split(read) == [text]


def load(tmp_path, content):
    """Run the command that the unit runs, with an nft that says what it was given."""
    path = tmp_path / "ruleset.nft"
    if content is not None:
        path.write_bytes(content)
    script = host.LOAD.format(path=path).replace("exec nft", "exec echo nft")
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)


GOOD = nft.with_checksum("table inet moat {\n}\n").encode()


def test_a_whole_ruleset_is_loaded(tmp_path):
    done = load(tmp_path, GOOD)
    assert (done.returncode, done.stdout) == (0, f"nft -f {tmp_path}/ruleset.nft\n")


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\n",
        GOOD[:-1],
        GOOD[:75],
        GOOD[:72],
        GOOD[72:],
        GOOD + b"\n",
        GOOD.replace(b"moat", b"mode"),
        b"\0" * 99,
    ],
)
def test_a_ruleset_that_is_not_whole_is_not_loaded(tmp_path, content):
    done = load(tmp_path, content)
    assert (done.returncode, done.stdout) == (1, "") and "does not load" in done.stderr


def test_the_minimal_table_admits_administration_alone():
    rules = (
        *POLICY.rules,
        Rule("in-web", "input", "tcp", (443,), (ip_network("10.1.0.0/16"),)),
    )
    admin = replace(POLICY.rules[0], admin=True)
    text = nft.minimal(replace(POLICY, rules=(admin, *rules[1:])))
    assert "ip saddr { 10.90.0.0/28 } tcp dport 22 accept" in text
    assert "443" not in text and "\n" not in text
    assert text.count("policy drop") == 3


def test_reasons_say_what_differs(tmp_path):
    item = work(tmp_path, actions=("start",))
    assert item.reason().split("; ") == [
        "table in the kernel differs",
        f"{tmp_path}/ruleset.nft is missing",
        "moat-firewall.service needs start",
    ]
    nothing = host.Work(nft.Difference("none"), deploy.Plan(units=[deploy.UnitPlan(host.UNIT, ())]), {}, LIVE, "x")
    assert (nothing.changed, nothing.reason()) == (False, "")
    members = host.Work(nft.Difference("elements", ("a_4", "b_6")), nothing.paths, {}, LIVE, "x")
    assert (members.changed, members.reason()) == (True, "elements of a_4, b_6 differ")
