"""The modules of the link on real files in a temporary directory; wg, ip and systemctl act on a model of the host."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.module_utils import files, private_link_host, private_link_key
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
            return self._systemctl(argv[1])
        if argv[0] == "journalctl":
            return 0, "the last words\n"
        return (1, "") if self.peers is None else self._interface(argv)

    def _interface(self, argv: list[str]) -> tuple[int, str]:
        words = [word for word in argv[1:] if not word.startswith("-")]
        if argv[0] == "wg" and words[0] == "show":
            return 0, self._dump()
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
            values.append(words[2]) if words[1] == "add" else values.remove(words[2])
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
            text = (self.etc / "moat0.conf").read_text()
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
        self.private, self.fwmark = parsed.private_key, "off"
        sections = text.split("[Peer]")
        self.port = next(int(line.split()[-1]) for line in sections[0].splitlines() if line.startswith("ListenPort"))
        before = self.peers or {}
        self.peers = {}
        for section in sections[1:]:
            value = dict(line.split(" = ") for line in section.splitlines() if " = " in line)
            kept = before.get(value["PublicKey"], {"keepalive": "off", "preshared": "(none)"})
            self.peers[value["PublicKey"]] = {
                **kept,
                "allowed": value["AllowedIPs"].replace(" ", ""),
                "endpoint": value["Endpoint"],
            }

    def _dump(self) -> str:
        lines = [f"{self.private}\t{public(self.private)}\t{self.port}\t{self.fwmark}"]
        for name, peer in (self.peers or {}).items():
            fields = [name, peer["preshared"], peer["endpoint"], peer["allowed"], "0", "0", "0", peer["keepalive"]]
            lines.append("\t".join(fields))
        return "\n".join(lines) + "\n"

    def _shown(self) -> str:
        addresses = [
            {"local": text.split("/")[0], "prefixlen": int(text.split("/")[1]), "scope": "global"}
            for text in self.addresses
        ]
        shown = {"ifname": "moat0", "flags": ["UP"], "mtu": self.mtu, "addr_info": addresses}
        return json.dumps([{**shown, "linkinfo": {"info_kind": self.kind}}])

    def verbs(self) -> list[str]:
        """The commands that change something."""
        reading = ("wg show", "wg pubkey", "ip -", "systemctl show", "wg-quick strip", "journalctl")
        return [line for line in self.calls if not line.startswith(reading)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    etc = tmp_path / "wireguard"
    etc.mkdir(mode=0o700)
    (tmp_path / "run").mkdir()
    host = Machine(etc)
    for module in (module_link, module_key):
        monkeypatch.setattr(module, "Runner", lambda _module: host)
    monkeypatch.setattr(private_link_key, "DIRECTORY", str(etc))
    monkeypatch.setattr(private_link_host, "RUN", str(tmp_path / "run"))
    # the modules give all files to root, whoever runs the tests
    monkeypatch.setattr(files, "_owner_name", lambda _uid: "root")
    monkeypatch.setattr(files, "_group_name", lambda _gid: "root")
    monkeypatch.setattr(files, "owner_id", lambda _name: os.getuid())
    monkeypatch.setattr(files, "group_id", lambda _name: os.getgid())
    return host


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(main: Any = module_link.main, check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        out = capsys.readouterr().out
        assert OWN not in out
        return dict(json.loads(out))

    return run


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


def converged(call: Any, machine: Machine, *peers: dict[str, Any], **more: Any) -> dict[str, Any]:
    call(module_key.main)
    wanted = options(*peers, **more)
    assert call(**wanted)["changed"] is True
    machine.calls.clear()
    return wanted


def test_the_four_runs_of_the_key(call: Any, machine: Machine) -> None:
    check = call(module_key.main, check=True)
    assert (check["changed"], check["public_key"], list(machine.etc.iterdir())) == (True, "", [])
    first = call(module_key.main)
    assert (first["changed"], first["public_key"], first["diff"]) == (True, public(OWN), check["diff"])
    path = machine.etc / "moat0.key"
    assert path.read_text() == OWN + "\n"
    assert path.stat().st_mode & 0o777 == 0o600
    for again in (call(module_key.main, check=True), call(module_key.main)):
        assert (again["changed"], again["public_key"], again["diff"]) == (False, public(OWN), [])
    assert machine.calls.count("wg genkey") == 1


def test_a_key_open_to_others_is_closed_and_stays(call: Any, machine: Machine) -> None:
    call(module_key.main)
    (machine.etc / "moat0.key").chmod(0o644)
    result = call(module_key.main)
    assert result["reason"] == "the key's file is open to others"
    assert (machine.etc / "moat0.key").stat().st_mode & 0o777 == 0o600
    assert (machine.etc / "moat0.key").read_text() == OWN + "\n"


def test_the_key_of_a_configuration_is_taken_over(call: Any, machine: Machine) -> None:
    (machine.etc / "moat0.conf").write_text(f"[Interface]\nPrivateKey = {OWN}\n")
    result = call(module_key.main)
    assert result["reason"].startswith("the key is taken over from")
    assert result["public_key"] == public(OWN)
    assert "wg genkey" not in machine.calls


def test_a_broken_key_is_never_replaced(call: Any, machine: Machine) -> None:
    (machine.etc / "moat0.key").write_text("")
    result = call(module_key.main)
    assert result["failed"] and "holds no WireGuard key" in result["msg"]
    assert (machine.etc / "moat0.key").read_text() == ""


def test_who_makes_the_interface_is_tried(
    call: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert call(module_key.main)["implementation"] == "kernel"
    machine.kernel = False
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module_key.AnsibleModule, "get_bin_path", lambda *_words, **_more: None)
    assert call(module_key.main)["implementation"] == "none"
    monkeypatch.setattr(module_key.AnsibleModule, "get_bin_path", lambda *_words, **_more: "/usr/bin/wireguard-go")
    assert call(module_key.main)["implementation"] == "userspace"
    machine.peers, machine.kind = {}, "wireguard"
    machine.calls.clear()
    assert call(module_key.main)["implementation"] == "kernel"
    assert not any("unshare" in line for line in machine.calls)


def test_the_four_runs_of_the_link(call: Any, machine: Machine, tmp_path: Path) -> None:
    call(module_key.main)
    drop_in = tmp_path / "unit.d" / "moat.conf"
    wanted = options(unit_files=[{"path": str(drop_in), "content": "[Service]\n"}])
    check = call(check=True, **wanted)
    assert check["changed"] and machine.peers is None and not drop_in.exists()
    first = call(**wanted)
    assert (first["changed"], first["diff"], first["reason"]) == (True, check["diff"], check["reason"])
    assert first["peers"] == ["gpu2", "gpu3"]
    assert (machine.etc / "moat0.conf").stat().st_mode & 0o777 == 0o600
    assert drop_in.read_text() == "[Service]\n"
    assert (machine.active, machine.enabled) == ("active", "enabled")
    machine.calls.clear()
    for again in (call(check=True, **wanted), call(**wanted)):
        assert (again["changed"], again["diff"], again["reason"]) == (False, [], "")
    assert machine.verbs() == []
    assert list((tmp_path / "run").iterdir()) == []


def test_a_bare_host_in_check_mode_has_neither_key_nor_peers_and_does_not_fail(
    call: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(module_link.AnsibleModule, "warn", lambda _module, text: warned.append(text))
    result = call(check=True, **options(peer(2, public_key=None)))
    assert result["changed"] is True
    assert result["unresolved"] == ["gpu2"]
    assert len(warned) == 1 and "no public key of gpu2" in warned[0]
    assert "peer gpu2: (no public key yet)" in json.dumps(result["diff"])


def test_without_a_key_nothing_is_applied(call: Any, machine: Machine) -> None:
    result = call(**options())
    assert result["failed"] and "private_link_key" in result["msg"]
    assert machine.verbs() == []


def test_a_changed_peer_is_synchronised_without_a_restart(call: Any, machine: Machine) -> None:
    converged(call, machine, peer(2), peer(3))
    result = call(**options(peer(2), peer(4)))
    assert result["changed"] and result["peers"] == ["gpu2", "gpu4"]
    assert set(machine.peers or {}) == {key(2), key(4)}
    assert sorted(machine.routes) == sorted(["100.64.0.2/32", "fd00:200::2/128", "100.64.0.4/32", "fd00:200::4/128"])
    verbs = machine.verbs()
    assert verbs[0].startswith("wg syncconf moat0 ")
    assert [line.split()[2] for line in verbs[1:]] == ["add", "add", "delete", "delete"]
    assert not any("systemctl" in line for line in verbs)


def test_what_was_changed_by_hand_is_shown_and_undone(call: Any, machine: Machine) -> None:
    wanted = converged(call, machine)
    assert machine.peers is not None
    machine.peers[key(7)] = {
        "allowed": "100.64.0.7/32",
        "endpoint": "(none)",
        "keepalive": "off",
        "preshared": "(none)",
    }
    machine.peers[key(2)].update(keepalive="25", preshared=key(8))
    machine.addresses.append("100.64.7.7/32")
    machine.routes.append("100.64.9.9/32")
    machine.mtu, machine.fwmark, machine.enabled = 1300, "0x7", "disabled"
    check = call(check=True, **wanted)
    shown = json.dumps(check["diff"])
    for words in (key(7), "keepalive 25 s", "preshared key set", "100.64.7.7/32", "route 100.64.9.9/32", "mtu 1300"):
        assert words in shown
    assert key(8) not in shown
    assert key(7) in machine.peers
    assert call(**wanted)["reason"] == check["reason"]
    assert set(machine.peers or {}) == {key(2), key(3)}
    assert call(**wanted)["changed"] is False


def test_a_peer_whose_public_half_is_lost_stays_with_its_known_key(call: Any, machine: Machine) -> None:
    converged(call, machine)
    result = call(**options(peer(2, public_key=None), peer(3)))
    assert (result["changed"], result["unresolved"], result["peers"]) == (False, [], ["gpu2", "gpu3"])


def test_a_stopped_unit_is_started(call: Any, machine: Machine) -> None:
    wanted = converged(call, machine)
    machine.active, machine.peers = "inactive", None
    assert call(**wanted)["reason"] == f"{UNIT} is inactive, no interface"
    assert machine.verbs() == [f"systemctl restart -- {UNIT}"]


def test_an_interface_made_by_hand_gives_way_to_the_unit(call: Any, machine: Machine) -> None:
    wanted = converged(call, machine)
    machine.active = "inactive"
    assert call(**wanted)["changed"] is True
    assert machine.verbs() == ["ip link delete dev moat0", f"systemctl restart -- {UNIT}"]


def test_a_foreign_interface_is_refused(call: Any, machine: Machine) -> None:
    call(module_key.main)
    machine.peers = {}
    machine.failing.add("wg show")
    result = call(**options())
    assert result["failed"] and "is no WireGuard interface" in result["msg"]


@pytest.mark.parametrize("cut", ["", "[Interface]\nListenPort = 51820\n", "[Interface]\nPrivateKey = " + OWN + "\n"])
def test_a_cut_configuration_never_reaches_the_interface(call: Any, machine: Machine, cut: str) -> None:
    converged(call, machine, peer(2), peer(3))
    before = (machine.etc / "moat0.conf").read_text()
    machine.strip = lambda _text: cut
    result = call(**options(peer(2), peer(4)))
    assert result["failed"] and "was not applied" in result["msg"]
    assert machine.verbs() == []
    assert (machine.etc / "moat0.conf").read_text() == before


@pytest.mark.parametrize("step", ["wg syncconf", "ip route add", "ip route delete"])
def test_a_failed_step_brings_the_previous_state_back(call: Any, machine: Machine, step: str, tmp_path: Path) -> None:
    converged(call, machine, peer(2), peer(3))
    before, routes = (machine.etc / "moat0.conf").read_text(), sorted(machine.routes)
    machine.failing.add(step + (" 100.64.0.4" if "add" in step else "") + (" 100.64.0.3" if "delete" in step else ""))
    result = call(**options(peer(2), peer(4)))
    assert result["failed"] and "restored completely" in result["msg"]
    assert (machine.etc / "moat0.conf").read_text() == before
    assert set(machine.peers or {}) == {key(2), key(3)}
    assert sorted(machine.routes) == routes
    assert list((tmp_path / "run").iterdir()) == []


def test_a_first_start_that_fails_leaves_nothing_but_the_key(call: Any, machine: Machine, tmp_path: Path) -> None:
    call(module_key.main)
    machine.failing.add("systemctl restart")
    drop_in = tmp_path / "unit.d" / "moat.conf"
    result = call(**options(unit_files=[{"path": str(drop_in), "content": "x"}]))
    assert result["failed"] and "the last words" in result["msg"]
    assert [path.name for path in machine.etc.iterdir()] == ["moat0.key"]
    assert not drop_in.exists()
    assert machine.verbs()[-1] == f"systemctl stop -- {UNIT}"


def test_a_run_killed_before_the_restart_is_finished_by_the_next(
    call: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_in = tmp_path / "unit.d" / "moat.conf"
    converged(call, machine, unit_files=[{"path": str(drop_in), "content": "old"}])
    wanted = options(unit_files=[{"path": str(drop_in), "content": "new"}])

    class Killed(BaseException):
        pass

    def killed(_self: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(private_link_host.Host, "start", killed)
        arguments = {**wanted, "_ansible_check_mode": False}
        with patch_module_args(arguments), pytest.raises(Killed):
            module_link.main()
    assert drop_in.read_text() == "new"
    machine.calls.clear()
    result = call(**wanted)
    assert "a run was cut short" in result["reason"]
    assert machine.verbs() == [f"systemctl restart -- {UNIT}"]
    assert call(**wanted)["changed"] is False


def test_absent_takes_everything_and_then_has_nothing_to_do(call: Any, machine: Machine, tmp_path: Path) -> None:
    unit_files = [{"path": str(tmp_path / "wg-quick@moat0.service.d" / "moat.conf"), "content": "x"}]
    converged(call, machine, unit_files=unit_files)
    check = call(check=True, state="absent", unit_files=unit_files)
    assert check["changed"] and machine.peers is not None
    result = call(state="absent", unit_files=unit_files)
    assert (result["changed"], result["diff"]) == (True, check["diff"])
    assert machine.peers is None and list(machine.etc.iterdir()) == []
    assert not (tmp_path / "wg-quick@moat0.service.d").exists()
    assert (machine.active, machine.enabled) == ("inactive", "disabled")
    assert call(state="absent", unit_files=unit_files)["changed"] is False


def test_all_faults_come_at_once_and_nothing_is_asked_of_the_host(call: Any, machine: Machine) -> None:
    result = call(port=0, mtu=1, addresses=[], peers=[peer(2, endpoint="x")])
    assert result["failed"]
    assert [word.split(":")[0] for word in result["msg"].split("; ") if ":" in word] == [
        "port",
        "mtu",
        "addresses",
        "peers[gpu2].endpoint",
    ]
    assert machine.calls == []
