"""A host without a way out of its own gets its driver through the egress proxy, by the names that the intent lists, and no other.

On the lab's hosts: squid, routes, packet filter, apt and signatures are real. Doubles: the packages of `tests/lab/gpu_repository.py`, served by the
stand-in for the internet, and the PCI bus that the host shows.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.faults import gpu_trees, run
from tests.faults.gpu_hosts import PACKAGES, PCI, READY, Repository
from tests.lab import gpu_repository as repository
from tests.lab import internet
from tests.lab.collection import plain, tool
from tests.lab.podman import podman, tar_of
from tests.lab.scratch import LISTING
from tests.lab.shell import LAB
from tests.lab.site import denied, on

HOST, PROXY = "gpu2", "egress1"
LISTED, PLACE = "packages.example.org", "debian/gpu-driver"
VERSION = repository.FIRST
# what the role leaves, in the order in which it goes
GONE = r"""
systemctl disable --now moat-gpu.service nvidia-persistenced.service nvidia-fabricmanager.service 2>/dev/null
apt-mark unhold $(apt-mark showhold) > /dev/null
DEBIAN_FRONTEND=noninteractive apt-get -qq purge \
  $(dpkg-query -W -f '${Package}\t${binary:Summary}\n' | grep 'stand-in of the lab' | cut -f 1) > /dev/null
rm -rf /etc/apt/*/moat-gpu* /etc/apt/apt.conf.d/*moat-gpu /etc/modprobe.d/moat-gpu.conf /etc/moat/gpu.json /var/lib/moat/gpu-driver.json \
  /etc/systemd/system/moat-gpu.service /usr/local/lib/moat/gpu_settings*.py
umount /sys/bus/pci/devices
rm -rf {pci} /lib/modules/$(uname -r)
[ ! -e /etc/apt/sources.list.moat-lab ] || mv /etc/apt/sources.list.moat-lab /etc/apt/sources.list
systemctl daemon-reload
""".replace("{pci}", PCI)


@pytest.fixture(scope="module")
def source(gpu_repository: Repository) -> Iterator[dict[str, Any]]:
    """How the role is told of the repository that the stand-in for the internet serves; the host has a GPU by then."""
    served = internet.internet()
    assert served is not None
    folder = f"{internet.SERVED}/www/{PLACE}"
    devices = gpu_trees.files(PCI, {**gpu_trees.H100, **gpu_trees.NVSWITCH})
    try:
        packed = subprocess.run(
            podman("exec", gpu_repository.id, "tar", "-C", f"{repository.SERVED}/vendor", "-c", "."),
            check=True,
            capture_output=True,
        ).stdout
        unpacked = on(served.host, f"mkdir -p {folder} && tar -C {folder} -x && chmod -R a+rX {folder}", data=packed)
        assert unpacked.code == 0, unpacked.err
        before = on(HOST, PACKAGES).out
        assert on(HOST, "tar -C / -x", data=tar_of(devices)).code == 0
        ready = on(HOST, READY)
        assert ready.code == 0, ready.err
        yield gpu_repository.source()
    finally:
        on(served.host, f"rm -rf {folder}")
        gone = on(HOST, GONE, timeout=300)
    assert on(HOST, PACKAGES).out == before, gone


def apply(source: dict[str, Any], name: str) -> tuple[int, str]:
    """Apply the role to the host, from a repository of that name; return the status and what was said."""
    inputs = {
        "version": VERSION,
        "source": {**source, "url": f"http://{name}/{PLACE}/"},
        "toolkit": {"enabled": True, "version": repository.TOOLKIT},
    }
    task = {
        "name": "Apply the role",
        "ansible.builtin.import_role": {"name": "moat.inference.gpu_driver"},
        "vars": {f"gpu_driver_{key}": value for key, value in inputs.items()},
    }
    book = LAB / "proof-gpu-proxy.yml"
    book.write_text(
        yaml.safe_dump([{"name": "One host", "hosts": HOST, "gather_facts": False, "tasks": [task]}]), encoding="utf-8"
    )
    argv = tool("ansible-playbook", "-i", str(run.LAB), str(book))
    done = subprocess.run(
        argv, env=plain(), check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stdout + done.stderr


def cursor() -> str:
    """The end of the proxy's log, as it is now."""
    return str(json.loads(on(PROXY, "journalctl -u moat-egress-proxy -n 1 -o json").out)["__CURSOR"])


def asked(after: str, name: str) -> list[dict[str, Any]]:
    """What the proxy's log says of a name since then."""
    text = on(PROXY, f"journalctl -u moat-egress-proxy -o cat --after-cursor={shlex.quote(after)}").out
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in found if line["host"] == name]


def test_a_name_that_is_not_listed_is_refused_and_nothing_changes(source: dict[str, Any]) -> None:
    before, packages, after = on(HOST, LISTING).out, on(HOST, PACKAGES).out, cursor()
    rc, said = apply(source, internet.FORBIDDEN)
    assert rc != 0 and "[source]" in said and "403" in said, said[-3000:]
    assert on(HOST, LISTING).out == before and on(HOST, PACKAGES).out == packages
    assert {line["rule"] for line in asked(after, internet.FORBIDDEN)} == {"deny-name"}


def test_a_listed_name_gives_the_whole_driver_through_the_proxy(source: dict[str, Any]) -> None:
    assert not on(HOST, "ip route show default; ip -6 route show default").out.strip()
    after, refused = cursor(), denied(HOST)
    rc, said = apply(source, LISTED)
    assert rc == 0, said[-4000:]
    told = on(HOST, "dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n'").out
    held = {line.split()[1] for line in told.splitlines() if line.startswith("hi") and f" {VERSION}-" in line}
    # the one of the two modules that was not asked for stays away
    assert held >= repository.names(VERSION) - {"nvidia-kernel-dkms"} and "nvidia-kernel-dkms" not in held, held
    log = asked(after, LISTED)
    # the index and each package
    assert len(log) > len(held), log[:3]
    assert {line["source"] for line in log} == {HOST} and not any(line["rule"].startswith("deny") for line in log), log[
        :3
    ]
    # nothing of it was tried beside the proxy
    assert denied(HOST) == refused
    again, told = apply(source, LISTED)
    assert again == 0 and "changed=0" in told, told[-3000:]
