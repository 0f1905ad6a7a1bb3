# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Planner and maker of an authority's keys: a root, an intermediate and a provisioner, born on the host."""

from __future__ import annotations

import base64
import grp
import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import files
from ansible_collections.moat.inference.plugins.module_utils.run import Runner

ROOT_HOURS = "87600h"
INTERMEDIATE_HOURS = "43800h"
PUBLIC = ("root_ca.crt", "intermediate_ca.crt")
# what the service reads, and what root alone reads
SERVICE_FILES = (*PUBLIC, "intermediate_ca_key", "intermediate_password", "pki.json")
PROVISIONER_FILES = ("provisioner/public.json", "provisioner/private.json", "provisioner/password")
ROOT_FILES = ("root/root_ca_key", "root/password")
MARKER = "root-exported.json"
NEW = ".new"
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")


@dataclass(frozen=True)
class State:
    """What is in the authority's directory."""

    present: bool
    missing: tuple[str, ...] = ()
    root_key: bool = False
    marker: Mapping[str, str] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    root_certificate: str = ""
    used: bool = False


@dataclass
class Plan:
    """What a call has to do."""

    create: bool = False
    finish_removal: bool = False
    faults: list[str] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)


def fingerprint(pem: str) -> str:
    """Return the SHA-256 of a certificate's DER in hexadecimal, as step and openssl print it; raise ValueError."""
    match = CERTIFICATE.search(pem)
    if match is None:
        raise ValueError("there is no certificate in PEM")
    return hashlib.sha256(base64.b64decode("".join(match.group(1).split()), validate=True)).hexdigest()


def read(path: str) -> str:
    """Return the text of a file."""
    with open(path, encoding="utf-8") as handle:
        return handle.read()


def inspect(directory: str) -> State:
    """Read the state of an authority's directory; raise ValueError for files that cannot be understood."""
    pki = os.path.join(directory, "pki")
    database = os.path.join(directory, "db")
    used = os.path.isdir(database) and bool(os.listdir(database))
    if not os.path.isdir(pki):
        return State(present=False, used=used)
    needed = SERVICE_FILES + PROVISIONER_FILES
    missing = tuple(name for name in needed if not os.path.isfile(os.path.join(pki, name)))
    keys = [os.path.exists(os.path.join(pki, name)) for name in ROOT_FILES]
    marker_path = os.path.join(pki, MARKER)
    return State(
        present=True,
        missing=missing,
        root_key=any(keys),
        marker=json.loads(read(marker_path)) if os.path.isfile(marker_path) else None,
        settings=json.loads(read(os.path.join(pki, "pki.json"))) if "pki.json" not in missing else {},
        root_certificate=read(os.path.join(pki, "root_ca.crt")) if "root_ca.crt" not in missing else "",
        used=used,
    )


def plan(state: State, trust_domain: str, known_root: str, replace_root: bool) -> Plan:
    """Return what to do, with every reason not to do it. known_root is the root that the other hosts trust already."""
    result = Plan()
    remedy = "restore the authority with the playbook ca_restore"
    if state.missing:
        result.faults.append("the authority is incomplete, it lacks {}; {}".format(", ".join(state.missing), remedy))
        return result
    if not state.present:
        if state.used:
            result.faults.append(f"the authority has a database but no keys; {remedy}, or remove the database")
        if known_root and not replace_root:
            result.faults.append(
                "ca_state_dir: it holds the root of an authority that this host does not have; "
                f"{remedy}, or set ca_replace_root to true to begin a new one (every certificate is then issued again)"
            )
        result.create = True
        result.reason.append("there is no authority yet")
        return result
    kept = state.settings.get("trust_domain")
    if kept != trust_domain:
        result.faults.append(
            f"ca_trust_domain: the intermediate certificate permits names of {kept!r} only, not of {trust_domain!r}; "
            "keep the domain, or begin a new authority on a host without one"
        )
    if known_root and not replace_root and fingerprint(known_root) != fingerprint(state.root_certificate):
        result.faults.append(
            "ca_state_dir: the root that it holds is not this host's; "
            f"{remedy}, or set ca_replace_root to true so that the host's root takes its place"
        )
    if state.root_key and state.marker and state.marker.get("fingerprint") == fingerprint(state.root_certificate):
        result.finish_removal = True
        result.reason.append("the root key was exported and verified, and is still here")
    return result


def root_template() -> str:
    """Template of step for the root certificate."""
    return json.dumps(
        {
            "subject": "@SUBJECT@",
            "issuer": "@SUBJECT@",
            "keyUsage": ["certSign", "crlSign"],
            "basicConstraints": {"isCA": True, "maxPathLen": 1},
        }
    ).replace('"@SUBJECT@"', "{{ toJson .Subject }}")


def intermediate_template(trust_domain: str) -> str:
    """Template of step for the intermediate: whatever happens to its key, it vouches for no name outside the domain."""
    return json.dumps(
        {
            "subject": "@SUBJECT@",
            "keyUsage": ["certSign", "crlSign"],
            "basicConstraints": {"isCA": True, "maxPathLen": 0},
            "nameConstraints": {
                "critical": True,
                "permittedDNSDomains": [trust_domain],
                "permittedURIDomains": [trust_domain],
            },
        }
    ).replace('"@SUBJECT@"', "{{ toJson .Subject }}")


def password() -> str:
    """Return 256 random bits as text."""
    return secrets.token_urlsafe(32) + "\n"


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def make(runner: Runner, step: str, directory: str, name: str, trust_domain: str, owner: tuple[str, str]) -> None:
    """Make all keys in a new directory and put it in place in one step, so that a killed run leaves nothing half."""
    new = os.path.join(directory, NEW)
    shutil.rmtree(new, ignore_errors=True)
    for path in (new, os.path.join(new, "root"), os.path.join(new, "provisioner")):
        os.mkdir(path, 0o700)
    at = {key: os.path.join(new, key) for key in SERVICE_FILES + PROVISIONER_FILES + ROOT_FILES}
    for key in ("root/password", "intermediate_password", "provisioner/password"):
        _write(at[key], password())
    templates = {"root": root_template(), "intermediate": intermediate_template(trust_domain)}
    for key, text in templates.items():
        _write(os.path.join(new, key + ".tpl"), text)
    create = [step, "certificate", "create", "--kty", "EC", "--curve", "P-256"]
    lifetime = ["--not-after", ROOT_HOURS]
    secret = ["--password-file", at["root/password"]]
    result = ["--", f"{name} Root CA", at["root_ca.crt"], at["root/root_ca_key"]]
    runner.run([*create, "--template", os.path.join(new, "root.tpl"), *lifetime, *secret, *result])
    lifetime = ["--not-after", INTERMEDIATE_HOURS]
    secret = ["--password-file", at["intermediate_password"]]
    issuer = ["--ca", at["root_ca.crt"], "--ca-key", at["root/root_ca_key"], "--ca-password-file", at["root/password"]]
    result = ["--", f"{name} Intermediate CA", at["intermediate_ca.crt"], at["intermediate_ca_key"]]
    runner.run([*create, "--template", os.path.join(new, "intermediate.tpl"), *lifetime, *issuer, *secret, *result])
    secret = ["--password-file", at["provisioner/password"]]
    result = ["--", at["provisioner/public.json"], at["provisioner/private.json"]]
    runner.run([step, "crypto", "jwk", "create", "--kty", "EC", "--curve", "P-256", "--use", "sig", *secret, *result])
    runner.run(["openssl", "verify", "-CAfile", at["root_ca.crt"], at["intermediate_ca.crt"]])
    _write(at["pki.json"], json.dumps({"name": name, "trust_domain": trust_domain}) + "\n")
    for key in templates:
        os.unlink(os.path.join(new, key + ".tpl"))
    for path, state in attributes(new, owner):
        files.set_attributes(path, state)
    files.sync_directory(new)
    os.rename(new, os.path.join(directory, "pki"))
    files.sync_directory(directory)


def attributes(pki: str, owner: tuple[str, str]) -> list[tuple[str, files.FileState]]:
    """Return mode and owner of every path of the keys; what the service does not need belongs to root."""
    wanted = [(pki, files.FileState("directory", None, 0o700, *owner))]
    for name in SERVICE_FILES:
        wanted.append((os.path.join(pki, name), files.FileState("file", None, 0o600, *owner)))
    for name in ("root", "provisioner"):
        wanted.append((os.path.join(pki, name), files.FileState("directory", None, 0o700, "root", "root")))
    for name in (*PROVISIONER_FILES, *ROOT_FILES, MARKER):
        wanted.append((os.path.join(pki, name), files.FileState("file", None, 0o600, "root", "root")))
    return [(path, state) for path, state in wanted if os.path.lexists(path)]


def database_attributes(directory: str, owner: tuple[str, str]) -> list[tuple[str, files.FileState]]:
    """Return mode and owner of the database's files."""
    database = os.path.join(directory, "db")
    if not os.path.isdir(database):
        return []
    wanted = [(database, files.FileState("directory", None, 0o700, *owner))]
    for name in sorted(os.listdir(database)):
        # badger makes its files as it likes below the closed directory; only the owner matters
        wanted.append((os.path.join(database, name), files.FileState("file", None, None, *owner)))
    return wanted


def drifted(wanted: list[tuple[str, files.FileState]]) -> list[tuple[str, files.FileState, files.FileState]]:
    """Return path, present and wanted state of what has another mode or owner."""
    changes = []
    for path, state in wanted:
        try:
            present = attributes_of(path)
        except FileNotFoundError:
            # the running database removes files of its own
            continue
        mode = state.mode if state.mode is not None else present.mode
        after = files.FileState(present.kind, None, mode, state.owner, state.group)
        if present != after:
            changes.append((path, present, after))
    return changes


def attributes_of(path: str) -> files.FileState:
    """Return the state of path without its content, for a database file may be large."""
    info = os.lstat(path)
    try:
        owner, group = pwd.getpwuid(info.st_uid).pw_name, grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        owner, group = str(info.st_uid), str(info.st_gid)
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory"}
    return files.FileState(
        kinds.get(stat.S_IFMT(info.st_mode), "other"), None, stat.S_IMODE(info.st_mode), owner, group
    )


def shred(path: str) -> None:
    """Overwrite and remove a file. On a journaling or copying file system older blocks may remain."""
    try:
        with open(path, "r+b") as handle:
            handle.write(secrets.token_bytes(os.fstat(handle.fileno()).st_size))
            handle.flush()
            os.fsync(handle.fileno())
        os.unlink(path)
    except FileNotFoundError:
        return
    files.sync_directory(os.path.dirname(path))


def remove_root_key(pki: str) -> None:
    """Remove the root key and its password."""
    for name in ROOT_FILES:
        if os.path.lexists(os.path.join(pki, name)):
            shred(os.path.join(pki, name))


def public_key(pki: str) -> dict[str, Any]:
    """Return the public half of the provisioner."""
    key: dict[str, Any] = json.loads(read(os.path.join(pki, "provisioner/public.json")))
    if "d" in key:
        raise ValueError("provisioner/public.json holds a private key")
    return key
