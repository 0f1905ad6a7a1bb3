# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keys of a link: the private half on its host, the public half in a directory on the controller."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress

from ansible_collections.moat.inference.plugins.module_utils import files
from ansible_collections.moat.inference.plugins.module_utils.private_link import is_key

DIRECTORY = "/etc/wireguard"


def key_path(interface: str) -> str:
    """Return the file of the private key."""
    return f"{DIRECTORY}/{interface}.key"


def configuration_path(interface: str) -> str:
    """Return the file that wg-quick(8) reads for the interface."""
    return f"{DIRECTORY}/{interface}.conf"


def read_key(state: files.FileState, path: str, remedy: str = "restore it, or remove it to have a new key made") -> str:
    """Return the key that a file holds, empty when there is no file; raise ValueError for a file that holds none."""
    if state.kind == "absent":
        return ""
    text = (state.content or b"").decode("ascii", "replace").strip()
    if not is_key(text):
        raise ValueError(f"{path} holds no WireGuard key; {remedy}")
    return text


def public_path(directory: str, host: str) -> str:
    """Return the file of a host's public half; raise ValueError for a name that would leave the directory."""
    if not re.match(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", host):
        raise ValueError(f"host name {host!r} makes no file name; use letters, digits, '.', '_' and '-'")
    return os.path.join(directory, host + ".pub")


def public_key_of(directory: str, host: str) -> str:
    """Return the public half kept for a host, empty when there is none; raise ValueError for a file that holds none."""
    path = public_path(directory, host)
    return read_key(files.read_state(path), path, f"converge {host} to have it written anew")


def owners(directory: str, key: str, besides: str) -> list[str]:
    """Return the other hosts whose kept public half is key: two hosts with one key are one host to their peers."""
    found = []
    for name in sorted(_listed(directory)):
        host = name[: -len(".pub")]
        if name.endswith(".pub") and not name.startswith(".") and host != besides:
            state = files.read_state(os.path.join(directory, name))
            if (state.content or b"").decode("ascii", "replace").strip() == key:
                found.append(host)
    return found


def _listed(directory: str) -> Iterable[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def keep_public_key(directory: str, host: str, key: str) -> None:
    """Write a host's public half; hosts that do so at the same moment do not disturb each other."""
    path = public_path(directory, host)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    # a name of its own each time: two runs may keep the key of one host at once
    descriptor, candidate = tempfile.mkstemp(prefix=f".{host}.", dir=directory)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as handle:
            handle.write(key + "\n")
            handle.flush()
            os.fchmod(handle.fileno(), 0o644)
            os.fsync(handle.fileno())
        files.commit(candidate, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(candidate)
        raise
