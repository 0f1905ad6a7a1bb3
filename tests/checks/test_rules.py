"""Each rule of the repository on the repository, and on something that breaks it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from tests.checks import built, rules, static
from tests.checks.__main__ import CHECKS
from tests.lab.collection import tool
from tests.lab.shell import ROOT, capture

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if (path / "tasks").is_dir())
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
# the rules and their tests hold the very words that they look for; locks and the licence are not ours to word
WORDS_APART = re.compile(r"^(tests/checks/|LICENSE|requirements-dev\.txt|.*\.lock$|docs/.*peers)")


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def sources() -> dict[str, str]:
    return rules.texts(ROOT, static.files())


def test_nothing_forbidden_stands_anywhere(sources: dict[str, str]) -> None:
    faults = [f for name, text in sources.items() if not WORDS_APART.match(name) for f in rules.forbidden(name, text)]
    assert not faults, "\n".join(faults)


# what the rule has to find, and so stands here
@pytest.mark.parametrize(
    "line",
    [
        "nft flush ruleset",
        "failed_when: false",
        "ignore_errors: true",
        "x = 1  # noqa",
        "# type: ignore",
        "assert True",
    ],
)
def test_a_forbidden_line_is_found(line: str) -> None:
    assert rules.forbidden("x", f"first\n{line}\n")


def test_no_python_file_is_too_long(sources: dict[str, str]) -> None:
    faults = [f for name, text in sources.items() if name.endswith(".py") for f in rules.too_long(name, text)]
    assert not faults
    assert rules.too_long("x.py", "line\n" * rules.FILE_LIMIT)


@pytest.mark.parametrize("role", ROLES)
def test_role_has_the_shape(role: str) -> None:
    tasks = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "roles" / role / "tasks").glob("*.yml")}
    faults = rules.role_shape(role, tasks)
    assert not faults, "\n".join(faults)


def test_a_misshapen_role_is_found() -> None:
    good = {f"{phase}.yml": "- name: One\n" for phase in (*rules.PHASES, "main")}
    assert not rules.role_shape("r", good)
    assert rules.role_shape("r", {**good, "install.yml": "- name: One\n" * 40})
    assert rules.role_shape("r", {**good, "main.yml": "\n" * 60})
    assert rules.role_shape("r", {"main.yml": ""})
    turned = "import_tasks: service.yml\nimport_tasks: configure.yml\n"
    assert rules.role_shape("r", {**good, "main.yml": turned})


@pytest.mark.parametrize("role", ROLES)
def test_role_tells_its_inputs_once(role: str) -> None:
    specs, defaults = load(f"roles/{role}/meta/argument_specs.yml"), load(f"roles/{role}/defaults/main.yml") or {}
    readme = (ROOT / "roles" / role / "README.md").read_text(encoding="utf-8")
    faults = rules.same_inputs(role, specs, defaults, readme)
    assert not faults, "\n".join(faults)
    assert len(re.findall(r"^```ya?ml", readme, re.MULTILINE)) == 1, "one example"


def test_inputs_told_differently_are_found() -> None:
    specs = {"argument_specs": {"main": {"options": {"r_port": {"type": "int", "default": 1, "description": "x"}}}}}
    row = "| `r_port` | int | `1` | Port |\n"
    assert not rules.same_inputs("r", specs, {"r_port": 1}, row)
    assert rules.same_inputs("r", specs, {"r_port": 2}, row)
    assert rules.same_inputs("r", specs, {}, row)
    assert rules.same_inputs("r", specs, {"r_port": 1}, "")
    assert rules.same_inputs("r", specs, {"r_port": 1}, row.replace("int", "str"))
    assert rules.same_inputs("r", specs, {"r_port": 1}, row.replace("`1`", "`2`"))
    assert rules.same_inputs("r", specs, {"r_port": 1, "r_more": 1}, row)


def test_no_role_knows_the_inventory() -> None:
    groups = {"gpu_hosts", "app_hosts", "ca_hosts"}
    for role in ROLES:
        text = "\n".join(
            path.read_text(encoding="utf-8")
            for path in (ROOT / "roles" / role).rglob("*")
            if path.suffix in (".yml", ".j2", ".py")
        )
        faults = rules.group_names(role, text, groups)
        assert not faults, "\n".join(faults)
    assert rules.group_names("r", "when: inventory_hostname in groups['x']", groups)
    assert rules.group_names("r", "hosts: gpu_hosts", groups)


def test_every_module_has_unit_tests_and_every_role_a_place_in_site() -> None:
    units = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests" / "unit").rglob("test_*.py"))
    assert not [module for module in MODULES if not re.search(rf"\b{module}\b", units)]
    # what is retired is named as well, which is no place to be applied
    steps = [p for p in (ROOT / "playbooks" / "tasks").glob("*.yml") if p.name != "retire.yml"]
    site = "\n".join(p.read_text(encoding="utf-8") for p in steps)
    assert sorted(set(re.findall(r"moat\.inference\.([a-z_]+)$", site, re.MULTILINE))) == ROLES


def test_the_workflow_tests_what_is_promised() -> None:
    requires = load("meta/runtime.yml")["requires_ansible"]
    workflow = load(".github/workflows/ci.yml")
    versions = [str(item["ansible"]) for item in workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]]
    assert not rules.matrix_faults(requires, versions)
    assert rules.matrix_faults(requires, versions[1:])
    assert rules.matrix_faults(requires, [*versions, "2.99"])


def test_the_changelog_has_the_version() -> None:
    version = load("galaxy.yml")["version"]
    assert version in load("changelogs/changelog.yaml")["releases"]


def test_sanity_has_no_exceptions_and_lint_skips_nothing() -> None:
    assert not [name for name in static.files("tests/sanity/*") if (ROOT / name).stat().st_size]
    assert not {"skip_list", "warn_list"} & set(load(".ansible-lint"))


def test_the_tarball_rule_can_fail() -> None:
    assert not built.content_faults(set(built.SHIPPED))
    assert built.content_faults({*built.SHIPPED, "tests/lab/lab.py"})
    assert built.content_faults(set(built.SHIPPED[1:]))


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony
    documented = set(re.findall(r"^([a-z-]+):.* ## ", makefile, re.MULTILINE))
    assert set(phony[1].split()) == documented


def test_the_readme_names_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`make ([a-z-]+)", readme)) | set(re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
    playbooks = set(re.findall(r"moat\.inference\.([a-z_]+)\b", readme)) - set(ROLES) - set(MODULES)
    assert not [name for name in playbooks if not (ROOT / "playbooks" / f"{name}.yml").is_file()]
    links = re.findall(r"\]\((?!http)([^)#]+)", readme)
    assert not [link for link in links if not (ROOT / link).exists()]


def test_ansible_documents_every_module_and_role() -> None:
    for kind, names in (("module", MODULES), ("role", ROLES)):
        listed = json.loads(capture(tool("ansible-doc", "--json", "--list", "--type", kind, "moat.inference")))
        assert {f"moat.inference.{name}" for name in names} <= set(listed)


def test_the_checks_are_all_there() -> None:
    assert [check.name for check in CHECKS][:2] == ["format", "ruff"]
    assert len({check.name for check in CHECKS}) == len(CHECKS)
