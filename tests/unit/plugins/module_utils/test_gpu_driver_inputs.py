"""Options that no host could carry out, and what the rest means."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_inputs as inputs
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_driver_samples import (
    NAMES,
    REPOSITORY,
    SOURCE,
    VERSION,
    host,
    options,
)

FINGERPRINT = "AA152DF57D7231864E4268ADEEC150037AA088A8"
UUID = "GPU-00000000-1111-2222-3333-444444444444"
MIRROR = {
    **SOURCE,
    "kind": "mirror",
    "url": "https://mirror.internal/nvidia/",
    "key": "/k.asc",
    "fingerprint": FINGERPRINT,
}
LOCAL = {**SOURCE, "kind": "local", "file": "/root/repo.deb", "sha256": "a" * 64}
ARCHIVE = {
    **SOURCE,
    "kind": "distribution",
    "url": "http://deb.internal/debian",
    "suite": "bookworm",
    "components": ["non-free"],
}
BARE: dict[str, Any] = {
    "gpu": "all",
    "power_limit_w": None,
    "graphics_clock_mhz": None,
    "memory_clock_mhz": None,
    "mig": None,
}
DEBIAN, TRIXIE, JAMMY, NOBLE = ("debian", "12"), ("debian", "13"), ("ubuntu", "22.04"), ("ubuntu", "24.04")


def setting(**values: Any) -> dict[str, Any]:
    return {**BARE, **values}


@pytest.mark.parametrize("source", [SOURCE, MIRROR, LOCAL, ARCHIVE, {**SOURCE, "kind": "distribution"}])
def test_good_options_have_no_fault(source: dict[str, Any]) -> None:
    good = [
        setting(power_limit_w=400),
        setting(
            gpu=UUID, mig=["1g.10gb", "3g.40gb", "1g.5gb+me", "1c.3g.40gb"], graphics_clock_mhz={"min": 300, "max": 300}
        ),
    ]
    assert inputs.faults_of(options(source=source, settings=good)) == []
    assert inputs.faults_of(options(source=source, packages=["libcuda1"], version="535.247.01")) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"version": "580"}, "version: 580 is no exact version; write one such as"),
        ({"version": "latest"}, "is no exact version"),
        ({"version": "580.178.04-1"}, "is no exact version"),
        ({"source": {**MIRROR, "url": ""}}, "source.url: a mirror has an address"),
        ({"source": {**MIRROR, "fingerprint": ""}}, "source.fingerprint: a mirror's key is known by"),
        ({"source": {**MIRROR, "key": ""}}, "source.key: a key with that fingerprint is needed"),
        ({"source": {**MIRROR, "key": "key.asc"}}, "neither an ASCII-armoured public key nor an absolute path"),
        ({"source": {**MIRROR, "fingerprint": "7AA088A8"}}, "is not 40 hex digits; a short key id can be forged"),
        ({"source": {**MIRROR, "url": "mirror.internal"}}, "source.url: mirror.internal is no address"),
        (
            {"source": {**MIRROR, "url": "https://u:p@mirror.internal/x"}},
            "put that into a file in /etc/apt/auth.conf.d",
        ),
        ({"source": {**MIRROR, "url": 'https://m/" evil'}}, "is no address"),
        ({"source": {**MIRROR, "suite": "a\nTrusted: yes"}}, "is no suite"),
        ({"source": {**MIRROR, "suite": ""}}, "is no suite"),
        ({"source": {**MIRROR, "components": ["main"]}}, "a flat repository has none"),
        ({"source": {**ARCHIVE, "components": []}}, "the suite bookworm has some"),
        ({"source": {**ARCHIVE, "components": ["a b"]}}, "'a b' is no component"),
        ({"source": {**ARCHIVE, "key": "/k.asc"}}, "source.fingerprint: a key is known by its fingerprint"),
        ({"source": {**LOCAL, "file": "repo.deb"}}, "source.file: repo.deb is no path"),
        ({"source": {**LOCAL, "file": ""}}, "source.file: nothing is no path"),
        ({"source": {**LOCAL, "sha256": "abc"}}, "source.sha256: a file is known by its SHA-256"),
        ({"source": {**SOURCE, "file": "/x.deb"}}, "a source of the kind vendor has no file"),
        ({"packages": ["Lib Cuda"]}, "packages[0]: Lib Cuda is no name of a package"),
        ({"packages": ["-o=x"]}, "packages[0]: -o=x is no name"),
        ({"toolkit__version": "1.17.8"}, "1.17.8 does not refresh CDI by itself; write 1.18.0 or newer"),
        ({"toolkit__version": "1.20"}, "toolkit.version: 1.20 is no exact version"),
        ({"toolkit__source": {**REPOSITORY, "url": "https://m/x/"}}, "toolkit.source: with an address of its own"),
        ({"settings": [setting(gpu="GPU-1", power_limit_w=1)]}, "settings[0].gpu: GPU-1 is neither all nor the UUID"),
        ({"settings": [setting(power_limit_w=0)]}, "settings[0].power_limit_w: 0 W is no limit"),
        (
            {"settings": [setting(graphics_clock_mhz={"min": 9, "max": 8})]},
            "graphics_clock_mhz: 9 to 8 MHz is no range",
        ),
        ({"settings": [setting(memory_clock_mhz={"min": 0, "max": 8})]}, "memory_clock_mhz: 0 to 8 MHz is no range"),
        ({"settings": [setting(mig=["small"])]}, "settings[0].mig: small is no profile; nvidia-smi mig -lgip"),
        ({"settings": [setting()]}, "settings[0]: it sets nothing"),
        ({"settings": [setting(mig=[]), setting(mig=[])]}, "all is there twice; remove it here or from settings[0]"),
        ({"root": "tree"}, "root: tree is no absolute path"),
    ],
)
def test_each_bad_option_is_named_with_its_remedy(values: dict[str, Any], words: str) -> None:
    faults = inputs.faults_of(options(**values))
    assert len(faults) == 1 and words in faults[0], faults


def test_a_toolkit_that_is_not_wanted_is_not_judged() -> None:
    assert inputs.faults_of(options(toolkit={"enabled": False, "version": "x", "source": REPOSITORY})) == []


@pytest.mark.parametrize(
    ("where", "values", "expected"),
    [
        (DEBIAN, {}, list(NAMES)),
        (TRIXIE, {"kernel_module": "proprietary"}, ["nvidia-driver-cuda", "nvidia-kernel-dkms", *NAMES[2:]]),
        (
            NOBLE,
            {},
            ["libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-utils-580", "nvidia-persistenced"],
        ),
        (
            JAMMY,
            {"source__kind": "distribution", "kernel_module": "proprietary"},
            ["libnvidia-compute-580", "nvidia-dkms-580", "nvidia-utils-580", "nvidia-compute-utils-580"],
        ),
        (
            DEBIAN,
            {"source__kind": "distribution"},
            ["nvidia-open-kernel-dkms", "libcuda1", "libnvidia-ml1", "nvidia-smi"],
        ),
        (
            DEBIAN,
            {"source": {**MIRROR, "names": "distribution"}, "kernel_module": "proprietary"},
            ["nvidia-kernel-dkms", "libcuda1", "libnvidia-ml1", "nvidia-smi"],
        ),
        (NOBLE, {"packages": ["a", "b"], "version": "620.1.1"}, ["a", "b"]),
    ],
)
def test_packages_have_the_names_of_their_source(
    where: tuple[str, str], values: dict[str, Any], expected: list[str]
) -> None:
    exact, own = inputs.driver_packages(options(**values), where)
    assert exact == expected
    assert own == (["nvidia-persistenced"] if "nvidia-smi" in expected else [])


def test_names_that_are_not_known_are_not_guessed() -> None:
    with pytest.raises(ValueError, match="write them in packages"):
        inputs.driver_packages(options(version="620.1.1"), NOBLE)
    assert inputs.driver_packages(options(version="620.1.1"), DEBIAN)[0] == list(NAMES)


def test_fabric_manager_comes_where_nvswitch_is_or_always() -> None:
    switched = host(fabric_manager__needed=True)
    both = ("nvidia-fabricmanager", "libnvidia-nscq")
    assert set(both) <= set(inputs.wanted(options(), switched).exact)
    assert set(both) <= set(inputs.wanted(options(fabric_manager="always"), host()).exact)
    assert not set(both) & set(inputs.wanted(options(), host()).exact)
    assert not set(both) & set(inputs.wanted(options(fabric_manager="never"), switched).exact)


def test_fabric_manager_has_the_branch_in_its_name_before_580_and_in_ubuntus_archive() -> None:
    assert inputs.fabric_packages(options(version="570.195.03"), DEBIAN)[0] == "nvidia-fabricmanager-570"
    assert inputs.fabric_packages(options(source__kind="distribution"), NOBLE)[0] == "nvidia-fabricmanager-580"


def test_each_distribution_has_its_repository_and_its_key() -> None:
    for where, place, fingerprint in (
        (DEBIAN, "debian12", "EB693B3035CD5710E231E123A4B469963BF863CC"),
        (TRIXIE, "debian13", "02182E60104FCDC26EAE1B8597A5D4CB8793F200"),
        (JAMMY, "ubuntu2204", "EB693B3035CD5710E231E123A4B469963BF863CC"),
        (NOBLE, "ubuntu2404", "EB693B3035CD5710E231E123A4B469963BF863CC"),
    ):
        driver, toolkit = inputs.repositories(options(), where)
        assert f"/{place}/x86_64/" in driver.url and driver.fingerprint == fingerprint
        assert driver.key.startswith(driver.url) and toolkit.fingerprint == inputs.TOOLKIT_FINGERPRINT


def test_a_mirror_has_the_toolkit_too_unless_it_is_elsewhere() -> None:
    (only,) = inputs.repositories(options(source=MIRROR), DEBIAN)
    assert (only.url, only.key, only.fingerprint) == (MIRROR["url"], "/k.asc", FINGERPRINT)
    elsewhere = {**REPOSITORY, "url": "https://m/t/", "key": "/t.asc", "fingerprint": FINGERPRINT.lower()}
    _driver, toolkit = inputs.repositories(options(source=MIRROR, toolkit__source=elsewhere), DEBIAN)
    assert (toolkit.name, toolkit.url, toolkit.fingerprint) == ("moat-gpu-toolkit", "https://m/t/", FINGERPRINT)
    assert inputs.repositories(options(source__kind="distribution", toolkit__enabled=False), DEBIAN) == []


def test_the_distributions_archive_is_trusted_through_its_own_keyring() -> None:
    (archive,) = inputs.repositories(options(source=ARCHIVE), DEBIAN)
    assert (archive.key, archive.fingerprint) == ("/usr/share/keyrings/debian-archive-keyring.gpg", "")


def test_a_local_repository_is_known_by_its_sum() -> None:
    (local,) = inputs.repositories(options(source={**LOCAL, "sha256": "A" * 64}), DEBIAN)
    assert (local.file, local.sha256, local.url) == ("/root/repo.deb", "a" * 64, "")


def test_the_settings_are_by_gpu_and_without_what_is_not_declared() -> None:
    given = [setting(power_limit_w=400), setting(gpu=UUID, mig=[])]
    assert inputs.settings_document(options(settings=given)) == {
        "persistence": True,
        "gpus": {"all": {"power_limit_w": 400}, UUID: {"mig": []}},
    }
    assert inputs.wanted(options(), host()).version == VERSION
