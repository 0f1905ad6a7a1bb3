"""Checks on the lab: the molecule scenario, faults, counts; the lab goes down at the end."""

from __future__ import annotations

from tests.checks import static
from tests.lab import collection, lab
from tests.lab.shell import LAB


def molecule() -> None:
    """From bare hosts to a verified site; the hosts stay for what follows."""
    (LAB / "junit").mkdir(parents=True, exist_ok=True)
    collection.install()
    # `never` leaves out the destroy at the beginning as well
    collection.run("molecule", "destroy")
    collection.run("molecule", "test", "--destroy=never")


def faults() -> None:
    static.pytest("faults", "tests/faults")


def bench() -> None:
    collection.module("tests.lab.bench", "--converged", "--assert-counts")


def down() -> None:
    lab.down()
