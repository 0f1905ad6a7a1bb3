# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Judge live probes against the cells of the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# what a probe may find; every one but `open` and `status 2xx` is a refusal
OPEN = "open"


@dataclass(frozen=True)
class Verdict:
    """One cell with what was expected, what was found and whether that counts."""

    source: str
    destination: str
    address: str
    port: int
    identity: str
    expect: str
    found: str
    rule: str
    outcome: str  # right, wrong, unproven


def admitted(found: str) -> bool:
    """Whether the probe got what it asked for."""
    return found == OPEN or found.startswith("status 2")


def judge(cells: Mapping[str, Sequence[Mapping[str, Any]]], probes: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """Compare the cells of every probed source with what it found.

    A refusal counts only with its positive controls: the source's own control connection succeeded, and the
    destination has a listener on that port, seen by its own probe or by an admitted source; or it said itself
    that it has none (then there is nothing to reach, which is right but shows nothing of the filter).
    """
    reached = set()
    for source, probe in probes.items():
        for cell in cells.get(source, []):
            if admitted(probe["results"].get(cell["id"], "")):
                reached.add((cell["destination"], cell["port"]))
    verdicts = []
    for source, probe in probes.items():
        for cell in cells.get(source, []):
            found = probe["results"].get(cell["id"], "not probed")
            target = probes.get(cell["destination"])
            known = (cell["destination"], cell["port"]) in reached or target is not None
            if admitted(found) != (cell["expect"] == "allow"):
                outcome = "wrong"
            elif cell["expect"] == "deny" and not (probe["control"] and known):
                outcome = "unproven"
            else:
                outcome = "right"
            verdicts.append(
                Verdict(
                    source,
                    cell["destination"],
                    cell["address"],
                    cell["port"],
                    cell["identity"],
                    cell["expect"],
                    found,
                    cell["rule"],
                    outcome,
                )
            )
    return verdicts


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return counts by outcome, and the cells that are wrong or unproven."""
    counts = {"right": 0, "wrong": 0, "unproven": 0}
    for verdict in verdicts:
        counts[verdict.outcome] += 1
    return {"counts": counts, "faults": [asdict(verdict) for verdict in verdicts if verdict.outcome != "right"]}
