"""Moments of change, each under the eyes of the probers: one that falls into a gap of theirs is repeated, not counted."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.faults import prober, run, witness
from tests.lab import site
from tests.lab.lab import ssh
from tests.lab.podman import Podman
from tests.lab.shell import LabError, say, succeeds

LATEST = 20.0  # seconds after which a run that changes something is nearly over
AROUND = 1.0  # seconds before and after a kill that belong to its moment
TRIES = 5
SERVICE = "moat-firewall.service"


def boots(host: str) -> None:
    """Wait until a host that was started answers its administrator."""
    deadline = time.monotonic() + 60
    while not succeeds(ssh(host, "true"), timeout=10):
        if time.monotonic() > deadline:
            raise LabError(f"{host} does not come back")
        time.sleep(0.3)


@dataclass
class Moments:
    """What was done when, and whether it counts."""

    watching: prober.Prober
    chance: random.Random
    loud: bool = False
    log: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.backend, self.other = Podman(), False

    def during(
        self, kind: str, change: Callable[[], tuple[float, float] | None], hosts: set[str] | None = None
    ) -> None:
        """Make the change until it counts. It returns the moment's begin and end, or None when there was none."""
        for _try in range(TRIES):
            moment = change()
            if moment is None:
                continue
            counted = self.watching.watched(*moment, hosts)
            self.log.append({"kind": kind, "hosts": sorted(hosts or ()), "moment": moment, "counted": counted})
            if self.loud:
                at = time.strftime("%H:%M:%S", time.localtime(moment[0]))
                say(f"   {at} {kind} {' '.join(sorted(hosts or ()))}{'' if counted else ': in a gap, repeated'}")
            if counted:
                return
        self.wrong.append(f"{kind}: no try of {TRIES} counted")

    def intent(self) -> dict[str, Any] | None:
        """The other one of two sound intents, in turn."""
        self.other = not self.other
        return run.more_allowed() if self.other else None

    def play(self, kind: str, intent: dict[str, Any] | None) -> None:
        """A run to its end."""

        def change() -> tuple[float, float]:
            begun = time.time()
            ended = run.play(intent=intent)
            if ended.rc:
                self.wrong.append(f"{kind}: the run failed\n{ended.out[-3000:]}")
            return begun, time.time()

        self.during(kind, change)

    def kill(self) -> None:
        """SIGKILL for a run that changes the policy, at a moment that nobody chose."""

        def change() -> tuple[float, float] | None:
            process = run.begin(intent=self.intent())
            time.sleep(self.chance.uniform(1.0, LATEST))
            # a run that was over before was not killed, so it does not count
            now = time.time()
            return (now - AROUND, now + AROUND) if run.kill(process) else None

        self.during("SIGKILL of the play", change)

    def service(self, verb: str) -> None:
        """The packet filter's service on one host."""
        host = self.chance.choice(sorted(site.plans()))

        def change() -> tuple[float, float]:
            begun = time.time()
            script = f"systemctl {verb} {SERVICE}" if verb != "stop" else f"systemctl stop {SERVICE}; sleep 1"
            done = site.on(host, f"{script}; systemctl start {SERVICE} && systemctl is-active {SERVICE}")
            if done.out.strip() != "active":
                self.wrong.append(f"{host}: after a {verb} the service is not active: {done.err}")
            return begun, time.time()

        self.during(f"service {verb}", change, {host})

    def host(self, kind: str) -> None:
        """One host goes down, in order or by a cut of its power, and boots."""
        host = self.chance.choice(sorted(site.plans()))

        def change() -> tuple[float, float]:
            begun = time.time()
            (self.backend.kill if kind == "power cut" else self.backend.stop)(host)
            self.backend.start(host)
            boots(host)
            ended = time.time()
            self.watching.asked(host)
            return begun, ended

        self.during(kind, change, {host})

    def all(self, kills: int, services: int, hosts: int, plays: int) -> None:
        """So many of each, in an order that nobody chose."""
        jobs: list[Callable[[], None]] = [self.kill] * kills
        verbs = ("restart", "reload", "stop")
        jobs += [partial(self.service, verbs[n % 3]) for n in range(services)]
        jobs += [partial(self.host, ("power cut", "host restart")[n % 2]) for n in range(hosts)]
        jobs += [lambda: self.play("policy change", self.intent())] * plays
        self.chance.shuffle(jobs)
        for job in jobs:
            job()
        self.play("converge", None)

    def counts(self) -> dict[str, int]:
        return dict(Counter(entry["kind"] for entry in self.log if entry["counted"]))

    def repeated(self) -> int:
        return sum(not entry["counted"] for entry in self.log)


@dataclass(frozen=True)
class Proof:
    """What a round of moments showed."""

    seed: int
    moments: Moments
    totals: dict[str, Any]
    seen: dict[str, Any]
    seconds: float

    def wrong(self) -> list[str]:
        return [*self.moments.wrong, *self.moments.watching.wrong, *witness.faults(self.seen)]


def prove(*, kills: int, services: int, hosts: int, plays: int, loud: bool = False) -> Proof:
    """Probers, canaries and the witness on, then the moments of change, all told in the end."""
    seed = random.SystemRandom().randrange(1 << 32)
    begun = time.time()
    site.teach_router()
    watched = witness.Witness()
    try:
        with prober.probing() as watching:
            moments = Moments(watching, random.Random(seed), loud)
            moments.all(kills, services, hosts, plays)
            totals = watching.stop()
    finally:
        seen = watched.stop()
    return Proof(seed, moments, totals, seen, time.time() - begun)
