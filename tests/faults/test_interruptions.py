"""Runs that are killed, a CA or a host that is down: nothing undeclared opens meanwhile, and the next run finishes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import prober, run
from tests.lab.podman import Podman
from tests.lab.site import on

KILLS = 10
LATEST = 20.0  # seconds after which a run that changes something is nearly over


@pytest.fixture(scope="module", autouse=True)
def whole_again() -> Iterator[None]:
    """Whatever a test leaves, the next module finds the lab as its intent says."""
    yield
    ended = run.play()
    assert ended.rc == 0, ended.out[-4000:]


def finished() -> None:
    """The next run finishes, the one after it has nothing to do, and every cell is as the plan says."""
    ended = run.play()
    assert ended.rc == 0, ended.out[-4000:]
    again = run.play()
    assert again.rc == 0
    assert not any(again.counts("changed").values()), again.out[-4000:]
    verified = run.play("moat.inference.verify")
    assert verified.rc == 0, verified.out[-4000:]


def test_killed_runs_open_nothing_and_the_next_one_finishes() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    watching = prober.Prober()
    killed, moments = 0, []
    for number in range(KILLS * 2):
        process = run.begin(run.more_allowed() if number % 2 == 0 else None)
        moment = chance.uniform(1.0, LATEST)
        time.sleep(moment)
        # a run that was over before was not killed, so it does not count
        if run.kill(process):
            killed += 1
            moments.append(round(moment, 1))
        if killed == KILLS:
            break
    ended = run.play()
    found = watching.stop()
    assert killed == KILLS
    assert ended.rc == 0, f"seed {seed}, moments {moments}\n{ended.out[-4000:]}"
    wrong = prober.faults(found, least=50)
    assert not wrong, f"seed {seed}, moments {moments}: {wrong[:20]}"
    finished()


def test_a_certificate_authority_that_is_down_stops_nobody_who_has_a_certificate() -> None:
    backend = Podman()
    backend.freeze("ca1")
    try:
        ended = run.play()
    finally:
        backend.thaw("ca1")
    assert ended.rc == 4
    assert ended.counts("unreachable").pop("ca1") == 1
    assert not any(ended.counts("failed").values()), ended.out[-4000:]
    others = {host: n for host, n in ended.counts("unreachable").items() if host != "ca1"}
    assert not any(others.values())
    finished()


def test_without_the_authority_only_the_host_that_needs_it_fails() -> None:
    backend = Podman()
    on("app3", "systemctl stop moat-connector; rm -rf /etc/moat/tls/connector-batch*")
    backend.freeze("ca1")
    try:
        ended = run.play()
    finally:
        backend.thaw("ca1")
    bad = {host for word in ("failed", "unreachable") for host, n in ended.counts(word).items() if n}
    assert bad == {"ca1", "app3"}, ended.out[-4000:]
    finished()


def test_a_host_that_goes_down_in_the_middle_stops_no_other(tmp_path: Path) -> None:
    backend = Podman()
    output = tmp_path / "output"
    process = run.begin(run.more_allowed(), output)
    time.sleep(5)
    backend.freeze("gpu2")
    try:
        process.wait(timeout=600)
    finally:
        backend.thaw("gpu2")
    ended = run.Run(process.returncode, output.read_text(encoding="utf-8", errors="replace"))
    bad = {host for word in ("failed", "unreachable") for host, n in ended.counts(word).items() if n}
    assert bad <= {"gpu2"}, ended.out[-4000:]
    assert ended.rc == 4, "the host went down too late to be missed"
    finished()
