"""What a flood of refused requests from one host costs another: `python -m tests.lab.bench_egress [--alternations 10]`.

On hosts of its own (tests/lab/stand.py), with the plan, the packet filter and the proxy that the collection makes of an intent. One host asks for a
listed name: over connections that it keeps as fast as it is answered, and by CONNECT over new ones at a steady pace. Another asks for what it
may not, over as many connections as it can. The limit is on what the first gets while the other floods, as a share of what it gets otherwise.

Two controls: the same flood with the limits of the packet filter and the proxy taken away, and the same flood from the first host itself, which has its own
limits to blame then.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.lab.shell import LabError, say
from tests.lab.stand import ASKER, NAME, OTHER, PORT, WAYS, Stand, addresses

WAY = WAYS[0]
# what docs/egress.md promises
LEAST_SHARE = 0.75
# a second; with fewer it is no flood
LEAST_ATTEMPTS = 1000
CONFIGURATION = "/etc/moat/egress-proxy/squid.conf"
OPEN = r"s/^\(persistent_connection_after_error\) off/\1 on/; /^client_ip_max_connections/d; s/^acl crowd maxconn .*/acl crowd maxconn 100000/"
SECONDS, WARM_UP, KEPT, PACE, FLOODERS = 2.0, 1.0, 4, 20, 96
ASK = r"""
import json, socket, ssl, sys, threading, time
proxy, port, name, seconds, kept, pace = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(float, sys.argv[4:])
plain = f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
end = time.monotonic() + seconds
answered, waits, failed = [], [], []
def keep():
    count = 0
    try:
        with socket.create_connection((proxy, port), 5) as plug:
            plug.settimeout(5)
            while time.monotonic() < end:
                plug.sendall(plain)
                data = plug.recv(65536)
                while b"\r\n\r\n" not in data or not data.endswith(b"hello\n"):
                    piece = plug.recv(65536)
                    if not piece:
                        raise OSError(f"closed after {data[:60]!r}")
                    data += piece
                if b" 200 " not in data[:20]:
                    raise OSError(data[:60].decode("latin1"))
                count += 1
    except OSError as error:
        failed.append(f"kept: {error}")
    answered.append(count)
def connect():
    began = time.monotonic()
    try:
        with socket.create_connection((proxy, port), 5) as plug:
            plug.settimeout(5)
            plug.sendall(f"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n".encode())
            said = plug.recv(4096)
            if b" 200 " not in said[:20]:
                raise OSError(said[:40].decode("latin1"))
            with context.wrap_socket(plug, server_hostname=name) as tls:
                tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
                if b" 200 " not in tls.recv(4096)[:20]:
                    raise OSError("no answer in TLS")
        waits.append(time.monotonic() - began)
    except OSError as error:
        failed.append(f"CONNECT: {error}")
threads = [threading.Thread(target=keep) for _ in range(int(kept))]
for thread in threads:
    thread.start()
while time.monotonic() < end:
    threads.append(threading.Thread(target=connect))
    threads[-1].start()
    time.sleep(1 / pace)
for thread in threads:
    thread.join()
print(json.dumps({"rate": sum(answered) / seconds, "waits": waits, "failed": failed}))
"""
FLOOD = r"""
import json, itertools, random, socket, sys, threading, time
proxy, port, listed, seconds, workers = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), int(sys.argv[5])
end, numbers = time.monotonic() + seconds, itertools.count()
totals = {"attempts": 0, "refused": 0, "other": 0}
lock = threading.Lock()
def request():
    name = f"n{next(numbers)}.example.net"
    return random.choice((
        f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n",
        f"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n",
        f"CONNECT {listed}:8443 HTTP/1.1\r\nHost: {listed}:8443\r\n\r\n",
        "CONNECT 198.51.100.80:443 HTTP/1.1\r\nHost: 198.51.100.80:443\r\n\r\n",
    )).encode()
def work():
    own = {"attempts": 0, "refused": 0, "other": 0}
    while time.monotonic() < end:
        own["attempts"] += 1
        try:
            with socket.socket() as plug:
                plug.settimeout(0.05)
                plug.connect((proxy, port))
                plug.settimeout(2)
                while time.monotonic() < end:
                    plug.sendall(request())
                    said = plug.recv(65536)
                    if not said:
                        break
                    own["refused" if b" 403 " in said[:20] else "other"] += 1
        except OSError:
            pass
    with lock:
        for key, value in own.items():
            totals[key] += value
threads = [threading.Thread(target=work) for _ in range(workers)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({key: value / seconds for key, value in totals.items()}))
"""


@dataclass(frozen=True)
class Got:
    """What the asking host got in one slice."""

    rate: float
    wait: float
    slowest: float
    asked: int
    failed: tuple[str, ...]


def _program(stand: Stand, host: str, program: str, *words: Any) -> dict[str, Any]:
    answer = stand.on(
        host,
        f"python3 - {' '.join(map(str, words))}",
        data=program.encode(),
        timeout=120,
    )
    if answer.code:
        raise LabError(f"{host}: {answer.err[-2000:]}")
    found: dict[str, Any] = json.loads(answer.out)
    return found


class Bench:
    """Measures on hosts that are there."""

    def __init__(self, stand: Stand, seconds: float) -> None:
        self.stand, self.seconds = stand, seconds
        self.proxy = addresses(WAY)[0]
        self.quiet: list[Got] = []
        self.flooded: list[Got] = []
        self.floods: list[dict[str, float]] = []

    def ask(self) -> Got:
        said = _program(self.stand, ASKER, ASK, self.proxy, PORT, NAME, self.seconds, KEPT, PACE)
        waits = said["waits"] or [float("inf")]
        failed = tuple(said["failed"])
        return Got(said["rate"], statistics.median(waits), max(waits), len(said["waits"]) + len(failed), failed)

    @contextmanager
    def flood(self, host: str) -> Iterator[Future[dict[str, float]]]:
        """The flood begins before the slice that is measured, and ends after it."""
        words = (self.proxy, PORT, NAME, self.seconds + WARM_UP + 1, FLOODERS)
        with ThreadPoolExecutor(1) as pool:
            future: Future[dict[str, float]] = pool.submit(_program, self.stand, host, FLOOD, *words)
            time.sleep(WARM_UP)
            yield future
            future.result()

    def under_flood(self, host: str = OTHER) -> tuple[Got, dict[str, float]]:
        with self.flood(host) as flood:
            got = self.ask()
        return got, flood.result()

    def alternate(self, number: int) -> None:
        """Measure once without and once with the flood; every other time the order is the reverse."""
        for with_flood in (False, True) if number % 2 == 0 else (True, False):
            if with_flood:
                got, flood = self.under_flood()
                self.flooded.append(got)
                self.floods.append(flood)
            else:
                self.quiet.append(self.ask())

    @contextmanager
    def without_limits(self) -> Iterator[None]:
        """The proxy's host admits what comes from the flooding host at any rate, and the proxy any number of connections, also after a refusal."""
        rule = f"insert rule inet moat input ip saddr {addresses(OTHER)[0]} tcp dport {PORT} accept"
        handle = self.stand.on(WAY, f"nft -e -a {rule} | grep -o 'handle [0-9]*'").out.strip()
        if not handle.startswith("handle "):
            raise LabError("the rate could not be taken away")
        try:
            self._squid(f"cp -p {CONFIGURATION} {CONFIGURATION}.was; sed -i '{OPEN}' {CONFIGURATION}")
            yield
        finally:
            self._squid(f"mv {CONFIGURATION}.was {CONFIGURATION}")
            self.stand.on(WAY, f"nft delete rule inet moat input {handle}")

    def _squid(self, change: str) -> None:
        answer = self.stand.on(WAY, f"set -e; {change}; systemctl restart moat-egress-proxy")
        if answer.code:
            raise LabError(f"{WAY}: {answer.err}")

    def dropped(self) -> int:
        found = self.stand.on(WAY, "nft list chain inet moat rate | grep -o 'packets [0-9]*'").out.split()
        return int(found[1])

    def run(self, alternations: int) -> list[str]:
        self.ask()  # so that the name is resolved, and what is loaded at first is
        before = self.dropped()
        for number in range(alternations):
            self.alternate(number)
        dropped = self.dropped() - before
        with self.without_limits():
            self.ask()
            pairs = [(self.ask(), self.under_flood()) for _round in range(3)]
        own, own_flood = self.under_flood(ASKER)
        return self.report(dropped, pairs, own, own_flood)

    def report(
        self,
        dropped: int,
        pairs: list[tuple[Got, tuple[Got, dict[str, float]]]],
        own: Got,
        own_flood: dict[str, float],
    ) -> list[str]:
        """Print what was found, and return what is beyond its limit."""
        faults = []
        quiet, flooded = (statistics.median(got.rate for got in found) for found in (self.quiet, self.flooded))
        share = flooded / quiet
        each = sorted(b.rate / a.rate for a, b in zip(self.quiet, self.flooded))
        quarters = statistics.quantiles(each, n=4)
        waits = [statistics.median(got.wait for got in found) for found in (self.quiet, self.flooded)]
        attempts, refused = (statistics.median(flood[key] for flood in self.floods) for key in ("attempts", "refused"))
        bare = statistics.median(got.rate for _quiet, (got, _flood) in pairs) / statistics.median(
            q.rate for q, _f in pairs
        )
        bare_wait = statistics.median(got.wait for _quiet, (got, _flood) in pairs)
        bare_refused = statistics.median(flood["refused"] for _quiet, (_got, flood) in pairs)
        failed = [text for got in (*self.quiet, *self.flooded) for text in got.failed]
        say(f"load of this machine: {', '.join(f'{number:.1f}' for number in os.getloadavg())}")
        say(
            f"  flood: {attempts:.0f} attempts a second, {refused:.0f} refused by the proxy, {dropped} packets dropped in all"
        )
        say(f"  over kept connections: {quiet:.0f} requests a second without, {flooded:.0f} with the flood")
        say(
            f"    ratio of the medians {share:.2f}; of {len(each)} alternations the middle half {quarters[0]:.2f} to"
            f" {quarters[2]:.2f}, all {each[0]:.2f} to {each[-1]:.2f}"
        )
        say(
            f"  CONNECT over new ones, to the answer in TLS: {waits[0] * 1000:.1f} ms without, {waits[1] * 1000:.1f} ms with the flood"
        )
        slowest = max(got.slowest for got in self.flooded)
        asked = sum(got.asked for got in self.flooded)
        say(f"    {asked} with the flood, slowest {slowest:.2f} s; {len(failed)} requests failed in all")
        say(
            f"  control, without these limits: ratio {bare:.2f}, CONNECT {bare_wait * 1000:.1f} ms, {bare_refused:.0f} refused a second"
        )
        say(
            f"  control, the flood from the same host ({own_flood['attempts']:.0f} attempts a second):"
            f" {len(own.failed)} of {own.asked} CONNECTs failed or waited for {own.slowest:.2f} s at most"
        )
        if share < LEAST_SHARE:
            faults.append(f"the flood leaves {share:.0%} of the requests, less than {LEAST_SHARE:.0%}")
        if failed:
            faults.append(f"{len(failed)} allowed requests failed: {failed[0]}")
        if attempts < LEAST_ATTEMPTS or not dropped:
            faults.append(f"{attempts:.0f} attempts a second are no flood")
        if bare >= LEAST_SHARE:
            faults.append(f"the meter does not see a flood: without the limits it leaves {bare:.0%}")
        if not own.failed and own.slowest < 0.5:
            faults.append("the flood does not starve its own host: its limits are none")
        return faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-egress", description="what a flood from one host costs another")
    parser.add_argument("--alternations", type=int, default=10, help="with and without the flood, 4 at least")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each slice")
    given = parser.parse_args()
    if given.alternations < 4:
        parser.error("--alternations: 4 at least")
    try:
        with Stand() as stand:
            stand.play("--tags", "firewall,egress_proxy")
            faults = Bench(stand, given.seconds).run(given.alternations)
    except LabError as error:
        faults = [str(error)]
    for fault in faults:
        print(f"beyond the limit: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
