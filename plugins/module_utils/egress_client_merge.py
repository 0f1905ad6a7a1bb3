# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sets single values in files of somebody else: comments, order and all other values stay as they are."""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Sequence
from typing import Any

HEADER = re.compile(r"^\[(?P<name>[^\]]+)\]")
OPTION = re.compile(r"^(?P<name>[^\s#;=:\[][^=:]*?)\s*[=:]")
INDENT = re.compile(r"^(?P<space>[ \t]+)\S", re.MULTILINE)


class MergeError(ValueError):
    """The file cannot be read, so it is not written either; says where and what to do."""


def ini_get(text: str, section: str, key: str) -> str | None:
    """The value in force, None when there is none."""
    parser = configparser.RawConfigParser(strict=False, default_section="\0")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise MergeError("it cannot be read ({}); repair it".format(" ".join(str(error).split()))) from error
    return parser.get(section, key, fallback=None)


def ini_set(text: str, section: str, key: str, value: str | None) -> str:
    """The text with one value set, or taken away where value is None. Raises MergeError for what is no such file."""
    if ini_get(text, section, key) == value:
        return text
    end = "\r\n" if "\r\n" in text else "\n"
    lines, place, wanted = text.splitlines(), -1, [] if value is None else [f"{key} = {value}"]
    found: list[str] = []
    inside = dropping = done = False
    for line in lines:
        header, option = HEADER.match(line), OPTION.match(line)
        if header:
            inside = header.group("name") == section
        continued = line[:1].isspace() and line.strip()
        if dropping and continued:
            continue  # a further line of the old value
        dropping = bool(inside and option and option.group("name").strip().lower() == key)
        if dropping:
            if not done and wanted:
                found += wanted
                place = len(found)
                done = True
            continue
        found.append(line)
        if inside and line.strip() and not done:
            place = len(found)
    if wanted and not done and place >= 0:
        found[place:place] = wanted
    elif wanted and not done:
        found += [*([""] if found and found[-1].strip() else []), f"[{section}]", *wanted]
    return end.join(found) + end if found else ""


def json_read(text: str) -> dict[str, Any]:
    """The object that a text is; an empty text is an empty one."""
    try:
        found = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise MergeError(f"it is no valid JSON ({error}); repair it") from error
    if not isinstance(found, dict):
        raise MergeError("it is no JSON object; repair it")
    return found


def json_get(text: str, path: Sequence[str]) -> Any:
    """The value at a path of keys, None when there is none."""
    found: Any = json_read(text)
    for key in path:
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


def json_set(text: str, path: Sequence[str], value: Any) -> str:
    """The text with one value set, or taken away where value is None; with the order and the indentation that it has."""
    if json_get(text, path) == value:
        return text
    whole = json_read(text)
    found = whole
    for key in path[:-1]:
        inner = found.setdefault(key, {})
        if not isinstance(inner, dict):
            raise MergeError(f"{key} is no object; repair it")
        found = inner
    if value is None:
        found.pop(path[-1], None)
    else:
        found[path[-1]] = value
    indent = INDENT.search(text)
    space: str | int = indent.group("space") if indent else 2
    return json.dumps(whole, indent=space, ensure_ascii=False) + "\n"


def hosts_set(text: str, name: str, addresses: Sequence[str]) -> str:
    """The text of hosts(5) in which name has these addresses, in this order, and no others."""
    kept, have = [], []
    for line in text.splitlines(keepends=True):
        words = line.partition("#")[0].split()
        if len(words) == 2 and words[1] == name:
            have.append(words[0])
        else:
            kept.append(line if line.endswith("\n") else line + "\n")
    if have == list(addresses):
        return text
    return "".join([*kept, *(f"{address} {name}\n" for address in addresses)])
