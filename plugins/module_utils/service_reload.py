# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reload a service and wait for the outcome, so that a reload that failed is a failed command.

A signal alone tells nothing: HAProxy goes on with its old workers when the new configuration cannot be used, for instance because
a port is taken, and step-ca with its old configuration. The roles install this very file on hosts, so it uses the standard
library alone.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MASTER = re.compile(r"^\d+\s+master\s+(\d+)(?:\s+\[failed: (\d+)\])?", re.MULTILINE)
WORKER = re.compile(r"^(\d+)\s+worker\s", re.MULTILINE)
PAUSE = 0.05


@dataclass(frozen=True)
class State:
    """What HAProxy's master says of itself and its workers."""

    reloads: int
    failed: int
    workers: frozenset[int]


def parse(text: str) -> State | None:
    """Read the answer to `show proc`; None when it is not complete."""
    master = MASTER.search(text)
    if master is None:
        return None
    current = text.partition("# old workers")[0]
    workers = frozenset(int(pid) for pid in WORKER.findall(current))
    return State(int(master[1]), int(master[2] or 0), workers)


def took_over(before: State, now: State | None) -> bool | None:
    """True when other workers took over, False when the reload failed, None when it is not yet known."""
    if now is None or now == before:
        return None
    if now.failed > 0 and (now.failed != before.failed or now.reloads > before.reloads):
        return False
    if now.workers and not now.workers & before.workers:
        return True
    return None


def ask(path: str) -> State | None:
    """Ask the master; None while it does not answer, which it does not in the middle of a reload."""
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(path)
            connection.sendall(b"show proc\n")
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                answer += chunk
    except OSError:
        return None
    return parse(answer.decode("ascii", "replace"))


def replaced(before: str, now: str) -> bool | None:
    """True when step-ca serves another certificate of its own, which it makes with every reload; it never says no."""
    return True if now and now != before else None


def split(listener: str) -> tuple[str, int]:
    """Return host and port of address:port, brackets of IPv6 removed."""
    host, _colon, port = listener.rpartition(":")
    return host.strip("[]"), int(port)


def served(listener: str) -> str:
    """Return the certificate that step-ca serves, empty when it does not answer."""
    try:
        return ssl.get_server_certificate(split(listener))
    except OSError:
        return ""


@dataclass(frozen=True)
class Service:
    """How a kind of service is told to reload, where it shows what it runs with, and how long it may take."""

    number: signal.Signals
    look: Callable[[str], Any]
    outcome: Callable[[Any, Any], bool | None]
    patience: float


SERVICES = {
    "haproxy": Service(signal.SIGUSR2, ask, took_over, 60.0),
    "step-ca": Service(signal.SIGHUP, served, replaced, 15.0),
}


def reload(service: Service, where: str, pid: int) -> str:
    """Reload and return nothing, or the reason why the service goes on as before."""
    before = service.look(where)
    if before is None:
        return f"{where} does not answer"
    deadline = time.monotonic() + service.patience
    os.kill(pid, service.number)
    while time.monotonic() < deadline:
        time.sleep(PAUSE)
        done = service.outcome(before, service.look(where))
        if done is not None:
            return "" if done else "the new configuration was refused and the old one is still in use"
    return f"the new configuration was not in use after {service.patience:.0f} s; the log says why"


def main(arguments: Sequence[str]) -> int:
    """Kind of service, its socket or address:port, process id; status 0 means that the new configuration is in use."""
    if len(arguments) != 3 or arguments[0] not in SERVICES:
        sys.stderr.write(f"usage: service_reload.py {'|'.join(SERVICES)} SOCKET|ADDRESS:PORT PID\n")
        return 2
    fault = reload(SERVICES[arguments[0]], arguments[1], int(arguments[2]))
    if fault:
        sys.stderr.write(f"{arguments[0]}: {fault}\n")
    return 1 if fault else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
