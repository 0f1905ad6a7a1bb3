"""The controller's side: keys, SSH over the administration's wire, playbooks."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.backend import File
from tests.lab.collection import plain, tool
from tests.lab.shell import LAB, ROOT, LabError, capture, write
from tests.vm import machine
from tests.vm.wires import ROOM, inside

FOLDER = LAB / "vm"
HERE = Path(__file__).resolve().parent
LOG = FOLDER / "playbook.log"
REACH = HERE / "reach.py"


@dataclass(frozen=True)
class Said:
    """How a command on the machine ended."""

    rc: int
    out: str
    err: str


def keys() -> tuple[File, ...]:
    """Key pairs of controller and machine, made anew; the files that the machine's disk gets."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ("controller", "machine"):
        for path in FOLDER.glob(f"{name}*"):
            path.unlink()
        capture(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"moat-vm {name}", "-f", str(FOLDER / name)])
    public = (FOLDER / "machine.pub").read_text(encoding="utf-8").split()
    write(FOLDER / "known_hosts", f"{machine.NAME} {public[0]} {public[1]}\n")
    through = shlex.join(inside(ROOM, sys.executable, str(REACH)))
    lines = [
        f"Host {machine.NAME}",
        f"  HostName {machine.ADMIN4}",
        f"  HostKeyAlias {machine.NAME}",
        "  User root",
        f'  IdentityFile "{FOLDER / "controller"}"',
        "  IdentitiesOnly yes",
        f'  UserKnownHostsFile "{FOLDER / "known_hosts"}"',
        "  StrictHostKeyChecking yes",
        "  LogLevel ERROR",
        f"  ProxyCommand {through} %h %p 3",
        "  ProxyUseFdpass yes",
    ]
    write(FOLDER / "ssh_config", "\n".join(lines) + "\n")
    write(
        FOLDER / "inventory.yml",
        json.dumps(
            {
                "all": {
                    "hosts": {machine.NAME: None},
                    "vars": {
                        "ansible_python_interpreter": "/usr/bin/python3",
                        "ansible_ssh_common_args": f"-F '{FOLDER / 'ssh_config'}'",
                    },
                }
            }
        ),
    )
    return (
        *(File(path, text.encode()) for path, text in machine.files().items()),
        File("/root/.ssh/authorized_keys", (FOLDER / "controller.pub").read_bytes(), 0o600),
        File("/etc/ssh/ssh_host_ed25519_key", (FOLDER / "machine").read_bytes(), 0o600),
        File("/etc/ssh/ssh_host_ed25519_key.pub", (FOLDER / "machine.pub").read_bytes()),
    )


def ssh() -> list[str]:
    """The command line that runs what comes on its standard input on the machine."""
    fixed = ["-F", str(FOLDER / "ssh_config"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    # a connection that is older than the table is known to it once the client has said something
    fixed += ["-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=10"]
    return ["ssh", *fixed, machine.NAME, "sh -s"]


def on(script: str, *, timeout: float = 60) -> Said:
    """Run a script on the machine over a connection of its own."""
    try:
        done = subprocess.run(ssh(), input=script, capture_output=True, check=False, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Said(124, "", f"no end within {timeout:.0f} s")
    return Said(done.returncode, done.stdout, done.stderr)


def must(script: str, *, timeout: float = 60) -> str:
    """The same for what may not fail."""
    said = on(script, timeout=timeout)
    if said.rc:
        raise LabError(f"on {machine.NAME}: {script.strip()[:200]}: failed with {said.rc}: {said.err.strip()[-1000:]}")
    return said.out


def command(policy: dict[str, Any], *arguments: str) -> list[str]:
    """ansible-playbook with the role and a policy."""
    where = ["-i", str(FOLDER / "inventory.yml"), str(HERE / "firewall.yml")]
    return tool("ansible-playbook", *where, "-e", json.dumps(policy), *arguments)


def begin(policy: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own."""
    argv = command(policy)
    with LOG.open("wb") as log:
        return subprocess.Popen(
            argv,
            env=plain(),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def converge(policy: dict[str, Any], *arguments: str) -> str:
    """Run the role to its end; what the run said."""
    argv = command(policy, *arguments)
    done = subprocess.run(argv, env=plain(), cwd=ROOT, check=False, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise LabError(f"the role failed with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout
