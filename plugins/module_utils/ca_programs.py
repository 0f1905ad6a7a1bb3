# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find, judge and unpack the programs step-ca and step."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import tarfile
from collections.abc import Mapping
from typing import IO

from ansible_collections.moat.inference.plugins.module_utils.run import Runner

# program -> repository of its releases, which is its Go module too
PROGRAMS = {"step-ca": "certificates", "step": "cli"}
UNNAMED = "0000000-dev"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def parse_version(text: str) -> str:
    """Return the version of what `step version` prints: Smallstep CLI/0.30.2 (linux/amd64)."""
    match = re.search(r"Smallstep C[A-Z]+/(\S+)", text)
    return match.group(1) if match else ""


def module_version(program: str, path: str) -> str:
    """Return the Go module's version that the build left in a binary; a build from source knows no other."""
    pattern = re.compile(rb"mod\tgithub\.com/smallstep/" + PROGRAMS[program].encode() + rb"\tv([0-9][0-9A-Za-z.+-]*)\t")
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as image:
        match = pattern.search(image)
        return match.group(1).decode() if match else ""


def version_of(runner: Runner, program: str, path: str) -> str:
    """Return the version of a program; empty when it is not there or does not run."""
    if not os.path.isfile(path):
        return ""
    result = runner.run([path, "version"], ok=range(256))
    version = parse_version(result.stdout) if result.rc == 0 else ""
    return module_version(program, path) if version == UNNAMED else version


def archive_name(program: str, version: str, architecture: str) -> str:
    """Return the name of a release's archive."""
    return f"{program}_linux_{version}_{architecture}.tar.gz"


def archive_url(base: str, program: str, version: str, architecture: str) -> str:
    """Return the address of a release's archive."""
    name = archive_name(program, version, architecture)
    return "{}/{}/releases/download/v{}/{}".format(base.rstrip("/"), PROGRAMS[program], version, name)


def missing_checksums(checksums: Mapping[str, str], version: str, architecture: str) -> list[str]:
    """Return a fault for each archive whose SHA-256 is not given."""
    return [
        f"ca_checksums: there is no SHA-256 of {name}; take it from the release's checksums.txt and add it"
        for name in (archive_name(program, version, architecture) for program in PROGRAMS)
        if not re.fullmatch(r"[0-9a-f]{64}", checksums.get(name, ""))
    ]


def unpack(archive: IO[bytes], program: str, target: str) -> None:
    """Write the program of a release's archive to target; raise ValueError when it is not in there."""
    with tarfile.open(fileobj=archive, mode="r:gz") as members:
        for member in members:
            if member.isfile() and os.path.basename(member.name) == program:
                source = members.extractfile(member)
                if source is not None:
                    with open(target, "wb") as handle:
                        while block := source.read(1 << 20):
                            handle.write(block)
                    return
    raise ValueError(f"the archive holds no {program}")


def sha256_of(handle: IO[bytes]) -> str:
    """Return the SHA-256 of a file from its beginning, and go back there."""
    digest = hashlib.sha256()
    handle.seek(0)
    while block := handle.read(1 << 20):
        digest.update(block)
    handle.seek(0)
    return digest.hexdigest()
