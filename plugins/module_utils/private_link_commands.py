# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands that bring a link along, and those that take it back: argv lists, so that a script can run them without Ansible."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils.private_link import Delta, Link, compare


def tolerant(argv: Sequence[str]) -> list[str]:
    """A command of a way back whose work may not be there to do, for the way there may have ended before it."""
    return ["sh", "-c", f"{shlex.join(argv)} 2>/dev/null || :"]


def along(delta: Delta, link: Link, path: str, add: str = "add") -> list[list[str]]:
    """Bring the running interface to link; path has its checked configuration for wg, which reads all of it before it changes anything.

    Routes go last, so what was meant for a removed peer is refused, not sent elsewhere.
    """
    device = ["dev", link.interface]
    # an empty file takes the preshared key away (wg(8))
    cleared = ["persistent-keepalive", "off", "preshared-key", "/dev/null"]
    return [
        *([["wg", "syncconf", link.interface, path]] if delta.sync else []),
        *(["wg", "set", link.interface, "peer", key, *cleared] for key in delta.clear),
        *(["ip", "address", add, address, *device] for address in delta.addresses_added),
        *([["ip", "link", "set", *device, "mtu", str(link.mtu), "up" if link.up else "down"]] if delta.link else []),
        *(["ip", "route", add, route, *device] for route in delta.routes_added),
        *(["ip", "route", "delete", route, *device] for route in delta.routes_removed),
        *(["ip", "address", "delete", address, *device] for address in delta.addresses_removed),
    ]


def back(live: Link, desired: Link, path: str) -> list[list[str]]:
    """Take the running interface back to live, however far it came towards desired; path has what wg had of it, keys included."""
    # from what was wanted to what is there, that is the way back
    there, wanted = live, desired
    delta = compare(wanted, there)
    # what a peer had besides, syncconf takes from the file
    delta.sync, delta.clear = delta.sync or bool(delta.clear), []
    delta.link = delta.link or live.up != desired.up
    return [tolerant(argv) if "delete" in argv else argv for argv in along(delta, live, path, "replace")]


def again(live: Link, path: str) -> list[list[str]]:
    """Give an interface that was made anew all that live had, as it may not all have been in its configuration."""
    everything = Delta(sync=True, link=True, addresses_added=list(live.addresses), routes_added=list(live.routes))
    return along(everything, live, path, "replace")


def file_back(change: deploy.Change, copy: str) -> list[list[str]]:
    """Put a path back from its copy, at once and with its owner and mode."""
    if change.before.kind == "absent":
        return [["rm", "-f", "--", change.path]]
    candidate = files.candidate_path(change.path)
    return [["cp", "-a", "-T", "--", copy, candidate], ["mv", "-f", "-T", "--", candidate, change.path]]


def quick_up(path: str) -> list[str]:
    """Make an interface that was no unit's. In a unit of its own, or wireguard-go would end with the script."""
    properties = ["--property=Type=oneshot", "--property=RemainAfterExit=yes"]
    return ["systemd-run", "--quiet", "--collect", *properties, "wg-quick", "up", path]


def quick_configuration(live: Link, shown: str) -> str:
    """What wg-quick(8) makes live from; shown is what `wg showconf` says of it."""
    lines = [*(f"Address = {address}" for address in live.addresses), f"MTU = {live.mtu}"]
    return shown.replace("[Interface]\n", "\n".join(["[Interface]", *lines, ""]), 1)
