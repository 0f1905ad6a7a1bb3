"""The repository's own rules, as functions of what they judge: each returns its faults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TASK_LIMIT, MAIN_LIMIT, FILE_LIMIT = 35, 40, 500
PHASES = ("preflight", "install", "configure", "service")
ALWAYS = ("preflight", "install")  # a role whose one module configures and starts has no file for the rest
# What must not stand anywhere, and why. These are the patterns themselves, so this folder is not searched.
FORBIDDEN = {
    r"(?<![\"'])flush\s+ruleset": "destroys the tables of others; own one table",
    r"failed_when:\s*false": "hides a failure",
    r"ignore_errors:\s*(true|yes)": "hides a failure",
    r"#\s*noqa": "a warning is a defect: mend it",
    r"#\s*type:\s*ignore": "a warning is a defect: mend it",
    r"pytest\.mark\.(skip|xfail)|pytest\.skip\(": "a test that does not run proves nothing",
    r"assert True\b|that:\s*true\b": "a test that cannot fail proves nothing",
    r"\b(TODO|FIXME|XXX|HACK)\b": "finish it, or leave it to an issue",
    r":latest\b|state:\s*latest": "pin the version",
}
ROW = re.compile(r"^\|\s*`(?P<name>[a-z0-9_]+)`\s*\|\s*(?P<type>[^|]+?)\s*\|\s*(?P<default>(?:\\\||[^|])*?)\s*\|")


def forbidden(name: str, text: str) -> list[str]:
    """Lines that must not stand in a file."""
    faults = []
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, reason in FORBIDDEN.items():
            if re.search(pattern, line):
                faults.append(f"{name}:{number}: {line.strip()[:80]}: {reason}")
    return faults


def too_long(name: str, text: str) -> list[str]:
    lines = text.count("\n")
    return [f"{name} has {lines} lines; split it below {FILE_LIMIT}"] if lines >= FILE_LIMIT else []


def role_shape(name: str, tasks: Mapping[str, str]) -> list[str]:
    """Phases, size of main.yml and number of tasks of a role; `tasks` maps file name to text."""
    faults = [f"{name}: tasks/{phase}.yml is missing" for phase in ALWAYS if f"{phase}.yml" not in tasks]
    order = [
        PHASES.index(word) for word in re.findall(r"_tasks:\s*(\w+)\.yml", tasks.get("main.yml", "")) if word in PHASES
    ]
    if order != sorted(order):
        faults.append(f"{name}: tasks/main.yml does not go {' -> '.join(PHASES)}")
    lines = tasks.get("main.yml", "").count("\n")
    if lines > MAIN_LIMIT:
        faults.append(f"{name}: tasks/main.yml has {lines} lines, more than {MAIN_LIMIT}")
    count = sum(len(re.findall(r"^\s*- name:", text, re.MULTILINE)) for text in tasks.values())
    if count > TASK_LIMIT:
        faults.append(f"{name}: {count} tasks, more than {TASK_LIMIT}")
    return faults


def readme_rows(text: str) -> dict[str, tuple[str, str]]:
    """Type and default of each input that a README's table has."""
    rows = (ROW.match(line) for line in text.splitlines())
    return {row["name"]: (row["type"], row["default"].strip("` ")) for row in rows if row}


def same_inputs(role: str, specs: Mapping[str, Any], defaults: Mapping[str, Any], readme: str) -> list[str]:
    """Whether argument_specs, defaults and README tell the same of every input."""
    options = specs["argument_specs"]["main"]["options"]
    rows = readme_rows(readme)
    faults = [f"{role}: {name} is in defaults but not in argument_specs" for name in defaults if name not in options]
    faults += [f"{role}: {name} is in the README but not in argument_specs" for name in rows if name not in options]
    for name, option in options.items():
        if not name.startswith(f"{role}_"):
            faults.append(f"{role}: {name} does not begin with {role}_")
        if "default" in option and name not in defaults:
            faults.append(f"{role}: {name} has a default in argument_specs but none in defaults")
        elif "default" in option and option["default"] != defaults[name] and "{{" not in str(defaults[name]):
            faults.append(f"{role}: {name} is {defaults[name]!r} in defaults, {option['default']!r} in argument_specs")
        elif option.get("required") and name in defaults:
            faults.append(f"{role}: {name} is required and has a default")
        elif not option.get("required") and name not in defaults:
            faults.append(f"{role}: {name} is neither required nor in defaults")
        if name not in rows:
            faults.append(f"{role}: {name} is not in the README's table")
        elif rows[name][0].split()[0] != option["type"]:
            faults.append(f"{role}: {name} is {rows[name][0]} in the README, {option['type']} in argument_specs")
        elif "default" in option and not same_default(rows[name][1], option["default"]):
            faults.append(f"{role}: {name} defaults to {option['default']!r}, the README says {rows[name][1]!r}")
    return faults


def same_default(shown: str, value: Any) -> bool:
    """A README may show an empty value as words or not at all, and texts with or without quotes."""
    plain = shown.strip("`\"' ")
    if (isinstance(value, dict) and value) or "{{" in str(value):
        return bool(plain)  # said in words: a table has no room for it
    if value in ("", [], {}, None):
        return plain in ("", "[]", "{}", "empty", "none", "-", "—", "null")
    if isinstance(value, bool):
        return plain.lower() == str(value).lower()
    if isinstance(value, (list, dict)):
        return re.sub(r"[\s\"']", "", plain) == re.sub(r"[\s\"']", "", str(value))
    return plain == str(value)


def group_names(role: str, text: str, groups: Iterable[str]) -> list[str]:
    """A role knows nothing of the inventory's groups."""
    return [
        f"{role} names the inventory's group {group}" for group in groups if re.search(rf"\b{re.escape(group)}\b", text)
    ] + ([f"{role} asks for groups[...]"] if re.search(r"\bgroups\[|\bgroup_names\b", text) else [])


def matrix_faults(requires: str, versions: Iterable[str]) -> list[str]:
    """`>=2.19.0,<2.22.0` means 2.19, 2.20 and 2.21."""
    match = re.fullmatch(r">=2\.(\d+)\.0,<2\.(\d+)\.0", requires)
    if match is None:
        return [f"requires_ansible {requires!r} is not of the form >=2.x.0,<2.y.0"]
    wanted = {f"2.{minor}" for minor in range(int(match[1]), int(match[2]))}
    tested = set(versions)
    return [f"ansible-core {v} is promised and not tested" for v in sorted(wanted - tested)] + [
        f"ansible-core {v} is tested and not promised" for v in sorted(tested - wanted)
    ]


def texts(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Text files by name; others are left out."""
    found = {}
    for name in names:
        data = (root / name).read_bytes()
        if b"\0" not in data:
            found[name] = data.decode("utf-8", errors="replace")
    return found
