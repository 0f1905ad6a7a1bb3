# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was applied to each host, and what a plan asks for besides. Pure; the controller's action plugin reads and writes the records.

A role that was begun and is not known to have succeeded has no digest, so the next run applies it again whatever the plan says by then.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
# Whoever uses something goes before it. The packet filter stays, and so does an authority with its keys: both are removed by hand only.
RETIRED = ("connector", "gateway", "model_server", "certificate", "private_link")
HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Entry:
    """The last application of a role: of which part of a plan, by which collection; and the interfaces that it may have made."""

    digest: str = ""
    collection: str = ""
    interfaces: tuple[str, ...] = ()


@dataclass
class Work:
    """What a run has to do, by host."""

    due: dict[str, list[str]] = field(default_factory=dict)
    known: dict[str, list[str]] = field(default_factory=dict)
    retire: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def hosts(self) -> list[str]:
        return sorted({**self.due, **self.retire})


def digest_of(*parts: Any) -> str:
    """SHA-256 of the canonical JSON of some values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def part_of(plan: Mapping[str, Any], role: str) -> dict[str, Any]:
    """What a role is handed of its host's plan."""
    return {key: plan[key] for key in (role, f"{role}_ca") if key in plan}


def interfaces_of(plan: Mapping[str, Any], role: str) -> tuple[str, ...]:
    return (str(plan[role]["interface"]),) if role == "private_link" else ()


def parse(text: str) -> dict[str, Entry]:
    """The record of a host; raise ValueError when it is none."""
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            return {}
        return {
            str(role): Entry(str(item["digest"]), str(item["collection"]), tuple(map(str, item["interfaces"])))
            for role, item in found["roles"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("is no record of what was applied; remove it, and everything is applied again") from error


def render(record: Mapping[str, Entry]) -> str:
    roles = {
        role: {"digest": entry.digest, "collection": entry.collection, "interfaces": list(entry.interfaces)}
        for role, entry in record.items()
    }
    return json.dumps({"format": FORMAT, "roles": roles}, indent=2, sort_keys=True) + "\n"


def selected(role: str, run_tags: Iterable[str], skip_tags: Iterable[str]) -> bool:
    """Whether a run with these tags applies the whole of a role."""
    run, skip = set(run_tags), set(skip_tags)
    partly = {tag for tag in skip if tag == role or tag.startswith(f"{role}_") or tag in ("all", "always", "tagged")}
    return not partly and bool(run & {"all", "tagged", role})


def compare(
    plans: Mapping[str, Mapping[str, Any]],
    digests: Mapping[str, Mapping[str, str]],
    records: Mapping[str, Mapping[str, Entry]],
    collection: str,
    changes_only: bool,
) -> Work:
    """What is due on each host, which roles need no further look at their host, and what the plan no longer has."""
    work = Work()
    for host, plan in plans.items():
        record = records.get(host, {})
        current = [role for role in plan["roles"] if role in record and record[role].collection == collection]
        known = [role for role in current if record[role].digest]
        same = [role for role in known if record[role].digest == digests[host][role]]
        due = [role for role in plan["roles"] if not changes_only or role not in same]
        if due:
            work.due[host] = due
        if changes_only and known:
            work.known[host] = known
    for host, record in records.items():
        planned = plans.get(host, {"roles": []})
        gone = list(retired(planned, record))
        if gone:
            work.retire[host] = gone
    return work


def retired(plan: Mapping[str, Any], record: Mapping[str, Entry]) -> Iterable[dict[str, str]]:
    """Roles that a host had and has no longer, and interfaces that it has under another name now."""
    for role in RETIRED:
        if role not in record:
            continue
        wanted = role in plan["roles"]
        kept = interfaces_of(plan, role) if wanted else ()
        for interface in sorted(set(record[role].interfaces) - set(kept)):
            yield {"role": role, "interface": interface}
        if not wanted and not record[role].interfaces:
            yield {"role": role}


def begun(
    record: Mapping[str, Entry], plan: Mapping[str, Any], roles: Iterable[str], collection: str
) -> dict[str, Entry]:
    """The record once roles may have begun: what they leave until they succeed is not known."""
    made = dict(record)
    for role in roles:
        before = record.get(role, Entry())
        interfaces = sorted({*before.interfaces, *interfaces_of(plan, role)})
        made[role] = Entry("", collection, tuple(interfaces))
    return made


def succeeded(
    record: Mapping[str, Entry],
    plan: Mapping[str, Any],
    digests: Mapping[str, str],
    roles: Iterable[str],
    gone: Iterable[Mapping[str, str]],
    collection: str,
) -> dict[str, Entry]:
    """The record once roles have succeeded and others are gone."""
    made = {
        role: entry for role, entry in record.items() if role in plan["roles"] or role not in {i["role"] for i in gone}
    }
    for role in roles:
        made[role] = Entry(digests[role], collection, interfaces_of(plan, role))
    return made
