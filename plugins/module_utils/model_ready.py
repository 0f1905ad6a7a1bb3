# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask a model server on a Unix socket for one token: the only answer that proves that it serves.

The role installs this very file on the host for health checks, so it uses the standard library alone.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import sys
from collections.abc import Sequence

# the last line of a Python traceback, and what the launcher says
TELLING = re.compile(r"\b\w*(?:Error|Exception): |^(?:weights refused|GPUs refused|cannot start): |\berror: ")


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def probe(path: str, model: str, timeout: float) -> str:
    """Return an empty string when the model gave a token, else why it did not."""
    # /health stays 200 while the server drains, so it says nothing about serving
    body = json.dumps({"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0})
    connection = UnixConnection(path, timeout)
    try:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            return f"status {response.status}"
        tokens = json.loads(answer)["usage"]["completion_tokens"]
        return "" if tokens >= 1 else "no token in the answer"
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def telling_lines(journal: str, most: int = 6) -> list[str]:
    """Return the lines of a unit's journal that say why it ended, each once; the last lines when none does."""
    lines = [line.strip() for line in journal.splitlines() if line.strip()]
    return (list(dict.fromkeys(line for line in lines if TELLING.search(line))) or lines)[-most:]


def parse_units(text: str, units: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Parse `systemctl show -p ActiveState,NRestarts`, a block a unit in the order asked: state and restarts by unit."""
    states = {}
    for unit, block in zip(units, text.strip().split("\n\n")):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        states[unit] = (fields.get("ActiveState", ""), int(fields.get("NRestarts") or 0))
    return states


def main(arguments: Sequence[str]) -> int:
    """Probe once: socket, model name and optionally a timeout in seconds; status 0 means ready."""
    if len(arguments) not in (2, 3):
        sys.stderr.write("usage: model_ready.py SOCKET MODEL [SECONDS]\n")
        return 2
    fault = probe(arguments[0], arguments[1], float(arguments[2]) if len(arguments) == 3 else 10.0)
    if fault:
        sys.stderr.write(f"{fault}\n")
    return 1 if fault else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
