# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The firewall module's hands on the host: kernel, files and unit, with a way back for every step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils import firewall_nft as nft
from ansible_collections.moat.inference.plugins.module_utils.early_unit import SANDBOX
from ansible_collections.moat.inference.plugins.module_utils.firewall_conflicts import OTHERS
from ansible_collections.moat.inference.plugins.module_utils.firewall_flows import policy_json
from ansible_collections.moat.inference.plugins.module_utils.firewall_policy import (
    Policy,
    established,
)
from ansible_collections.moat.inference.plugins.module_utils.pending import Pending, Staged, Terms
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner
from ansible_collections.moat.inference.plugins.module_utils.steps import Steps

NAME = "firewall"
BEFORE, HANDOVER = "before.nft", "handover.nft"
DIRECTORY = "/etc/moat/firewall"
RULESET = f"{DIRECTORY}/ruleset.nft"
UNIT = "moat-firewall.service"
UNIT_PATH = f"/etc/systemd/system/{UNIT}"
UNIT_PROPERTIES = "ActiveState,UnitFileState,NeedDaemonReload,LoadState"
# A table that is there stays as it is: at a restart it is the ruleset's, and better than this one.
MINIMAL = 'nft -t list table {table} >/dev/null 2>&1 || exec nft "$0"'
LOAD = (
    'read -r _ _ sum < {path} && test "$sum" = "$(tail -n +2 {path} | sha256sum | cut -d " " -f 1)" && exec nft -f {path};'
    ' echo "{path} does not load; what filters is the table before it, or the minimal one of the unit" >&2; exit 1'
)
UNIT_TEXT = """# Managed by moat.inference.
[Unit]
Description=Packet filter of the perimeter (nftables table {table})
Documentation=man:nft(8)
DefaultDependencies=no
After=local-fs.target
Wants=network-pre.target
Before=network-pre.target
# The start that closes a host is never refused for having been asked for often.
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
StandardInput=null
# For a host that has no table: closed but for administration. It stands here, so that it needs no other file.
ExecStartPre=-/bin/sh -c {minimal}
ExecStart=/bin/sh -c {load}
ExecReload=/bin/sh -c {load}
# There is no ExecStop: the table stays when the unit is stopped.

# Nothing that needs a mount namespace: so early at boot, one cannot always be made, and the host would stay without its table.
{sandbox}
[Install]
WantedBy=sysinit.target
"""
# constants alone; the candidate comes on standard input, for a network namespace ends with its last process
IN_NAMESPACE = ("unshare", "-n", "sh", "-c")
LOAD_AND_LIST_JSON = f"nft -f - && exec nft -s -j list table {nft.TABLE}"
LOAD_AND_LIST_TEXT = f"nft -f - && exec nft -s list table {nft.TABLE}"


@dataclass
class Work:
    """What a call has to do."""

    difference: nft.Difference
    paths: deploy.Plan
    states: Mapping[str, deploy.UnitState]
    live: nft.Listing | None
    ruleset: str = ""  # empty: the table goes
    transaction: str = ""

    @property
    def had_table(self) -> bool:
        return self.live is not None

    @property
    def changed(self) -> bool:
        return bool(self.difference.kind != "none" or self.paths.changed)

    @property
    def actions(self) -> tuple[str, ...]:
        """Verbs for the unit."""
        return tuple(self.paths.units[0].actions)

    def reason(self) -> str:
        """Why the host is changed."""
        reasons = []
        if self.difference.kind == "elements":
            reasons.append("elements of {} differ".format(", ".join(self.difference.sets)))
        elif self.difference.kind == "table" and self.had_table:
            reasons.append("table in the kernel differs" if self.ruleset else "table is in the kernel")
        elif self.difference.kind == "table":
            reasons.append("table is not in the kernel")
        for change in [*self.paths.directories, *self.paths.files]:
            verb = {"absent": "is missing"}.get(change.before.kind, "differs" if self.ruleset else "is there")
            reasons.append(f"{change.path} {verb}")
        reasons += [f"{UNIT} needs {action}" for action in self.actions]
        if self.paths.daemon_reload and not self.paths.files:
            reasons.append("systemd has not read the units again")
        return "; ".join(reasons)


def quoted(text: str) -> str:
    """One argument in a line of systemd.service(5): no specifiers, no variables."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"{}"'.format(escaped.replace("%", "%%").replace("$", "$$"))


def unit_text(policy: Policy) -> str:
    """The unit, with the table that a host gets whose ruleset does not load."""
    load = quoted(LOAD.format(path=RULESET))
    minimal = f"{quoted(MINIMAL.format(table=nft.TABLE))} {quoted(nft.minimal(policy))}"
    return UNIT_TEXT.format(table=nft.TABLE, minimal=minimal, load=load, sandbox=SANDBOX)


def desired_files(policy: Policy, ruleset: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Directories and files of a host with a ruleset, as the planner of deploy takes them."""
    root = {"owner": "root", "group": "root", "sensitive": False, "validate": []}
    directories = [{**root, "path": "/etc/moat", "mode": "0755"}, {**root, "path": DIRECTORY, "mode": "0700"}]
    contents = ((RULESET, nft.with_checksum(ruleset), "0600"), (UNIT_PATH, unit_text(policy), "0644"))
    return directories, [{**root, "path": path, "content": text, "mode": mode} for path, text, mode in contents]


def plan_host(policy: Policy | None, ruleset: str, states: Mapping[str, deploy.UnitState]) -> deploy.Plan:
    """Return what files and unit need; without a policy they go."""
    unit: dict[str, Any] = {"name": UNIT, "on_change": "none", "restart_on": []}
    if policy is not None:
        directories, wanted = desired_files(policy, ruleset)
        current = {item["path"]: files.read_state(item["path"]) for item in [*directories, *wanted]}
        plan = deploy.plan_paths(directories, wanted, [], current)
        unit.update(enabled=True, state="started")
    else:
        paths = [RULESET, UNIT_PATH]
        plan = deploy.plan_paths([], [], paths, {path: files.read_state(path) for path in paths})
        unit.update(enabled=False, state="stopped")
    deploy.plan_units(plan, [unit], states)
    return plan


class Host:
    """Reads the host, and carries work out or takes it back."""

    def __init__(self, runner: Runner, installed: bool) -> None:
        self._runner = runner
        self.installed = installed
        self.steps = Steps(runner)
        self.pending = Pending(runner, NAME)

    def unit_states(self) -> dict[str, deploy.UnitState]:
        """Ask systemd for the own unit and for other firewalls in one call."""
        names = [UNIT, *OTHERS]
        shown = self._runner.run(["systemctl", "show", "-p", UNIT_PROPERTIES, "--", *names], ok=(0, 1, 127))
        return dict(deploy.parse_show(shown.stdout, names))

    def table(self, *options: str) -> str | None:
        """The table as the kernel lists it; None when there is none, or no nft."""
        if not self.installed:
            return None
        listed = self._runner.run(["nft", *options, "list", "table", *nft.TABLE.split()], ok=(0, 1))
        if listed.rc == 1 and "No such file or directory" not in listed.stderr:
            raise CommandError(listed)
        return listed.stdout if listed.rc == 0 else None

    def live(self) -> nft.Listing | None:
        """The table that is at work."""
        listed = self.table("-j")
        return nft.parse_listing(listed) if listed is not None else None

    def candidate(self, ruleset: str) -> nft.Listing:
        """The ruleset as this kernel lists it, loaded where it filters nothing."""
        return nft.parse_listing(self._runner.run([*IN_NAMESPACE, LOAD_AND_LIST_JSON], stdin=ruleset).stdout)

    def candidate_text(self, ruleset: str) -> str:
        """The same, to be read."""
        return str(self._runner.run([*IN_NAMESPACE, LOAD_AND_LIST_TEXT], stdin=ruleset).stdout)

    def load(self, transaction: str) -> None:
        """Have a transaction carried out as a whole or not at all."""
        self._runner.run(["nft", "-f", "-"], stdin=transaction)

    def connections(self) -> list[str]:
        """The kernel's tables of TCP sockets."""
        texts = []
        for path in ("/proc/net/tcp", "/proc/net/tcp6"):
            if os.path.exists(path):
                with open(path, encoding="ascii") as handle:
                    texts.append(handle.read())
        return texts

    def apply(self, work: Work, policy: Policy | None, terms: Terms) -> None:
        """Carry the work out. Only a change of a table that stays waits for its confirmation."""
        if policy is None:
            self.remove(work)
            return
        if any(change.path == UNIT_PATH for change in work.paths.files):
            self._runner.run([*IN_NAMESPACE, 'exec nft "$0"', nft.minimal(policy)])
        if work.difference.kind == "none":
            self.keep(work)
        else:
            self.change(work, policy, terms)

    def keep(self, work: Work) -> None:
        """Bring files and unit along where the kernel's table is as it shall be: nobody can be locked out."""
        self.steps.paths(work.paths)
        self.steps.unit(UNIT, work.actions)

    def change(self, work: Work, policy: Policy, terms: Terms) -> None:
        """Load the table and leave it waiting to be confirmed; files and unit follow then."""
        handover = "" if work.had_table else nft.handover(policy, established(self.connections()))
        self.pending.prepare({BEFORE: self._way_back(work), HANDOVER: handover})
        # the start of the unit loads the table once more, without what was handed over
        commands = [["nft", "-f", self.pending.path(HANDOVER)]] if handover else []
        staged = Staged(work.paths, commands, policy_json(policy))
        # where what filtered before cannot be loaded again, what boot loads is the next best
        undo = f"nft -f {self.pending.path(BEFORE)} || systemctl restart {UNIT}"
        try:
            self.pending.arm([["sh", "-c", undo]], staged, terms)
            self.load(work.transaction)
            if handover:
                self.load(handover)
        except (OSError, CommandError):
            self.pending.undo()
            raise

    def _way_back(self, work: Work) -> str:
        """A transaction that restores what filters now, with its counters."""
        if work.live is not None and work.difference.kind == "elements":
            return str(nft.elements_undo(work.live, work.difference.sets))
        before = nft.DELETE + (self.table() or "")
        # what was put into the table by hand may be listed in words that nft itself does not read
        self._runner.run(["nft", "-c", "-f", "-"], stdin=before)
        return before

    def remove(self, work: Work) -> None:
        """Open the host: unit, table and files go."""
        self.steps.unit(UNIT, work.actions)
        if work.had_table:
            before = self.table() or ""
            self.load(nft.DELETE)
            self.steps.later(self.load, nft.DELETE + before)
        self.steps.paths(work.paths)
        # with what a killed run left in it
        with suppress(FileNotFoundError):
            os.unlink(files.candidate_path(RULESET))
        for path in (DIRECTORY, os.path.dirname(DIRECTORY)):
            if os.path.isdir(path) and not os.listdir(path):
                os.rmdir(path)
        self.pending.forget()
