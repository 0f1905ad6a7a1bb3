# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The archive of an authority, and what is encrypted to its operator."""

from __future__ import annotations

import base64
import io
import os
import tarfile
import tempfile
from collections.abc import Sequence

from ansible_collections.moat.inference.plugins.module_utils import ca_pki
from ansible_collections.moat.inference.plugins.module_utils.run import Runner

PARTS = ("config", "db", "pki")


def pack(directory: str) -> str:
    """Return keys, configuration and database of an authority as base64 of a compressed tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=5) as archive:
        for part in PARTS:
            if os.path.isdir(os.path.join(directory, part)):
                archive.add(os.path.join(directory, part), arcname=part)
    return base64.encodebytes(buffer.getvalue()).decode("ascii")


def load(text: str) -> bytes:
    """Return the archive in a backup's text; raise ValueError when it is none."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise ValueError("it is no backup of an authority: no base64") from error


def member_faults(members: Sequence[tarfile.TarInfo]) -> list[str]:
    """Return what must not be in an archive, and what it lacks."""
    faults = []
    for member in members:
        words = member.name.split("/")
        if words[0] not in PARTS or ".." in words or "" in words or member.name.startswith("/"):
            faults.append(f"{member.name!r} lies outside {', '.join(PARTS)}")
        elif not (member.isfile() or member.isdir()):
            faults.append(f"{member.name!r} is neither a file nor a directory")
    names = {member.name for member in members if member.isfile()}
    needed = [f"pki/{name}" for name in ca_pki.SERVICE_FILES + ca_pki.PROVISIONER_FILES]
    faults += [f"it lacks {name}" for name in needed if name not in names]
    return faults


def extract(archive: bytes, target: str) -> None:
    """Write an archive below a new directory, everything closed to others; raise ValueError for one that is no backup."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            members = tar.getmembers()
            faults = member_faults(members)
            if faults:
                raise ValueError("it is no backup of an authority: " + "; ".join(faults))
            os.mkdir(target, 0o700)
            for member in members:
                path = os.path.join(target, member.name)
                os.makedirs(path if member.isdir() else os.path.dirname(path), mode=0o700, exist_ok=True)
                source = tar.extractfile(member) if member.isfile() else None
                if source is not None:
                    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with os.fdopen(descriptor, "wb") as handle:
                        while block := source.read(1 << 20):
                            handle.write(block)
                        handle.flush()
                        os.fsync(handle.fileno())
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"it is no backup of an authority: {error}") from error


def encrypt(runner: Runner, recipient: str, text: str) -> str:
    """Return text encrypted to the holder of a certificate (CMS, PEM); neither text nor key touches a disk."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem", encoding="utf-8") as handle:
        handle.write(recipient)
        handle.flush()
        command = ["openssl", "cms", "-encrypt", "-binary", "-aes-256-gcm", "-outform", "PEM", "-recip", handle.name]
        message: str = runner.run(command, stdin=text).stdout
        return message


def recipient_fault(runner: Runner, recipient: str) -> str:
    """Return why a certificate cannot be encrypted to, empty when it can."""
    try:
        ca_pki.fingerprint(recipient)
    except ValueError as error:
        return str(error)
    if "PRIVATE KEY" in recipient:
        return "it holds a private key; give the certificate alone"
    result = runner.run(["openssl", "x509", "-noout"], stdin=recipient, ok=range(256))
    return (
        ""
        if result.rc == 0
        else result.stderr.strip().splitlines()[0]
        if result.stderr.strip()
        else "it is no certificate"
    )
