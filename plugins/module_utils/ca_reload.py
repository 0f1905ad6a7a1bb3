# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reload step-ca and look whether it did; a program of its own on the authority's host.

When a reload fails, step-ca goes on with the old configuration and says so in its log only. After one that worked it serves
another certificate of its own, and that can be seen.
"""

from __future__ import annotations

import os
import signal
import ssl
import sys
import time
from collections.abc import Callable

PATIENCE = 15.0
PAUSE = 0.05


def split(listener: str) -> tuple[str, int]:
    """Return host and port of address:port, brackets of IPv6 removed."""
    host, _colon, port = listener.rpartition(":")
    return host.strip("[]"), int(port)


def served(listener: str) -> str:
    """Return the certificate that the authority serves, empty when it does not answer."""
    try:
        return ssl.get_server_certificate(split(listener))
    except OSError:
        return ""


def reload(
    pid: int,
    look: Callable[[], str],
    send: Callable[[int, int], None] = os.kill,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Send the signal and wait for another certificate; return 0 once it is served, 1 when it never is."""
    before, until = look(), clock() + PATIENCE
    send(pid, signal.SIGHUP)
    while clock() < until:
        sleep(PAUSE)
        now = look()
        if now and now != before:
            return 0
    return 1


if __name__ == "__main__":
    status = reload(int(sys.argv[1]), lambda: served(sys.argv[2]))
    if status:
        sys.stderr.write("step-ca did not take the new configuration; its log says why\n")
    raise SystemExit(status)
