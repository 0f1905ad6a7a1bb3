# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Single-use tokens for certificates: what is asked for -> the command that makes the token."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.moat.inference.plugins.module_utils import ca_config

LONGEST_SECONDS = 3600
TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# nothing that a command line or a certificate would read differently
SUBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SAN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/\[\]-]*")


def faults(items: Sequence[Mapping[str, Any]], ca_url: str, lifetime: str) -> list[str]:
    """Return every fault of what is asked for."""
    found = []
    url = urlsplit(ca_url)
    if url.scheme != "https" or not url.hostname or url.query or url.fragment or url.username:
        found.append(f"ca_url: {ca_url!r}: write https:// and the address and port that the client calls")
    length = ca_config.seconds(lifetime)
    if length is None or not 0 < length <= LONGEST_SECONDS:
        found.append(f"lifetime: {lifetime!r}: write a duration up to 1h, such as 5m")
    names = [item["name"] for item in items]
    found += [f"items: the name {name!r} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    for item in items:
        where = f"items[{item['name']}]"
        if not SUBJECT.fullmatch(item["common_name"]):
            found.append(
                f"{where}.common_name: {item['common_name']!r} is no name; write letters, digits, dots and dashes"
            )
        if not item["sans"]:
            found.append(f"{where}.sans: the list is empty; write the DNS names and URIs of the certificate")
        found += [
            f"{where}.sans: {san!r} is neither a name nor a URI" for san in item["sans"] if not SAN.fullmatch(san)
        ]
    return found


def command(item: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """Return the command that prints the token of an item; secrets go by file."""
    sans = [word for san in item["sans"] for word in ("--san", san)]
    return [
        *[params["step"], "ca", "token", "--offline", "--issuer", ca_config.PROVISIONER],
        # step reads a configuration that is there and then opens the running service's database
        *["--ca-config", "/nonexistent/ca.json", "--ca-url", params["ca_url"], "--root", params["root"]],
        *["--key", params["key_file"], "--provisioner-password-file", params["password_file"]],
        *["--not-after", params["lifetime"], *sans, "--", item["common_name"]],
    ]


def parse(output: str) -> str:
    """Return the token that step printed; raise ValueError for anything else, without showing it."""
    token = output.strip()
    if not TOKEN.fullmatch(token):
        raise ValueError("step printed no token")
    return token
