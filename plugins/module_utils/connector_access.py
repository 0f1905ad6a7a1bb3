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
    stale_groups: tuple[str, ...]
    stale_sockets: tuple[str, ...]

    @property
    def commands(self) -> list[list[str]]:
        """Commands that give every wanted group its members."""
        made = [["groupadd", "--system", name] for name in self.create]
        return made + [["gpasswd", "-M", ",".join(users), name] for name, users in self.members]


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
    sockets: Iterable[str],
    kept: Iterable[str],
) -> Plan:
    """Compare the wanted groups and sockets with those that are there; only groups with the prefix can be stale."""
    users = {group["name"]: frozenset(group["users"]) for group in wanted}
    differ = [name for name in users if current.get(name, frozenset()) != users[name]]
    return Plan(
        create=tuple(name for name in users if name not in current),
        members=tuple((name, tuple(sorted(users[name]))) for name in differ),
        stale_groups=tuple(sorted(name for name in current if name.startswith(prefix) and name not in users)),
        stale_sockets=tuple(sorted(set(sockets) - set(kept))),
    )


def lines(groups: Mapping[str, frozenset[str]], sockets: Iterable[str], names: Iterable[str]) -> str:
    """The text of one side of the diff: the groups among names, and sockets."""
    shown = [f"{name}: {','.join(sorted(groups[name]))}\n" for name in sorted(names) if name in groups]
    return "".join(shown + [f"{path}\n" for path in sorted(sockets)])


def diff(made: Plan, current: Mapping[str, frozenset[str]], remove_stale: bool) -> dict[str, str]:
    """Ansible's diff: members of the groups that differ and, when they are removed, what is stale."""
    after = dict(current)
    after.update({name: frozenset(users) for name, users in made.members})
    after.update({name: after.get(name, frozenset()) for name in made.create})
    names = {*made.create, *(name for name, _users in made.members)}
    gone: tuple[str, ...] = ()
    if remove_stale:
        gone = made.stale_sockets
        names |= set(made.stale_groups)
        after = {name: users for name, users in after.items() if name not in made.stale_groups}
    return {
        "before_header": "who may use the connector",
        "after_header": "who may use the connector",
        "before": lines(current, gone, names),
        "after": lines(after, (), names),
    }
