"""Every secret that a run makes is looked for where it must not be: output, process lists, the controller's files."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.faults import run
from tests.lab import site
from tests.lab.lab import ssh
from tests.lab.shell import LAB, ROOT, capture
from tests.lab.site import on

# One line a secret: the base64 body of each private key in one piece, WireGuard keys, passwords.
COLLECT = r"""
shopt -s nullglob
find /etc/moat /var/lib/moat-ca -type f \( -name '*key*' -o -name '*.pem' -o -name '*.jwk' -o -name '*.json' \) |
while read -r file; do
  awk '/BEGIN .*PRIVATE KEY/ {inside=1; text=""; next} /END .*PRIVATE KEY/ {inside=0; print text; next} inside {text = text $0}' "$file"
done
for file in /etc/wireguard/*.conf /etc/wireguard/*.key; do
  sed -n 's/^PrivateKey *= *//p; /^[A-Za-z0-9+\/]\{43\}=$/p' "$file"
done
find /var/lib/moat-ca /etc/moat -type f -iname '*pass*' -exec cat {} + -exec echo \;
"""
# Runs on a host, in double quotes only: the shell has the single ones.
PROCESSES = """
import glob, select, sys
seen = set()
while not select.select([sys.stdin], [], [], 0.05)[0]:
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as handle:
                seen.add(handle.read().replace(bytes(1), b" "))
        except OSError:
            pass
sys.stdout.buffer.write(bytes([10]).join(seen))
"""
TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")


def secrets_of(hosts: list[str]) -> dict[str, str]:
    """Secret -> the host that it belongs to."""
    found: dict[str, str] = {}
    for host in hosts:
        for line in on(host, COLLECT).out.splitlines():
            text = line.strip()
            if len(text) >= 16:
                found[text] = host
    return found


class Watcher:
    """Reads command lines and environments of all processes of a host until it is told to stop."""

    def __init__(self, host: str) -> None:
        self.program = subprocess.Popen(
            ssh(host, f"python3 -c '{PROCESSES}'"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def stop(self) -> str:
        out, _err = self.program.communicate(b"end\n", timeout=60)
        return out.decode(errors="replace")


def controller_processes(stop: threading.Event, seen: set[str]) -> None:
    while not stop.is_set():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(path.read_text(encoding="utf-8", errors="replace").replace("\0", " "))
            except OSError:
                continue
        time.sleep(0.05)


@pytest.fixture(scope="module")
def evidence() -> dict[str, str]:
    """A run that makes new keys, certificates and tokens, with -vvv; what it printed, and what the processes showed."""
    hosts = list(site.plans())
    on("app3", "systemctl stop 'moat-certificate@*.timer'; rm -rf /etc/moat/tls/connector-batch*")
    on("app3", "systemctl stop wg-quick@moat0; rm -f /etc/wireguard/moat0.* /etc/wireguard/*.key")
    watchers = {host: Watcher(host) for host in hosts}
    stop, seen = threading.Event(), set[str]()
    local = threading.Thread(target=controller_processes, args=(stop, seen))
    local.start()
    ended = run.play("moat.inference.site", "-vvv", "--diff")
    stop.set()
    local.join()
    shown = {f"processes of {host}": watcher.stop() for host, watcher in watchers.items()}
    assert ended.rc == 0, ended.out[-4000:]
    return {"output of -vvv --diff": ended.out, "processes of the controller": "\n".join(seen), **shown}


def test_no_secret_leaves_its_host(evidence: dict[str, str]) -> None:
    secrets = secrets_of(list(site.plans()))
    # each kind was found, or the search is blind: WireGuard keys, certificate keys, the authority's own
    assert {"ca1", "gpu1", "gpu2", "app1", "app3"} <= set(secrets.values())
    leaks = [
        f"a secret of {host} in {where}"
        for secret, host in secrets.items()
        for where in evidence
        if secret in evidence[where]
    ]
    assert not leaks
    tokens = [f"a token in {where}" for where, text in evidence.items() if TOKEN.search(text)]
    assert not tokens


def test_the_watchers_see_what_they_are_for() -> None:
    watcher = Watcher("app3")
    canary = "moat-secret-canary-argument"
    on("app3", f"exec -a {canary} sleep 1")
    assert canary in watcher.stop()
    assert TOKEN.search("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJwb3J0YWwifQ.c2lnbmF0dXJlLWlzLWhlcmU")


def test_no_secret_lies_on_the_controller(evidence: dict[str, str], tmp_path: Path) -> None:
    assert evidence
    secrets = secrets_of(list(site.plans()))
    patterns = tmp_path / "patterns"
    patterns.write_text("\n".join(secrets) + "\n", encoding="utf-8")
    patterns.chmod(0o600)
    places = [str(LAB), str(ROOT / "inventories"), str(Path("~/.ansible").expanduser()), "/tmp", "/var/tmp"]
    where = ["-rlF", "-D", "skip", "-f", str(patterns), "--exclude-dir=venv", f"--exclude-dir={tmp_path.name}"]
    found = capture(["grep", *where, *[place for place in places if Path(place).is_dir()]], check=False)
    assert not found.splitlines()
    control = tmp_path.parent / f"{tmp_path.name}-control"
    control.mkdir()
    (control / "leak").write_text(next(iter(secrets)), encoding="utf-8")
    assert capture(["grep", *where, str(control)], check=False).strip() == str(control / "leak")
    (control / "leak").unlink()
