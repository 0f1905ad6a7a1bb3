"""Probes without pause until standard input ends; every tenth of a second a line of JSON says what was tried and answered.

A target is {name, kind: tcp|udp, address, port, source, every}; every counts ticks. Whatever comes back counts as an answer:
a connection, a reset, a datagram or an ICMP error. Nothing is waited for, so a target that is silent is tried as often as one that answers.
"""

import errno
import json
import select
import socket
import sys
import threading
import time

TICK = 0.017
PATIENCE = 1.0
LINE = 0.1
# what only a packet from elsewhere can cause: neighbours are set, so none is found unreachable here
ANSWERS = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES, errno.EPROTO)


def family(target):
    return socket.AF_INET6 if ":" in target["address"] else socket.AF_INET


class Tcp:
    """New connections, each given up after a second."""

    def __init__(self, target):
        self.target, self.open, self.order = target, {}, []

    def send(self, poller, owners, now):
        probe = socket.socket(family(self.target), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        probe.bind((self.target["source"], 0))
        result = probe.connect_ex((self.target["address"], self.target["port"]))
        if result != errno.EINPROGRESS:
            probe.close()  # no wire: nothing was sent
            return 0, 0
        self.order.append((now, probe))
        owners[probe.fileno()] = (self, probe)
        poller.register(probe.fileno(), select.POLLOUT | select.POLLERR | select.POLLHUP)
        return 1, 0

    def close(self, poller, owners, probe):
        poller.unregister(probe.fileno())
        del owners[probe.fileno()]
        probe.close()

    def ready(self, poller, owners, probe):
        result = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.close(poller, owners, probe)
        return 1 if result == 0 or result in (*ANSWERS, errno.ECONNRESET) else 0

    def expire(self, poller, owners, now):
        while self.order and (self.order[0][1].fileno() < 0 or now - self.order[0][0] > PATIENCE):
            _begun, probe = self.order.pop(0)
            if probe.fileno() >= 0:
                self.close(poller, owners, probe)


class Udp:
    """Datagrams from one connected socket, which also hears of ICMP errors."""

    def __init__(self, target):
        self.target, self.probe = target, None

    def send(self, poller, owners, _now):
        if self.probe is None:
            self.probe = socket.socket(family(self.target), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.probe.bind((self.target["source"], 0))
            self.probe.connect((self.target["address"], self.target["port"]))
            owners[self.probe.fileno()] = (self, self.probe)
            poller.register(self.probe.fileno(), select.POLLIN | select.POLLERR)
        try:
            self.probe.send(b"moat")
        except OSError as error:
            return 0, int(error.errno in ANSWERS)
        return 1, 0

    def ready(self, _poller, _owners, probe):
        try:
            probe.recv(2048)
        except BlockingIOError:
            return 0
        except OSError:
            return 1
        return 1

    def expire(self, _poller, _owners, _now):
        pass


def main():
    targets = json.loads(sys.argv[1])
    probers = [(Tcp if target["kind"] == "tcp" else Udp)(target) for target in targets]
    counts = {target["name"]: [0, 0] for target in targets}
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    poller, owners = select.poll(), {}
    tick = time.time()
    line = tick + LINE
    number = 0
    while not stop.is_set():
        now = time.time()
        if now >= tick:
            number += 1
            for prober in probers:
                prober.expire(poller, owners, now)
                if number % prober.target["every"]:
                    continue
                count = counts[prober.target["name"]]
                tried, answered = prober.send(poller, owners, now)
                count[0] += tried
                count[1] += answered
            tick = max(tick + TICK, now - 0.1)  # what was missed is made good, up to a tenth of a second
        for descriptor, _event in poller.poll(max(0, (tick - time.time()) * 1000)):
            if descriptor in owners:
                prober, probe = owners[descriptor]
                counts[prober.target["name"]][1] += prober.ready(poller, owners, probe)
        if now >= line:
            print(json.dumps({"at": now, "counts": counts}), flush=True)
            counts = {target["name"]: [0, 0] for target in targets}
            line = now + LINE


main()
