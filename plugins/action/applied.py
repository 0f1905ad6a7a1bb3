# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compares the plan with what was applied, and keeps that beside the inventory. The judging is in module_utils/applied."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.moat.inference.plugins.module_utils import applied, files, private_link_key

COLLECTION = Path(__file__).resolve().parents[2]
IGNORE = "# What was applied says nothing of another checkout.\n*\n"


@cache
def collection_digest() -> str:
    """What the collection is: a version that is the same in two checkouts may differ in its files."""
    found = hashlib.sha256()
    for part in ("playbooks", "plugins", "roles"):
        for path in sorted((COLLECTION / part).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(f"{path.relative_to(COLLECTION)}\0".encode())
                found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


class ActionModule(ActionBase):
    """No host is touched: there is no connection and no module."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(
            argument_spec={
                "state": {"type": "str", "choices": ["begun", "succeeded"], "required": True},
                "state_dir": {"type": "path", "required": True},
                "plans": {"type": "dict", "required": True},
                "parts": {"type": "dict", "required": True},
                "hosts": {"type": "list", "elements": "str", "required": True},
                "changes_only": {"type": "bool", "default": False},
                "due": {"type": "dict", "default": {}},
                "retire": {"type": "dict", "default": {}},
                "run_tags": {"type": "list", "elements": "str", "default": ["all"]},
                "skip_tags": {"type": "list", "elements": "str", "default": []},
            }
        )
        try:
            return Keeper(arguments, (task_vars or {}).get("groups", {}), bool(self._task.check_mode)).act()
        except (OSError, ValueError) as error:
            return {"failed": True, "changed": False, "msg": f"state_dir: {error}"}


class Keeper:
    """The records of one state directory."""

    def __init__(self, arguments: Mapping[str, Any], groups: Mapping[str, Any], check_mode: bool) -> None:
        self._arguments, self._check_mode = arguments, check_mode
        self._inventory = {str(name) for name in groups.get("all", ())}
        self._state = arguments["state_dir"]
        self._keys = os.path.join(self._state, "link-keys")
        self._directory = os.path.join(self._state, "applied")
        self._plans, self._parts = arguments["plans"], arguments["parts"]
        self._collection = collection_digest()

    def act(self) -> dict[str, Any]:
        return self._begin() if self._arguments["state"] == "begun" else self._succeed()

    def _begin(self) -> dict[str, Any]:
        records = self._read()
        elsewhere = sorted(set(records) - self._inventory)
        records = {host: record for host, record in records.items() if host in self._inventory}
        hosts = [host for host in self._arguments["hosts"] if host in self._plans or host in records]
        plans = {host: self._plans[host] for host in hosts if host in self._plans}
        digests = {host: self._digests(host, plan["roles"]) for host, plan in plans.items()}
        mine = {host: records[host] for host in hosts if host in records}
        work = applied.compare(plans, digests, mine, self._collection, self._arguments["changes_only"])
        for host, roles in work.known.items():
            if "private_link" in roles and not private_link_key.public_key_of(self._keys, host):
                roles.remove("private_link")
            if "ca" in roles and not self._root():
                roles.remove("ca")
        for host, roles in work.due.items():
            before = mine.get(host, {})
            self._write(host, before, applied.begun(before, plans[host], self._chosen(roles)))
        changes_only = self._arguments["changes_only"]
        early = self._paired(work) if changes_only else hosts
        busy = work.hosts or sorted(self._plans)[:1]
        warnings = [
            f"{self._path(host)}: {host} is not in the inventory, so what it has of the perimeter stays there; remove the file once it is gone"
            for host in elsewhere
        ]
        result = {
            "changed": False,
            "due": work.due,
            "known": work.known,
            "gained": work.gained,
            "retire": work.retire,
            "steps": {host: applied.steps(work, host, host in early, changes_only) for host in busy},
            "hosts": busy,
        }
        return {**result, "warnings": warnings} if warnings else result

    def _paired(self, work: applied.Work) -> list[str]:
        """Hosts that can be linked at once: the keys of all their peers are there, and none of these may get another in this run."""
        new = {host for host in work.due if "private_link" not in work.known.get(host, ())}
        found = []
        for host, roles in work.due.items():
            ends = (
                [peer["name"] for peer in self._plans[host]["private_link"]["peers"]] if "private_link" in roles else []
            )
            if ends and new.isdisjoint(ends) and all(private_link_key.public_key_of(self._keys, end) for end in ends):
                found.append(host)
        return found

    def _succeed(self) -> dict[str, Any]:
        records = self._read()
        for host in self._arguments["hosts"]:
            roles = self._chosen(self._arguments["due"].get(host, ()))
            gone = [item for item in self._arguments["retire"].get(host, ()) if self._chosen([item["role"]])]
            if roles or gone:
                plan = self._plans.get(host, {"roles": []})
                before = records.get(host, {})
                digests = self._digests(host, roles)
                self._write(host, before, applied.succeeded(before, plan, digests, roles, gone, self._collection))
        return {"changed": False}

    def _chosen(self, roles: Any) -> list[str]:
        tags = self._arguments["run_tags"], self._arguments["skip_tags"]
        return [role for role in roles if applied.selected(role, *tags)]

    def _digests(self, host: str, roles: Any) -> dict[str, tuple[str, str]]:
        return {role: (self._digest(host, role), self._parts[host][role]["inputs"]) for role in roles}

    def _root(self) -> str:
        state = files.read_state(os.path.join(self._state, "ca-root.pem"))
        return (state.content or b"").decode("ascii", "replace")

    def _digest(self, host: str, role: str) -> str:
        """Of the part of the plan and of what the role reads beside the inventory; empty while some of that is missing."""
        part = self._parts[host][role]
        beside: list[str] = []
        if role == "private_link":
            ends = [host, *(peer["name"] for peer in self._plans[host][role]["peers"])]
            beside = [private_link_key.public_key_of(self._keys, end) for end in ends]
        elif role == "certificate":
            beside = [self._root()]
        return applied.digest_of(part, beside) if part["inputs"] and all(beside) else ""

    def _path(self, host: str) -> str:
        if not applied.HOST_NAME.fullmatch(host):
            raise ValueError(f"host name {host!r} makes no file name; use letters, digits, '.', '_' and '-'")
        return os.path.join(self._directory, f"{host}.json")

    def _read(self) -> dict[str, dict[str, applied.Entry]]:
        found = {}
        for name in sorted(os.listdir(self._directory)) if os.path.isdir(self._directory) else []:
            host, suffix = os.path.splitext(name)
            if suffix == ".json" and applied.HOST_NAME.fullmatch(host):
                path = self._path(host)
                try:
                    found[host] = applied.parse(Path(path).read_text(encoding="utf-8"))
                except ValueError as error:
                    raise ValueError(f"{path} {error}") from error
        return found

    def _write(self, host: str, before: Mapping[str, applied.Entry], after: Mapping[str, applied.Entry]) -> None:
        path = self._path(host)
        if self._check_mode or (before == after and os.path.exists(path)):
            return
        os.makedirs(self._directory, mode=0o755, exist_ok=True)
        ignore = os.path.join(self._directory, ".gitignore")
        if not os.path.exists(ignore):
            files.write(ignore, files.FileState("file", IGNORE.encode(), 0o644))
        if after:
            files.write(path, files.FileState("file", applied.render(after).encode(), 0o644))
        else:
            os.unlink(path)
