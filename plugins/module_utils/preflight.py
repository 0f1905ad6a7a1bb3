# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Parsers for what the preflight module reads from a host."""

from __future__ import annotations

import json
import shlex
from typing import Any

# adjtimex(2): the kernel's clock is not synchronised
TIME_ERROR = 5


def parse_os_release(text: str) -> dict[str, str]:
    """Return the fields of os-release(5)."""
    fields = {}
    for line in text.splitlines():
        name, separator, value = line.strip().partition("=")
        if separator and not name.startswith("#"):
            fields[name] = "".join(shlex.split(value))
    return fields


def os_family(fields: dict[str, str]) -> str:
    """Return debian, redhat or the distribution's own id."""
    known = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    if "debian" in known or "ubuntu" in known:
        return "debian"
    if "rhel" in known or "fedora" in known:
        return "redhat"
    return known[0]


def parse_dpkg(text: str) -> dict[str, str]:
    """Return package -> version of the lines `name<TAB>version<TAB>status` whose status is installed (dpkg-query(1))."""
    versions = {}
    for line in text.splitlines():
        name, version, status = line.split("\t")
        if status[1:2] == "i":
            versions[name] = version
    return versions


def parse_rpm(text: str) -> dict[str, str]:
    """Return package -> version of the lines `name<TAB>version`; lines on missing packages have no tab (rpm(8))."""
    lines = (line.partition("\t") for line in text.splitlines() if "\t" in line)
    return {name: version for name, _tab, version in lines}


def interfaces_by_address(text: str) -> dict[str, str]:
    """Return address -> interface name of `ip -j address` (ip-address(8)), without loopback and link-local ones."""
    links: list[dict[str, Any]] = json.loads(text or "[]")
    return {
        address["local"]: link["ifname"]
        for link in links
        for address in link.get("addr_info", [])
        if address.get("scope") == "global" and "local" in address
    }
