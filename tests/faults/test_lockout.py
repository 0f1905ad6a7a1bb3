"""A change that locks the operator out undoes itself: the host has its last confirmed state again, and other hosts go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults import lockouts, moments, run
from tests.lab.collection import plain
from tests.lab.podman import PREFIX, Podman, podman
from tests.lab.shell import ROOT, LabError, capture

TIMEOUT, GRACE = 10, 5  # seconds until the host takes the change back (apply.yml), and what this may take
SHORT = 4
CASES = lockouts.CASES if os.environ.get("MOAT_PROOF") == "long" else lockouts.CASES[:SHORT]
WAITING = "/run/moat/pending/*/change.json"
# Asked by way of the machine, which is no network: what the kernel has, what boot loads, and whether a change waits.
LIVE = """nft -s list table inet moat
wg showconf moat0 2>/dev/null | sort | sha256sum
ip address show dev moat0 2>/dev/null | grep inet; ip route show dev moat0 2>/dev/null; ip -6 route show dev moat0 2>/dev/null"""
BOOT = "cat /etc/moat/firewall/* /etc/systemd/system/moat-* /etc/wireguard/* 2>/dev/null | sha256sum"


def look(host: str) -> tuple[str, str, bool]:
    """Live state, boot files, and whether a change waits."""
    script = f"{LIVE}\necho ==\n{BOOT}\necho ==\nls {WAITING} 2>/dev/null"
    said = capture(podman("exec", PREFIX + host, "sh", "-c", script), check=False, timeout=20)
    live, boot, waits = said.split("==\n") if said.count("==\n") == 2 else ("", "", "")
    return live, boot, bool(waits)


def begin(variables: dict[str, Any], connection: dict[str, Any], target: str, folder: Path) -> subprocess.Popen[str]:
    """Apply these variables to their hosts, in a process group of its own."""
    overlay = folder / "overlay.yml"
    # connections of its own: what stays of one way must not serve another
    sockets = tempfile.mkdtemp(prefix="moat-ssh-")
    own = {
        "ansible_control_path_dir": sockets,
        "ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=5s -o ServerAliveInterval=5 -o ServerAliveCountMax=3",
    }
    hosts = {name: {**values, **own, **(connection if name == target else {})} for name, values in variables.items()}
    overlay.write_text(yaml.safe_dump({"all": {"hosts": hosts}}), encoding="utf-8")
    playbook = str(ROOT / "tests" / "faults" / "apply.yml")
    argv = run.command(playbook, "--limit", ",".join(variables), inventory=(str(overlay),))
    output = (folder / "output").open("w", encoding="utf-8")
    return subprocess.Popen(
        argv,
        env=plain(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str], folder: Path) -> run.Run:
    process.wait(timeout=180)
    return run.Run(process.returncode, (folder / "output").read_text(encoding="utf-8", errors="replace"))


def until(reached: Any, seconds: float) -> float:
    """Seconds until a condition holds."""
    begun = time.monotonic()
    while not reached():
        if time.monotonic() - begun > seconds:
            raise LabError(f"not within {seconds:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - begun


@pytest.fixture(scope="module", autouse=True)
def whole_again() -> Iterator[None]:
    """The lab as its intent says, before and after; apply.yml keeps no record of what it did."""
    yield
    for left in Path(tempfile.gettempdir()).glob("moat-ssh-*"):
        shutil.rmtree(left)
    hosts = {host for case in CASES for host in lockouts.ways()[case.way].sound()}
    ended = run.play("moat.inference.site", "--limit", ",".join(sorted(hosts)))
    assert ended.rc == 0, ended.out[-4000:]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.way}, {case.name}")
def test_a_lock_out_undoes_itself(case: lockouts.Case, tmp_path: Path) -> None:
    way, backend = lockouts.ways()[case.way], Podman()
    target, connection, sound = way.target, way.connection(), way.sound()
    first = end(begin(sound, {}, target, tmp_path), tmp_path)
    assert first.rc == 0, first.out[-4000:]
    assert way.reaches()
    before = look(target)
    assert before[0] and before[1] and not before[2]

    bad = {host: lockouts.harmless(variables) for host, variables in sound.items()}
    bad[target] = sound[target]
    case.change(bad[target], tmp_path)
    process = begin(bad, connection, target, tmp_path)

    def applied() -> bool:
        now = look(target)
        return now[2] and now[0] != before[0]

    until(applied, 60)
    seen = time.monotonic()
    assert not way.reaches(), "the change locks nobody out, so its undoing proves nothing"
    assert look(target)[1] == before[1], "boot must not load what nobody confirmed"
    if case.ends == "SIGKILL":
        os.killpg(process.pid, signal.SIGKILL)
    elif case.ends:
        backend.kill(target)
        backend.start(target)
        until(lambda: look(target)[0] != "", 60)
    until(lambda: look(target) == before, TIMEOUT + GRACE + (30 if case.ends == "power cut" else 0))
    took = time.monotonic() - seen
    ended = end(process, tmp_path)
    moments.boots(JUMP_OR_TARGET[case.way])
    assert way.reaches()
    if case.ends != "SIGKILL":
        assert ended.counts("failed")[target] + ended.counts("unreachable")[target] == 1, ended.out[-4000:]
        others = {host for host in sound if host != target}
        assert all(ended.counts("failed")[host] == 0 and ended.counts("changed")[host] for host in others)
    if not case.ends:
        assert "rolled back: " in ended.out, ended.out[-4000:]
    again = end(
        begin({host: lockouts.harmless(v) for host, v in way.sound().items()}, connection, target, tmp_path), tmp_path
    )
    assert again.rc == 0, again.out[-4000:]
    after = look(target)
    assert after[0] != before[0] and after[1] != before[1] and not after[2]
    print(f"undone after {took:.1f} s")


JUMP_OR_TARGET = {
    "directly": "app2",
    "over IPv6": "app2",
    "by a bastion": lockouts.BASTION,
    "over the link": lockouts.JUMP,
}
