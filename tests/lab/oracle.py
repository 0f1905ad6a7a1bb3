"""What molecule does not ask: did check mode touch a bare host, and does it find nothing to do on a converged one?"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

from tests.lab import table
from tests.lab.collection import plain, tool
from tests.lab.lab import ssh
from tests.lab.shell import LAB, ROOT, LabError, Step, capture, say, write

SNAPSHOT = LAB / "snapshot.json"
# Ansible's own temporary folder, logs and the state that a running system writes by itself are no trace of a role.
LOOK = r"""
skip='-path /var/lib/systemd -o -path /etc/ssh -o -name __pycache__'
find /etc /opt/moat/staged /srv /usr /var/lib /home -xdev \( $skip \) -prune -o -printf '%y %m %u:%g %s %l %p\n' | sort
find /etc /srv -xdev -path /etc/ssh -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
systemctl list-unit-files --no-legend --no-pager
systemctl list-units --no-legend --no-pager --plain --all --type=service,timer,socket,path |
  awk '$1 !~ /^(systemd-|user|session)/ {print $1, $3}' | sort
ip -brief address | sort
nft -s list ruleset
getent passwd
getent group
"""


def _look(host: str) -> str:
    return capture(ssh(host, LOOK), timeout=120)


def _managed() -> list[str]:
    return [host.name for host in table.load().hosts.values() if not host.probe]


def take() -> None:
    """Write down what every managed host holds."""
    with Step("snapshot of the bare hosts"), ThreadPoolExecutor(4) as pool:
        names = _managed()
        write(SNAPSHOT, json.dumps(dict(zip(names, pool.map(_look, names), strict=True))))


def compare() -> None:
    """Fail, with the lines that differ, when a host is not as its snapshot says."""
    if not SNAPSHOT.is_file():
        raise LabError("There is no snapshot to compare with.")
    before = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    with ThreadPoolExecutor(4) as pool:
        after = dict(zip(before, pool.map(_look, before), strict=True))
    wrong = []
    for host, text in before.items():
        lines = difflib.unified_diff(text.splitlines(), after[host].splitlines(), lineterm="", n=0)
        changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        wrong += [f"{host}: {line}" for line in changed]
    if wrong:
        raise LabError("Check mode touched hosts:\n" + "\n".join(wrong[:60]))
    say(f"{len(before)} hosts are as they were")


def unchanged() -> None:
    """Run the site playbook in check mode; fail unless every host says changed=0."""
    command = tool(
        "ansible-playbook", "-i", str(ROOT / "inventories" / "lab"), "moat.inference.site", "--check", "--diff"
    )
    done = subprocess.run(command, env=plain(), cwd=ROOT, check=False, capture_output=True, text=True)
    counts = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.MULTILINE)
    moved = {host: int(count) for host, count in counts if int(count)}
    if done.returncode or moved or not counts:
        raise LabError(
            f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}\nrc {done.returncode}; changes on {moved or 'no host'}"
        )
    say(f"{len(counts)} hosts, no change")
