# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Faults of an intent: all are collected, each with its key path, its value and what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SHOWN_CHARACTERS = 80
SUGGESTIONS = 8

SECRET_KEY = re.compile(r"(^|_)(password|passwd|passphrase|token|secret|private_key|psk|preshared_key|api_key)$")
PEM_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
# Tokens by the beginning that their makers gave them, and a password within a URL.
TOKEN = re.compile(r"\b(hf_|ghp_|github_pat_|glpat-|sk-|xox[bp]-)[A-Za-z0-9_-]{20,}|://[^/\s:@]*:[^/\s@]+@")
# 32 bytes in base64, as WireGuard writes keys (wg(8)); the last character before "=" carries four bits only.
WIREGUARD_KEY = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=(?![A-Za-z0-9+/=])")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with the intent or the inventory."""

    path: str
    value: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        shown = f"{self.value} " if self.value else ""
        return f"{self.path}: {shown}{self.problem}; {self.remedy}"


class IntentError(Exception):
    """The intent is refused; `faults` holds every reason."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__(self.message())

    def message(self) -> str:
        count = len(self.faults)
        lines = [f"The perimeter is refused: {count} fault{'' if count == 1 else 's'}. No host was touched."]
        lines += [f"  {number}. {fault}" for number, fault in enumerate(self.faults, 1)]
        return "\n".join(lines)


class Faults:
    """Collects faults, so that one run names them all."""

    def __init__(self) -> None:
        self._faults: dict[Fault, None] = {}
        self._secret_paths: set[str] = set()

    def add(self, path: str, value: Any, problem: str, remedy: str) -> None:
        self._faults[Fault(path, show(value), problem, remedy)] = None

    def add_secret(self, path: str) -> None:
        self._secret_paths.add(path)
        remedy = "remove it: every key and password is born on the host that uses it"
        self._faults[Fault(path, "(hidden)", "is a secret written in clear", remedy)] = None

    def is_secret(self, path: str) -> bool:
        return path in self._secret_paths

    def has(self, path: str) -> bool:
        return any(fault.path == path for fault in self._faults)

    def __len__(self) -> int:
        return len(self._faults)

    def __iter__(self) -> Iterable[Fault]:
        return iter(self._faults)

    def stop(self) -> None:
        """Raise when anything was found."""
        if self._faults:
            raise IntentError(self._faults)


class Absent:
    """Stands for a value that is not there, where None could have been written."""


def kind(value: Any) -> str:
    """The type of a value, in the words of YAML."""
    for types, word in (
        (bool, "a boolean"),
        (dict, "a map"),
        ((list, tuple), "a list"),
        (str, "a string"),
        (int, "an integer"),
        (float, "a number"),
    ):
        if isinstance(value, types):
            return word
    return "nothing" if value is None else f"a {type(value).__name__}"


def show(value: Any) -> str:
    """A value as the operator wrote it, short, and never a secret."""
    if value is Absent:
        return ""
    if isinstance(value, (dict, list, tuple)):
        return kind(value)
    text = (
        repr(value)
        if isinstance(value, str)
        else "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
    if isinstance(value, str) and looks_secret(value):
        return "(hidden)"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def looks_secret(text: str) -> bool:
    return bool(PEM_BLOCK.search(text) or WIREGUARD_KEY.search(text) or TOKEN.search(text) or hands_secret(text))


def names_secret(name: str) -> bool:
    return bool(SECRET_KEY.search(name.lower().replace("-", "_")))


def hands_secret(text: str) -> bool:
    """Whether a word of a command line hands a secret over: --api-key=..., or --api-key before the word that does."""
    return text.startswith("--") and names_secret(text.partition("=")[0])


def suggest(value: Any, known: Iterable[str]) -> str:
    """What to write instead of an unknown name: the nearest known one, or the list of them."""
    names = sorted(known)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.6)
    if close:
        return f"write {close[0]!r}"
    if not names:
        return "none is declared yet: declare it first"
    more = ", ..." if len(names) > SUGGESTIONS else ""
    return f"write one of: {', '.join(names[:SUGGESTIONS])}{more}"


def find_secrets(value: Any, path: str, faults: Faults) -> None:
    """Walk the whole value; name every secret written in clear, without showing it."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{path}.{key}"
            # A map below such a key is no secret: a client may well be called "token".
            if isinstance(key, str) and names_secret(key) and item not in (None, "", []) and not isinstance(item, dict):
                faults.add_secret(here)
            else:
                find_secrets(item, here, faults)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            find_secrets(item, f"{path}[{index}]", faults)
    elif isinstance(value, str) and looks_secret(value):
        faults.add_secret(path)
