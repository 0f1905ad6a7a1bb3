"""A host that a test makes for itself, of the lab's image, with no network but its own loopback; beside it, whatever serves files on that loopback.

It is reached over SSH as a real host is, by a tunnel of podman's, and is removed with everything that the test did to it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.lab import image
from tests.lab.backend import File
from tests.lab.collection import plain, tool
from tests.lab.podman import SCRATCH_PREFIX, Podman, podman, remove_stand, tar_of
from tests.lab.shell import CACHE, LAB, ROOT, LabError, capture, lock, remove_tree, succeeds
from tests.lab.site import Answer

CALLBACKS = ROOT / "tests" / "lab" / "callbacks"
# everything of a host but what changes by itself: the kernel's, what a boot brings, logs, and where Ansible works
LISTING = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/log -o -path /var/tmp \
  -o -path /root/.ansible -o -path /var/lib/systemd \) -prune -o -path '*/__pycache__*' -prune -o -path /root -o -printf '%p %y %m %U:%G %s %T@ %C@ %l\n' | sort
"""


class Ran:
    """How a playbook ended, what it said, and what it cost."""

    def __init__(self, rc: int, out: str, notes: list[dict[str, Any]]) -> None:
        self.rc, self.out = rc, out
        self.remote = sum(note["kind"] == "remote" for note in notes)
        self.tasks = Counter(note["task"] for note in notes if note["kind"] == "remote")

    def count(self, word: str) -> int:
        """A number of the recap."""
        return sum(int(number) for number in re.findall(rf"\b{word}=(\d+)", self.out))

    def good(self) -> Ran:
        assert self.rc == 0, self.out[-6000:]
        return self


@cache
def sweep() -> None:
    """Remove what a run left that was killed: its process is gone, and its containers bear that process's number."""
    listed = capture(podman("ps", "--all", "--format", "{{.Names}}", "--filter", f"name=^{SCRATCH_PREFIX}")).split()
    folders = [path.name for path in (LAB / "scratch").glob(f"{SCRATCH_PREFIX}*")]
    numbers = {name.removeprefix(SCRATCH_PREFIX).partition("-")[0] for name in (*listed, *folders)}
    for number in sorted(number for number in numbers if not Path("/proc", number).exists()):
        remove_stand(f"{SCRATCH_PREFIX}{number}-")
        for folder in (LAB / "scratch").glob(f"{SCRATCH_PREFIX}{number}-*"):
            remove_tree(folder)


class Container:
    """One container of the lab's image, removed by its id."""

    def __init__(self, name: str, *options: str, command: tuple[str, ...] = (), built: str = "") -> None:
        if not built:
            backend = Podman()
            with lock(CACHE / "lock"):
                backend.prepare({})
                built = image.ensure(backend)
        sweep()
        self.name = f"{SCRATCH_PREFIX}{os.getpid()}-{name}"
        arguments = [f"--name={self.name}", "--no-hosts", "--stop-timeout=10", *options]
        self.id = capture(podman("create", *arguments, built, *command)).strip()

    def put(self, *files: File) -> None:
        capture(podman("cp", "-", f"{self.id}:/"), data=tar_of(files))

    def start(self) -> None:
        capture(podman("start", self.id))

    def on(self, script: str, *, timeout: float = 120) -> Answer:
        """Run a shell script."""
        argv = podman("exec", self.id, "bash", "-c", script)
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout)
        return Answer(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def said(self, script: str, *, timeout: float = 120) -> str:
        """What a script says that must succeed."""
        answer = self.on(script, timeout=timeout)
        if answer.code:
            raise LabError(f"{self.name}: {script[:200]}: {answer.out[-3000:]}{answer.err[-3000:]}")
        return answer.out

    def remove(self) -> None:
        capture(podman("rm", "--force", "--ignore", "--time", "0", "--volumes", self.id))


class Scratch(Container):
    """A host with systemd and SSH. `beside` lends it the loopback on which something serves."""

    def __init__(self, name: str, *files: File, beside: Container | None = None, built: str = "") -> None:
        network = f"--network=container:{beside.id}" if beside else "--network=none"
        hostname = [] if beside else [f"--hostname={name}"]
        super().__init__(name, "--privileged", "--systemd=always", network, *hostname, built=built)
        self.folder = LAB / "scratch" / self.name
        remove_tree(self.folder)
        self.folder.mkdir(parents=True, mode=0o700)
        key = self.folder / "key"
        capture(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "moat-scratch", "-f", str(key)])
        self.put(File("/root/.ssh/authorized_keys", key.with_suffix(".pub").read_bytes(), 0o600), *files)
        self._inventory(key)
        self.start()
        deadline = time.monotonic() + 60
        while not succeeds(podman("exec", self.id, "systemctl", "is-active", "-q", "multi-user.target")):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} has not come up within 60 s")
            time.sleep(0.2)
        self.said("ssh-keygen -A && mkdir -p /run/sshd")

    def _inventory(self, key: Path) -> None:
        # a server for each connection: hosts beside the same container share its ports
        tunnel = shlex.join(podman("exec", "--interactive", self.id, "/usr/sbin/sshd", "-i", "-o", "LogLevel=ERROR"))
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentitiesOnly=yes"
        variables = {
            "ansible_host": self.name,
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_private_key_file": str(key),
            "ansible_ssh_common_args": f'{options} -o ProxyCommand="{tunnel}"',
        }
        text = yaml.safe_dump({"all": {"hosts": {"scratch": variables}}})
        (self.folder / "hosts.yml").write_text(text, encoding="utf-8")

    def remove(self) -> None:
        super().remove()
        remove_tree(self.folder)

    def listing(self) -> list[str]:
        """Every file with type, mode, owner, size, and the times of its last change: whoever writes a file anew changes it."""
        found = self.said(LISTING).splitlines()
        assert any(line.startswith("/etc/passwd f 644 0:0 ") for line in found)
        return found

    def role(self, name: str, *arguments: str, **inputs: Any) -> Ran:
        """Apply a role as a user would, by a playbook with nothing else in it."""
        task = {
            "name": "Apply the role",
            "ansible.builtin.import_role": {"name": f"moat.inference.{name}"},
            "vars": inputs,
        }
        return self.play([{"name": "Scratch", "hosts": "scratch", "gather_facts": False, "tasks": [task]}], *arguments)

    def play(self, plays: list[dict[str, Any]], *arguments: str) -> Ran:
        book, notes = self.folder / "play.yml", self.folder / "notes.jsonl"
        book.write_text(yaml.safe_dump(plays, sort_keys=False), encoding="utf-8")
        notes.write_text("", encoding="utf-8")
        settings = {
            **plain(),
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "moat_count",
            "MOAT_COUNT": str(notes),
        }
        argv = tool("ansible-playbook", "-i", str(self.folder / "hosts.yml"), str(book), *arguments)
        done = subprocess.run(
            argv,
            env=settings,
            cwd=ROOT,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )
        noted = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
        return Ran(done.returncode, done.stdout + done.stderr, noted)
