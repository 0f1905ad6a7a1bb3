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

FORMAT = 2
# Whoever uses something goes before it. The packet filter stays, and so does an authority with its keys: both are removed by hand only.
RETIRED = (
    "connector",
    "gateway",
    "model_server",
    "certificate",
    "private_link",
    "egress_client",
    "private_dns",
    "egress_proxy",
)
# Every other host waits for these: its packages come by the one, and its names by the other.
WAYS_OUT = ("egress_proxy", "private_dns")
# What of a plan a role is handed besides the part of its own name.
BESIDES = {
    "certificate": ("certificate_ca",),
    "connector": ("resolvers",),
    "egress_client": ("routes", "resolvers"),
}
# What the certificate and the connector of a host are given beside the link is looked for once.
LOOKED_FOR = ("private_link", "certificate", "connector")
HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Entry:
    """The last application of a role: of which part of a plan and which other inputs, by which collection; and what it may have made."""

    digest: str = ""
    inputs: str = ""
    collection: str = ""
    made: tuple[str, ...] = ()


@dataclass
class Work:
    """What a run has to do, by host.

    A role is known where the same collection with the same inputs of the inventory has applied it before: what it installs is there.
    """

    due: dict[str, list[str]] = field(default_factory=dict)
    known: dict[str, list[str]] = field(default_factory=dict)
    gained: list[str] = field(default_factory=list)
    retire: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def hosts(self) -> list[str]:
        return sorted({**self.due, **self.retire})


def digest_of(*parts: Any) -> str:
    """SHA-256 of the canonical JSON of some values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def part_of(plan: Mapping[str, Any], role: str) -> dict[str, Any]:
    """What a role is handed of its host's plan."""
    return {key: plan[key] for key in (role, *BESIDES.get(role, ())) if key in plan}


def made_of(plan: Mapping[str, Any], role: str) -> tuple[str, ...]:
    """What of a role's part is told apart later: the interface of a link, each of the certificates."""
    if role == "private_link":
        return (str(plan[role]["interface"]),)
    return tuple(sorted(map(digest_of, plan[role]))) if role == "certificate" else ()


def parse(text: str) -> dict[str, Entry]:
    """The record of a host; raise ValueError when it is none."""
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            return {}
        return {
            str(role): Entry(
                str(item["digest"]), str(item["inputs"]), str(item["collection"]), tuple(map(str, item["made"]))
            )
            for role, item in found["roles"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("is no record of what was applied; remove it, and everything is applied again") from error


def render(record: Mapping[str, Entry]) -> str:
    roles = {role: {**vars(entry), "made": list(entry.made)} for role, entry in record.items()}
    return json.dumps({"format": FORMAT, "roles": roles}, indent=2, sort_keys=True) + "\n"


def selected(role: str, run_tags: Iterable[str], skip_tags: Iterable[str]) -> bool:
    """Whether a run with these tags applies the whole of a role."""
    run, skip = set(run_tags), set(skip_tags)
    partly = {tag for tag in skip if tag == role or tag.startswith(f"{role}_") or tag in ("all", "always", "tagged")}
    return not partly and bool(run & {"all", "tagged", role})


def compare(
    plans: Mapping[str, Mapping[str, Any]],
    digests: Mapping[str, Mapping[str, tuple[str, str]]],
    records: Mapping[str, Mapping[str, Entry]],
    collection: str,
    changes_only: bool,
) -> Work:
    """What is due on each host, which roles need no further look at their host, and what the plan no longer has.

    digests has the digest of each role's part and that of its inputs.
    """
    work = Work()
    for host, plan in plans.items():
        record = records.get(host, {})
        done = [r for r in plan["roles"] if r in record and record[r].digest and record[r].collection == collection]
        known = [role for role in done if record[role].inputs == digests[host][role][1] != ""]
        same = [role for role in known if record[role].digest == digests[host][role][0]]
        due = [role for role in plan["roles"] if not changes_only or role not in same]
        if due:
            work.due[host] = due
        if changes_only and known:
            work.known[host] = known
        if changes_only and "certificate" in due:
            before = record.get("certificate", Entry()).made
            if not set(made_of(plan, "certificate")) <= set(before):
                work.gained.append(host)
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
        if role == "private_link":
            kept = made_of(plan, role) if wanted else ()
            for interface in sorted(set(record[role].made) - set(kept)):
                yield {"role": role, "interface": interface}
        elif not wanted:
            yield {"role": role}


def begun(record: Mapping[str, Entry], plan: Mapping[str, Any], roles: Iterable[str]) -> dict[str, Entry]:
    """The record once roles may have begun: what they leave until they succeed is not known."""
    made = dict(record)
    for role in roles:
        before = record.get(role, Entry())
        left = {*before.made, *made_of(plan, role)} if role == "private_link" else ()
        made[role] = Entry(made=tuple(sorted(left)))
    return made


def succeeded(
    record: Mapping[str, Entry],
    plan: Mapping[str, Any],
    digests: Mapping[str, tuple[str, str]],
    roles: Iterable[str],
    gone: Iterable[Mapping[str, str]],
    collection: str,
) -> dict[str, Entry]:
    """The record once roles have succeeded and others are gone."""
    made = {
        role: entry for role, entry in record.items() if role in plan["roles"] or role not in {i["role"] for i in gone}
    }
    for role in roles:
        made[role] = Entry(*digests[role], collection, made_of(plan, role))
    return made


def steps(work: Work, host: str, early: bool, changes_only: bool) -> dict[str, list[str]]:
    """The tasks of each play for a host, in order: its packet filter, the ways out, what others wait for, and the rest.

    early tells that its link can come up before the keys of this run are made. A host that has no packet filter yet is closed before
    anything is done anywhere; where all have theirs and no way out changes, nobody waits for another's.
    """
    due, known = work.due.get(host, []), work.known.get(host, [])
    new = [role for role in LOOKED_FOR if role in due and (role not in known or role == "connector")]
    close = ["firewall"] if "firewall" in due else []
    together = changes_only and all("firewall" in work.known.get(each, ()) for each in work.due)
    together = together and not any(role in roles for roles in work.due.values() for role in WAYS_OUT)
    prepare = list(close) if together else []
    prepare += ["egress_client"] if "egress_client" in due else []
    prepare += ["ca"] if "ca" in due else []
    prepare += ["retire"] if host in work.retire else []
    prepare += ["look"] if changes_only and new else []
    prepare += ["keys"] if "private_link" in new else []
    prepare += ["link"] if "private_link" in due and early else []
    serve = ["link"] if "private_link" in due and not early else []
    serve += [role for role in due if role in ("certificate", "model_server", "gateway", "connector")]
    return {
        "close": [] if together else close,
        "proxy": [role for role in WAYS_OUT[:1] if role in due],
        "names": [role for role in WAYS_OUT[1:] if role in due],
        "prepare": prepare,
        "serve": serve,
    }
