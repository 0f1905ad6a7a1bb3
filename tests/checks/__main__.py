"""Run the checks, go on after a failure, close with a line of counts."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass

from tests.checks import built, scenario, static
from tests.lab.shell import LAB, ROOT, LabError, remove_tree, say

JUNIT = LAB / "junit"
BESIDE = "--beside"  # said to a process that runs one check while another one runs


@dataclass(frozen=True)
class Check:
    """beside: the check with which it begins, in a process of its own, for it needs nothing that others do. What it says comes in its turn.

    patient: it takes what the other one leaves of the processors.
    """

    name: str
    run: Callable[[], object]
    beside: str = ""
    patient: bool = False


CHECKS = [
    Check("format", static.formatting),
    Check("ruff", static.ruff),
    Check("yamllint", static.yamllint),
    Check("shellcheck", static.shellcheck),
    Check("build", built.build),
    Check("mypy", static.mypy),
    Check("rules", static.rules),
    Check("ansible-lint", static.ansible_lint),
    Check("changelog", static.changelog),
    Check("docs", built.docs),
    Check("galaxy-importer", built.galaxy_importer),
    Check("units", built.units),
    Check("gpu", scenario.gpu, beside="units"),
    Check("molecule", scenario.molecule),
    Check("sanity", built.sanity, beside="molecule", patient=True),
    Check("faults", scenario.faults),
    Check("bench", scenario.bench),
    Check("down", scenario.down),
]
NAMES = [check.name for check in CHECKS]


class Beside:
    """A check that runs in a process of its own."""

    def __init__(self, check: Check) -> None:
        self._log = LAB / "log" / f"check-{check.name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            argv = [sys.executable, "-m", "tests.checks", BESIDE, check.name]
            if check.patient:
                argv = ["nice", "-n", "19", *argv]
            self._process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __call__(self) -> None:
        """Wait for its end, and say what it said."""
        status = self._process.wait()
        say(self._log.read_text(encoding="utf-8", errors="replace").strip())
        if status:
            raise LabError(f"it ended with {status}")


def counted() -> tuple[int, int, int]:
    """Passed, failed and skipped tests of every pytest run that left its results in .lab/junit."""
    passed = failed = skipped = 0
    for path in sorted(JUNIT.glob("*.xml")):
        for suite in ElementTree.parse(path).getroot().iter("testsuite"):
            number = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
            failed += number["failures"] + number["errors"]
            skipped += number["skipped"]
            passed += number["tests"] - number["failures"] - number["errors"] - number["skipped"]
    return passed, failed, skipped


def alone(names: list[str]) -> int:
    """Run checks for the process that waits for this one."""
    try:
        for check in CHECKS:
            if check.name in names:
                check.run()
    except LabError as error:
        say(str(error))
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make test ONLY=", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    parser.add_argument(BESIDE, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    wanted = given.names
    unknown = sorted(set(wanted) - set(NAMES))
    if unknown:
        parser.error(f"no such check: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if given.beside:
        return alone(wanted)
    remove_tree(JUNIT)
    JUNIT.mkdir(parents=True)
    outcome: dict[str, str] = {}
    begun: dict[str, Beside] = {}
    for check in CHECKS:
        if wanted and check.name not in wanted:
            continue
        for other in CHECKS:
            if other.beside == check.name and (not wanted or other.name in wanted):
                begun[other.name] = Beside(other)
        say(f"\n== {check.name}")
        started = time.monotonic()
        try:
            begun.get(check.name, check.run)()
            outcome[check.name] = "passed"
        except LabError as error:
            say(str(error))
            outcome[check.name] = "FAILED"
        say(f"== {check.name}: {outcome[check.name]}, {time.monotonic() - started:.0f} s")
    passed, failed, skipped = counted()
    bad = [name for name, word in outcome.items() if word != "passed"]
    say(f"\nchecks: {len(outcome) - len(bad)} passed, failed: {', '.join(bad) or 'none'}")
    # A check that failed without a failed test counts as one.
    failed += len(bad) if not failed else 0
    say(f"{passed + len(outcome) - len(bad)} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if bad or failed else 0


if __name__ == "__main__":
    sys.exit(main())
