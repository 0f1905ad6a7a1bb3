"""Runs on an intruder: a new flow to every target in turn, without pause, until standard input ends.

Prints one JSON object a line: what it found and every gap as they happen, a heartbeat each second, totals at the end.
"""

import errno
import json
import os
import select
import socket
import struct
import sys
import time

# A flow is given up when the next one to the same target begins. Source ports come back, so that no table of flows on the way fills.
PORTS = range(20000, 20064)
RESET = struct.pack("ii", 1, 0)
MOST = 200  # findings of one target that are told one by one


def tell(**what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Target:
    def __init__(self, number, target):
        self.number, self.where = number, (target["address"], target["port"])
        self.udp, self.control = target["protocol"] == "udp", target["control"]
        self.family = socket.AF_INET6 if ":" in target["address"] else socket.AF_INET
        self.socket, self.last, self.heard = None, 0.0, 0.0
        self.tried = self.widest = 0
        self.counts = {}

    def close(self):
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def begin(self, poll, sockets):
        """A new flow: a SYN, or a datagram."""
        if self.socket is not None:
            sockets.pop(self.socket.fileno(), None)
            self.close()
        self.socket = new = socket.socket(self.family, socket.SOCK_DGRAM if self.udp else socket.SOCK_STREAM)
        new.setblocking(False)
        new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        new.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        failed = 0
        try:
            new.bind(("", PORTS[self.tried % len(PORTS)]))
            failed = new.connect_ex(self.where)
            if self.udp and not failed:
                new.send(b"moat")
        except OSError as error:
            failed = error.errno
        self.tried += 1
        if failed in (0, errno.EINPROGRESS):
            sockets[new.fileno()] = self
            poll.register(new, select.EPOLLIN if self.udp else select.EPOLLOUT)
        else:
            self.found(errno.errorcode.get(failed, str(failed)), time.time())

    def hear(self, poll, now):
        """What came of the flow: an answer, a refusal, or an error on the way."""
        poll.unregister(self.socket)
        failed = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.found(errno.errorcode.get(failed, str(failed)) if failed else "answer", now)

    def found(self, what, now):
        count = self.counts[what] = self.counts.get(what, 0) + 1
        if self.control and what == "answer":
            self.gap(self.heard, now)
            self.heard = now
        elif count <= MOST and what in ("answer", "ECONNREFUSED"):
            tell(target=self.number, found=what, time=now)

    def gap(self, last, now):
        if last:
            self.widest = max(self.widest, now - last)
            if now - last > LIMIT:
                tell(target=self.number, gap=[last, now])


def main():
    targets = [Target(number, target) for number, target in enumerate(json.loads(sys.argv[1]))]
    interval = float(sys.argv[2])
    poll, sockets = select.epoll(), {}
    poll.register(sys.stdin.fileno(), select.EPOLLIN)
    started = due = beat = time.time()
    turn = 0
    while True:
        now = time.time()
        if now >= due:
            target = targets[turn % len(targets)]
            target.begin(poll, sockets)
            if not target.control:
                target.gap(target.last, now)
            target.last = now
            turn += 1
            # behind by more than a round: go on from here, and the gap tells
            due = max(due + interval / len(targets), now - interval)
        if now - beat >= 1:
            beat = now
            # where a flow is open since long, or a control silent: seen before it ends
            silent = [t.number for t in targets if t.tried and now - (t.heard if t.control else t.last) > LIMIT]
            tell(beat=now, tried=turn, silent=silent)
        for handle, _event in poll.poll(max(0.0, due - time.time())):
            if handle == sys.stdin.fileno():
                if not os.read(handle, 4096):
                    seconds = time.time() - started
                    totals = [{"tried": t.tried, "widest": round(t.widest, 3), "counts": t.counts} for t in targets]
                    tell(seconds=seconds, totals=totals)
                    return
            elif handle in sockets:
                sockets.pop(handle).hear(poll, time.time())


LIMIT = float(sys.argv[3])
main()
