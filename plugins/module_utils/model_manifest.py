# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Manifest of a model's weights: record it, check it, and start an engine only on weights that match it.

The role installs this very file on the host as the launcher of the model's unit, so it uses the standard library alone.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

HEADER = "# moat model manifest 1: SHA-256, size in bytes, path"
# sysexits.h: the unit's RestartPreventExitStatus names it, for no restart mends wrong weights
EX_CONFIG = 78
# no pickle (.bin, .pt, .pth, .pkl) and no Python: loading these runs code of whoever wrote them
ALLOWED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.tiktoken",
    "*.txt",
    "*.md",
    "tokenizer.model*",
    "LICENSE*",
    "NOTICE*",
)
OURS = re.compile(r"^([0-9a-f]{64}) (\d+|-) (\S.*)$")
SHA256SUM = re.compile(r"^([0-9a-f]{64}) [ *](?:\./)?(\S.*)$")
INFORMATION = re.compile(r"^(GPU UUID|Device Minor):\s*(\S+)\s*$", re.MULTILINE)
BLOCK = 1 << 20


class ManifestError(Exception):
    """Weights or manifest cannot be accepted; faults says all that is wrong."""

    what = "weights"

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(self.faults))


class GpuError(ManifestError):
    """The GPUs are not those that the unit was made for."""

    what = "GPUs"


@dataclass(frozen=True)
class Entry:
    """One file; size is None when the manifest came without sizes."""

    sha256: str
    size: int | None


def parse(text: str) -> dict[str, Entry]:
    """Parse our own format, or the output of sha256sum(1)."""
    entries: dict[str, Entry] = {}
    faults = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        ours, plain = OURS.match(line), SHA256SUM.match(line)
        if ours:
            path = ours.group(3)
            entry = Entry(ours.group(1), None if ours.group(2) == "-" else int(ours.group(2)))
        elif plain:
            path, entry = plain.group(2), Entry(plain.group(1), None)
        else:
            faults.append(f"line {number} is neither 'SHA-256 size path' nor output of sha256sum")
            continue
        if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
            faults.append(f"line {number}: {path} does not lie below the model's directory")
        elif path in entries:
            faults.append(f"line {number}: {path} is there twice")
        else:
            entries[path] = entry
    if not entries and not faults:
        faults.append("the manifest names no file")
    if faults:
        raise ManifestError(faults)
    return entries


def render(entries: Mapping[str, Entry]) -> str:
    """Return the canonical text, sorted by path."""
    lines = [
        "{} {} {}".format(entry.sha256, "-" if entry.size is None else entry.size, path)
        for path, entry in sorted(entries.items())
    ]
    return "\n".join([HEADER, *lines]) + "\n"


def digest(text: str) -> str:
    """Return the SHA-256 of a manifest's text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def attribute_faults(path: str, info: os.stat_result, owner: int) -> list[str]:
    """Say why somebody but root could change path."""
    faults = []
    if info.st_uid != owner:
        faults.append(f"{path} belongs to uid {info.st_uid}; chown root it")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(info.st_mode):
        faults.append(f"{path} is writable by group or others; chmod go-w it")
    return faults


def scan(source: str, owner: int = 0) -> dict[str, int]:
    """Return the size of every file below source; raise ManifestError for all that has no business there."""
    root = os.path.realpath(source)
    if not os.path.isdir(root):
        raise ManifestError([f"{source} is no directory; put the weights there"])
    faults: list[str] = []
    sizes: dict[str, int] = {}
    parent = root
    while True:
        faults += attribute_faults(parent, os.stat(parent), owner)
        if parent == os.path.dirname(parent):
            break
        parent = os.path.dirname(parent)

    def unreadable(error: OSError) -> None:
        faults.append(f"{error.filename} cannot be read: {error.strerror}")

    for folder, folders, names in os.walk(root, onerror=unreadable):
        for name in sorted(folders + names):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            shown = os.path.relpath(path, root)
            if stat.S_ISLNK(info.st_mode):
                faults.append(f"{path} is a symbolic link; put the file itself there")
                continue
            faults += attribute_faults(path, info, owner)
            if stat.S_ISDIR(info.st_mode):
                continue
            if not stat.S_ISREG(info.st_mode):
                faults.append(f"{path} is no regular file; remove it")
            elif not any(fnmatch.fnmatchcase(name, pattern) for pattern in ALLOWED):
                faults.append(f"{path} is of no known harmless kind (safetensors, JSON, tokenizer); remove it")
            elif "\n" in shown:
                faults.append(f"{path!r} has a line break in its name; rename it")
            else:
                sizes[shown] = info.st_size
    if not faults and not any(name.endswith(".safetensors") for name in sizes):
        faults.append(f"{source} has no *.safetensors file; put the weights there")
    if faults:
        raise ManifestError(faults)
    return sizes


def compare(source: str, sizes: Mapping[str, int], entries: Mapping[str, Entry]) -> list[str]:
    """Say what differs between the files that are there and the manifest, contents apart."""
    faults = [f"{os.path.join(source, path)} is missing; restore it" for path in sorted(set(entries) - set(sizes))]
    for path in sorted(sizes):
        shown = os.path.join(source, path)
        if path not in entries:
            faults.append(f"{shown} is not in the manifest; remove it")
        elif entries[path].size not in (None, sizes[path]):
            faults.append(f"{shown} has {sizes[path]} bytes instead of {entries[path].size}; restore it")
    return faults


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's content."""
    state = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb", buffering=0) as handle:
        while True:
            block = handle.read(BLOCK)
            if not block:
                return state.hexdigest()
            state.update(block)


def hash_all(source: str, paths: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each path below source; hashlib lets go of the interpreter, so threads help."""
    root = os.path.realpath(source)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(hash_file, [os.path.join(root, path) for path in paths])))


def record(source: str, owner: int = 0) -> dict[str, Entry]:
    """Return the manifest of what is there."""
    sizes = scan(source, owner)
    sums = hash_all(source, sorted(sizes))
    return {path: Entry(sums[path], sizes[path]) for path in sizes}


def verify(source: str, entries: Mapping[str, Entry], full: bool = True, owner: int = 0) -> None:
    """Raise ManifestError unless source is exactly what the manifest says; full reads every content."""
    sizes = scan(source, owner)
    faults = compare(source, sizes, entries)
    if not faults and full:
        sums = hash_all(source, sorted(entries))
        faults = [
            f"{os.path.join(source, path)} has another content than the manifest says; restore it"
            for path in sorted(entries)
            if sums[path] != entries[path].sha256
        ]
    if faults:
        raise ManifestError(faults)


def remove_socket(path: str) -> None:
    """Remove the socket that a killed engine left, for the engine cannot bind where one is."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        return


def gpu_minors(directory: str) -> dict[str, int]:
    """Return UUID -> minor number of the GPUs below /proc/driver/nvidia/gpus (NVIDIA driver README, The /proc Interface)."""
    found = {}
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        with open(os.path.join(directory, name, "information"), encoding="utf-8") as handle:
            fields = dict(INFORMATION.findall(handle.read()))
        found[fields.get("GPU UUID", "")] = int(fields.get("Device Minor", "-1"))
    return found


def gpu_faults(wanted: Mapping[str, int], present: Mapping[str, int]) -> list[str]:
    """Say why the nodes that the unit has are not those of the GPUs that the model was given."""
    faults = []
    for uuid, minor in wanted.items():
        if uuid not in present:
            shown = ", ".join(sorted(present)) or "none"
            faults.append(
                f"GPU {uuid} is not there (the driver shows {shown}); bring it back, or give the model another"
            )
        elif present[uuid] != minor:
            faults.append(f"GPU {uuid} is /dev/nvidia{present[uuid]} now and not /dev/nvidia{minor}; run the play")
    return faults


def launch(settings: Mapping[str, Any], owner: int = 0) -> None:
    """Verify the GPUs and the weights, then become the engine. Returns only by an exception."""
    with open(settings["manifest"], encoding="utf-8") as handle:
        text = handle.read()
    gpus = settings.get("gpus")
    faults = gpu_faults(gpus["minors"], gpu_minors(gpus["information"])) if gpus else []
    if faults:
        raise GpuError(faults)
    if digest(text) != settings["manifest_sha256"]:
        raise ManifestError(["{} is not the manifest that was deployed; run the play".format(settings["manifest"])])
    verify(settings["source"], parse(text), owner=owner)
    remove_socket(settings["socket"])
    environment = {**os.environ, **settings["environment"]}
    os.execve(settings["command"][0], list(settings["command"]), environment)  # the unit's own process from here on


def main(arguments: Sequence[str]) -> int:
    """Run as the launcher: the one argument is the JSON file with the settings."""
    try:
        with open(arguments[0], encoding="utf-8") as handle:
            settings = json.load(handle)
        launch(settings)
    except ManifestError as error:
        for fault in error.faults:
            sys.stderr.write(f"{error.what} refused: {fault}\n")
    except (OSError, ValueError, LookupError, TypeError) as error:
        sys.stderr.write(f"cannot start: {error!r}\n")
    return EX_CONFIG


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
