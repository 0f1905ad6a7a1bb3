# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The egress_client module's hands on the host: what is there, what has to change, and a way back for every step."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils import egress_client as client
from ansible_collections.moat.inference.plugins.module_utils import egress_client_merge as merge
from ansible_collections.moat.inference.plugins.module_utils import egress_client_resolv as resolv
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner
from ansible_collections.moat.inference.plugins.module_utils.steps import Steps

RESOLVED, MANAGER = "systemd-resolved.service", "NetworkManager.service"
PROPERTIES = "ActiveState,ActiveEnterTimestampMonotonic,LoadState"
# where a program is of a target, or a directory that comes with it
PLACES = {
    "apt": ("/etc/apt/apt.conf.d",),
    "dnf": (client.DNF,),
    "podman": ("/usr/bin/podman", "/etc/containers"),
    "docker": ("/usr/bin/dockerd", "/usr/sbin/dockerd", "/etc/docker"),
}


def present(target: str) -> bool:
    """Whether the program of a target is there; pip comes with any virtual environment."""
    return target not in PLACES or any(os.path.exists(path) for path in PLACES[target])


def read_text(path: str) -> str:
    """The text of a file that may be missing."""
    return (files.read_state(os.path.realpath(path)).content or b"").decode("utf-8", "surrogateescape")


def parse_units(text: str, names: list[str]) -> dict[str, dict[str, str]]:
    """Read `systemctl show`: a block a unit, in the order asked."""
    blocks = text.strip("\n").split("\n\n") if text.strip() else []
    found = {
        name: dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for name, block in zip(names, blocks)
    }
    return {name: found.get(name, {}) for name in names}


class Work:
    """What a call has to do."""

    def __init__(self, runner: Runner, options: Mapping[str, Any], check: bool) -> None:
        self._runner, self.steps, self.options = runner, Steps(runner), options
        self.warnings: list[str] = []
        self.unanswered: list[str] = []
        state = files.read_state(client.STATE)
        self.recorded = self._recorded(state)
        self.target = client.desired(options, present, read_text(client.DOCKER_JSON))
        self.released = [
            unit
            for unit in map(client.unit_of, self.recorded["files"])
            if unit and client.dropin(unit) not in self.target.files
        ]
        names = list(dict.fromkeys([*self.target.restart, *self.released, client.DOCKER_UNIT, RESOLVED, MANAGER]))
        listed = runner.run(["systemctl", "show", "-p", PROPERTIES, "--", *names], ok=(0, 1, 127)).stdout
        self.units = parse_units(listed, names)
        texts = {path: read_text(path) for path in {item.file for item in self.target.merged}}
        texts.update({item["file"]: read_text(item["file"]) for item in self.recorded["merged"].values()})
        self.texts, self.merged = client.plan_merged(self.target, self.recorded["merged"], texts)
        self.resolv_before = files.read_state(resolv.RESOLV)
        self.resolv = self._plan_resolvers(check)
        self.paths = self._plan_paths(state)
        self.actions = self._plan_units()

    def _recorded(self, state: files.FileState) -> dict[str, Any]:
        found: dict[str, Any] = {"files": [], "merged": {}, "resolv": None}
        if state.kind == "absent":
            return found
        try:
            return {**found, **json.loads((state.content or b"").decode("utf-8"))}
        except (ValueError, TypeError) as error:
            message = f"{client.STATE} cannot be read ({error}); remove it, and then what is there of the proxy counts as the host's own"
            raise client.Refused(message) from error

    def _active(self, unit: str) -> bool:
        return self.units.get(unit, {}).get("ActiveState") in ("active", "reloading", "activating")

    def _stale(self, unit: str, paths: list[str], changed: set[str]) -> bool:
        """Whether a unit that runs was started before one of the files that it read."""
        if not self._active(unit):
            return False
        if changed.intersection(paths):
            return True
        since = int(self.units[unit].get("ActiveEnterTimestampMonotonic") or 0) / 1e6
        started = time.time() - (time.monotonic() - since)
        return any(os.path.exists(path) and os.path.getmtime(path) > started for path in paths)

    def _plan_resolvers(self, check: bool) -> deploy.Change | None:
        """The change of resolv.conf, once every server that is new has answered."""
        resolvers, domain = self.options["resolvers"][: resolv.MOST], self.options["domain"]
        before = self.resolv_before
        if not resolvers:
            return self._resolv_back()
        link = os.path.realpath(resolv.RESOLV) if before.kind == "link" else ""
        if before.kind not in ("link", "file", "absent"):
            raise client.Refused(f"{resolv.RESOLV} is there as something else ({before.kind}); move it away")
        active = {MANAGER: self._active(MANAGER)}
        # openresolv and resolvconf; the one of systemd is a link to resolvectl
        program = shutil.which("resolvconf", path="/usr/sbin:/sbin:/usr/bin:/bin") or ""
        other = bool(program) and os.path.basename(os.path.realpath(program)) != "resolvectl"
        settings = resolv.network_manager_settings() if active[MANAGER] else ""
        faults = resolv.writers(link, read_text(resolv.RESOLV), active, settings, other)
        if faults:
            raise client.Refused("; ".join(faults))
        if os.path.exists("/etc/dhcpcd.conf") and "nohook resolv.conf" not in read_text("/etc/dhcpcd.conf"):
            self.warnings.append(
                "dhcpcd may write /etc/resolv.conf again; add the line nohook resolv.conf to /etc/dhcpcd.conf"
            )
        text = resolv.resolv_text(resolvers, domain)
        after = files.FileState("file", text.encode("ascii"), 0o644, "root", "root")
        known = resolv.in_force(read_text(resolv.RESOLV))
        self._ask([address for address in resolvers if address not in known], domain, check)
        return deploy.Change(resolv.RESOLV, before, after) if before != after else None

    def _ask(self, addresses: list[str], domain: str, check: bool) -> None:
        faults = []
        for address in addresses:
            said = resolv.ask(address, domain)
            if said and resolv.is_own(address):
                # the plan makes this host a resolver: nobody else can be asked at this address
                self.unanswered.append(address)
            elif said:
                faults.append(f"the resolver {address} {said}")
        if faults and check:
            self.warnings += [f"{fault}; unless it does by then, nothing will be touched" for fault in faults]
        elif faults:
            raise client.Refused("{}. Nothing was touched.".format("; ".join(faults)))

    def _resolv_back(self) -> deploy.Change | None:
        """What was there before, unless somebody has changed it since."""
        kept = self.recorded["resolv"]
        ours = (self.resolv_before.content or b"").startswith(resolv.MANAGED.encode("ascii"))
        if not kept or self.resolv_before.kind != "file" or not ours:
            return None
        content = None if kept["content"] is None else base64.b64decode(kept["content"])
        mode = None if kept["kind"] == "link" else kept["mode"]
        return deploy.Change(
            resolv.RESOLV, self.resolv_before, files.FileState(kept["kind"], content, mode, "root", "root")
        )

    def _resolv_record(self) -> Any:
        if not self.options["resolvers"]:
            return None
        if self.recorded["resolv"]:
            return self.recorded["resolv"]
        before = self.resolv_before
        content = None if before.content is None else base64.b64encode(before.content).decode("ascii")
        return {"kind": before.kind, "content": content, "mode": before.mode}

    def _own_texts(self) -> dict[str, str]:
        texts = dict(self.target.files)
        resolvers, domain = self.options["resolvers"], self.options["domain"]
        if resolvers and self.units[RESOLVED].get("LoadState") == "loaded":
            texts[resolv.RESOLVED_DROPIN] = resolv.resolved_text(resolvers, domain)
        if resolvers and os.path.isdir(resolv.DHCLIENT_HOOKS):
            texts[f"{resolv.DHCLIENT_HOOKS}/moat-egress"] = resolv.hook_text()
        return texts

    def _plan_paths(self, state: files.FileState) -> deploy.Plan:
        own = self._own_texts()
        plan = deploy.Plan()
        gone = [path for path in self.recorded["files"] if path not in own]
        record = {"files": sorted(own), "merged": self.merged, "resolv": self._resolv_record()}
        # until it is gone, what is not wanted any more is remembered as well
        both = {**record, "files": sorted({*own, *self.recorded["files"]})}
        wanted = bool(own or self.merged or record["resolv"])
        if wanted:
            self._own_file(
                plan, state, json.dumps(both if gone else record, sort_keys=True, indent=1) + "\n", client.STATE
            )
        for path, text in own.items():
            self._own_file(plan, files.read_state(path), text, path)
        for path, text in self.texts.items():
            self._foreign_file(plan, path, text)
        hosts = read_text(client.HOSTS)
        self._foreign_file(plan, client.HOSTS, merge.hosts_set(hosts, client.NAME, self.target.hosts))
        for path in gone:
            before = files.read_state(path)
            if before.kind == "file":
                plan.files.append(deploy.Change(path, before, files.ABSENT))
        last = files.ABSENT if not wanted else self._root(json.dumps(record, sort_keys=True, indent=1) + "\n")
        if (gone or not wanted) and state.kind != "absent":
            plan.files.append(deploy.Change(client.STATE, plan.files[0].after if wanted else state, last))
        plan.files = [change for change in plan.files if change.before != change.after]
        plan.daemon_reload = any(change.path.startswith("/etc/systemd/system/") for change in plan.files)
        return plan

    @staticmethod
    def _root(text: str) -> files.FileState:
        return files.FileState("file", text.encode("utf-8"), 0o644, "root", "root")

    def _own_file(self, plan: deploy.Plan, before: files.FileState, text: str, path: str) -> None:
        if before.kind not in ("file", "absent"):
            raise client.Refused(f"{path} is there as something else ({before.kind}); move it away")
        plan.files.append(deploy.Change(path, before, self._root(text)))

    def _foreign_file(self, plan: deploy.Plan, path: str, text: str) -> None:
        """A file of somebody else keeps its owner and mode, and a link to it stays."""
        path = os.path.realpath(path)
        before = files.read_state(path)
        if before.kind == "absent":
            if text:
                plan.files.append(deploy.Change(path, before, self._root(text)))
            return
        content = text.encode("utf-8", "surrogateescape")
        after = files.FileState("file", content, before.mode, before.owner, before.group)
        made = path in (client.PIP, client.DNF) and client.is_empty(text) and before.content != content
        plan.files.append(deploy.Change(path, before, files.ABSENT if made else after))

    def _plan_units(self) -> list[tuple[str, str]]:
        changed = {change.path for change in self.paths.files}
        found = []
        if self._stale(RESOLVED, [resolv.RESOLVED_DROPIN], changed):
            found.append(("restart", RESOLVED))
        released = [unit for unit in self.released if unit != client.DOCKER_UNIT]
        for unit in [*self.target.restart, *released]:
            if self._stale(unit, [client.ENVIRONMENT, client.dropin(unit)], changed):
                found.append(("try-restart", unit))
        paths = [client.ENVIRONMENT, client.dropin(client.DOCKER_UNIT)]
        uses = {*self.target.files, *self.recorded["files"]}
        if client.dropin(client.DOCKER_UNIT) in uses and self._stale(client.DOCKER_UNIT, paths, changed):
            self.warnings.append(
                "docker.service has its proxy as planned after its next restart, which may stop containers; restart it when that suits"
            )
        return found

    @property
    def changed(self) -> bool:
        return bool(self.paths.files or self.resolv or self.actions)

    def changed_files(self) -> list[str]:
        found = [change.path for change in [*self.paths.files, *([self.resolv] if self.resolv else [])]]
        return list(dict.fromkeys(found))

    def diff(self) -> list[dict[str, str]]:
        changes = [change for change in self.paths.files if change.path != client.STATE]
        entries = [files.diff_entry(change.path, change.before, change.after) for change in changes]
        if self.resolv:
            before, after = (self._readable(state) for state in (self.resolv.before, self.resolv.after))
            entries.append(files.diff_entry(resolv.RESOLV, before, after))
        for action, unit in self.actions:
            entries.append({"before_header": unit, "after_header": unit, "before": "", "after": f"will {action}\n"})
        return entries

    @staticmethod
    def _readable(state: files.FileState) -> files.FileState:
        if state.kind != "link":
            return state
        return files.FileState("link", b"leads to " + (state.content or b"") + b"\n", None, state.owner, state.group)

    def apply(self) -> None:
        """Carry the plan out; raise RuntimeError with what could not be put back when a step fails."""
        try:
            for change in self.paths.files:
                self._directories(os.path.dirname(change.path))
            # first what is remembered: a killed run leaves nothing that nobody knows of
            rest = list(self.paths.files)
            if rest and rest[0].path == client.STATE and rest[0].after.kind == "file":
                self._put(rest.pop(0))
            # then the file that programs read themselves, which is right while systemd-resolved restarts
            if self.resolv and self.options["resolvers"]:
                self._put(self.resolv)
            tried: list[str] = []
            # taken back last: a unit that was running starts with the files that it had
            self.steps.later(self._restart, tried)
            self.steps.paths(deploy.Plan(files=rest, daemon_reload=self.paths.daemon_reload))
            for action, unit in self.actions:
                tried.append(unit)
                self._runner.run(["systemctl", action, "--", unit])
            if self.resolv and not self.options["resolvers"]:
                self._put(self.resolv)
        except (OSError, KeyError, CommandError) as error:
            left = self.steps.undo()
            outcome = "but not completely: " + "; ".join(left) if left else "completely"
            raise RuntimeError(f"{error}. The previous state was restored {outcome}.") from error
        self._tidy()

    def _directories(self, path: str) -> None:
        if not os.path.isdir(path):
            self._directories(os.path.dirname(path))
            os.mkdir(path, 0o755)
            os.chmod(path, 0o755)
            self.steps.later(os.rmdir, path)

    def _restart(self, units: list[str]) -> None:
        for unit in units:
            self._runner.run(["systemctl", "restart", "--", unit])

    def _put(self, change: deploy.Change) -> None:
        _replace(change.path, change.after)
        self.steps.later(_replace, change.path, change.before)

    def _tidy(self) -> None:
        """Remove directories of ours that are empty now."""
        gone = [change.path for change in self.paths.files if change.after.kind == "absent"]
        for path in gone:
            directory = os.path.dirname(path)
            if directory == client.DIRECTORY or directory.endswith((".service.d", "/resolved.conf.d")):
                with suppress(OSError):
                    os.rmdir(directory)


def _replace(path: str, state: files.FileState) -> None:
    """Have a file, a link or nothing at a path, in one step."""
    if state.kind == "absent":
        os.unlink(path)
    elif state.kind == "link":
        candidate = files.candidate_path(path)
        with suppress(FileNotFoundError):
            os.unlink(candidate)
        os.symlink(os.fsdecode(state.content or b""), candidate)
        files.commit(candidate, path)
    else:
        files.write(path, state)
