"""Checks of what `ansible-galaxy collection build` makes: content, documentation, sanity, units, importer."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.checks.static import INSTALLED
from tests.lab import collection
from tests.lab.collection import environment, tool
from tests.lab.shell import LAB, ROOT, LabError, remove_tree, say, write

TREE = LAB / "ansible-test" / "ansible_collections" / "moat" / "inference"
PYTHON = "3.11"
NOT_SHIPPED = (
    ".ci/",
    ".github/",
    "Makefile",
    "molecule/",
    "inventories/lab/",
    "tests/lab/",
    "tests/checks/",
    "tests/behaviour/",
    "tests/faults/",
)
SHIPPED = (
    "README.md",
    "LICENSE",
    "CHANGELOG.rst",
    "docs/intent.md",
    "meta/runtime.yml",
    "inventories/example/hosts.yml",
    "playbooks/site.yml",
    "playbooks/plan.yml",
    "playbooks/verify.yml",
    "plugins/modules/compile.py",
    "plugins/action/compile.py",
)
# The tool asks a host outside the package registries for this; ensurepip has what it needs.
GET_PIP = """import ensurepip, os, subprocess, sys
ensurepip.bootstrap(default_pip=True)
words = [word for word in sys.argv[1:] if word not in ('--no-setuptools', '--no-wheel')]
if words:
    sys.exit(subprocess.call([sys.executable, '-m', 'pip', 'install', *words]))
"""


def content_faults(names: set[str]) -> list[str]:
    """What the tarball has and should not, or lacks and should have."""
    faults = [f"{name} has no business in the tarball" for name in sorted(names) if name.startswith(NOT_SHIPPED)]
    return faults + [f"{name} is missing in the tarball" for name in SHIPPED if name not in names]


def build() -> None:
    """Build, install, and look what is inside."""
    collection.install()
    with tarfile.open(tarball()) as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}
    faults = content_faults(names)
    if faults:
        raise LabError("\n".join(faults))
    say(f"{len(names)} files")


def tarball() -> Path:
    found = sorted((LAB / "dist").glob("*.tar.gz"))
    if not found:
        raise LabError("there is no tarball: run the check `build` first")
    return found[0]


def _ansible_test(*arguments: str) -> None:
    """ansible-test works on a copy, for it writes its results beside what it tests."""
    if not INSTALLED.is_dir():
        raise LabError("the collection is not installed: run the check `build` first")
    kept = TREE / "tests" / "output" / ".tmp"
    if not kept.is_dir():
        remove_tree(TREE)
    TREE.mkdir(parents=True, exist_ok=True)
    for entry in [item for item in TREE.iterdir() if item.name != "tests"] + list((TREE / "tests").glob("[!o]*")):
        remove_tree(entry)
    shutil.copytree(INSTALLED, TREE, dirs_exist_ok=True)
    for version in ("21_3_1", "24_0", "25_0"):
        seed = Path("~/.ansible/test/cache").expanduser() / f"get_pip_{version}.py"
        if not seed.is_file():
            write(seed, GET_PIP)
    # ansible-test takes all of the tree when it is no git checkout of its own
    settings = {**environment(), "GIT_CEILING_DIRECTORIES": str(TREE.parent), "ANSIBLE_CONFIG": os.devnull}
    command = tool("ansible-test", *arguments, "--venv", "--python", PYTHON, "--color", "no", "--truncate", "0")
    done = subprocess.run(command, cwd=TREE, env=settings, check=False)
    if done.returncode:
        raise LabError(f"ansible-test {arguments[0]} failed with {done.returncode}")


def sanity() -> None:
    _ansible_test("sanity")


def units() -> None:
    _ansible_test("units")
    for path in (TREE / "tests" / "output" / "junit").glob("*.xml"):
        shutil.copy(path, LAB / "junit" / f"units-{path.name}")


def galaxy_importer() -> None:
    """What Galaxy does with an upload. Lint and sanity are checks of their own."""
    settings = LAB / "galaxy-importer.cfg"
    off = ("run_ansible_test", "run_ansible_lint", "run_flake8", "infra_osd")
    write(settings, "[galaxy-importer]\n" + "".join(f"{name} = False\n" for name in off))
    done = subprocess.run(
        tool("python", "-m", "galaxy_importer.main", str(tarball())),
        cwd=LAB,
        env={**environment(), "GALAXY_IMPORTER_CONFIG": str(settings)},
        check=False,
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    bad = [line for line in said.splitlines() if "ERROR" in line or "WARNING" in line]
    if done.returncode or bad or "Importer processing completed successfully" not in said:
        raise LabError("\n".join(bad) or said[-3000:])
    say("imported without a warning")


def docs() -> None:
    """ansible-doc reads every module, filter and role."""
    done = subprocess.run(
        tool("ansible-doc", "--metadata-dump", "--no-fail-on-errors", "moat.inference"),
        cwd=ROOT,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode or '"error"' in done.stdout:
        raise LabError(done.stdout[-3000:] + done.stderr[-2000:])
