# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Planner of the connector_access module: groups and their members, and what is left of former clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """Groups to make, lists of members to set, and what no client has any more."""

    create: tuple[str, ...]
    members: tuple[tuple[str, tuple[str, ...]], ...]
    repair: tuple[tuple[str, str], ...]
    stale_groups: tuple[str, ...]
    stale_sockets: tuple[str, ...]

    @property
    def commands(self) -> list[list[str]]:
        """Commands that give every wanted group its members."""
        made = [["groupadd", "--system", name] for name in self.create]
        return made + [["gpasswd", "-M", ",".join(users), name] for name, users in self.members]


def attributes(group: str, owner: str = "root", mode: int = 0o660) -> str:
    """How a socket's attributes are written; by default those that let a group's members connect, and nobody else."""
    return f"{mode:04o} {owner}:{group}"


def parse_groups(text: str) -> dict[str, frozenset[str]]:
    """Return group -> members of group(5)."""
    groups = {}
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 4:
            groups[fields[0]] = frozenset(user for user in fields[3].split(",") if user)
    return groups


def plan(
    wanted: Sequence[Mapping[str, Any]],
    prefix: str,
    current: Mapping[str, frozenset[str]],
    sockets: Mapping[str, str],
    kept: Iterable[str],
) -> Plan:
    """Compare the wanted groups and sockets with those that are there; only groups with the prefix can be stale.

    sockets has the attributes of each socket as attributes() writes them.
    """
    users = {group["name"]: frozenset(group["users"]) for group in wanted}
    differ = [name for name in users if current.get(name, frozenset()) != users[name]]
    owners = {group["socket"]: group["name"] for group in wanted if group.get("socket")}
    return Plan(
        create=tuple(name for name in users if name not in current),
        members=tuple((name, tuple(sorted(users[name]))) for name in differ),
        repair=tuple(
            (path, name) for path, name in owners.items() if sockets.get(path, attributes(name)) != attributes(name)
        ),
        stale_groups=tuple(sorted(name for name in current if name.startswith(prefix) and name not in users)),
        stale_sockets=tuple(sorted(set(sockets) - set(kept) - set(owners))),
    )


def diff(
    made: Plan, current: Mapping[str, frozenset[str]], sockets: Mapping[str, str], remove_stale: bool
) -> dict[str, str]:
    """Ansible's diff: groups and sockets that differ and, when they are removed, those that are stale."""
    before, after = [], []
    for name, users in made.members:
        if name in current:
            before.append(f"{name}: {','.join(sorted(current[name]))}")
        after.append(f"{name}: {','.join(users)}")
    for path, name in made.repair:
        before.append(f"{path}: {sockets[path]}")
        after.append(f"{path}: {attributes(name)}")
    if remove_stale:
        before += [f"{name}: {','.join(sorted(current[name]))}" for name in made.stale_groups]
        before += [f"{path}: {sockets[path]}" for path in made.stale_sockets]
    header = "who may use the connector"
    return {
        "before_header": header,
        "after_header": header,
        "before": "".join(f"{line}\n" for line in before),
        "after": "".join(f"{line}\n" for line in after),
    }
