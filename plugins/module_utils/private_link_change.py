# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a call has to do with a link, shown and carried out; a change of a running link waits to be confirmed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import deploy, files, private_link, private_link_key
from ansible_collections.moat.inference.plugins.module_utils import private_link_commands as commands
from ansible_collections.moat.inference.plugins.module_utils.pending import Staged, Terms
from ansible_collections.moat.inference.plugins.module_utils.private_link_host import RUNNING, Host
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError

ERRORS = (OSError, KeyError, RuntimeError, CommandError)
# texts in the directory of the waiting change: what wg had, and what it gets
BEFORE, AFTER = "before", "after"


class Work:
    """The part that bringing up and taking away have in common."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.unit = host.unit_state()
        self.live: private_link.Link | None = None

    @property
    def waits(self) -> bool:
        """Whether the running link changes, so that an operator could be locked out."""
        raise NotImplementedError

    def reasons(self) -> list[str]:
        raise NotImplementedError

    def diff(self) -> list[dict[str, str]]:
        raise NotImplementedError

    def lasting(self) -> Staged:
        """What boot loads."""
        raise NotImplementedError

    def copied(self) -> list[deploy.Change]:
        """Paths that the change replaces before it is confirmed."""
        return []

    def texts(self) -> dict[str, str]:
        """Files for the change and for its way back. Fails when it cannot be had, before anything is touched."""
        if self.live is None:
            return {}
        shown = self.host.shown(self.live)
        return {BEFORE: shown, f"{self.host.interface}.conf": commands.quick_configuration(self.live, shown)}

    def way_back(self, copies: Mapping[str, str]) -> list[list[str]]:
        """What takes the change back; copies has the copy of each path."""
        raise NotImplementedError

    def change(self) -> None:
        """Change the running link."""
        raise NotImplementedError

    def apply(self, terms: Terms) -> None:
        """Carry the plan out, and take it back when a step fails or the interface is not what was planned afterwards."""
        if self.waits:
            self._apply_waiting(terms)
            return
        steps, staged = self.host.steps, self.lasting()
        try:
            steps.paths(staged.plan)
            for unit in staged.plan.units:
                steps.unit(unit.name, unit.actions)
            for argv in staged.commands:
                self.host.run(argv)
        except ERRORS as error:
            raise taken_back(error, steps.undo()) from error

    def _apply_waiting(self, terms: Terms) -> None:
        pending = self.host.pending
        pending.prepare(self.texts())
        copies = {}
        for number, change in enumerate(self.copied()):
            copies[change.path] = pending.path(f"copy-{number}")
            if change.before.kind != "absent":
                self.host.run(["cp", "-a", "-T", "--", change.path, copies[change.path]])
        undo = self.way_back(copies)
        if copies:
            undo.append(["rm", "-f", "--", *copies.values()])
        try:
            pending.arm(undo, self.lasting(), terms)
            self.change()
        except ERRORS as error:
            raise taken_back(error, pending.undo()) from error

    def up_again(self) -> list[list[str]]:
        """Have an interface again that the change took away, held by what held it."""
        argv = []
        if self.unit.active in RUNNING:
            argv.append(["systemctl", "restart", "--", self.host.unit])
        elif self.live is not None:
            argv.append(commands.quick_up(self.host.pending.path(f"{self.host.interface}.conf")))
        elif self.unit.active == "activating":
            # systemd goes on trying
            argv.append(["systemctl", "start", "--no-block", "--", self.host.unit])
        return argv + (commands.again(self.live, self.host.pending.path(BEFORE)) if self.live is not None else [])

    def _interface_entry(self, after: str) -> dict[str, str]:
        name = self.host.interface
        return {
            "before_header": name + (" (running)" if self.live else " (absent)"),
            "after_header": name + (" (running)" if after else " (absent)"),
            "before": private_link.shown(self.live),
            "after": after,
        }


class Change(Work):
    """A call with state present: what is there, what shall be there, and the way between."""

    def __init__(self, options: Mapping[str, Any], host: Host, private_key: str, public_key: str) -> None:
        super().__init__(host)
        self.path, self.private_key = private_link_key.configuration_path(host.interface), private_key
        before = files.read_state(self.path)
        self.old_text = (before.content or b"").decode("utf-8", "replace")
        old = private_link.parse_configuration(self.old_text)
        peers, self.unresolved = private_link.resolve(options, old.names())
        self.desired = private_link.desired_link(options, public_key, peers)
        self.names = {key: name for name, key in old.names().items()}
        self.names.update({peer.public_key: peer.name for peer in peers})
        self.live = self._look()
        self.text = private_link.configuration(self.desired, private_key or private_link.HIDDEN)
        self._plan_files(options, before)
        self._plan_unit()

    def _look(self) -> private_link.Link | None:
        live = self.host.live(self.names)
        return private_link.settled_endpoints(live, self.desired, time.time()) if live else None

    def _plan_files(self, options: Mapping[str, Any], before: files.FileState) -> None:
        after = files.FileState("file", self.text.encode("utf-8"), 0o600, "root", "root")
        self.configuration = [deploy.Change(self.path, before, after, True)] if before != after else []
        self.unit_files = []
        for item in options["unit_files"]:
            wanted = files.FileState("file", item["content"].encode("utf-8"), int(item["mode"], 8), "root", "root")
            current = files.read_state(item["path"])
            if current != wanted:
                self.unit_files.append(deploy.Change(item["path"], current, wanted))
        for change in [*self.configuration, *self.unit_files]:
            if change.before.kind in ("directory", "other"):
                raise ValueError(f"{change.path} is there as something else ({change.before.kind}); move it away")

    def _plan_unit(self) -> None:
        self.running = self.unit.active in RUNNING and self.live is not None
        self.restart = not self.running or bool(self.unit_files)
        self.enable = self.unit.enabled not in ("enabled", "static", "generated")
        self.reload = bool(self.unit_files) or self.unit.stale
        self.delta = private_link.compare(self.live, self.desired) if self.live is not None else private_link.Delta()
        # a unit that starts with a configuration that is not confirmed must not do so at boot
        self.disable = self.restart and bool(self.configuration) and self.unit.enabled == "enabled"

    @property
    def waits(self) -> bool:
        return self.restart or bool(self.delta.reasons)

    def reasons(self) -> list[str]:
        reasons = [
            "{} {}".format(change.path, "is missing" if change.before.kind == "absent" else "differs")
            for change in [*self.unit_files, *self.configuration]
        ]
        if not self.running:
            reasons.append(f"{self.host.unit} is {self.unit.active}" + ("" if self.live else ", no interface"))
        if self.enable:
            reasons.append(f"{self.host.unit} does not start at boot")
        if self.reload and not self.unit_files:
            reasons.append("systemd has not read its files again")
        return reasons + self.delta.reasons

    def diff(self) -> list[dict[str, str]]:
        entries = [files.diff_entry(change.path, change.before, change.after) for change in self.unit_files]
        entries += [redacted_entry(change, self.private_key) for change in self.configuration]
        if self.waits:
            left_out = "".join(f"peer {name}: (no public key yet)\n" for name in self.unresolved)
            entries.append(self._interface_entry(private_link.shown(self.desired) + left_out))
        actions = ["will enable"] if self.enable else []
        if self.restart:
            actions.append("will restart" if self.unit.active in RUNNING else "will start")
        if actions:
            entries.append(
                {
                    "before_header": self.host.unit,
                    "after_header": self.host.unit,
                    "before": f"{self.unit.active}, {self.unit.enabled or 'not enabled'}\n",
                    "after": ", ".join(actions) + "\n",
                }
            )
        return entries

    def lasting(self) -> Staged:
        units = [deploy.UnitPlan(self.host.unit, ("enable",))] if self.enable or self.disable else []
        # a change that waits has systemd read its files again at once
        return Staged(deploy.Plan(files=self.configuration, daemon_reload=self.reload and not self.waits, units=units))

    def texts(self) -> dict[str, str]:
        stripped = self.host.strip(self.text, self.private_key, set(self.desired.by_key()))
        self.starts = not self.configuration or (self.restart and self.host.starts(self.old_text))
        return {**super().texts(), AFTER: stripped}

    def copied(self) -> list[deploy.Change]:
        return [*self.unit_files, *self.configuration] if self.restart else []

    def way_back(self, copies: Mapping[str, str]) -> list[list[str]]:
        host, pending = self.host, self.host.pending
        if self.live is not None and not self.restart:
            return commands.back(self.live, self.desired, pending.path(BEFORE))
        argv = []
        if not self.running:
            argv += [["systemctl", "stop", "--", host.unit]]
            argv += [commands.tolerant(["ip", "link", "delete", "dev", host.interface])]
        for change in self.copied():
            argv += commands.file_back(change, self._copy(change, copies))
        made = [path for change in self.unit_files for path in missing_directories(change.path)]
        argv += [commands.tolerant(["rmdir", "--", path]) for path in sorted(made, key=len, reverse=True)]
        argv += [["systemctl", "daemon-reload"]]
        if self.disable:
            argv += [["systemctl", "enable", "--", host.unit]]
        return argv + self.up_again()

    def _copy(self, change: deploy.Change, copies: Mapping[str, str]) -> str:
        """What a path gets back; where the link ran with a configuration that starts none, one that does."""
        if change in self.configuration and self.running and not self.starts:
            return self.host.pending.path(f"{self.host.interface}.conf")
        return copies[change.path]

    def change(self) -> None:
        for change in self.unit_files:
            os.makedirs(os.path.dirname(change.path), mode=0o755, exist_ok=True)
            files.write(change.path, change.after)
        if self.reload:
            self.host.run(["systemctl", "daemon-reload"])
        delta = self.delta
        if self.restart:
            self._restart()
            delta = private_link.compare(self._running(), self.desired)
        for argv in commands.along(delta, self.desired, self.host.pending.path(AFTER)):
            self.host.run(argv)
        remaining = private_link.compare(self._running(), self.desired).reasons
        if remaining:
            raise RuntimeError(f"{self.host.interface} is not what was planned: {'; '.join(remaining)}")

    def _restart(self) -> None:
        """Start with the confirmed configuration, which stays what boot loads; only where that starts nothing, with the new one."""
        if self.live is not None and self.unit.active not in RUNNING:
            # wg-quick refuses an interface that is there; this one was not made by the unit
            self.host.delete()
        if self.starts:
            try:
                self.host.start()
                return
            except RuntimeError:
                if not self.configuration:
                    raise
        if self.disable:
            self.host.systemctl("disable")
        for change in self.configuration:
            files.write(change.path, change.after)
        self.host.start()

    def _running(self) -> private_link.Link:
        live = self._look()
        if live is None:
            raise RuntimeError(f"{self.host.unit} started, but there is no interface {self.host.interface}")
        return live


class Removal(Work):
    """A call with state absent: interface, unit's files, configuration and key go."""

    def __init__(self, options: Mapping[str, Any], host: Host) -> None:
        super().__init__(host)
        paths = [item["path"] for item in options["unit_files"]]
        paths += [private_link_key.configuration_path(host.interface), private_link_key.key_path(host.interface)]
        states = {path: files.read_state(path) for path in paths}
        self.present = {path: state for path, state in states.items() if state.kind != "absent"}
        self.live = host.live({})
        self.stop = self.unit.active not in ("inactive", "failed")
        self.disable = self.unit.enabled in ("enabled", "enabled-runtime")

    @property
    def waits(self) -> bool:
        return self.stop or self.live is not None

    def reasons(self) -> list[str]:
        reasons = [f"{path} is there" for path in self.present]
        reasons += [f"{self.host.unit} is {self.unit.active}"] if self.stop else []
        reasons += [f"{self.host.unit} starts at boot"] if self.disable else []
        return reasons + ([f"interface {self.host.interface} is there"] if self.live else [])

    def diff(self) -> list[dict[str, str]]:
        entries = [files.diff_entry(path, state, files.ABSENT, True) for path, state in self.present.items()]
        return entries + ([self._interface_entry("")] if self.live else [])

    def lasting(self) -> Staged:
        units = [deploy.UnitPlan(self.host.unit, ("disable",))] if self.disable else []
        gone = [deploy.Change(path, state, files.ABSENT, True) for path, state in self.present.items()]
        directories = {os.path.dirname(path) for path in self.present if path.endswith(".service.d/moat.conf")}
        rmdir = [["rmdir", "--ignore-fail-on-non-empty", "--", path] for path in sorted(directories)]
        return Staged(deploy.Plan(files=gone, daemon_reload=True, units=units), rmdir)

    def apply(self, terms: Terms) -> None:
        super().apply(terms)
        if not self.waits:
            self.host.pending.forget()

    def way_back(self, copies: Mapping[str, str]) -> list[list[str]]:
        return self.up_again()

    def change(self) -> None:
        if self.stop:
            self.host.systemctl("stop")
        if self.host.live({}):
            self.host.delete()


def taken_back(error: Exception, left: list[str]) -> RuntimeError:
    """An error of a change that was undone; left is what could not be."""
    outcome = "but not completely: " + "; ".join(left) if left else "completely"
    return RuntimeError(f"{error}. The previous state was restored {outcome}.")


def missing_directories(path: str) -> list[str]:
    """The directories that a file needs and that are not there."""
    missing = []
    directory = os.path.dirname(path)
    while directory and not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    return missing


def redacted_entry(change: deploy.Change, private_key: str) -> dict[str, str]:
    """Return the diff of the configuration without its secrets."""

    def redact(state: files.FileState, key: str) -> files.FileState:
        if state.content is None:
            return state
        text = private_link.redacted(state.content.decode("utf-8", "replace"), key)
        return files.FileState(state.kind, text.encode("utf-8"), state.mode, state.owner, state.group)

    return files.diff_entry(change.path, redact(change.before, private_key), redact(change.after, ""))
