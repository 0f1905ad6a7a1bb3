"""A model of a host with a WireGuard interface: files are real in a temporary directory, wg, ip and systemctl act on the model."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.module_utils import (
    files,
    pending,
    private_link_host,
    private_link_key,
)
from ansible_collections.moat.inference.plugins.module_utils.private_link import parse_configuration
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result
from ansible_collections.moat.inference.plugins.modules import private_link as module_link
from ansible_collections.moat.inference.plugins.modules import private_link_key as module_key

UNIT = "wg-quick@moat0.service"


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode("ascii")


def public(private: str) -> str:
    return base64.b64encode(hashlib.sha256(private.strip().encode()).digest()).decode("ascii")


OWN = key(9)


class Machine:
    """One host with a WireGuard interface and a unit, as far as the modules ask."""

    def __init__(self, etc: Path) -> None:
        self.etc = etc
        self.peers: dict[str, dict[str, Any]] | None = None
        self.private, self.port, self.fwmark, self.mtu, self.kind = "", 0, "off", 1420, "tun"
        self.addresses: list[str] = []
        self.routes: list[str] = []
        self.active, self.enabled = "inactive", "disabled"
        self.kernel = True
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.refused: set[str] = set()  # what a configuration must not hold for the unit to start
        self.strip: Callable[[str], str] = lambda text: "\n".join(
            line for line in text.splitlines() if not line.startswith(("Address", "MTU"))
        )

    def run(self, argv: Sequence[str], stdin: str | None = None, ok: Sequence[int] = (0,), **_options: Any) -> Result:
        line = " ".join(argv)
        self.calls.append(line)
        failed = next((words for words in self.failing if line.startswith(words)), None)
        rc, out = (1, "") if failed else self._answer(list(argv), stdin or "")
        result = Result(tuple(argv), rc, out, "no" if rc else "")
        if rc not in ok:
            raise CommandError(result)
        return result

    def _answer(self, argv: list[str], stdin: str) -> tuple[int, str]:
        if argv[:2] == ["wg", "genkey"]:
            return 0, OWN + "\n"
        if argv[:2] == ["wg", "pubkey"]:
            return 0, public(stdin) + "\n"
        if argv[0] == "wg-quick":
            return 0, self.strip(Path(argv[-1]).read_text())
        if argv[0] == "unshare":
            return (0 if self.kernel else 2), ""
        if argv[0] == "systemctl":
            # the timer of a way back is recorded: tests let it run out themselves
            return (0, "") if argv[-1].startswith("moat-undo") else self._systemctl(argv[1])
        if argv[0] == "systemd-run":
            if "wg-quick" in argv:
                self.up(Path(argv[-1]).read_text())
            return 0, ""
        if argv[0] == "/bin/sh":
            return self._script(Path(argv[1])), ""
        if argv[:2] == ["sh", "-c"]:
            command, tolerated, _rest = argv[2].rpartition(" 2>/dev/null || :")
            assert tolerated
            self._answer(shlex.split(command), "")
            return 0, ""
        if argv[0] in ("cp", "mv", "rm", "rmdir"):
            return subprocess.run(argv, check=False, capture_output=True).returncode, ""
        if argv[0] == "journalctl":
            return 0, "the last words\n"
        return (1, "") if self.peers is None else self._interface(argv)

    def _script(self, path: Path) -> int:
        """The frame of the way back runs for real, its commands act on the model."""
        if not (path.parent / pending.WAITING).exists():
            return 0
        ended, mark, frame = "undone", " || ended=failed", []
        for line in path.read_text().splitlines():
            if not line.endswith(mark):
                frame.append(line)
                continue
            self.calls.append(line[: -len(mark)])
            if self._answer(shlex.split(line[: -len(mark)]), "")[0]:
                ended = "failed"
        text = "\n".join(frame).replace("ended=undone", f"ended={ended}")
        return subprocess.run(["sh", "-c", text], check=False, capture_output=True).returncode

    def _interface(self, argv: list[str]) -> tuple[int, str]:
        words = [word for word in argv[1:] if not word.startswith("-")]
        if argv[0] == "wg" and words[0] == "show":
            return 0, self._dump()
        if argv[0] == "wg" and words[0] == "showconf":
            return 0, self.showconf()
        if argv[0] == "wg" and words[0] == "syncconf":
            self._load(Path(argv[-1]).read_text())
        elif argv[0] == "wg":
            assert argv[3] == "peer" and self.peers is not None
            self.peers[argv[4]].update(keepalive="off", preshared="(none)")
        elif words[:2] == ["address", "show"] or words[:2] == ["link", "show"]:
            return 0, self._shown()
        elif words[:2] == ["route", "show"]:
            six = "-6" in argv
            return 0, json.dumps([{"dst": route.split("/")[0]} for route in self.routes if (":" in route) is six])
        elif words[0] in ("address", "route"):
            values = self.addresses if words[0] == "address" else self.routes
            if words[1] != "replace" and (words[2] in values) is (words[1] == "add"):
                return 2, ""
            if words[2] in values:
                values.remove(words[2])
            if words[1] != "delete":
                values.append(words[2])
        elif words[:2] == ["link", "set"]:
            self.mtu = int(argv[argv.index("mtu") + 1])
        elif words[:2] == ["link", "delete"]:
            self.peers = None
        else:
            raise AssertionError(argv)
        return 0, ""

    def _systemctl(self, verb: str) -> tuple[int, str]:
        if verb == "show":
            return (
                0,
                f"ActiveState={self.active}\nUnitFileState={self.enabled}\nNeedDaemonReload=no\nLoadState=loaded\n",
            )
        if verb == "restart":
            text = (self.etc / "moat0.conf").read_text() if (self.etc / "moat0.conf").exists() else ""
            self.active, self.peers = "activating", None
            if "PrivateKey" not in text or any(words in text for words in self.refused):
                return 1, ""
            self.up(text)
            self.active = "active"
        elif verb == "stop":
            self.active, self.peers = "inactive", None
        elif verb in ("enable", "disable"):
            self.enabled = verb + "d"
        return 0, ""

    def up(self, text: str) -> None:
        """What wg-quick up does."""
        self.peers = {}
        self._load(text)
        values = [line.partition(" = ")[2] for line in text.splitlines() if line.startswith("Address")]
        self.addresses = values
        self.mtu = next(int(line.split()[-1]) for line in text.splitlines() if line.startswith("MTU"))
        self.routes = [route for peer in self.peers.values() for route in peer["allowed"].split(",")]

    def _load(self, text: str) -> None:
        parsed = parse_configuration(text)
        sections = text.split("[Peer]")
        marks = [line.split()[-1] for line in sections[0].splitlines() if line.startswith("FwMark")]
        self.private, self.fwmark = parsed.private_key, (marks or ["off"])[0]
        self.port = next(int(line.split()[-1]) for line in sections[0].splitlines() if line.startswith("ListenPort"))
        before = self.peers or {}
        self.peers = {}
        for section in sections[1:]:
            value = dict(line.split(" = ") for line in section.splitlines() if " = " in line)
            kept = before.get(value["PublicKey"], {"keepalive": "off", "preshared": "(none)", "endpoint": "(none)"})
            given = {"keepalive": "PersistentKeepalive", "preshared": "PresharedKey", "endpoint": "Endpoint"}
            self.peers[value["PublicKey"]] = {
                **kept,
                **{field: value[name] for field, name in given.items() if name in value},
                "allowed": value["AllowedIPs"].replace(" ", ""),
            }

    def _dump(self) -> str:
        lines = [f"{self.private}\t{public(self.private)}\t{self.port}\t{self.fwmark}"]
        for name, peer in (self.peers or {}).items():
            fields = [name, peer["preshared"], peer["endpoint"], peer["allowed"], "0", "0", "0", peer["keepalive"]]
            lines.append("\t".join(fields))
        return "\n".join(lines) + "\n"

    def showconf(self) -> str:
        lines = ["[Interface]", f"ListenPort = {self.port}", f"PrivateKey = {self.private}"]
        lines += [f"FwMark = {self.fwmark}"] if self.fwmark != "off" else []
        for name, peer in (self.peers or {}).items():
            lines += ["", "[Peer]", f"PublicKey = {name}", "AllowedIPs = {}".format(peer["allowed"].replace(",", ", "))]
            for field, word in (
                ("endpoint", "Endpoint"),
                ("keepalive", "PersistentKeepalive"),
                ("preshared", "PresharedKey"),
            ):
                lines += [f"{word} = {peer[field]}"] if peer[field] not in ("off", "(none)") else []
        return "\n".join(lines) + "\n"

    def state(self) -> dict[str, Any]:
        """All that a change that was taken back must have left as it was."""
        kept = {path.name: (path.read_text(), path.stat().st_mode & 0o777) for path in sorted(self.etc.iterdir())}
        link = [self.private, self.port, self.fwmark, self.mtu, sorted(self.addresses), sorted(self.routes)]
        return {
            "files": kept,
            "peers": self.peers,
            "link": link if self.peers is not None else [],
            "boot": self.enabled,
        }

    def _shown(self) -> str:
        addresses = [
            {"local": text.split("/")[0], "prefixlen": int(text.split("/")[1]), "scope": "global"}
            for text in self.addresses
        ]
        shown = {"ifname": "moat0", "flags": ["UP"], "mtu": self.mtu, "addr_info": addresses}
        return json.dumps([{**shown, "linkinfo": {"info_kind": self.kind}}])

    def verbs(self) -> list[str]:
        """The commands that change something."""
        reading = ("wg show", "wg pubkey", "ip -", "systemctl show", "wg-quick strip", "journalctl", "cp -a")
        return [line for line in self.calls if not line.startswith(reading) and "moat-undo-" not in line]


def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    etc = tmp_path / "wireguard"
    etc.mkdir(mode=0o700)
    (tmp_path / "run").mkdir()
    host = Machine(etc)
    for module in (module_link, module_key):
        monkeypatch.setattr(module, "Runner", lambda _module: host)
    monkeypatch.setattr(private_link_key, "DIRECTORY", str(etc))
    monkeypatch.setattr(private_link_host, "RUN", str(tmp_path / "run"))
    root = str(tmp_path / "run" / "pending")
    monkeypatch.setattr(private_link_host, "Pending", partial(pending.Pending, root=root))
    # there is nobody to lock out, so any connection confirms
    monkeypatch.setattr(pending, "ssh_connection", lambda: "")
    # the modules give all files to root, whoever runs the tests
    monkeypatch.setattr(files, "_owner_name", lambda _uid: "root")
    monkeypatch.setattr(files, "_group_name", lambda _gid: "root")
    monkeypatch.setattr(files, "owner_id", lambda _name: os.getuid())
    monkeypatch.setattr(files, "group_id", lambda _name: os.getgid())
    return host


class Call:
    """Runs a module, and confirms the change that it leaves waiting."""

    def __init__(self, capsys: pytest.CaptureFixture[str], machine: Machine) -> None:
        self._capsys = capsys
        self.waiting = private_link_host.Host(machine, "moat0").pending

    def __call__(
        self, main: Any = module_link.main, check: bool = False, confirm: bool = True, **more: Any
    ) -> dict[str, Any]:
        arguments = {**more, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        out = self._capsys.readouterr().out
        assert OWN not in out
        result = dict(json.loads(out))
        if confirm and "pending" in result:
            self.confirm(result)
        return result

    def confirm(self, result: dict[str, Any]) -> None:
        assert result["pending"]["name"] == "private_link"
        self.waiting.confirm(result["pending"]["token"], "")
        assert not os.path.exists(self.waiting.directory)


def peer(number: int, **more: Any) -> dict[str, Any]:
    allowed = [f"100.64.0.{number}/32", f"fd00:200::{number}/128"]
    return {
        "name": f"gpu{number}",
        "endpoint": f"10.120.0.{number}",
        "allowed_ips": allowed,
        "public_key": key(number),
        **more,
    }


def options(*peers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"addresses": ["100.64.0.1/32", "fd00:200::1/128"], "peers": list(peers or (peer(2), peer(3))), **more}


def converged(call: Call, machine: Machine, *peers: dict[str, Any], **more: Any) -> dict[str, Any]:
    call(module_key.main)
    wanted = options(*peers, **more)
    assert call(**wanted)["changed"] is True
    machine.calls.clear()
    return wanted
