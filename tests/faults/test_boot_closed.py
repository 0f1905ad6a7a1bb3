"""What boot loads is damaged: after a restart of the service or of the host all is closed, the operator gets in, and the next run mends it."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults import moments, prober, run, witness
from tests.lab import site
from tests.lab.podman import Podman
from tests.lab.shell import LabError
from tests.lab.site import on

HOST, OTHER = "app2", "gpu1"
FOLDER = "/etc/moat/firewall"
FILE, CANDIDATE = f"{FOLDER}/ruleset.nft", f"{FOLDER}/.moat-new.ruleset.nft"
SERVICE = "moat-firewall.service"
# The end of the first chain, the beginning of the second one: a whole statement more or less.
AT_A_STATEMENT = f"n=$(grep -n '^[[:space:]]*}}$' {FILE} | sed -n '$1p' | cut -d: -f1); head -n $n {FILE} > /tmp/cut; cat /tmp/cut > {FILE}"
DAMAGE = {
    "empty": f": > {FILE}",
    "cut in the middle": f"truncate -s $(($(stat -c %s {FILE}) / 2)) {FILE}",
    "missing": f"rm {FILE}",
    "the wrong way round": f"sed -i 's/policy drop/policy accept/' {FILE}",
    "cut after a set": AT_A_STATEMENT.replace("$1", "1"),
    "cut after a chain": AT_A_STATEMENT.replace("$1", "4"),
    "without its last byte": f"truncate -s -2 {FILE}",
    "without its first line": f"sed -i 1d {FILE}",
    "garbage": f"head -c 4096 /dev/urandom > {FILE}",
    "one bit flipped": f"printf '\\353' | dd of={FILE} bs=1 seek=$(($(stat -c %s {FILE}) - 40)) conv=notrunc status=none",
    "a directory": f"rm {FILE}; mkdir {FILE}",
    "unreadable": f"chmod 000 {FILE}; chown nobody {FILE}",
    "zeroes in it": f"dd if=/dev/zero of={FILE} bs=1 seek=200 count=64 conv=notrunc status=none",
    "zeroes alone": f"size=$(stat -c %s {FILE}); truncate -s 0 {FILE}; truncate -s $size {FILE}",
}
LONG = os.environ.get("MOAT_PROOF") == "long"


@dataclass(frozen=True)
class Case:
    name: str
    restart: str


# Each damage by a restart of the host, where no table is left, and every other one by a restart of the service as well.
CASES = [Case(name, "host") for name in DAMAGE] + [Case(name, "service") for name in list(DAMAGE)[::2]]
CASES = CASES if LONG else [Case("empty", "host"), Case("cut in the middle", "service")]


@pytest.fixture(scope="module")
def watching() -> Iterator[prober.Prober]:
    """Probers, canaries and the witness stay on meanwhile: the boot itself is part of what has to be closed."""
    site.teach_router()
    seen = witness.Witness()
    try:
        with prober.probing() as probes:
            yield probes
            probes.stop()
    finally:
        found = seen.stop()
    assert not probes.wrong, probes.wrong[:20]
    assert not witness.faults(found)


@pytest.fixture(scope="module")
def good() -> str:
    """What boot loads on a sound host."""
    repair()
    return boot_file()


@pytest.fixture
def mended(good: str) -> Iterator[str]:
    """Begin with a sound host, and leave one."""
    yield good
    if boot_file() != good or on(HOST, f"systemctl is-active {SERVICE}").out != "active\n":
        # a failed test must not take the others with it
        on(HOST, f"[ ! -d {FILE} ] || rm -r {FILE}")
        repair()


def repair() -> None:
    ended = run.play("moat.inference.site", "--limit", HOST, "--tags", "firewall")
    assert ended.rc == 0, ended.out[-4000:]


def boot_file() -> str:
    """Kind, mode, owner and content."""
    return on(HOST, f"stat -c '%F %a %U' {FILE}; sha256sum {FILE}").out


def table() -> str:
    """As the kernel lists it, without the flows that the last change handed over: they expire by themselves."""
    return re.sub(r"(\ttimeout \S+\n)\t\telements = \{[^}]*\}\n", r"\1", on(HOST, "nft -s list table inet moat").out)


def restart(watching: prober.Prober, what: str) -> None:
    """Restart under the probers' eyes; in a gap of theirs it counts for nothing and is done again."""
    for _try in range(moments.TRIES):
        begun = time.time()
        if what == "host":
            backend = Podman()
            backend.kill(HOST)
            backend.start(HOST)
            moments.boots(HOST)
        else:
            on(HOST, f"systemctl restart {SERVICE}; sleep 1")
        if watching.watched(begun, time.time(), {HOST}):
            return
    raise LabError("every restart fell into a gap of the probers")


def closed(watching: prober.Prober) -> None:
    watching.asked(HOST)
    watching.settle(time.time())
    assert not watching.findings()
    assert not watching.wrong


def verdicts() -> str:
    return on(HOST, f"systemctl is-failed {SERVICE}; journalctl -q -b -u {SERVICE} -o cat -n 20").out


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}, {case.restart}")
def test_a_damaged_file_leaves_the_host_closed_and_manageable(case: Case, watching: prober.Prober, mended: str) -> None:
    before = table()
    damaged = on(HOST, DAMAGE[case.name])
    assert damaged.code == 0, damaged.err
    assert boot_file() != mended
    restart(watching, case.restart)
    said = verdicts()
    assert said.startswith("failed\n"), said
    assert f"{FILE} does not load" in said, "the journal says what is wrong"
    # the operator is in, or nothing of this could be asked; the table is the minimal one, or at a restart of the service the one before
    after = table()
    assert after == before if case.restart == "service" else "policy drop" in after and after != before
    closed(watching)
    if case.name == "a directory":
        # the one damage that a run does not mend by itself: it removes no directory, and says what to do
        refused = run.play("moat.inference.site", "--limit", HOST, "--tags", "firewall")
        assert refused.rc == 2 and "move it away" in refused.out, refused.out[-4000:]
        assert on(HOST, f"rmdir {FILE}").code == 0
    repair()
    assert boot_file() == mended
    assert on(HOST, f"systemctl is-active {SERVICE}").out == "active\n"
    assert table() == before


@pytest.mark.parametrize("name", ["stale", "of another host"] if LONG else ["stale"])
def test_a_file_that_is_whole_but_not_the_last_one_is_closed_too(
    name: str, watching: prober.Prober, mended: str
) -> None:
    before = table()
    if name == "stale":
        other = run.changed_intent(admin__from=["10.90.0.0/27", "fd00:90::/123"])
        changed = run.play("moat.inference.site", "--limit", HOST, "--tags", "firewall", intent=other)
        assert changed.rc == 0, changed.out[-4000:]
        text = on(HOST, f"cat {FILE}").out
        repair()
    else:
        text = on(OTHER, f"cat {FILE}").out
    assert on(HOST, f"cat > {FILE}", data=text.encode()).code == 0
    assert boot_file() != mended
    restart(watching, "host")
    assert on(HOST, f"systemctl is-active {SERVICE}").out == "active\n", verdicts()
    assert table() != before
    closed(watching)
    repair()
    assert boot_file() == mended
    assert table() == before


def test_a_full_disk_changes_nothing(watching: prober.Prober, mended: str) -> None:
    """The new file has no room: the change is taken back, and boot loads what it loaded before."""
    before = table()
    size = "$(( ($(stat -c %s /tmp/kept) + 4095) / 4096 * 4 ))k"
    full = f"cp {FILE} /tmp/kept; mount -t tmpfs -o mode=700,size={size} tmpfs {FOLDER} && cp -p /tmp/kept {FILE} && chmod 600 {FILE}"
    assert on(HOST, full).code == 0
    try:
        failed = run.play(
            "moat.inference.site",
            "--limit",
            HOST,
            "--tags",
            "firewall",
            intent=run.changed_intent(admin__from=["10.90.0.0/27", "fd00:90::/123"]),
        )
        assert failed.rc == 2, failed.out[-4000:]
        assert "No space left on device" in failed.out, failed.out[-4000:]
        assert table() == before
        assert boot_file() == mended
        restart(watching, "service")
        assert on(HOST, f"systemctl is-active {SERVICE}").out == "active\n", verdicts()
        assert table() == before
        closed(watching)
    finally:
        on(HOST, f"umount {FOLDER}")
    restart(watching, "host")
    assert table() == before
    closed(watching)


@pytest.mark.parametrize("left", ["half"] if not LONG else ["half", "nothing", "garbage"])
def test_what_a_killed_write_leaves_is_no_harm(left: str, watching: prober.Prober, mended: str) -> None:
    made = {"half": f"head -c 300 {FILE}", "nothing": ":", "garbage": "head -c 4096 /dev/urandom"}[left]
    before = table()
    on(HOST, f"{made} > {shlex.quote(CANDIDATE)}")
    restart(watching, "host")
    assert table() == before
    assert on(HOST, f"systemctl is-active {SERVICE}").out == "active\n"
    closed(watching)
    other = run.play(
        "moat.inference.site",
        "--limit",
        HOST,
        "--tags",
        "firewall",
        intent=run.changed_intent(admin__from=["10.90.0.0/27"]),
    )
    assert other.rc == 0, other.out[-4000:]
    assert on(HOST, f"ls -A {FOLDER}").out == "ruleset.nft\n"
