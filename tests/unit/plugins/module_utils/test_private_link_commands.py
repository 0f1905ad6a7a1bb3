from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils import private_link_commands as commands
from ansible_collections.moat.inference.plugins.module_utils.private_link import Delta, Link, Peer, compare

PEERS = (
    Peer("gpu1", "K1", "10.0.0.1:51820", ("100.64.0.2/32",)),
    Peer("gpu2", "K2", "10.0.0.2:51820", ("fd00::3/128",)),
)
LINK = Link("moat0", "OWN", 51820, 1420, ("100.64.0.1/32",), ("100.64.0.2/32", "fd00::3/128"), PEERS)
OTHER = replace(
    LINK,
    addresses=("100.64.0.9/32",),
    routes=("100.64.0.2/32", "100.64.0.8/32"),
    peers=(PEERS[0], replace(PEERS[1], allowed_ips=("100.64.0.8/32",))),
)


def lines(argvs: list[list[str]]) -> list[str]:
    return [" ".join(argv) for argv in argvs]


def test_the_way_adds_before_it_removes_and_routes_go_last() -> None:
    assert lines(commands.along(compare(LINK, OTHER), OTHER, "/run/after")) == [
        "wg syncconf moat0 /run/after",
        "ip address add 100.64.0.9/32 dev moat0",
        "ip route add 100.64.0.8/32 dev moat0",
        "ip route delete fd00::3/128 dev moat0",
        "ip address delete 100.64.0.1/32 dev moat0",
    ]


def test_nothing_to_do_is_no_command() -> None:
    assert commands.along(compare(LINK, LINK), LINK, "/run/after") == []
    assert commands.back(LINK, LINK, "/run/before") == []


def test_the_way_back_can_be_gone_from_anywhere() -> None:
    assert lines(commands.back(LINK, OTHER, "/run/before")) == [
        "wg syncconf moat0 /run/before",
        "ip address replace 100.64.0.1/32 dev moat0",
        "ip route replace fd00::3/128 dev moat0",
        "sh -c ip route delete 100.64.0.8/32 dev moat0 2>/dev/null || :",
        "sh -c ip address delete 100.64.0.9/32 dev moat0 2>/dev/null || :",
    ]


def test_what_a_peer_had_besides_comes_back_from_the_file() -> None:
    live = replace(LINK, peers=(replace(PEERS[0], keepalive=25, preshared=True), PEERS[1]))
    assert lines(commands.along(compare(live, LINK), LINK, "/run/after")) == [
        "wg set moat0 peer K1 persistent-keepalive off preshared-key /dev/null"
    ]
    assert lines(commands.back(live, LINK, "/run/before")) == ["wg syncconf moat0 /run/before"]


@pytest.mark.parametrize(
    "live, words", [(replace(LINK, mtu=1300), "mtu 1300 up"), (replace(LINK, up=False), "mtu 1420 down")]
)
def test_mtu_and_state_come_back(live: Link, words: str) -> None:
    assert lines(commands.along(compare(live, LINK), LINK, "/run/after")) == ["ip link set dev moat0 mtu 1420 up"]
    assert lines(commands.back(live, LINK, "/run/before")) == [f"ip link set dev moat0 {words}"]


def test_an_interface_made_anew_gets_all_that_it_had() -> None:
    assert lines(commands.again(LINK, "/run/before")) == [
        "wg syncconf moat0 /run/before",
        "ip address replace 100.64.0.1/32 dev moat0",
        "ip link set dev moat0 mtu 1420 up",
        "ip route replace 100.64.0.2/32 dev moat0",
        "ip route replace fd00::3/128 dev moat0",
    ]


def test_cleared_peers_are_cleared_one_by_one() -> None:
    assert [argv[4] for argv in commands.along(Delta(clear=["K1", "K2"]), LINK, "")] == ["K1", "K2"]


def test_a_tolerated_command_runs_and_never_fails(tmp_path: Path) -> None:
    path = tmp_path / "it's here"
    subprocess.run(commands.tolerant(["touch", str(path)]), check=True)
    assert path.exists()
    done = subprocess.run(commands.tolerant(["rmdir", str(path)]), check=True, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("kind", ["file", "link", "absent"])
def test_a_path_comes_back_as_it_was(tmp_path: Path, kind: str) -> None:
    path, copy = tmp_path / "unit.conf", str(tmp_path / "copy")
    if kind == "file":
        path.write_bytes(b"\xff old")
        path.chmod(0o640)
    elif kind == "link":
        path.symlink_to("/dev/null")
    before = files.read_state(str(path))
    if kind != "absent":
        subprocess.run(["cp", "-a", "-T", "--", str(path), copy], check=True)
    change = deploy.Change(str(path), before, files.FileState("file", b"new", 0o600))
    files.write(str(path), change.after)
    for _again in range(2):
        for argv in commands.file_back(change, copy):
            subprocess.run(argv, check=True)
        assert files.read_state(str(path)) == before
    assert sorted(os.listdir(tmp_path)) == sorted(["copy", "unit.conf"] if kind != "absent" else [])


def test_the_configuration_of_an_interface_made_by_hand() -> None:
    shown = "[Interface]\nListenPort = 51820\nPrivateKey = K\n\n[Peer]\nPublicKey = K1\n"
    assert commands.quick_configuration(LINK, shown) == (
        "[Interface]\nAddress = 100.64.0.1/32\nMTU = 1420\nListenPort = 51820\nPrivateKey = K\n\n[Peer]\nPublicKey = K1\n"
    )
