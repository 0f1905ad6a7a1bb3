"""The driver comes in one exact version, whole, held and excluded from upgrades; whoever decides reads first and says every fault at once.

Short form; `make proof-gpu` has upgrades and downgrades, refusals and interruptions. What is real and what is a double: tests/faults/gpu_hosts.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import gpu_trees
from tests.faults.gpu_hosts import GpuHost, Repository, refused
from tests.lab import gpu_repository as repository
from tests.lab.scratch import Ran

FIRST, NEXT, CONTROL = repository.FIRST, repository.NEXT, repository.CONTROL
EXACT = dict.fromkeys(repository.names(FIRST) - {"nvidia-kernel-dkms"}, f"{FIRST}-1")
# what unattended-upgrade may take, by the fields of its Release file
ORIGINS = 'Unattended-Upgrade::Origins-Pattern { "origin=NVIDIA"; };'


@pytest.fixture(scope="module")
def bare(gpu_repository: Repository) -> Iterator[GpuHost]:
    host = GpuHost("bare", gpu_repository)
    try:
        yield host
    finally:
        host.remove()


@pytest.fixture(scope="module")
def first(gpu_repository: Repository) -> Iterator[tuple[GpuHost, Ran, Ran]]:
    """A host after its first run, and the runs: in check mode on the bare host, with what it changed of its files, and the real one."""
    host = GpuHost("first", gpu_repository)
    try:
        before = host.listing()
        checked = host.driver(FIRST, "--check", "--diff").good()
        assert host.listing() == before, "check mode changed the host"
        yield host, checked, host.driver(FIRST).good()
    finally:
        host.remove()


def test_check_mode_on_a_bare_host_announces_what_the_first_run_does(first: tuple[GpuHost, Ran, Ran]) -> None:
    _host, checked, ran = first
    assert checked.count("changed") >= 1 and ran.count("changed") == checked.count("changed"), checked.out[-4000:]
    for name in EXACT:
        assert name in checked.out, name


def test_the_first_run_installs_the_exact_version_in_one_transaction_and_holds_it(
    first: tuple[GpuHost, Ran, Ran],
) -> None:
    host, _checked, _ran = first
    assert host.versions() == EXACT
    installed = [entry["Install"] for entry in host.history() if "Install" in entry]
    whole = [entry for entry in installed if all(f" {name}:" in f" {entry}" for name in EXACT)]
    assert len(whole) == 1, installed
    others = [entry for entry in installed if entry not in whole]
    assert not [name for name in EXACT for entry in others if f" {name}:" in f" {entry}"]
    assert set(EXACT) <= host.held()
    assert FIRST in host.said("modinfo -F version nvidia")


def test_the_second_run_changes_nothing_and_costs_little(first: tuple[GpuHost, Ran, Ran]) -> None:
    host, _checked, _ran = first
    before = host.listing()
    again = host.driver(FIRST).good()
    assert again.count("changed") == 0, again.out[-4000:]
    assert again.remote <= 3, again.tasks
    checked = host.driver(FIRST, "--check").good()
    assert checked.count("changed") == 0, checked.out[-4000:]
    assert host.listing() == before


def test_neither_full_upgrade_nor_unattended_upgrade_touches_the_driver(first: tuple[GpuHost, Ran, Ran]) -> None:
    host, _checked, _ran = first
    host.said(f"apt-get install -y {CONTROL}={repository.CONTROL_VERSIONS[0]}")
    host.said(f"echo '{ORIGINS}' > /etc/apt/apt.conf.d/99moat-test")
    try:
        simulated = host.said("apt-get -s full-upgrade")
        dry = host.on("unattended-upgrade --dry-run -v", timeout=300)
        assert dry.code == 0, dry.out + dry.err
        told = [line for line in (dry.out + dry.err).splitlines() if "will be upgraded:" in line]
        assert f"Inst {CONTROL} " in simulated and any(CONTROL in line for line in told), (simulated, dry)
        for name in EXACT:
            assert f"Inst {name} " not in simulated, name
            assert not [line for line in told if name in line], name
        # each of the two alone is enough
        host.said(f"apt-mark unhold {' '.join(EXACT)}")
        unheld = host.on("unattended-upgrade --dry-run -v", timeout=300)
        assert not [line for line in (unheld.out + unheld.err).splitlines() if "upgraded:" in line and "nvidia" in line]
        # and without both, and without the pins, the driver would go: this very look sees it
        aside = "mkdir -p /root/aside; mv /etc/apt/preferences.d/moat-gpu /etc/apt/apt.conf.d/52moat-gpu /root/aside/"
        host.said(aside)
        gone = host.on("unattended-upgrade --dry-run -v", timeout=300)
        assert [line for line in (gone.out + gone.err).splitlines() if "upgraded:" in line and "libcuda1" in line], gone
        assert "Inst libcuda1 " in host.said("apt-get -s full-upgrade")
    finally:
        back = "mv /root/aside/moat-gpu /etc/apt/preferences.d/; mv /root/aside/52moat-gpu /etc/apt/apt.conf.d/"
        host.on(f"{back}; apt-mark hold {' '.join(EXACT)}; rm -f /etc/apt/apt.conf.d/99moat-test")
    assert host.driver(FIRST).good().count("changed") == 0


def test_every_fault_is_named_at_once(bare: GpuHost) -> None:
    changes = {path: text for name in gpu_trees.MANY for path, text in gpu_trees.STOPS[name].tree.items()}
    told = refused(bare, FIRST, root=bare.tree(gpu_trees.changed(changes)))
    for name in gpu_trees.MANY:
        stop = gpu_trees.STOPS[name]
        assert f"[{stop.key}]" in told, (name, told)
        assert [word for word in stop.words if word not in told] == [], (name, told)


def test_a_sound_host_passes_the_same_reading(bare: GpuHost) -> None:
    """The control of every stop: the same tree without its fault."""
    before = bare.listing()
    ran = bare.driver(FIRST, "--check", root=bare.tree(gpu_trees.SOUND)).good()
    assert ran.count("changed") >= 1
    assert bare.listing() == before


def test_a_host_without_a_gpu_is_passed_by(bare: GpuHost) -> None:
    before = bare.listing()
    ran = bare.driver(FIRST, root=bare.tree(gpu_trees.changed(gpu_trees.NO_DEVICE))).good()
    assert ran.count("changed") == 0
    assert bare.listing() == before


def test_a_key_with_another_fingerprint_is_refused(bare: GpuHost) -> None:
    keys = bare.repository.keys
    source = bare.repository.source(fingerprint=keys["stranger.fingerprint"])
    told = refused(bare, FIRST, source=source)
    assert keys["vendor.fingerprint"] in told and keys["stranger.fingerprint"] in told, told
