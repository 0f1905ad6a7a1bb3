"""The long form of the proof that nothing opens and nobody is locked out: `make proof-safety`.

A JSON report with every moment of change and every gap stays in .lab/proof; the summary is printed. Exits with 1 on any finding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from typing import Any

from tests.faults import moments, prober, run
from tests.lab import collection, lab
from tests.lab.shell import LAB, ROOT, LabError, capture, say, write

FOLDER = LAB / "proof"
PARTS = ("moments", "lockout", "boot_closed", "policy_change", "egress_change")


def watched(kills: int, services: int, hosts: int, plays: int) -> tuple[dict[str, Any], list[str]]:
    """The moments of change under the eyes of probers and witness."""
    say(f"\n== moments of change: {kills} kills, {services} times the service, {hosts} times a host, {plays} policies")
    proof = moments.prove(kills=kills, services=services, hosts=hosts, plays=plays, loud=True)
    wrong = proof.wrong()
    sources = proof.moments.watching.sources
    gaps = [(s.words(number), begun, ended - begun) for s in sources for number, begun, ended in s.gaps]
    verified = run.play("moat.inference.verify")
    if verified.rc:
        wrong.append(f"after all of it, verify fails\n{verified.out[-3000:]}")
    rows = []
    for name, total in proof.totals.items():
        rate, control = total["tried"] / total["seconds"], total["control_tried"] / total["seconds"]
        figures = (
            f"{rate:.0f}",
            f"{total['least'] / total['seconds']:.2f}",
            f"{total['widest']:.2f}",
            total["answers"],
        )
        rows.append((name, *map(str, figures), f"{control:.0f}", f"{total['control_widest']:.2f}"))
    say("")
    lab.show(
        ("from", "flows a second", "to one target", "widest gap s", "answers", "control a second", "its widest gap s"),
        rows,
    )
    tried = sum(total["tried"] for total in proof.totals.values())
    refused = sum(total["refusals"] for total in proof.totals.values())
    targets = sum(total["targets"] for total in proof.totals.values())
    control = sum(total["control_answers"] for total in proof.totals.values())
    say(
        f"{proof.seconds:.0f} s, {tried} flows to {targets} targets, a new one every {prober.INTERVAL} s; {control} of the control answered"
    )
    say(
        f"answers: {sum(t['answers'] for t in proof.totals.values())}, refusals (RST, ICMP): {refused}, gaps over {prober.GAP} s: {len(gaps)}"
    )
    counted = ", ".join(f"{number} x {kind}" for kind, number in sorted(proof.moments.counts().items()))
    say(f"moments counted: {counted}; repeated, since in a gap: {proof.moments.repeated()}")
    seen = {key: sum(proof.seen[key].values()) for key in ("control", "dropped")}
    say(
        f"witness: {len(proof.seen['found'])} packets of managed hosts to outsiders, {seen['control']} of the control, {seen['dropped']} dropped"
    )
    report = {"seed": proof.seed, "totals": proof.totals, "seen": proof.seen, "gaps": gaps, "log": proof.moments.log}
    return report, wrong


def tested(part: str) -> tuple[dict[str, Any], list[str]]:
    """The cases of a file of tests, all of them."""
    say(f"\n== {part}")
    results = FOLDER / f"{part}.xml"
    results.unlink(missing_ok=True)
    argv = collection.tool("pytest", f"--junitxml={results}", "-p", "no:cacheprovider", f"tests/faults/test_{part}.py")
    subprocess.run(argv, cwd=ROOT, env={**collection.environment(), "MOAT_PROOF": "long"}, check=False)
    if not results.is_file():
        return {}, [f"{part}: the tests did not run to their end"]
    cases = {case.get("name", ""): case for case in ElementTree.parse(results).getroot().iter("testcase")}
    bad = [name for name, case in cases.items() if any(child.tag in ("failure", "error", "skipped") for child in case)]
    say(f"{part}: {len(cases) - len(bad)} of {len(cases)} cases")
    return {"cases": {name: name not in bad for name in cases}}, [f"{part}: {name}" for name in bad]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make proof-safety PARTS=", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    for name, number in (("kills", 30), ("services", 20), ("hosts", 10), ("plays", 4)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    collection.install()
    begun = time.time()
    settled = run.play()
    if settled.rc:
        raise LabError(f"the lab does not converge\n{settled.out[-4000:]}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"commit": capture(["git", "-C", str(ROOT), "rev-parse", "HEAD"], check=False).strip()}
    report["begun"] = time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(begun))
    wrong: list[str] = []
    for part in PARTS:
        if options.parts and part not in options.parts:
            continue
        if part == "moments":
            report[part], faults = watched(options.kills, options.services, options.hosts, options.plays)
        else:
            report[part], faults = tested(part)
        wrong += faults
    report.update(wrong=wrong, seconds=round(time.time() - begun))
    path = FOLDER / f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(begun))}.json"
    write(path, json.dumps(report, indent=1, default=str) + "\n")
    say(f"\n{len(wrong)} findings; {path.relative_to(ROOT)}, {report['seconds']} s")
    for line in wrong:
        say(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
