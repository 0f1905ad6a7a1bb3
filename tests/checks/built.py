"""Checks of what `ansible-galaxy collection build` makes: content, documentation, sanity, units, importer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.checks.static import INSTALLED
from tests.lab import collection
from tests.lab.collection import environment, tool
from tests.lab.setup import VENV
from tests.lab.shell import LAB, ROOT, LabError, capture, lock, remove_tree, say, write

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
GET_PIP = """import subprocess, sys
# in a process of its own, for it switches pip's configuration off
subprocess.check_call([sys.executable, '-m', 'ensurepip', '--default-pip'])
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


def pip_versions(programs: Path) -> list[str]:
    """The versions of pip that this ansible-test may want to begin with."""
    source = next(programs.glob("lib/python*/site-packages/ansible_test/_internal/python_requirements.py"))
    return re.findall(r"""pip=['"]([0-9.]+)['"]""", source.read_text(encoding="utf-8"))


def ansible_test(
    what: str, *, programs: Path = VENV, python: str = PYTHON, settings: dict[str, str] | None = None
) -> None:
    """Run ansible-test on a copy, for it writes its results beside what it tests."""
    if not INSTALLED.is_dir():
        raise LabError("the collection is not installed: run the check `build` first")
    for entry in TREE.glob("*"):
        # its own environments and results stay: they are slow to make
        for item in [entry] if entry.name != "tests" else entry.glob("[!o]*"):
            remove_tree(item)
    with lock(LAB / "install.lock"):  # a check beside this one installs anew
        shutil.copytree(INSTALLED, TREE, dirs_exist_ok=True)
    # a checkout of its own: inside of ours, whose .gitignore names it, ansible-test would find no file
    if not (TREE / ".git").is_dir():
        capture(["git", "init", "--quiet", str(TREE)])
        write(TREE / ".git" / "info" / "exclude", "/tests/output/\n")
    for version in pip_versions(programs):
        seed = Path("~/.ansible/test/cache").expanduser() / f"get_pip_{version.replace('.', '_')}.py"
        if not seed.is_file():
            write(seed, GET_PIP)
    variables = {**environment(), **(settings or {}), "ANSIBLE_CONFIG": os.devnull}
    program = str(programs / "bin" / "ansible-test")
    command = [program, what, "--venv", "--python", python, "--color", "no", "--truncate", "0"]
    log = LAB / "log" / f"ansible-test-{what}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as handle:
        done = subprocess.run(command, cwd=TREE, env=variables, check=False, stdout=handle, stderr=subprocess.STDOUT)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if done.returncode:
        told = [line for line in lines if line.startswith(("ERROR", "FATAL"))] if what == "sanity" else lines
        tail = "\n".join(told[-80:])
        raise LabError(f"ansible-test {what} failed with {done.returncode}; the log is {log}\n{tail}")


def sanity() -> None:
    ansible_test("sanity")


def units() -> None:
    results = TREE / "tests" / "output" / "junit"
    remove_tree(results)  # those of another interpreter would be counted again
    ansible_test("units")
    for path in results.glob("*.xml"):
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
