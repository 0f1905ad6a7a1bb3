"""Failures of popular roles that no other file of the faults is about; docs/peers.md has the whole table."""

from __future__ import annotations

import re

import pytest

from tests.faults import run
from tests.lab.podman import Podman
from tests.lab.site import on, plans

pytestmark = pytest.mark.usefixtures("as_it_was")
LINKED = {name: plan["private_link"]["interface"] for name, plan in plans().items() if "private_link" in plan}


def edges() -> dict[str, list[str]]:
    """Peers and their addresses of every host with a link, as WireGuard has them."""
    return {name: sorted(on(name, f"wg show {link} allowed-ips").out.splitlines()) for name, link in LINKED.items()}


def test_a_run_for_one_host_removes_no_peer() -> None:
    before = edges()
    planned = {name: len(plan["private_link"]["peers"]) for name, plan in plans().items() if name in LINKED}
    assert {name: len(lines) for name, lines in before.items()} == planned
    for name in LINKED:
        ended = run.play("moat.inference.site", "--limit", name, "--tags", "private_link")
        assert ended.rc == 0, ended.out[-4000:]
        assert not any(ended.counts("changed").values()), ended.out[-4000:]
    assert edges() == before


def test_a_peer_that_is_down_keeps_its_edge_and_gets_it_back() -> None:
    """The run for one host knows the key of another that answers nobody."""
    before = edges()
    name, peer = next(
        (n, p["name"]) for n, plan in plans().items() for p in plan.get("private_link", {}).get("peers", [])
    )
    link = LINKED[name]
    key = on(peer, f"wg show {LINKED[peer]} public-key").out.strip()
    assert any(line.startswith(key) for line in before[name])
    backend = Podman()
    backend.freeze(peer)
    try:
        on(name, f"wg set {link} peer {key} remove")
        ended = run.play("moat.inference.site", "--limit", name, "--tags", "private_link")
        assert ended.rc == 0, ended.out[-4000:]
        assert ended.counts("changed")[name] == 1, ended.out[-4000:]
    finally:
        backend.thaw(peer)
    assert edges() == before


def test_nobody_is_asked_for_anything() -> None:
    """A run has neither terminal nor standard input, and the programs on the hosts have none either."""
    ended = run.play("moat.inference.site", "--check", "-vvv", "--limit", "ca1,gpu1")
    assert ended.rc == 0, ended.out[-4000:]
    commands = re.findall(r"SSH: EXEC (.*)", ended.out)
    assert commands
    assert not [line for line in commands if re.search(r"\s-t{1,2}\s", line)], "a terminal was asked for"
