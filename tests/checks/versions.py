"""Sanity and unit tests under each ansible-core that is promised: `make versions ONLY=2.20 PYTHON=python3.12`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.checks import built
from tests.lab import collection
from tests.lab.shell import CACHE, ROOT, LabError, Step, remove_tree, say

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def matrix() -> dict[str, str]:
    """ansible-core version -> Python version, from the workflow."""
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    return {str(item["ansible"]): str(item["python"]) for item in jobs["versions"]["strategy"]["matrix"]["include"]}


def environment_of(version: str, python: str) -> Path:
    """A virtual environment with that ansible-core."""
    wanted = os.environ.get("PYTHON") or f"python{python}"
    program = shutil.which(wanted)
    if program is None:
        raise LabError(f"{wanted} is not there: ansible-core {version} needs Python {python}; name one with PYTHON=")
    folder = CACHE / f"ansible-core-{version}"
    remove_tree(folder)
    minor = int(version.split(".")[1])
    with Step(f"ansible-core-{version} from the Python package index") as step:
        step.run([program, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        step.run([*pip, f"ansible-core>={version},<2.{minor + 1}", "netaddr==1.3.0"])
    return folder


def main(names: list[str]) -> int:
    found = matrix()
    unknown = set(names) - set(found)
    if unknown:
        raise LabError(f"{', '.join(sorted(unknown))} is not in the matrix of {WORKFLOW}: {', '.join(found)}")
    collection.install()
    for version in names or found:
        folder = environment_of(version, found[version])
        settings = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        for what in ("sanity", "units"):
            say(f"-- ansible-test {what} with ansible-core {version}")
            built.ansible_test(what, programs=folder, python=found[version], settings=settings)
        plan = [str(folder / "bin" / "ansible-playbook"), "-i", "inventories/example", "moat.inference.plan"]
        done = subprocess.run(plan, cwd=ROOT, env={**collection.environment(), **settings}, check=False)
        if done.returncode:
            raise LabError(f"the plan of the example inventory failed with ansible-core {version}")
    say(f"{len(names or found)} passed, 0 failed")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as problem:
        say(str(problem))
        sys.exit(1)
