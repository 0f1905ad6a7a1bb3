"""What the size of an allowlist costs: `python -m tests.lab.bench_firewall [--alternations 10] [--family 4]`.

Two network namespaces with a veth pair between them, which vanish with this program; no lab host is needed. The ruleset is made, compared and
loaded by the collection's own functions. One thread opens connections from members of the list, one at a time, and counts them per
second of processor time that it takes, the kernel's work for both ends and the filter included: what else the machine does matters little.

The limit is on the same ten clients in a list of ten and in one of 100,000. Beside it stands what 10,000 different clients get, whose places in a
long list the processor's caches do not hold, compared with the same clients in a list of ten networks.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import os
import random
import resource
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from tests.lab.collection import COLLECTIONS
from tests.lab.shell import LabError, capture, say

sys.path.insert(0, str(COLLECTIONS))

SMALL, LARGE, MANY = 10, 100_000, 10_000
FEW_LIST, NETWORK_LIST, LONG_LIST = f"{SMALL} hosts", f"{SMALL} networks", f"{LARGE} hosts"
MIXED_LIST = f"{LARGE} entries, a network among them"
PORT = 8443
# what docs/firewall.md promises
MOST_SECONDS, MOST_LOSS = 2.0, 0.05
CONTROL_RULES = 500
SLICE = 0.05
NEW_NETWORK = 0x40000000
SERVER = {4: "10.0.0.1", 6: "2001:db8::1"}
CLIENT = {4: "10.0.0.2", 6: "2001:db8::2"}
MEMBERS = {4: ("10.128.0.0", "10.128.0.0/9"), 6: ("2001:db8:1::", "2001:db8:1::/64")}
STRANGER = {4: "10.129.0.3", 6: "2001:db8:1::1:3"}
IN_BOTH = ("ip link set lo up", "ip link set veth0 up")
SETTINGS = (
    # each connection ends by a reset, and its entry may go at once
    ("netfilter/nf_conntrack_tcp_timeout_close", "1"),
    ("ipv4/ip_nonlocal_bind", "1"),
    ("ipv6/ip_nonlocal_bind", "1"),
    ("ipv4/tcp_no_metrics_save", "1"),
)


class Runner:
    """Runs argv lists as the collection's Runner does."""

    def run(self, argv: Sequence[str], stdin: str | None = None, ok: Sequence[int] = (0,)) -> Any:
        from ansible_collections.moat.inference.plugins.module_utils import run

        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
        result = run.Result(tuple(argv), done.returncode, done.stdout, done.stderr)
        if result.rc not in ok:
            raise LabError(f"{' '.join(argv[:4])}: {result.stderr or result.stdout}")
        return result


class Site:
    """This process's namespace, which filters, and one beside it that asks."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._child = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert self._child.stdout is not None
        self._child.stdout.readline()
        self._here = os.open("/proc/self/ns/net", os.O_RDONLY)
        self._there = os.open(f"/proc/{self._child.pid}/ns/net", os.O_RDONLY)
        capture(["ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", str(self._child.pid)])
        self._set_up(SERVER, CLIENT, "route add {net} via {peer}")
        with self.client():
            self._set_up(CLIENT, SERVER, "route add local {net} dev lo")

    def _set_up(self, own: dict[int, str], peer: dict[int, str], route: str) -> None:
        for words in IN_BOTH:
            capture(words.split())
        for family, length, nodad in ((4, 30, ""), (6, 64, "nodad")):
            capture(f"ip address add {own[family]}/{length} dev veth0 {nodad}".split())
            words = route.format(net=MEMBERS[family][1], peer=peer[family])
            capture(f"ip -{family} {words}".split())
        for name, value in SETTINGS:
            path = Path("/proc/sys/net") / name
            if path.exists():  # connection tracking has no settings before its first use
                path.write_text(value, encoding="ascii")

    @contextmanager
    def client(self) -> Iterator[None]:
        """Make sockets on the other side meanwhile."""
        self._enter(self._there)
        try:
            yield
        finally:
            self._enter(self._here)

    def _enter(self, namespace: int) -> None:
        if self._libc.setns(namespace, NEW_NETWORK):
            raise LabError(f"setns: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        self._child.kill()
        self._child.wait()


def members(family: int, count: int) -> list[str]:
    """Single hosts of which no two make up a network, so that none can be merged; the tenth is in the tenth of networks()."""
    first, kind = int(ip_address(MEMBERS[family][0])), IPv4Address if family == 4 else IPv6Address
    return [str(kind(first + (2 * (index % SMALL) << 16) + 3 * (index // SMALL + 1))) for index in range(count)]


def networks(family: int) -> list[str]:
    """Networks that hold all members, and of which no two can be merged."""
    first, kind = int(ip_address(MEMBERS[family][0])), IPv4Address if family == 4 else IPv6Address
    return [f"{kind(first + (2 * block << 16))}/{16 if family == 4 else 112}" for block in range(SMALL)]


def options(family: int, addresses: Sequence[str]) -> dict[str, Any]:
    """The module's options for a host that admits administration and a list."""
    admin: dict[str, Any] = {"id": "in-admin-ssh", "chain": "input", "protocol": "tcp", "ports": [22], "admin": True}
    allow = {"id": "in-gateway", "chain": "input", "segment": "app", "protocol": "tcp", "ports": [PORT]}
    segment = {"name": "app", "interface": "veth0", "networks": [MEMBERS[4][1], MEMBERS[6][1]]}
    return {
        "segments": [segment],
        "rules": [{**admin, "peers4": ["192.0.2.0/28"]}, {**allow, f"peers{family}": addresses}],
        "log_rate": "10/minute",
    }


def used() -> float:
    """Seconds of processor time of this process and its children."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def apply(settings: dict[str, Any]) -> tuple[float, float, str]:
    """Do what the module does from its options to the loaded table; return seconds, those of the processor, and what had to be loaded."""
    from ansible_collections.moat.inference.plugins.module_utils import firewall_host, firewall_policy
    from ansible_collections.moat.inference.plugins.module_utils import firewall_nft as nft

    host = firewall_host.Host(Runner(), True)
    started, before = time.monotonic(), used()
    policy = firewall_policy.read_policy(settings, lambda _name: 0)
    live = host.live()
    candidate = nft.complete(host.candidate(nft.candidate(policy)), policy)
    difference = nft.compare(live, candidate)
    ruleset = nft.ruleset(policy)
    if difference.kind == "table":
        host.load(nft.carry_counters(ruleset, live))
    elif difference.kind == "elements":
        host.load(nft.elements_change(policy, difference.sets, live))
    return time.monotonic() - started, used() - before, difference.kind


class Meter:
    """Opens connections through the filter and counts them."""

    def __init__(self, site: Site, family: int) -> None:
        self._site = site
        self._server = (SERVER[family], PORT)
        self._kind = socket.AF_INET if family == 4 else socket.AF_INET6
        self._listener = socket.create_server(self._server, family=self._kind, backlog=16)

    def admits(self, source: str) -> bool:
        with self._site.client(), socket.socket(self._kind) as asking:
            asking.settimeout(0.3)
            asking.bind((source, 0))
            try:
                asking.connect(self._server)
            except OSError:
                return False
        self._listener.accept()[0].close()
        return True

    def rate(self, sources: Sequence[str], seconds: float) -> float:
        """Connections per second of processor time: the median of slices, after a warm-up."""
        with self._site.client():
            self._slice(sources, SLICE)
            return statistics.median(self._slice(sources, SLICE) for _round in range(round(seconds / SLICE)))

    def _slice(self, sources: Sequence[str], seconds: float) -> float:
        linger = struct.pack("ii", 1, 0)
        count, kind, server, accept = 0, self._kind, self._server, self._listener.accept
        endless = itertools.cycle(sources)
        started = used = time.thread_time()
        while used - started < seconds:
            for source in itertools.islice(endless, 50):
                asking = socket.socket(kind, socket.SOCK_STREAM)
                asking.bind((source, 0))
                asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                asking.connect(server)
                accepted = accept()[0]
                asking.close()
                accepted.close()
                count += 1
            used = time.thread_time()
        return count / (used - started)

    def close(self) -> None:
        self._listener.close()


class Bench:
    """Measures one IP version."""

    def __init__(self, site: Site, family: int, seconds: float) -> None:
        everybody = members(family, LARGE)
        self.busy = os.getloadavg()[0] > (os.cpu_count() or 1)
        self.family, self.seconds = family, seconds
        self.lists = {FEW_LIST: everybody[:SMALL], NETWORK_LIST: networks(family), LONG_LIST: everybody}
        self.lists[MIXED_LIST] = [
            *everybody[:-1],
            networks(family)[0].replace("10.128", "10.255").replace("db8:1:", "db8:2:"),
        ]
        self.few, self.many = everybody[:SMALL], random.Random(1).sample(everybody, MANY)
        self.rates: dict[tuple[str, int], list[float]] = {}
        self.applied: dict[str, list[tuple[float, float]]] = {}
        self.meter = Meter(site, family)

    def load(self, name: str) -> None:
        """Apply a list, and see that it and nobody else is admitted."""
        seconds, processor, kind = apply(options(self.family, self.lists[name]))
        if kind != "none":
            self.applied.setdefault(f"{name}, {kind}", []).append((seconds, processor))
        if not self.meter.admits(self.few[-1]) or self.meter.admits(STRANGER[self.family]):
            raise LabError(f"the loaded table does not admit {name} and nobody else")

    def count(self, name: str, sources: Sequence[str]) -> None:
        self.rates.setdefault((name, len(sources)), []).append(self.meter.rate(sources, self.seconds))

    def alternate(self, number: int) -> None:
        """Measure each list once; what drifts meanwhile adds to none, as every other time the order is the reverse."""
        order = [FEW_LIST, LONG_LIST, NETWORK_LIST]
        for name in order if number % 2 == 0 else reversed(order):
            self.load(name)
            if name != NETWORK_LIST:
                self.count(name, self.few)
            if name != FEW_LIST:
                self.count(name, self.many)

    def one_member(self, name: str, rounds: int) -> None:
        """A member of a long list leaves, and comes back."""
        whole = self.lists[name]
        for addresses in (whole, *(whole[1:], whole) * rounds):
            seconds, processor, kind = apply(options(self.family, addresses))
            words = f"one of {name}, less or more" if kind == "elements" else f"{name}, {kind}"
            if kind != "none":
                self.applied.setdefault(words, []).append((seconds, processor))

    def first_loads(self, rounds: int) -> None:
        """The long list on a host that has no table."""
        for _round in range(rounds):
            Runner().run(["nft", "delete", "table", "inet", "moat"])
            self.load(LONG_LIST)

    def control(self) -> float:
        """How much of the rate is lost by rules before the one that admits: the meter has to see what a filter costs."""
        before = self.meter.rate(self.few, self.seconds)
        rules = "insert rule inet moat input tcp dport 1 counter\n" * CONTROL_RULES
        Runner().run(["nft", "-f", "-"], stdin=rules)
        return 1 - self.meter.rate(self.few, self.seconds) / before

    def ratio(self, clients: int, base: str) -> tuple[float, str]:
        """The long list's rate as a share of another list's, and both in words."""
        long, short = self.rates[LONG_LIST, clients], self.rates[base, clients]
        ratio = statistics.median(long) / statistics.median(short)
        pairs = sorted(b / a for a, b in zip(short, long))
        quarters = statistics.quantiles(pairs, n=4)
        return ratio, (
            f"  {clients:>6} clients: {statistics.median(short):.0f} connections per second of processor time with {base},"
            f" {statistics.median(long):.0f} with {LONG_LIST}\n"
            f"{'':>18}ratio of the medians {ratio:.3f}; of {len(pairs)} alternations the middle half {quarters[0]:.3f} to"
            f" {quarters[2]:.3f}, all {pairs[0]:.3f} to {pairs[-1]:.3f}"
        )

    def report(self, seen: float) -> list[str]:
        """Print what was found, and return what is beyond its limit."""
        faults = []
        say(f"\nIPv{self.family}")
        if self.busy:
            say(
                "  other work than this keeps every processor busy: seconds are shown, and the processor time is judged"
            )
        for name, times in self.applied.items():
            seconds, processor = zip(*times)
            median = statistics.median(seconds)
            say(
                f"  applied {name}: {median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, {len(seconds)} times;"
                f" processor time {statistics.median(processor):.2f} s)"
            )
            judged = statistics.median(processor) if self.busy else median
            # a list with a network among them is no hash table in the kernel, and shown beside the promise
            if MIXED_LIST not in name and judged > MOST_SECONDS:
                faults.append(f"IPv{self.family}: to apply {name} took {judged:.2f} s, more than {MOST_SECONDS:.0f} s")
        ratio, words = self.ratio(SMALL, FEW_LIST)
        say(f"{words}\n{self.ratio(MANY, NETWORK_LIST)[1]}")
        say(f"  control: {CONTROL_RULES} rules more before the one that admits cost {seen:.0%} of the rate")
        if ratio < 1 - MOST_LOSS:
            faults.append(f"IPv{self.family}: {LONG_LIST} cost {1 - ratio:.1%} of the rate, more than {MOST_LOSS:.0%}")
        if seen < MOST_LOSS:
            faults.append(f"IPv{self.family}: the meter does not see what a filter costs (control {seen:.1%})")
        return faults

    def run(self, alternations: int) -> list[str]:
        gc.collect()
        gc.freeze()
        try:
            apply(options(self.family, self.few[:1]))
            for number in range(alternations):
                self.alternate(number)
            self.first_loads(1)
            self.one_member(LONG_LIST, 3)
            self.one_member(MIXED_LIST, 2)
            self.load(FEW_LIST)
            return self.report(self.control())
        finally:
            self.meter.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-firewall", description="what the size of an allowlist costs")
    parser.add_argument("--alternations", type=int, default=10, help="of the lists, 10 at least")
    parser.add_argument("--seconds", type=float, default=0.3, help="of processor time for each count")
    parser.add_argument("--family", type=int, choices=(4, 6), action="append", help="one IP version instead of both")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alternations < 10:
        parser.error("--alternations: 10 at least")
    if not given.inside:
        own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--user", "--map-root-user"]
        inside = [*own, sys.executable, "-m", "tests.lab.bench_firewall", "--inside", *sys.argv[1:]]
        return subprocess.run(inside, check=False).returncode
    say(
        f"{given.alternations} alternations in one run. A connection is opened, accepted and reset; one thread does it all, {given.seconds} s of its"
        " processor time\nfor each count. Applied: options read, live table listed, compared, loaded."
        " Table: the chains change; elements: only members do."
    )
    site = Site()
    faults: list[str] = []
    try:
        for family in given.family or (4, 6):
            faults += Bench(site, family, given.seconds).run(given.alternations)
    except LabError as error:
        faults.append(str(error))
    finally:
        site.close()
    for fault in faults:
        print(f"beyond the limit: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
