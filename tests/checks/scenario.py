"""Checks on the lab: the molecule scenario, faults, counts; the lab goes down at the end."""

from __future__ import annotations

from tests.checks import static
from tests.lab import collection, lab
from tests.lab.shell import LAB

OWN_HOSTS = ("tests/faults/test_gpu_driver.py", "tests/faults/test_model_gpus.py")


def molecule() -> None:
    """From bare hosts to a verified site; the hosts stay for what follows."""
    (LAB / "junit").mkdir(parents=True, exist_ok=True)
    collection.install()
    # `never` leaves out the destroy at the beginning as well
    collection.run("molecule", "destroy")
    collection.run("molecule", "test", "--destroy=never")


def gpu() -> None:
    """On hosts that the tests make for themselves, so it can run beside what needs none."""
    collection.install()
    static.pytest("gpu", *OWN_HOSTS)


def faults() -> None:
    static.pytest("faults", "tests/faults", *(f"--ignore={name}" for name in OWN_HOSTS))


def bench() -> None:
    collection.module("tests.lab.bench", "--converged", "--assert-counts")


def down() -> None:
    lab.down()
