"""Documentation names tests and commands that are there."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from tests.checks import static
from tests.checks.__main__ import NAMES
from tests.lab.shell import ROOT

NAMED = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
ROW = re.compile(r"^\| (\d+) \|.*\| ([^|]*) \|$", re.MULTILINE)


def missing_tests(text: str, sources: Mapping[str, str]) -> list[str]:
    """Tests that a text names and no file has."""
    return [
        f"{path}::{name}"
        for path, name in NAMED.findall(text)
        if not re.search(rf"^\s*(async )?def {name}\(", sources.get(path, ""), re.MULTILINE)
    ]


def unknown_commands(text: str, makefile: str) -> list[str]:
    """Targets and checks that a text names and make does not have."""
    targets = re.findall(r"`make ([a-z-]+)", text)
    checks = " ".join(re.findall(r"ONLY=\"?([a-z -]+)", text)).split()
    return [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] + [
        name for name in checks if name not in NAMES
    ]


def unshown(text: str) -> list[str]:
    """Rows of the table of failures that name neither a test nor a command nor say that the part is not built yet."""
    return [
        number
        for number, shown in ROW.findall(text)
        if not NAMED.search(shown) and not shown.startswith(("`make ", "not built yet"))
    ]


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in static.files("tests/*.py")}


@pytest.mark.parametrize("name", static.files("docs/*.md", "README.md"))
def test_the_documentation_names_what_is_there(name: str, sources: dict[str, str]) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert missing_tests(text, sources) == []
    assert unknown_commands(text, makefile) == []


def test_every_failure_of_the_table_is_shown_or_not_built() -> None:
    text = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    assert [number for number, _shown in ROW.findall(text)] == [str(number) for number in range(1, 21)]
    assert unshown(text) == []


def test_what_is_not_there_is_found(sources: dict[str, str]) -> None:
    here = "tests/checks/test_peers.py::"
    assert missing_tests(f"`{here}test_what_is_not_there_is_found`", sources) == []
    gone, elsewhere = f"{here}test_that_is_gone", "tests/checks/test_nothing.py::test_what_is_not_there_is_found"
    assert missing_tests(f"{gone} and {elsewhere}", sources) == [gone, elsewhere]
    assert unknown_commands('`make test ONLY="rules nothing"` and `make nowhere`', "test: ##\n") == [
        "nowhere",
        "nothing",
    ]
    assert unshown("| 1 | a | b | c | `tests/x.py::test_y` |\n| 2 | a | b | c | soon |\n") == ["2"]
