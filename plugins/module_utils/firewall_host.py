# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The firewall module's hands on the host: kernel, files and unit, with a way back for every step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils import firewall_nft as nft
from ansible_collections.moat.inference.plugins.module_utils.firewall_policy import (
    Policy,
    established,
)
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner

DIRECTORY = "/etc/moat/firewall"
RULESET = f"{DIRECTORY}/ruleset.nft"
CLOSED = f"{DIRECTORY}/closed.nft"
UNIT = "moat-firewall.service"
UNIT_PATH = f"/etc/systemd/system/{UNIT}"
UNIT_PROPERTIES = "ActiveState,UnitFileState,NeedDaemonReload,LoadState"
OTHERS = ("firewalld.service", "ufw.service", "nftables.service")
UNIT_TEXT = f"""# Managed by moat.inference.
[Unit]
Description=Packet filter of the perimeter (nftables table {nft.TABLE})
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
# Closes a host that has no table yet, and changes nothing on one that has it.
ExecStartPre=-/usr/sbin/nft -f {CLOSED}
ExecStart=/usr/sbin/nft -f {RULESET}
ExecReload=/usr/sbin/nft -f {RULESET}
# There is no ExecStop: the table stays when the unit is stopped.

# Nothing that needs a mount namespace: so early at boot, one cannot always be made, and the host would stay without its table.
CapabilityBoundingSet=CAP_NET_ADMIN
AmbientCapabilities=
NoNewPrivileges=yes
RestrictAddressFamilies=AF_NETLINK
IPAddressDeny=any
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
KeyringMode=private
UMask=0077
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

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
    had_table: bool
    ruleset: str = ""  # empty: the table goes
    transaction: str = ""

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


def desired_files(ruleset: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Directories and files of a host with a ruleset, as the planner of deploy takes them."""
    root = {"owner": "root", "group": "root", "sensitive": False, "validate": []}
    directories = [{**root, "path": "/etc/moat", "mode": "0755"}, {**root, "path": DIRECTORY, "mode": "0700"}]
    contents = ((CLOSED, nft.closed(), "0600"), (RULESET, ruleset, "0600"), (UNIT_PATH, UNIT_TEXT, "0644"))
    return directories, [{**root, "path": path, "content": text, "mode": mode} for path, text, mode in contents]


def plan_host(ruleset: str, states: Mapping[str, deploy.UnitState]) -> deploy.Plan:
    """Return what files and unit need; an empty ruleset is one to remove."""
    directories, wanted = desired_files(ruleset)
    current = {item["path"]: files.read_state(item["path"]) for item in [*directories, *wanted]}
    unit: dict[str, Any] = {"name": UNIT, "on_change": "none", "restart_on": []}
    if ruleset:
        plan = deploy.plan_paths(directories, wanted, [], current)
        unit.update(enabled=True, state="started")
    else:
        plan = deploy.plan_paths([], [], [item["path"] for item in wanted], current)
        unit.update(enabled=False, state="stopped")
    deploy.plan_units(plan, [unit], states)
    return plan


def conflicts(states: Mapping[str, deploy.UnitState], ufw: str) -> list[str]:
    """Name every other firewall that is at work, with what to do; ufw is the text of its ufw.conf."""
    faults = []
    if states["firewalld.service"].active in deploy.SETTLED:
        faults.append("firewalld is active and would filter as well; run: systemctl disable --now firewalld.service")
    if states["ufw.service"].active in deploy.SETTLED and "ENABLED=yes" in ufw.split():
        faults.append("ufw is active and would filter as well; run: ufw disable")
    if states["nftables.service"].active in deploy.SETTLED or states["nftables.service"].enabled == "enabled":
        faults.append(
            "nftables.service is in use, and its stop and its configuration flush every table, the perimeter's too;"
            " load its tables by a unit that flushes none, then run: systemctl disable --now nftables.service"
        )
    return faults


class Host:
    """Reads the host, and carries work out or takes it back."""

    def __init__(self, runner: Runner, installed: bool) -> None:
        self._runner = runner
        self.installed = installed
        self._undo: list[Callable[[], Any]] = []

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
        listed = self.table("-s", "-j")
        return nft.parse_listing(listed) if listed is not None else None

    def candidate(self, ruleset: str) -> nft.Listing:
        """The ruleset as this kernel lists it, loaded where it filters nothing."""
        return nft.parse_listing(self._runner.run([*IN_NAMESPACE, LOAD_AND_LIST_JSON], stdin=ruleset).stdout)

    def candidate_text(self, ruleset: str) -> str:
        """The same, to be read."""
        return str(self._runner.run([*IN_NAMESPACE, LOAD_AND_LIST_TEXT], stdin=ruleset).stdout)

    def load(self, transaction: str) -> None:
        """Have a transaction checked, then carried out as a whole or not at all."""
        self._runner.run(["nft", "-c", "-f", "-"], stdin=transaction)
        self._runner.run(["nft", "-f", "-"], stdin=transaction)

    def connections(self) -> list[str]:
        """The kernel's tables of TCP sockets."""
        texts = []
        for path in ("/proc/net/tcp", "/proc/net/tcp6"):
            if os.path.exists(path):
                with open(path, encoding="ascii") as handle:
                    texts.append(handle.read())
        return texts

    def apply(self, work: Work, policy: Policy | None) -> None:
        """Kernel, then files, then unit; the connections that are there are handed over when the table is the first one."""
        if policy is None:
            self._units(work.actions, work.states[UNIT])
            self._kernel(work)
            self._files(work.paths)
            self._sweep()
            return
        self._kernel(work)
        self._files(work.paths)
        self._units(work.actions, work.states[UNIT])
        if not work.had_table:
            elements = nft.handover(policy, established(self.connections()))
            if elements:
                self.load(elements)

    def _sweep(self) -> None:
        """Remove the directory, with what a killed run left in it."""
        for path in (RULESET, CLOSED):
            with suppress(FileNotFoundError):
                os.unlink(files.candidate_path(path))
        if os.path.isdir(DIRECTORY) and not os.listdir(DIRECTORY):
            os.rmdir(DIRECTORY)

    def _kernel(self, work: Work) -> None:
        if work.difference.kind == "none":
            return
        before = self.table()
        self.load(work.transaction)
        self._undo.append(lambda: self.load(nft.DELETE + (before or "")))

    def _files(self, plan: deploy.Plan) -> None:
        if plan.daemon_reload:
            # steps are undone in reverse order, so systemd reads the units again once all files are back
            self._later(self._runner.run, ["systemctl", "daemon-reload"])
        for change in plan.directories:
            if change.before.kind == "absent":
                os.mkdir(change.path, 0o700)
                self._later(os.rmdir, change.path)
            else:
                self._later(files.set_attributes, change.path, change.before)
            files.set_attributes(change.path, change.after)
        for change in plan.files:
            if change.after.kind == "absent":
                os.unlink(change.path)
            else:
                files.write(change.path, change.after)
            if change.before.kind == "absent":
                self._later(os.unlink, change.path)
            else:
                self._later(files.write, change.path, change.before)
        if plan.daemon_reload:
            self._runner.run(["systemctl", "daemon-reload"])

    def _units(self, actions: Sequence[str], before: deploy.UnitState) -> None:
        opposite = {"enable": "disable", "disable": "enable", "start": "stop", "stop": "start"}
        for action in actions:
            self._later(self._runner.run, ["systemctl", opposite[action], "--", UNIT])
            self._runner.run(["systemctl", action, "--", UNIT])

    def _later(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._undo.append(lambda: function(*arguments))

    def undo(self) -> list[str]:
        """Put everything back, newest first, and return what could not be put back."""
        faults = []
        for step in reversed(self._undo):
            try:
                step()
            except (OSError, KeyError, CommandError) as error:
                faults.append(str(error))
        return faults
