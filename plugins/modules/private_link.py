#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: private_link
short_description: Bring a WireGuard interface to what is planned without taking it down
version_added: 0.1.0
description:
  - Compares configuration file, unit, peers, addresses, routes and MTU of a wg-quick(8) interface with what is planned, so what was changed by
    hand is drift and is shown.
  - A change is checked, the file replaced atomically, and the running interface brought along by C(wg syncconf) from a checked file and by
    C(ip), so tunnels that do not change lose nothing. The unit is restarted only if it does not run or its own files changed.
  - If anything fails, the previous files come back and the interface gets its previous configuration.
  - The key must be there, see M(moat.inference.private_link_key).
author:
  - moat.inference contributors (@moat-inference)
options:
  interface:
    description: Name of the interface.
    type: str
    default: moat0
  state:
    description: V(absent) stops the link and removes its configuration, its key and the public half that was kept for this host.
    type: str
    choices: [present, absent]
    default: present
  port:
    description: UDP port of this host and of all peers.
    type: int
    default: 51820
  addresses:
    description: Addresses of this host on the link.
    type: list
    elements: str
    default: []
  mtu:
    description: MTU of the interface. The default fits a path of 1500 bytes over IPv6.
    type: int
    default: 1420
  peers:
    description: All peers. One that is not listed is removed.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the peer's host in the inventory., type: str, required: true}
      endpoint: {description: Address of the peer outside the link., type: str, required: true}
      allowed_ips:
        description: Addresses that the peer may use inside the link, and that are routed to it.
        type: list
        elements: str
        required: true
      public_key:
        description:
          - The peer's public key.
          - If omitted, it is read from O(keys_dir). If it is not there, the key that the host's own configuration has for that name stays; if there
            is none either, the peer is left out with a warning.
        type: str
  keys_dir:
    description: Directory on the controller with the public keys, a file C(<name>.pub) for each host.
    type: path
  unit_files:
    description: Files that belong to the unit C(wg-quick@<interface>.service), removed when O(state=absent).
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      content: {description: The whole text in UTF-8., type: str, required: true}
      mode: {description: Permission bits in octal., type: str, default: "0644"}
attributes:
  action:
    support: full
    description: The peers' public keys are read by an action plugin on the controller, the rest is done by a module on the host.
  check_mode:
    support: full
    description: The configuration is compared, but not handed to wg-quick(8), which may not be there yet.
  diff_mode:
    support: full
    description: Shows the configuration without its secrets, the running interface and the unit.
"""

EXAMPLES = r"""
- name: Bring up the link
  moat.inference.private_link:
    interface: moat0
    port: 51820
    addresses: [100.64.0.1/32, "fd00:200::1/128"]
    keys_dir: "{{ inventory_dir }}/moat-state/link-keys"
    peers:
      - {name: app1, endpoint: 10.110.0.11, allowed_ips: [100.64.0.2/32, "fd00:200::2/128"]}
"""

RETURN = r"""
reason:
  description: Why something was, or in check mode would be, changed.
  type: str
  returned: always
peers:
  description: Names of the peers that the interface has.
  type: list
  elements: str
  returned: when present
unresolved:
  description: Names of the peers that were left out, for no public key of theirs is known yet.
  type: list
  elements: str
  returned: when present
"""

import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import deploy, files, private_link, private_link_key
from ansible_collections.moat.inference.plugins.module_utils.private_link_host import RUNNING, Host
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


class Change:
    """A call with state present: what is there, what shall be there, and the way between."""

    def __init__(self, module: AnsibleModule, runner: Runner, host: Host) -> None:
        self.host, self.check_mode = host, module.check_mode
        options = module.params
        self.path = private_link_key.configuration_path(host.interface)
        self.private_key, public_key = self._keys(module, runner)
        before = files.read_state(self.path)
        old = private_link.parse_configuration((before.content or b"").decode("utf-8", "replace"))
        peers, self.unresolved = private_link.resolve(options, old.names())
        self.desired = private_link.desired_link(options, public_key, peers)
        names = {key: name for name, key in old.names().items()}
        names.update({peer.public_key: peer.name for peer in peers})
        self.names = names
        self.live = self.look()
        self.unit = host.unit_state()
        self.text = private_link.configuration(self.desired, self.private_key or private_link.HIDDEN)
        self._plan_files(options, before)
        self._plan_unit()

    def _keys(self, module: AnsibleModule, runner: Runner) -> tuple[str, str]:
        path = private_link_key.key_path(self.host.interface)
        key = private_link_key.read_key(files.read_state(path), path)
        if not key and not self.check_mode:
            raise ValueError(f"{path} is missing; have it made by moat.inference.private_link_key first")
        if not key:
            return "", ""
        module.no_log_values.add(key)
        result = runner.run(["wg", "pubkey"], stdin=key + "\n", ok=(0, 127) if self.check_mode else (0,))
        return key, result.stdout.strip()

    def look(self) -> private_link.Link | None:
        live = self.host.live(self.names)
        return private_link.settled_endpoints(live, self.desired, time.time()) if live else None

    def _plan_files(self, options: dict[str, Any], before: files.FileState) -> None:
        after = files.FileState("file", self.text.encode("utf-8"), 0o600, "root", "root")
        self.configuration = deploy.Change(self.path, before, after, True) if before != after else None
        self.unit_files = []
        for item in options["unit_files"]:
            wanted = files.FileState("file", item["content"].encode("utf-8"), int(item["mode"], 8), "root", "root")
            current = files.read_state(item["path"])
            if current != wanted:
                self.unit_files.append(deploy.Change(item["path"], current, wanted))

    def _plan_unit(self) -> None:
        self.running = self.unit.active in RUNNING and self.live is not None
        self.owed = self.running and not self.unit_files and os.path.exists(self.host.pending)
        self.restart = not self.running or self.owed or bool(self.unit_files)
        self.enable = self.unit.enabled not in ("enabled", "static", "generated")
        self.reload = bool(self.unit_files) or self.unit.stale
        self.delta = private_link.Delta()
        if self.live is not None:
            self.delta = private_link.compare(self.live, self.desired)

    def reasons(self) -> list[str]:
        reasons = [
            "{} {}".format(change.path, "is missing" if change.before.kind == "absent" else "differs")
            for change in [*self.unit_files, *([self.configuration] if self.configuration else [])]
        ]
        if not self.running:
            reasons.append(f"{self.host.unit} is {self.unit.active}" + ("" if self.live else ", no interface"))
        if self.owed:
            reasons.append(f"{self.host.unit} was not restarted after its files changed: a run was cut short")
        if self.enable:
            reasons.append(f"{self.host.unit} does not start at boot")
        if self.reload and not self.unit_files:
            reasons.append("systemd has not read its files again")
        return reasons + self.delta.reasons

    def diff(self) -> list[dict[str, str]]:
        entries = [files.diff_entry(change.path, change.before, change.after) for change in self.unit_files]
        if self.configuration:
            entries.append(redacted_entry(self.configuration, self.private_key))
        if self.restart or self.delta.reasons:
            entries.append(
                {
                    "before_header": self.host.interface + (" (running)" if self.live else " (absent)"),
                    "after_header": self.host.interface + " (running)",
                    "before": private_link.shown(self.live),
                    "after": private_link.shown(self.desired)
                    + "".join(f"peer {name}: (no public key yet)\n" for name in self.unresolved),
                }
            )
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

    def apply(self) -> None:
        """Carry the plan out, and undo it when a step fails or the interface is not what was planned afterwards."""
        stripped = self.host.strip(self.text, self.private_key, set(self.desired.by_key()))
        done: list[deploy.Change] = []
        try:
            if self.unit_files:
                with open(self.host.pending, "w", encoding="utf-8"):
                    pass
            for change in [*self.unit_files, *([self.configuration] if self.configuration else [])]:
                os.makedirs(os.path.dirname(change.path), mode=0o755, exist_ok=True)
                files.write(change.path, change.after)
                done.append(change)
            if self.reload:
                self.host.systemctl("daemon-reload")
            if self.restart:
                if self.live is not None and self.unit.active not in RUNNING:
                    # wg-quick refuses an interface that is there; this one was not made by the unit
                    self.host.delete()
                self.host.start()
            else:
                self.host.apply(self.delta, stripped, self.desired.mtu)
            if self.enable:
                self.host.systemctl("enable", "--", self.host.unit)
            self._confirm()
            self.host.forget_pending()
        except (OSError, RuntimeError, CommandError) as error:
            left = self._undo(done)
            outcome = "but not completely: " + "; ".join(left) if left else "completely"
            raise RuntimeError(f"{error}. The previous state was restored {outcome}.") from error

    def _confirm(self) -> None:
        live = self.look()
        if live is None:
            raise RuntimeError(f"{self.host.unit} started, but there is no interface {self.host.interface}")
        remaining = private_link.compare(live, self.desired).reasons
        if remaining:
            raise RuntimeError(f"{self.host.interface} is not what was planned: {'; '.join(remaining)}")

    def _undo(self, done: list[deploy.Change]) -> list[str]:
        faults: list[str] = []
        try:
            for change in reversed(done):
                if change.before.kind == "absent":
                    os.unlink(change.path)
                else:
                    files.write(change.path, change.before)
            if self.reload:
                self.host.systemctl("daemon-reload")
            if self.unit.active in ("inactive", "failed"):
                self.host.systemctl("stop", "--", self.host.unit)
            elif not self.running:
                # systemd goes on trying, with the files that are back
                return faults
            elif self.restart:
                self.host.systemctl("restart", "--", self.host.unit)
            else:
                self._undo_live()
            self.host.forget_pending()
        except (OSError, RuntimeError, CommandError) as error:
            faults.append(str(error))
        return faults

    def _undo_live(self) -> None:
        now, before = self.host.live(self.names), self.live
        text = (files.read_state(self.path).content or b"").decode("utf-8", "replace")
        if before is None or now is None:
            return
        delta = private_link.compare(now, before)
        old = private_link.parse_configuration(text)
        keys = {key for _name, key in old.peers}
        stripped = self.host.strip(text, old.private_key, keys) if delta.sync else ""
        self.host.apply(delta, stripped, before.mtu)


def redacted_entry(change: deploy.Change, private_key: str) -> dict[str, str]:
    """Return the diff of the configuration without its secrets."""

    def redact(state: files.FileState, key: str) -> files.FileState:
        if state.content is None:
            return state
        text = private_link.redacted(state.content.decode("utf-8", "replace"), key)
        return files.FileState(state.kind, text.encode("utf-8"), state.mode, state.owner, state.group)

    return files.diff_entry(change.path, redact(change.before, private_key), redact(change.after, ""))


def remove(module: AnsibleModule, host: Host) -> dict[str, Any]:
    """Take the link away and return the module's result."""
    paths = [item["path"] for item in module.params["unit_files"]]
    paths += [private_link_key.configuration_path(host.interface), private_link_key.key_path(host.interface)]
    present = {path: files.read_state(path) for path in paths}
    present = {path: state for path, state in present.items() if state.kind != "absent"}
    unit, live = host.unit_state(), host.live({})
    stop = unit.active not in ("inactive", "failed")
    disable = unit.enabled in ("enabled", "enabled-runtime")
    reasons = [f"{path} is there" for path in present]
    reasons += [f"{host.unit} is {unit.active}"] if stop else []
    reasons += [f"{host.unit} starts at boot"] if disable else []
    reasons += [f"interface {host.interface} is there"] if live else []
    diff = [files.diff_entry(path, state, files.ABSENT, sensitive=True) for path, state in present.items()]
    if live:
        gone = f"{host.interface} (absent)"
        diff.append(
            {
                "before_header": f"{host.interface} (running)",
                "after_header": gone,
                "before": private_link.shown(live),
                "after": "",
            }
        )
    if reasons and not module.check_mode:
        verbs = (["disable"] if disable else []) + (["stop"] if stop else [])
        for verb in verbs:
            host.systemctl(verb, "--", host.unit)
        if host.live({}):
            host.delete()
        for path in present:
            os.unlink(path)
        for directory in {os.path.dirname(path) for path in present if path.endswith(".service.d/moat.conf")}:
            if not os.listdir(directory):
                os.rmdir(directory)
        host.systemctl("daemon-reload")
    return {"changed": bool(reasons), "diff": diff, "reason": "; ".join(reasons)}


def bring_up(module: AnsibleModule, runner: Runner, host: Host) -> dict[str, Any]:
    """Bring the link to its plan and return the module's result."""
    change = Change(module, runner, host)
    for name in change.unresolved:
        module.warn(
            f"{host.interface}: no public key of {name} is known yet, so it is left out until {name} is converged"
        )
    reasons = change.reasons()
    report = {
        "changed": bool(reasons),
        "diff": change.diff(),
        "reason": "; ".join(reasons),
        "peers": [peer.name for peer in change.desired.peers],
        "unresolved": change.unresolved,
    }
    if reasons and not module.check_mode:
        change.apply()
    return report


def main() -> None:
    addresses = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "interface": {"type": "str", "default": "moat0"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "port": {"type": "int", "default": 51820},
            "addresses": {**addresses, "default": []},
            "mtu": {"type": "int", "default": 1420},
            "peers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "endpoint": {"type": "str", "required": True},
                    "allowed_ips": {**addresses, "required": True},
                    "public_key": {"type": "str", "no_log": False},
                },
            },
            "keys_dir": {"type": "path", "no_log": False},
            "unit_files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
        },
        supports_check_mode=True,
    )
    faults = private_link.faults_of(module.params)
    if faults:
        module.fail_json(msg="; ".join(faults))
    runner = Runner(module)
    host = Host(runner, module.params["interface"])
    try:
        report = remove(module, host) if module.params["state"] == "absent" else bring_up(module, runner, host)
    except (OSError, ValueError, RuntimeError, CommandError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**report)


if __name__ == "__main__":
    main()
