# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Changes of a host's network that undo themselves unless they are confirmed over a new connection.

The way back is armed before the change: a script in /run and a transient timer of systemd (systemd-run(1)), so PID 1 runs it with neither
Ansible nor the network. What boot loads is written only when the change is confirmed, so a host that restarts has its last confirmed state.
Confirmation and way back both begin by renaming the same file, so exactly one of them happens.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError
from ansible_collections.moat.inference.plugins.module_utils.steps import Steps

ROOT = "/run/moat/pending"
WAITING, CLAIMED, TOKEN, OUTCOME, UNDO = "change.json", "claimed.json", "token", "outcome", "undo"
OWED = "owed.json"
TIMEOUTS = range(5, 601)
Argv = Sequence[str]


class Refused(Exception):
    """The change cannot be confirmed; reason says why, retry whether another connection may do better."""

    def __init__(self, reason: str, retry: bool = False) -> None:
        self.retry = retry
        super().__init__(reason)


@dataclass
class Staged:
    """What makes a change last: paths and units of a plan, then commands. Done once it is confirmed."""

    plan: deploy.Plan = field(default_factory=deploy.Plan)
    commands: list[list[str]] = field(default_factory=list)
    # handed to the flows that are judged anew (firewall_flows), None when none are
    policy: dict[str, Any] | None = None


@dataclass(frozen=True)
class Terms:
    """How a change is to be confirmed: by which token, within how many seconds, and not over which connection."""

    token: str
    timeout: int
    connection: str

    def report(self, name: str) -> dict[str, Any]:
        """What the action plugin needs to confirm the change."""
        return {"name": name, "token": self.token, "timeout": self.timeout, "ssh": bool(self.connection)}


def terms_of(params: Mapping[str, Any]) -> Terms:
    """Read the options confirm_token and confirm_timeout of a module that applies a change."""
    return Terms(params["confirm_token"] or secrets.token_hex(8), params["confirm_timeout"], ssh_connection())


def timeout_fault(seconds: int) -> str:
    """Say why a timeout cannot be had; empty when it can."""
    if seconds in TIMEOUTS:
        return ""
    return f"confirm_timeout: {seconds} is out of range; write {TIMEOUTS[0]} to {TIMEOUTS[-1]} seconds"


def ssh_connection() -> str:
    """SSH_CONNECTION of this process or of the nearest one above it that has it: sudo(8) takes it out of the environment."""
    if os.environ.get("SSH_CONNECTION"):
        return os.environ["SSH_CONNECTION"]
    process = os.getppid()
    while process > 1:
        try:
            with open(f"/proc/{process}/environ", "rb") as handle:
                variables = handle.read().split(b"\0")
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as handle:
                process = int(handle.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return ""
        for variable in variables:
            if variable.startswith(b"SSH_CONNECTION="):
                return variable.partition(b"=")[2].decode("ascii", "replace")
    return ""


def undo_script(directory: str, commands: Sequence[Argv], texts: Sequence[str] = ()) -> str:
    """The script that takes a change back: it claims the change, runs every command whatever the one before said, and says how it ended."""
    lines = [
        "#!/bin/sh",
        "# Takes back a change that nobody confirmed. Made by moat.inference.",
        f"cd {shlex.quote(directory)} || exit 1",
        f"mv {WAITING} {CLAIMED} 2>/dev/null || exit 0",
        "ended=undone",
        *(f"{shlex.join(argv)} || ended=failed" for argv in commands),
        shlex.join(["rm", "-f", "--", CLAIMED, *texts]),
        f"echo $ended > {OUTCOME}",
        'echo "the change was not confirmed and is $ended"',
        "[ $ended = undone ]",
    ]
    return "\n".join(lines) + "\n"


class Pending:
    """One change that waits, known by the name of what it changes."""

    def __init__(self, runner: Any, name: str, root: str = ROOT) -> None:
        self._runner = runner
        self.name = name
        self.directory = os.path.join(root, name)
        self._unit = f"moat-undo-{name}"
        self._texts: list[str] = []

    def path(self, name: str) -> str:
        """A file that lives as long as the change waits."""
        return os.path.join(self.directory, name)

    def _read(self, name: str) -> str:
        try:
            with open(self.path(name), encoding="utf-8") as handle:
                return handle.read().strip()
        except FileNotFoundError:
            return ""

    @property
    def waits(self) -> bool:
        """Whether a change waits to be confirmed."""
        return os.path.exists(self.path(WAITING))

    def prepare(self, texts: Mapping[str, str]) -> None:
        """Begin a change anew with files that its way back needs; nothing is armed yet."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.makedirs(self.directory, mode=0o700)
        for name, text in texts.items():
            self._write(name, text)
        self._texts = list(texts)

    def _write(self, name: str, text: str) -> None:
        files.write(self.path(name), files.FileState("file", text.encode("utf-8"), 0o600))

    def arm(self, undo: Sequence[Argv], staged: Staged, terms: Terms) -> None:
        """Have PID 1 take the change back once its time is over."""
        self._write(UNDO, undo_script(self.directory, undo, self._texts))
        self._write(TOKEN, terms.token)
        self._write(WAITING, json.dumps({"connection": terms.connection, **encode(staged)}))
        self._disarm()
        argv = ["systemd-run", "--quiet", "--collect", f"--unit={self._unit}", f"--on-active={terms.timeout}s"]
        # the default accuracy is a minute
        argv += ["--timer-property=AccuracySec=100ms", f"--description=Way back of a change ({self.name})"]
        self._runner.run([*argv, "/bin/sh", self.path(UNDO)])

    def _disarm(self) -> None:
        self._runner.run(["systemctl", "stop", "--", f"{self._unit}.timer"], ok=(0, 5))

    def undo(self) -> list[str]:
        """Take the change back now, and return what could not be put back."""
        ended = self._runner.run(["/bin/sh", self.path(UNDO)], ok=(0, 1))
        self._disarm()
        return [(ended.stderr or ended.stdout).strip()] if ended.rc else []

    def recover(self) -> str:
        """Take back what a run that was killed left waiting; say what was done, empty when nothing waited."""
        if not self.waits:
            return ""
        left = self.undo()
        if left:
            raise OSError("a change that was never confirmed could not be taken back: {}".format("; ".join(left)))
        return "a change that was never confirmed has been taken back"

    def outcome(self, token: str) -> str:
        """What became of a change: waiting, undone, failed (to be undone), or unknown."""
        if token and self._read(TOKEN) != token:
            return "unknown"
        if self.waits:
            return "waiting"
        return self._read(OUTCOME) or "unknown"

    def forget(self) -> None:
        """Remove what the last change left, and the directories above it unless another change waits there."""
        self.settle()
        for path in (os.path.dirname(self.directory), os.path.dirname(os.path.dirname(self.directory))):
            with suppress(OSError):
                os.rmdir(path)

    def confirm(self, token: str, connection: str) -> Staged:
        """Keep the change, write what boot loads and return it; when that fails, take the change back and raise the error."""
        if self._read(TOKEN) != token:
            raise Refused("no such change waits")
        try:
            with open(self.path(WAITING), encoding="utf-8") as handle:
                kept = json.load(handle)
            if kept["connection"] and kept["connection"] == connection:
                raise Refused(
                    "this is the connection that the change was applied over, which proves nothing", retry=True
                )
            os.rename(self.path(WAITING), self.path(CLAIMED))
        except FileNotFoundError:
            raise Refused(f"the change is {self.outcome(token)}") from None
        self._disarm()
        steps, staged = Steps(self._runner), decode(kept)
        try:
            steps.paths(staged.plan)
            for unit in staged.plan.units:
                steps.unit(unit.name, unit.actions)
            for argv in staged.commands:
                self._runner.run(argv)
        except (OSError, KeyError, CommandError) as error:
            left = steps.undo()
            os.rename(self.path(CLAIMED), self.path(WAITING))
            left += self.undo()
            raise OSError("{}{}".format(error, "; not put back: " + "; ".join(left) if left else "")) from error
        if staged.policy is None:
            self.settle()
        else:
            self._write(OWED, json.dumps(staged.policy))
            os.unlink(self.path(CLAIMED))
        return staged

    def owed(self) -> dict[str, Any] | None:
        """The policy of a confirmed change whose flows have yet to be judged: whoever was to do it was killed."""
        text = self._read(OWED)
        return json.loads(text) if text else None

    def settle(self) -> None:
        """A confirmed change is done with."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _encode_state(state: files.FileState) -> dict[str, Any]:
    content = None if state.content is None else base64.b64encode(state.content).decode("ascii")
    return {"kind": state.kind, "content": content, "mode": state.mode, "owner": state.owner, "group": state.group}


def _decode_state(item: Mapping[str, Any]) -> files.FileState:
    content = None if item["content"] is None else base64.b64decode(item["content"])
    return files.FileState(item["kind"], content, item["mode"], item["owner"], item["group"])


def encode(staged: Staged) -> dict[str, Any]:
    """A staged change as plain values; private keys may be among them, so they stay in a file that root alone reads."""

    def changes(items: Sequence[deploy.Change]) -> list[dict[str, Any]]:
        return [
            {"path": item.path, "before": _encode_state(item.before), "after": _encode_state(item.after)}
            for item in items
        ]

    return {
        "directories": changes(staged.plan.directories),
        "files": changes(staged.plan.files),
        "daemon_reload": staged.plan.daemon_reload,
        "units": [{"name": unit.name, "actions": list(unit.actions)} for unit in staged.plan.units],
        "commands": [list(argv) for argv in staged.commands],
        "policy": staged.policy,
    }


def decode(kept: Mapping[str, Any]) -> Staged:
    """The inverse of encode."""

    def changes(items: Sequence[Mapping[str, Any]]) -> list[deploy.Change]:
        return [
            deploy.Change(item["path"], _decode_state(item["before"]), _decode_state(item["after"])) for item in items
        ]

    plan = deploy.Plan(
        directories=changes(kept["directories"]),
        files=changes(kept["files"]),
        daemon_reload=kept["daemon_reload"],
        units=[deploy.UnitPlan(item["name"], tuple(item["actions"])) for item in kept["units"]],
    )
    return Staged(plan, [list(argv) for argv in kept["commands"]], kept["policy"])
