"""Run the site playbook with another intent or inventory, to its end or to a sudden one."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.lab.collection import plain, tool
from tests.lab.shell import ROOT

LAB = ROOT / "inventories" / "lab"
INTENT: dict[str, Any] = yaml.safe_load((LAB / "group_vars" / "all.yml").read_text(encoding="utf-8"))["moat_perimeter"]


@dataclass(frozen=True)
class Run:
    """How a playbook ended."""

    rc: int
    out: str

    def counts(self, word: str) -> dict[str, int]:
        """changed, unreachable, failed ... of each host, from the recap."""
        found = re.findall(rf"^(\S+)\s+: ok=\d+.*?\b{word}=(\d+)", self.out, re.MULTILINE)
        return {host: int(number) for host, number in found}


def changed_intent(**parts: Any) -> dict[str, Any]:
    """The lab's intent with some values put in: a key is a path, its parts joined by two underscores."""
    intent = copy.deepcopy(INTENT)
    for path, value in parts.items():
        place: Any = intent
        *way, last = path.split("__")
        for part in way:
            place = place[part]
        place[last] = value
    return intent


def more_allowed() -> dict[str, Any]:
    """Another sound intent: client batch may use xray-7b too, which adds an edge, set elements, a route and a backend."""
    intent = copy.deepcopy(INTENT)
    intent["clients"]["batch"]["models"] = ["notes-1b", "xray-7b"]
    intent["tests"] = [test for test in intent["tests"] if (test["from"], test["to"]) != ("batch", "xray-7b")]
    return intent


def command(
    name: str, *arguments: str, intent: dict[str, Any] | None = None, inventory: tuple[str, ...] = ()
) -> list[str]:
    sources = [str(LAB), *inventory]
    argv = tool("ansible-playbook", *(word for source in sources for word in ("-i", source)), name, *arguments)
    return argv + (["-e", json.dumps({"moat_perimeter": intent})] if intent is not None else [])


def play(
    name: str = "moat.inference.site",
    *arguments: str,
    intent: dict[str, Any] | None = None,
    inventory: tuple[str, ...] = (),
    settings: dict[str, str] | None = None,
) -> Run:
    """Run to the end."""
    argv = command(name, *arguments, intent=intent, inventory=inventory)
    done = subprocess.run(
        argv,
        env={**plain(), **(settings or {})},
        cwd=ROOT,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return Run(done.returncode, done.stdout + done.stderr)


def begin(*arguments: str, intent: dict[str, Any] | None = None, output: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the site playbook in a process group of its own."""
    target = output.open("wb") if output else subprocess.DEVNULL
    return subprocess.Popen(
        command("moat.inference.site", *arguments, intent=intent),
        env=plain(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=target,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[bytes]) -> bool:
    """SIGKILL for the controller's processes, all at once; False when the run was over before."""
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True
