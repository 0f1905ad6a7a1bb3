# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reload the gateway and see that it happened: ExecReload of moat-gateway.service, for HAProxy reports a failed reload to nobody."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

CONFIG = "/etc/moat/gateway/haproxy.cfg"
SOCKET = "/run/moat-gateway/admin.sock"
PATIENCE = 10.0


def ask(path: str, command: str) -> str:
    """Return the answer of HAProxy's admin socket, or nothing when nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(2)
            client.connect(path)
            client.sendall(command.encode() + b"\n")
            parts: list[bytes] = []
            while True:
                part = client.recv(65536)
                if not part:
                    return b"".join(parts).decode("utf-8", "replace")
                parts.append(part)
    except OSError:
        return ""


def worker(info: str) -> str:
    """Return the process id in the answer to `show info`, or nothing."""
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key == "Pid":
            return value.strip()
    return ""


def reload(master: int, config: str = CONFIG, path: str = SOCKET, patience: float = PATIENCE) -> str:
    """Reload and return nothing, or the reason why the old process still serves."""
    check = subprocess.run(
        ["/usr/sbin/haproxy", "-c", "-f", config],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check.returncode != 0:
        return f"{config} is refused: {check.stdout.strip()}"
    before = worker(ask(path, "show info"))
    os.kill(master, signal.SIGUSR2)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        now = worker(ask(path, "show info"))
        if now and now != before:
            return ""
        time.sleep(0.1)
    return f"process {before or 'none'} still serves after {patience:.0f} s; see the lines above for the reason"


if __name__ == "__main__":
    raise SystemExit(reload(int(sys.argv[1])) or 0)
