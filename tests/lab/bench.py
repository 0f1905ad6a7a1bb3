"""Time and count the site playbook, from bare hosts and unchanged, and a change of the policy by its own playbook:
`python -m tests.lab.bench [--converged] [--assert-counts] [--policy]`.

Counts of a no-change run are deterministic and asserted; times are reported beside a `ping` measured in the same run.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.lab import lab, table
from tests.lab.collection import environment, install, plain, tool
from tests.lab.shell import LAB, ROOT, LabError, say

CALLBACKS = Path(__file__).parent / "callbacks"
LIMIT = 6  # remote executions a role and host, nothing changed
PINGS = 5
ROUNDS = 3
LOADING = "Wait until each model gives a token"


@dataclass(frozen=True)
class Change:
    """A client that is added: what it is, the hosts that it concerns, and the remote executions that it may take at most."""

    name: str
    client: dict[str, Any]
    hosts: tuple[str, ...]
    limit: int


CHANGES = {
    "one client more on app1, for a model that the host has not used": Change(
        "second", {"hosts": "app1", "users": ["portal"], "models": ["notes-1b"]}, ("app1", "ca1", "gpu1"), 10
    ),
    "the first client of app2, which had a packet filter only": Change(
        "fresh", {"hosts": "app2", "users": ["nobody"], "models": ["xray-7b"]}, ("app2", "ca1", "gpu1", "gpu2"), 28
    ),
}


def intent(change: Change) -> tuple[str, str]:
    """Arguments of a playbook for the lab's intent with the client added."""
    text = (ROOT / "inventories" / "lab" / "group_vars" / "all.yml").read_text(encoding="utf-8")
    perimeter = copy.deepcopy(yaml.safe_load(text)["moat_perimeter"])
    perimeter["clients"][change.name] = change.client
    return "-e", json.dumps({"moat_perimeter": perimeter})


def policy() -> list[str]:
    """Time and count a client that is added and taken away; return what was more than it may be."""
    faults = []
    say(f"load of this machine before: {', '.join(f'{number:.1f}' for number in os.getloadavg())}")
    play("moat.inference.site")
    for title, change in CHANGES.items():
        taken: dict[str, list[float]] = {"added": [], "taken away": []}
        for number in range(ROUNDS):
            for word, arguments in (("added", intent(change)), ("taken away", ())):
                seconds, notes, _output = play("moat.inference.policy", *arguments)
                taken[word].append(seconds)
                remote = Counter(entry["host"] for entry in notes if entry["kind"] == "remote")
                if number == 0:
                    say(f"\n{title}, {word}: {remote.total()} remote executions, {dict(sorted(remote.items()))}")
                if set(remote) - set(change.hosts):
                    faults.append(f"{title}, {word}: {sorted(set(remote) - set(change.hosts))} are not concerned")
                if remote.total() > change.limit:
                    faults.append(f"{title}, {word}: {remote.total()} remote executions, more than {change.limit}")
        for word, seconds_of in taken.items():
            shown = ", ".join(f"{seconds:.1f}" for seconds in seconds_of)
            say(f"{title}, {word}: median {statistics.median(seconds_of):.1f} s of {shown}")
    seconds, notes, _output = play("moat.inference.policy")
    say(f"\nnothing changed: {seconds:.1f} s, {sum(entry['kind'] == 'remote' for entry in notes)} remote executions")
    return faults


def play(name: str, *arguments: str) -> tuple[float, list[dict[str, Any]], str]:
    """Seconds, what the callback noted, and the output of a playbook."""
    notes = LAB / "bench.jsonl"
    notes.unlink(missing_ok=True)
    notes.touch()
    settings = {
        **plain(),
        "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
        "ANSIBLE_CALLBACKS_ENABLED": "moat_count",
        "MOAT_COUNT": str(notes),
    }
    command = tool("ansible-playbook", "-i", str(ROOT / "inventories" / "lab"), name, *arguments)
    started = time.monotonic()
    done = subprocess.run(command, env=settings, cwd=ROOT, check=False, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode:
        raise LabError(f"{name} failed with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
    lines = notes.read_text(encoding="utf-8").splitlines()
    return seconds, [json.loads(line) for line in lines], done.stdout


def ping(hosts: list[str]) -> float:
    """Seconds of one `ping` a host: the median of some runs over all hosts at once, by their number."""
    command = tool("ansible", "-i", str(ROOT / "inventories" / "lab"), ",".join(hosts), "-m", "ansible.builtin.ping")
    empty = tool("ansible", "-i", str(ROOT / "inventories" / "lab"), "localhost", "-m", "ansible.builtin.debug")
    taken = []
    for _round in range(PINGS):
        marks = [time.monotonic()]
        for argv in (command, empty):
            subprocess.run(argv, env=environment(), cwd=ROOT, check=True, capture_output=True)
            marks.append(time.monotonic())
        taken.append(((marks[1] - marks[0]) - (marks[2] - marks[1])) / len(hosts))
    return statistics.median(taken)


def count(notes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By role: tasks, hosts, remote executions, the most of one host, seconds of its slowest host."""
    remote: Counter[tuple[str, str]] = Counter()
    tasks: dict[str, set[str]] = defaultdict(set)
    hosts: dict[str, set[str]] = defaultdict(set)
    seconds: Counter[tuple[str, str]] = Counter()
    for entry in notes:
        role, host = entry["role"], entry["host"]
        if entry["kind"] == "task":
            seconds[(role, host)] += entry["seconds"]
            if not entry["skipped"]:
                tasks[role].add(entry["task"])
                hosts[role].add(host)
        else:
            remote[(role, host)] += 1
    found = {}
    for role in tasks:
        each = [remote[(role, host)] for host in hosts[role]]
        slowest = max((seconds[(role, host)] for host in hosts[role]), default=0.0)
        found[role] = {
            "tasks": len(tasks[role]),
            "hosts": len(hosts[role]),
            "remote": sum(each),
            "most": max(each, default=0),
            "seconds": slowest,
        }
    return found


def report(title: str, seconds: float, notes: list[dict[str, Any]], unit: float) -> dict[str, dict[str, Any]]:
    counts = count(notes)
    loading = max((e["seconds"] for e in notes if e["kind"] == "task" and e["task"].endswith(LOADING)), default=0.0)
    remote = sum(role["remote"] for role in counts.values())
    rows = [
        (role, *(str(values[key]) for key in ("tasks", "hosts", "remote", "most")), f"{values['seconds']:.1f}")
        for role, values in counts.items()
    ]
    say(f"\n{title}")
    lab.show(("role", "tasks", "hosts", "remote executions", "most of a host", "seconds"), rows)
    own = seconds - loading
    say(f"wall time {seconds:.1f} s, of it {loading:.1f} s until the models gave a token; without that {own:.1f} s")
    say(f"{remote} remote executions, ping {unit * 1000:.0f} ms; ratio {own / (remote * unit):.2f} to that many pings")
    return counts


def changes(output: str) -> int:
    return sum(int(number) for number in re.findall(r"changed=(\d+)", output))


def over(counts: dict[str, dict[str, Any]]) -> list[str]:
    """Roles whose unchanged run takes more remote executions than it may."""
    return [f"{role}: {c['most']} remote executions on a host" for role, c in counts.items() if c["most"] > LIMIT]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--converged", action="store_true", help="leave the first converge out, and the hosts as they are"
    )
    parser.add_argument("--assert-counts", action="store_true", help="fail when a role takes more than it may")
    parser.add_argument("--policy", action="store_true", help="measure a change of the policy, of a converged site")
    options = parser.parse_args()
    install()
    if options.policy:
        found = policy()
        if found:
            raise LabError("\n".join(found))
        return 0
    managed = [host.name for host in table.load().hosts.values() if not host.probe]
    if not options.converged:
        lab.down()
        lab.up()
        subprocess.run(
            tool("ansible-playbook", "-i", str(ROOT / "inventories" / "lab"), "tests/lab/prepare.yml"),
            env=environment(),
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        unit = ping(managed)
        seconds, notes, _output = play("moat.inference.site")
        report(f"First converge of {len(managed)} hosts, packages present", seconds, notes, unit)
    play("moat.inference.policy")  # what is still to be done is no part of a no-change run
    unit = ping(managed)
    seconds, notes, output = play("moat.inference.site")
    counts = report(f"No-change run of {len(managed)} hosts", seconds, notes, unit)
    faults = over(counts) + ([f"{changes(output)} changes in a no-change run"] if changes(output) else [])
    if options.assert_counts and faults:
        raise LabError("\n".join(faults))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
