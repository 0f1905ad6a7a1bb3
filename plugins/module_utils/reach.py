# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Judge live probes against the cells of the plan.

A refusal proves something only together with its positive controls: the probing host can reach what it may, and something
listens where it was refused. It also has to come from the layer that the plan names: a firewall that lets a stranger through to
the gateway has failed, even if the gateway then refuses.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# How far a probe got.
PACKET, TLS, REQUEST, ADMITTED = range(4)
REFUSED = ("refused", "timeout", "unreachable")
# A gateway that answers so has refused the request itself; 429 or 503 say nothing of who may ask.
REFUSED_REQUESTS = ("400", "401", "403", "404", "421")
# The layer that the plan names as the one to refuse -> how far a probe may get, at least and at most.
LAYERS = {
    "deny-output": (PACKET, PACKET),
    "deny-input": (PACKET, PACKET),
    "deny-identity": (TLS, REQUEST),
    "deny-request": (REQUEST, REQUEST),
}
# The source's own firewall refuses before any packet leaves: then it is control enough that the source can probe itself.
OWN_LAYER = "deny-output"
ITSELF = "itself"
ANY_ADDRESS = {4: ("0.0.0.0", "::"), 6: ("::",)}
TCP_LISTEN = "0A"


@dataclass(frozen=True)
class Verdict:
    """One cell with what was expected, what was found and whether that counts."""

    source: str
    destination: str
    address: str
    port: int
    identity: str
    client: str
    path: str
    expect: str
    found: str
    rule: str
    outcome: str  # right, wrong, unproven
    layer: str  # what refused, and how; or the rule that admits
    control: str  # what the outcome rests on
    reason: str  # why it is not right

    def line(self) -> str:
        """The verdict as a sentence."""
        who = f"{self.source} as {self.client}" if self.client else self.source
        what = f"{self.destination}, {self.address} port {self.port}{' ' if self.path else ''}{self.path}"
        return (
            f"{self.outcome}: {who} to {what}: expected {self.expect} [{self.rule}], found {self.found}; {self.reason}"
        )


def level(found: str) -> int | None:
    """How far a probe got; None when what was found tells nothing of that."""
    word, _space, detail = found.partition(" ")
    if found == "open" or (word == "status" and detail.startswith("2")):
        return ADMITTED
    if word == "status" and detail in REFUSED_REQUESTS:
        return REQUEST
    if word == "tls":
        return TLS
    return PACKET if found in REFUSED else None


def admitted(found: str) -> bool:
    """Whether the probe got what it asked for."""
    return level(found) == ADMITTED


class Judge:
    """What all probes of one run found, and what each of them is control for."""

    def __init__(
        self, cells: Mapping[str, Sequence[Mapping[str, Any]]], probes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.probes = probes
        self.cells = {source: cells.get(source, []) for source in probes}
        self.reached: dict[tuple[str, str, int], str] = {}
        for source, rows in self.cells.items():
            for cell in rows:
                if admitted(self.found(source, cell)):
                    self.reached.setdefault((cell["destination"], cell["address"], cell["port"]), source)

    def found(self, source: str, cell: Mapping[str, Any]) -> str:
        return str(self.probes[source].get("found", {}).get(cell["id"], "not probed"))

    def verdicts(self) -> list[Verdict]:
        return [self.verdict(source, cell) for source, rows in self.cells.items() for cell in rows]

    def verdict(self, source: str, cell: Mapping[str, Any]) -> Verdict:
        found = self.found(source, cell)
        judge = self._allowed if cell["expect"] == "allow" else self._refused
        outcome, control, reason = judge(source, cell, found)
        return Verdict(
            source=source,
            destination=cell["destination"],
            address=cell["address"],
            port=cell["port"],
            identity=cell["identity"],
            client=cell.get("client") or "",
            path=cell.get("path") or "",
            expect=cell["expect"],
            found=found,
            rule=cell["rule"],
            outcome=outcome,
            layer=cell["rule"] if admitted(found) else f"{cell['rule']} by {found}",
            control=control,
            reason=reason,
        )

    def _allowed(self, source: str, cell: Mapping[str, Any], found: str) -> tuple[str, str, str]:
        if admitted(found):
            return "right", found, ""
        return "wrong", "", "it was not admitted"

    def _refused(self, source: str, cell: Mapping[str, Any], found: str) -> tuple[str, str, str]:
        reach = level(found)
        least, most = LAYERS.get(cell["rule"], (PACKET, PACKET))
        listener = self._listener(cell)
        if reach is not None and reach > most:
            return "wrong", "", "it was admitted" if reach == ADMITTED else f"it passed {cell['rule']}"
        if cell["expect"] == "closed" and listener:
            return "wrong", "", f"nothing may listen there, but {listener}"
        if reach is None:
            return "unproven", "", "this tells nothing of who is admitted"
        if reach < least:
            return "unproven", "", f"it was refused before {cell['rule']} could"
        sender = self._sender(source, cell)
        if not sender:
            return "unproven", "", f"nothing answered {source} over IPv{cell['family']}, so it would see no difference"
        if cell["expect"] == "closed":
            return "right", f"{source} reached {sender}", ""
        if not listener:
            return "unproven", "", f"nobody saw a listener there, and {cell['destination']} did not say that it has one"
        return "right", f"{source} reached {sender}; {listener}", ""

    def _sender(self, source: str, cell: Mapping[str, Any]) -> str:
        """What the source reached in the family of the cell."""
        controls = self.probes[source].get("controls") or {}
        reached = str(controls.get(str(cell["family"])) or "")
        return "" if reached == ITSELF and cell["rule"] != OWN_LAYER else reached

    def _listener(self, cell: Mapping[str, Any]) -> str:
        """Who saw that something listens there: another source of this run, or else the destination itself."""
        other = self.reached.get((cell["destination"], cell["address"], cell["port"]))
        if other:
            return f"{other} reached it"
        listening = self.probes.get(cell["destination"], {}).get("listening") or ()
        for address in (cell["address"], *ANY_ADDRESS[cell["family"]]):
            if f"{address} {cell['port']}" in listening:
                return f"{cell['destination']} listens on {address} port {cell['port']}"
        return ""


def judge(cells: Mapping[str, Sequence[Mapping[str, Any]]], probes: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """Compare the cells of every probed source with what it found."""
    return Judge(cells, probes).verdicts()


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return counts by outcome and by refusing layer, and the cells that are wrong or unproven, as data and as sentences."""
    counts = {"right": 0, "wrong": 0, "unproven": 0}
    layers: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict.outcome] += 1
        if verdict.outcome == "right" and verdict.expect != "allow":
            layers[verdict.layer] = layers.get(verdict.layer, 0) + 1
    faults = sorted(
        (verdict for verdict in verdicts if verdict.outcome != "right"), key=lambda item: item.outcome != "wrong"
    )
    return {
        "counts": counts,
        "layers": dict(sorted(layers.items())),
        "faults": [asdict(verdict) for verdict in faults],
        "lines": [verdict.line() for verdict in faults],
    }


def parse_listening(text: str) -> Iterable[str]:
    """The listening sockets of /proc/net/tcp or tcp6 (proc(5)), each as address and port."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == TCP_LISTEN:
            raw, _colon, port = fields[1].partition(":")
            # the kernel writes words of 32 bits in its own byte order
            words = (raw[start : start + 8] for start in range(0, len(raw), 8))
            packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
            yield f"{ipaddress.ip_address(packed)} {int(port, 16)}"
