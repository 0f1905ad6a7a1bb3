"""Checks that need no lab: format, lint, types, and the repository's own rules."""

from __future__ import annotations

import subprocess

from tests.lab.collection import COLLECTIONS, environment, run, tool
from tests.lab.shell import LAB, ROOT, LabError, capture, say

INSTALLED = COLLECTIONS / "ansible_collections" / "moat" / "inference"


def pytest(name: str, *arguments: str) -> None:
    """Run pytest; its results are counted at the end."""
    run("pytest", f"--junitxml={LAB / 'junit' / f'{name}.xml'}", "-p", "no:cacheprovider", *arguments)


def files(*patterns: str) -> list[str]:
    """The files under version control, and those that are about to be."""
    listed = capture(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "--", *patterns])
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


def formatting() -> None:
    run("ruff", "format", "--check", "--quiet", ".")


def ruff() -> None:
    run("ruff", "check", "--quiet", ".")


def yamllint() -> None:
    run("yamllint", "--strict", ".")


def shellcheck() -> None:
    scripts = [name for name in files() if _is_shell(name)]
    if not scripts:
        raise LabError("no shell script was found, not even .ci/run")
    done = subprocess.run(["shellcheck", *scripts], cwd=ROOT, check=False)
    if done.returncode:
        raise LabError(f"shellcheck failed with {done.returncode}")
    say(f"{len(scripts)} scripts")


def _is_shell(name: str) -> bool:
    with (ROOT / name).open("rb") as handle:
        first = handle.readline(80)
    return first.startswith(b"#!") and first.split()[-1].rsplit(b"/", 1)[-1] in (b"sh", b"bash")


def mypy() -> None:
    """The collection's Python from where it is installed, where its imports resolve; the lab and the checks from here."""
    inside = INSTALLED.relative_to(COLLECTIONS)
    for where, names in (
        (COLLECTIONS, [str(inside / "plugins" / kind) for kind in ("module_utils", "modules", "filter")]),
        (ROOT, ["tests/lab", "tests/checks"]),
    ):
        settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(LAB / "mypy")]
        done = subprocess.run(tool("mypy", *settings, *names), cwd=where, env=environment(), check=False)
        if done.returncode:
            raise LabError(f"mypy {' '.join(names)} failed with {done.returncode}")


def rules() -> None:
    pytest("rules", "tests/checks")


def ansible_lint() -> None:
    run("ansible-lint", "--offline", "--profile", "production", "--strict")


def changelog() -> None:
    run("antsibull-changelog", "lint")
