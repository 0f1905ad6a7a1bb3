# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reload HAProxy and wait for the outcome, so that a reload that failed is a failed command.

SIGUSR2 alone tells nothing: HAProxy goes on with its old workers when the new configuration cannot be used, for
instance because a port is taken. The role installs this very file on the host, so it uses the standard library alone.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

MASTER = re.compile(r"^\d+\s+master\s+(\d+)(?:\s+\[failed: (\d+)\])?", re.MULTILINE)
WORKER = re.compile(r"^(\d+)\s+worker\s", re.MULTILINE)


@dataclass(frozen=True)
class State:
    """What the master says of itself and its workers."""

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


def outcome(before: State, now: State | None) -> bool | None:
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


def main(arguments: Sequence[str]) -> int:
    """Reload the master PID, which listens on SOCKET; status 0 means that new workers serve."""
    if len(arguments) not in (2, 3):
        print("usage: connector_reload.py SOCKET PID [SECONDS]", file=sys.stderr)
        return 2
    path, pid = arguments[0], int(arguments[1])
    deadline = time.monotonic() + (float(arguments[2]) if len(arguments) == 3 else 60.0)
    before = ask(path)
    if before is None:
        print(f"{path} does not answer", file=sys.stderr)
        return 1
    os.kill(pid, signal.SIGUSR2)
    while time.monotonic() < deadline:
        time.sleep(0.05)
        done = outcome(before, ask(path))
        if done is not None:
            if not done:
                print("HAProxy refused the new configuration and goes on with the old one", file=sys.stderr)
            return 0 if done else 1
    print("no new worker in time", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
