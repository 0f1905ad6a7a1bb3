"""The long form of tests/faults/test_gpu_driver.py: every stop, every refusal, upgrades, downgrades and interruptions. `make proof-gpu` runs both."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.faults import gpu_trees
from tests.faults.gpu_hosts import GpuHost, Repository, refused
from tests.lab import gpu_repository as repository
from tests.lab.backend import File

OLD, FIRST, NEXT = repository.OLD, repository.FIRST, repository.NEXT
MARKER = "/var/lib/moat/gpu-driver.json"


@pytest.fixture
def host(gpu_repository: Repository) -> Iterator[GpuHost]:
    made = GpuHost("long", gpu_repository)
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def bare(gpu_repository: Repository) -> Iterator[GpuHost]:
    made = GpuHost("bare", gpu_repository)
    try:
        yield made
    finally:
        made.remove()


def whole(host: GpuHost, version: str) -> None:
    """The driver is there in that version alone, held, and a further run finds nothing to do."""
    found = host.versions()
    assert found and set(found.values()) == {f"{version}-1"}, found
    assert set(found) == repository.names(version) - {"nvidia-kernel-dkms"}
    assert set(found) <= host.held()
    assert host.said("modinfo -F version nvidia").strip() == version
    again = host.driver(version).good()
    assert again.count("changed") == 0, again.out[-4000:]
    assert host.said("dpkg --audit") == ""


@pytest.mark.parametrize("name", gpu_trees.STOPS)
def test_every_stop_of_the_preflight_is_reached_and_changes_nothing(bare: GpuHost, name: str) -> None:
    stop = gpu_trees.STOPS[name]
    told = refused(bare, FIRST, root=bare.tree(gpu_trees.changed(stop.tree)), **stop.inputs)
    assert f"[{stop.key}]" in told, told
    assert [word for word in stop.words if word not in told] == [], told


@pytest.mark.parametrize(
    ("repository_name", "version", "words"),
    [
        ("stranger", FIRST, ("moat-gpu",)),
        ("tampered", NEXT, (repository.TAMPERED,)),
        ("missing", NEXT, (repository.MISSING,)),
        ("fabricless", NEXT, (repository.FABRIC_MANAGER,)),
        ("vendor", "580.1.1", ("580.1.1",)),
    ],
)
def test_a_repository_that_is_not_right_is_refused(
    bare: GpuHost, repository_name: str, version: str, words: tuple[str, ...]
) -> None:
    told = refused(bare, version, source=bare.repository.source(repository_name))
    assert [word for word in words if word not in told] == [], told


def test_the_repositories_that_lack_a_package_have_another_version_whole(host: GpuHost) -> None:
    """The control of the refusals: the same repository, a version that it has."""
    host.driver(FIRST, source=host.repository.source("missing")).good()
    assert set(host.versions().values()) == {f"{FIRST}-1"}


@pytest.mark.parametrize("name", ["stranger", "tampered", "missing", "fabricless"])
def test_a_refused_upgrade_leaves_the_driver_as_it_is(host: GpuHost, name: str) -> None:
    host.driver(FIRST).good()
    refused(host, NEXT, source=host.repository.source(name))
    whole(host, FIRST)


def test_an_upgrade_and_a_downgrade_are_one_transaction_each(host: GpuHost) -> None:
    host.driver(FIRST).good()
    for version, word in ((NEXT, "Upgrade"), (FIRST, "Downgrade")):
        begun = len(host.history())
        checked = host.driver(version, "--check").good()
        assert checked.count("changed") >= 1
        assert len(host.history()) == begun
        host.driver(version).good()
        entries = host.history()[begun:]
        moved = [entry for entry in entries if "nvidia-driver-cuda" in entry.get(word, "")]
        assert len(moved) == 1, entries
        assert all(f" {name}:" in f" {moved[0][word]}" for name in host.versions()), moved
        whole(host, version)


def test_another_branch_whose_packages_have_other_names_replaces_the_first_one(host: GpuHost) -> None:
    host.driver(FIRST).good()
    for version in (OLD, FIRST):
        host.driver(version).good()
        whole(host, version)


def test_the_local_repository_package_is_a_source_and_its_sum_is_kept(host: GpuHost) -> None:
    host.said(f"curl -sf -o /root/local.deb {repository.URL}/local.deb")
    keys = host.repository.keys
    source = {
        "kind": "local",
        "file": "/root/local.deb",
        "sha256": keys["local.sha256"],
        "fingerprint": keys["vendor.fingerprint"],
    }
    without = {"enabled": False}
    told = refused(host, NEXT, source={**source, "sha256": "0" * 64}, toolkit=without)
    assert keys["local.sha256"] in told, told
    told = refused(host, NEXT, source={**source, "fingerprint": keys["stranger.fingerprint"]}, toolkit=without)
    assert keys["vendor.fingerprint"] in told, told
    host.driver(NEXT, source=source, toolkit=without).good()
    assert set(host.versions().values()) == {f"{NEXT}-1"}
    assert host.driver(NEXT, source=source, toolkit=without).good().count("changed") == 0


def told_incomplete(host: GpuHost, version: str) -> None:
    """The host remembers the transaction, and a run that only looks says that it did not complete and would be finished."""
    assert json.loads(host.said(f"cat {MARKER}"))["phase"] in ("begun", "failed")
    before = host.listing()
    looked = host.driver(version, "--check", "-v").good()
    assert '"state": "incomplete"' in looked.out and "did not complete" in looked.out, looked.out[-4000:]
    assert looked.count("changed") >= 1
    assert host.listing() == before


def test_a_package_that_fails_half_way_is_told_and_the_next_run_finishes(host: GpuHost) -> None:
    host.put(File(repository.FAIL, b""))
    ran = host.driver(FIRST)
    assert ran.rc != 0 and "nvidia-kernel-open-dkms" in ran.out, ran.out[-4000:]
    assert "nvidia-kernel-open-dkms" not in host.versions()
    told_incomplete(host, FIRST)
    host.driver(FIRST).good()
    whole(host, FIRST)


@pytest.mark.parametrize("begun", [None, FIRST])
def test_apt_that_is_killed_half_way_is_told_and_the_next_run_finishes(host: GpuHost, begun: str | None) -> None:
    version = FIRST
    if begun:
        host.driver(begun).good()
        version = NEXT
    host.put(File(repository.WAIT, b""))
    # whoever waits inside the package is there: then all of it goes at once
    kill = "for _ in $(seq 600); do [ -e {wait} ] || {{ sleep 0.3; pkill -KILL -x dpkg; pkill -KILL -x apt-get; exit; }}; sleep 0.1; done"
    host.said(f"systemd-run -q bash -c {kill.format(wait=repository.WAIT)!r}")
    started = time.monotonic()
    ran = host.driver(version)
    assert time.monotonic() - started < 120
    assert ran.rc != 0, ran.out[-4000:]
    assert host.said("dpkg --audit") != "", "it was not killed in the middle"
    told_incomplete(host, version)
    host.driver(version).good()
    whole(host, version)


def test_the_playbook_brings_the_driver_and_says_that_a_reboot_is_left(host: GpuHost) -> None:
    """The playbook as a user runs it, with the real role; what comes after a reboot is in proof_gpu_playbook.py, for here no GPU would pass."""
    inputs = {
        "gpu_driver_version": FIRST,
        "gpu_driver_source": host.repository.source(),
        "gpu_driver_toolkit": {"enabled": True, "version": repository.TOOLKIT},
    }
    book = [{"name": "Change the driver", "ansible.builtin.import_playbook": "moat.inference.gpu"}]
    before = host.listing()
    checked = host.play(book, "-e", json.dumps(inputs), "--check").good()
    assert checked.count("changed") >= 1 and host.listing() == before
    first = host.play(book, "-e", json.dumps(inputs)).good()
    said = "run this playbook again with -e moat_gpu_reboot=true"
    assert said in first.out and first.count("changed") == checked.count("changed"), first.out[-4000:]
    whole(host, FIRST)
    again = host.play(book, "-e", json.dumps(inputs)).good()
    assert again.count("changed") == 0 and said in again.out, again.out[-4000:]
