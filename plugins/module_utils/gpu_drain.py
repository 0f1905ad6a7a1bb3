# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Take a host's models out of service, so that they stay out over a reboot, and bring the same ones back. Parsers, mostly.

The record of what was taken out is what keeps it out: the units of the models have ConditionPathExists=! for it (systemd.unit(5)).
"""

from __future__ import annotations

import csv
import json
import re

RECORD = "/var/lib/moat/gpu-drained.json"
SOCKET = "/run/moat-gateway/admin.sock"
LISTED = re.compile(r"^(moat-model@([a-z0-9-]+)\.service)\s+\S+\s+(\S+)")
# what a unit is in while it serves, or tries to
ALIVE = ("active", "activating", "reloading", "deactivating")


def parse_units(text: str) -> list[str]:
    """Parse `systemctl list-units --plain --no-legend`: the names of the models whose units are not at rest."""
    rows = filter(None, map(LISTED.match, text.splitlines()))
    return sorted(row.group(2) for row in rows if row.group(3) in ALIVE)


def unit(name: str) -> str:
    return f"moat-model@{name}.service"


def backend(name: str) -> str:
    """Return what the gateway calls the server of a model."""
    return f"model-{name}/engine"


def parse_sessions(text: str, names: list[str]) -> dict[str, int]:
    """Parse HAProxy's `show stat`: model -> running requests, of those that the gateway knows (HAProxy Management Guide, 9.1)."""
    rows = csv.DictReader(text.lstrip("# ").splitlines())
    found = {}
    for row in rows:
        name = (row.get("pxname") or "").replace("model-", "", 1)
        if name in names and row.get("svname") == "engine":
            counts = [row.get("scur") or "0", row.get("qcur") or "0"]
            found[name] = sum(int(count) for count in counts if count.isdigit())
    return found


def record(names: list[str]) -> bytes:
    return (json.dumps({"models": sorted(names)}) + "\n").encode()


def parse_record(content: bytes | None) -> list[str]:
    """Return the models of a record; raise ValueError when it is none."""
    try:
        names = json.loads(content or b"")["models"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{RECORD} is no record of drained models: {error}") from error
    if not isinstance(names, list) or not all(
        isinstance(name, str) and re.fullmatch(r"[a-z0-9-]+", name) for name in names
    ):
        raise ValueError(f"{RECORD} is no record of drained models")
    return names


def socket_of(text: str) -> str:
    """Return the socket in the launcher's settings of a model, empty when there is none."""
    try:
        found = json.loads(text)["socket"]
    except (ValueError, LookupError, TypeError):
        return ""
    return found if isinstance(found, str) else ""
