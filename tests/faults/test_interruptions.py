"""Runs that are killed, a CA or a host that is down: nothing undeclared opens meanwhile, and the next run finishes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.faults import moments, prober, run, witness
from tests.lab.podman import Podman
from tests.lab.site import on

KILLS, SERVICES, HOSTS = 4, 2, 1
# seconds until a host takes back what nobody confirmed, and for which a run waits for a host that was lost meanwhile
PATIENCE = {f"{role}_confirm_timeout": 20 for role in ("firewall", "private_link", "egress_client")}


pytestmark = pytest.mark.usefixtures("as_it_was")


def finished() -> None:
    """The next run of either playbook finishes, the one after it has nothing to do, and every cell is as the plan says."""
    ended = run.play("moat.inference.policy")
    assert ended.rc == 0, ended.out[-4000:]
    again = run.play()
    assert again.rc == 0
    assert not any(again.counts("changed").values()), again.out[-4000:]
    verified = run.play("moat.inference.verify")
    assert verified.rc == 0, verified.out[-4000:]


def test_the_probers_and_the_witness_see_a_hole() -> None:
    """A host that lets everything in and out for a moment is found by both, and by nothing else than its answers."""
    hole = "for c in input output; do nft insert rule inet moat $c accept comment hole; done"
    seen = witness.Witness()
    with prober.probing() as watching:
        begun = time.time()
        try:
            on("app2", f"{hole}; sleep 1")
        finally:
            # what was added by hand goes in the next run, too
            mended = run.play("moat.inference.site", "--limit", "app2", "--tags", "firewall")
        ended = time.time()
        watching.stop()
    found = seen.stop()
    assert mended.rc == 0, mended.out[-4000:]
    told = [(s.targets[number]["host"], s.name, what) for s in watching.sources for number, what, _at in s.findings]
    assert {host for host, _name, _what in told} == {"app2"}
    assert {name for _host, name, _what in told} == {source.name for source in watching.sources}
    assert {"answer", "ECONNREFUSED"} <= {what for _host, _name, what in told}
    assert all(begun <= at <= ended + prober.GAP for s in watching.sources for _number, _what, at in s.findings)
    assert found["found"]
    assert not any(found["dropped"].values())


def test_nothing_undeclared_opens_while_runs_are_killed_and_services_and_hosts_restart() -> None:
    proof = moments.prove(kills=KILLS, services=SERVICES, hosts=HOSTS, plays=0)
    wrong = proof.wrong()
    assert not wrong, "\n".join([f"seed {proof.seed}, {proof.moments.log}", *wrong[:20]])
    assert sum(proof.moments.counts().values()) == KILLS + SERVICES + HOSTS + 1
    finished()


def test_hosts_that_are_down_stop_nobody_but_who_needs_them(tmp_path: Path) -> None:
    """The authority answers nobody, one client needs a certificate of it, and a model host goes down in the middle; all others end their run."""
    backend = Podman()
    output = tmp_path / "output"
    on("app3", "systemctl stop moat-connector; rm -rf /etc/moat/tls/connector-batch*")
    backend.freeze("ca1")
    process = run.begin("-e", json.dumps(PATIENCE), intent=run.more_allowed(), output=output)
    try:
        time.sleep(5)
        backend.freeze("gpu2")
        process.wait(timeout=600)
    finally:
        for host in ("ca1", "gpu2"):
            backend.thaw(host)
    ended = run.Run(process.returncode, output.read_text(encoding="utf-8", errors="replace"))
    bad = {host for word in ("failed", "unreachable") for host, n in ended.counts(word).items() if n}
    assert bad == {"ca1", "app3", "gpu2"}, (ended.rc, ended.out[-4000:])
    assert ended.counts("unreachable")["ca1"] == 1, ended.out[-4000:]
    # the same run has changed what it was to change where both are needed for nothing
    assert ended.counts("changed")["gpu1"], ended.out[-4000:]
    finished()
