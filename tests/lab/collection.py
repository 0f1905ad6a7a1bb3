"""Build the collection and install what was built, the way a user installs it; run its playbooks and checks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.lab.setup import VENV
from tests.lab.shell import LAB, ROOT, LabError, Step, lock, remove_tree

COLLECTIONS = LAB / "collections"


def environment() -> dict[str, str]:
    """The virtual environment's programs, the installed collection, the repository's ansible.cfg."""
    return {
        **os.environ,
        "PATH": f"{VENV / 'bin'}:{os.environ.get('PATH', '')}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
    }


def plain() -> dict[str, str]:
    """The same, for output that a program reads: molecule asks for colours."""
    return {**environment(), "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}


def tool(program: str, *arguments: str) -> list[str]:
    return [str(VENV / "bin" / program), *arguments]


def run(program: str, *arguments: str) -> None:
    """Run a program of the virtual environment on the terminal; its exit status is ours."""
    done = subprocess.run(tool(program, *arguments), env=environment(), cwd=ROOT, check=False)
    if done.returncode:
        raise LabError(f"{program} {' '.join(arguments)} failed with {done.returncode}")


def build() -> Path:
    """Make the tarball in .lab/dist."""
    dist = LAB / "dist"
    partial = LAB / f"dist-{os.getpid()}.tmp"
    remove_tree(partial)
    with Step("build of the collection") as step:
        step.run(
            tool("ansible-galaxy", "collection", "build", "--output-path", str(partial)), env=environment(), cwd=ROOT
        )
    remove_tree(dist)
    partial.rename(dist)
    return next(dist.glob("*.tar.gz"))


def install() -> None:
    """Install the tarball into .lab/collections."""
    with lock(LAB / "install.lock"):
        for left in LAB.glob("collections-*.tmp"):
            remove_tree(left)  # of a run that was killed
        tarball = build()
        partial = LAB / f"collections-{os.getpid()}.tmp"
        remove_tree(partial)
        arguments = ["collection", "install", "--force", "--offline", "--no-deps", "-p", str(partial), str(tarball)]
        with Step("install of the collection") as step:
            step.run(tool("ansible-galaxy", *arguments), env=environment(), cwd=ROOT)
        remove_tree(COLLECTIONS)
        partial.rename(COLLECTIONS)


def module(name: str, *arguments: str) -> None:
    """Run one of the repository's own programs in the virtual environment."""
    run("python", "-m", name, *arguments)


def playbook(name: str, *arguments: str) -> None:
    run("ansible-playbook", "-i", str(ROOT / "inventories" / "lab"), name, *arguments)


def prepare() -> None:
    playbook("tests/lab/prepare.yml")
