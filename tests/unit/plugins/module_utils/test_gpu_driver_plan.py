"""What is left to do, what the files say, and in which state a host is."""

from __future__ import annotations

import json
import re

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_inputs as inputs
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_plan as plan
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_driver_samples import (
    NAMES,
    NEWEST,
    RUNNING,
    VERSION,
    converged,
    host,
    options,
    package,
)

WANTED = inputs.wanted(options(), host())
SUFFIXED = inputs.Wanted("580.178.04", ("libnvidia-compute-580", "nvidia-fabricmanager"), (), "")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("580.178.04-1", "580.178.04"),
        ("580.178.04-1ubuntu1", "580.178.04"),
        ("580.159.03-0ubuntu0.24.04.1", "580.159.03"),
        ("535.247.01-1~deb12u1", "535.247.01"),
        ("1:1.1.20-1ubuntu1", "1.1.20"),
        ("1.20.1", "1.20.1"),
    ],
)
def test_the_upstream_part_of_a_version(version: str, expected: str) -> None:
    assert plan.upstream(version) == expected


@pytest.mark.parametrize(
    "name",
    [
        *NAMES,
        *("libnvidia-ml1", "firmware-nvidia-gsp", "nvidia-dkms-580-open", "nvidia-fabricmanager", "libnvidia-nscq-580"),
        *(
            "cuda-drivers-580",
            "xserver-xorg-video-nvidia",
            "libgl1-nvidia-glvnd-glx",
            "libegl-nvidia0",
            "nvidia-cuda-mps",
        ),
    ],
)
def test_what_belongs_to_the_driver(name: str) -> None:
    assert plan.is_family(name) and plan.is_ours(name) and plan.is_family(f"{name}:amd64")


@pytest.mark.parametrize(
    "name",
    [
        "nvidia-cuda-toolkit",
        "libnvidia-ml-dev",
        "cuda-toolkit-13-0",
        "libc6",
        "dkms",
        "linux-image-amd64",
        "libcudart12",
    ],
)
def test_what_does_not(name: str) -> None:
    assert not plan.is_family(name) and not plan.is_ours(name)


def test_the_container_toolkit_is_ours_and_not_the_drivers() -> None:
    for name in ("nvidia-container-toolkit-base", "libnvidia-container1"):
        assert plan.is_ours(name) and not plan.is_family(name)


def test_every_file_says_what_it_is_for() -> None:
    texts = plan.file_texts(WANTED, {"moat-gpu": b"key", "moat-gpu-toolkit": b"other"}, {})
    assert set(texts) == {
        "/etc/apt/keyrings/moat-gpu.gpg",
        "/etc/apt/keyrings/moat-gpu-toolkit.gpg",
        "/etc/apt/sources.list.d/moat-gpu.sources",
        "/etc/apt/sources.list.d/moat-gpu-toolkit.sources",
        "/etc/apt/preferences.d/moat-gpu",
        "/etc/apt/apt.conf.d/52moat-gpu",
        "/etc/modprobe.d/moat-gpu.conf",
    }
    sources = texts["/etc/apt/sources.list.d/moat-gpu.sources"].decode()
    assert "URIs: https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/\nSuites: /\n" in sources
    assert "Signed-By: /etc/apt/keyrings/moat-gpu.gpg\n" in sources and "Components" not in sources
    assert b"blacklist nouveau\n" in texts[plan.MODPROBE]


def test_pins_are_for_the_exact_version_and_above_a_downgrade() -> None:
    text = plan.preferences_text(WANTED)
    assert f"Pin: version {VERSION}-*\nPin-Priority: 1001\n" in text
    assert "Pin: version 1.20.1-*\n" in text and "Package: *" not in text
    without = inputs.wanted(options(toolkit__enabled=False), host())
    assert "container" not in plan.preferences_text(without)


def test_unattended_upgrades_are_told_names_from_their_beginning() -> None:
    words = re.findall(r'"(.+)";', plan.upgrades_text())
    for name in (*NAMES, "libnvidia-ml1", "firmware-nvidia-gsp"):
        assert any(re.match(word, name) for word in words), name
    for name in ("libc6", "linux-image-amd64", "dkms"):
        assert not any(re.match(word, name) for word in words), name


def test_a_repository_with_components_and_the_distributions_keyring() -> None:
    archive = inputs.Repository(
        "moat-gpu", "http://deb/debian", "bookworm", ("contrib", "non-free"), "/usr/share/keyrings/k.gpg"
    )
    wanted = inputs.Wanted(VERSION, ("libcuda1",), (), "", (archive,))
    texts = plan.file_texts(wanted, {}, {})
    text = texts["/etc/apt/sources.list.d/moat-gpu.sources"].decode()
    assert (
        "Suites: bookworm\nComponents: contrib non-free\n" in text and "Signed-By: /usr/share/keyrings/k.gpg\n" in text
    )


def test_a_converged_host_has_nothing_left_to_do() -> None:
    assert plan.left_to_do(converged(), WANTED, {"phase": "complete"}) == []
    assert plan.incomplete(converged(), WANTED) == []
    assert plan.reboot_reasons(converged(), WANTED, "open") == []
    assert not plan.unfinished(converged(), {"phase": "complete"})


def test_a_bare_host_lacks_everything() -> None:
    left = plan.left_to_do(host(), WANTED, {})
    assert left == [f"{name} is not installed" for name in (*NAMES, "nvidia-container-toolkit-base")]


@pytest.mark.parametrize(
    ("name", "there", "words"),
    [
        ("libcuda1", package("580.173.02-1"), "libcuda1 is 580.173.02, not 580.178.04"),
        ("libcuda1", package(f"{VERSION}-1", held=False), "libcuda1 is not held"),
        ("libcuda1", package(f"{VERSION}-1", state="half-configured"), "libcuda1 is half-configured"),
        ("libcuda1", package(f"{VERSION}-1", state="config-files"), "libcuda1 is not installed"),
        ("libnvidia-ml1", package("580.173.02-1"), "libnvidia-ml1 is 580.173.02-1, not 580.178.04"),
        ("libnvidia-ml1", package(f"{VERSION}-1", held=False), "libnvidia-ml1 is not held"),
        ("nvidia-container-toolkit-base", package("1.18.0-1"), "nvidia-container-toolkit-base is 1.18.0, not 1.20.1"),
    ],
)
def test_each_package_that_is_not_right_is_named(name: str, there: dict[str, object], words: str) -> None:
    seen = converged()
    seen["packages"][name] = there
    assert plan.left_to_do(seen, WANTED, {}) == [words]


def test_packages_with_a_version_of_their_own_are_no_strangers() -> None:
    seen = converged()
    seen["packages"].update({"nvidia-settings": package("535.171.04-1"), "nvidia-cuda-toolkit": package("11.8.89-5")})
    assert plan.left_to_do(seen, WANTED, {}) == []
    assert plan.stragglers(seen, WANTED, loose=True) == ["nvidia-settings"]


@pytest.mark.parametrize("phase", ["begun", "failed", "incomplete"])
def test_a_transaction_that_did_not_complete_is_left_to_do(phase: str) -> None:
    marker = plan.parse_marker(plan.marker_text(VERSION, phase, {}))
    assert plan.left_to_do(converged(), WANTED, marker) == [
        f"the transaction for {VERSION} that was begun did not complete"
    ]
    assert plan.left_to_do(converged(), WANTED, plan.parse_marker(plan.marker_text(VERSION, "complete", {}))) == []


def test_a_marker_that_was_cut_off_counts_as_begun() -> None:
    whole = plan.marker_text(VERSION, "complete", {"libcuda1": "1"}, "why")
    assert plan.parse_marker(whole) == {**json.loads(whole)}
    for cut in (whole[:20], b"", b"[]"):
        assert plan.parse_marker(cut) == {"phase": "begun"}
    assert plan.parse_marker(None) == {}


def test_dpkg_has_to_finish_first_where_a_package_is_between_states() -> None:
    seen = converged()
    seen["packages"]["dkms"] = package("3.0.10-8", held=False, state="unpacked")
    assert plan.unfinished(seen, {})
    assert plan.unfinished(converged(), {"phase": "begun"}) and not plan.unfinished(converged(), {"phase": "failed"})


def test_a_kernel_without_its_module_is_named_with_the_logs_of_its_build() -> None:
    seen = converged()
    seen["dkms"][1]["state"] = "built"
    assert plan.unbuilt(seen, WANTED) == [NEWEST]
    assert plan.incomplete(seen, WANTED) == [f"DKMS has no module {VERSION} for the kernel {NEWEST}"]
    logs = plan.build_logs(seen, WANTED, [NEWEST])
    assert f"/var/lib/dkms/nvidia/{VERSION}/build/make.log" in logs
    assert f"/var/lib/dkms/nvidia/{VERSION}/{NEWEST}/x86_64/log/make.log" in logs
    assert plan.build_logs(host(), WANTED, []) == [f"/var/lib/dkms/nvidia/{VERSION}/build/make.log"]


def test_a_kernel_without_headers_needs_no_module() -> None:
    assert plan.unbuilt(host(kernel__headers=[RUNNING]), WANTED) == [RUNNING]


def test_another_module_on_disk_is_named() -> None:
    on_disk = {"version": "580.1.1", "flavour": "open", "path": "/lib/modules/x/nvidia.ko"}
    assert plan.incomplete(converged(driver__on_disk=on_disk), WANTED) == [
        f"the module on disk for {RUNNING} is 580.1.1 (/lib/modules/x/nvidia.ko), not {VERSION}"
    ]
    assert plan.incomplete(converged(driver__on_disk={**on_disk, "version": VERSION}), WANTED) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"driver__module": None}, "no module of the driver is loaded"),
        (
            {"driver__module": {"loaded": True, "version": "580.1.1", "flavour": "open"}},
            f"the module 580.1.1 is loaded, {VERSION} is installed",
        ),
        (
            {"driver__module": {"loaded": True, "version": VERSION, "flavour": "proprietary"}},
            "the proprietary module is loaded, the open one is installed",
        ),
        ({"driver__nouveau": {"loaded": True, "in_use": False, "blacklisted": True}}, "nouveau is loaded"),
    ],
)
def test_each_reason_for_a_reboot(values: dict[str, object], words: str) -> None:
    seen = converged()
    for path, value in values.items():
        _driver, key = path.split("__")
        seen["driver"][key] = value
    assert plan.reboot_reasons(seen, WANTED, "open") == [words]


def test_packages_of_another_branch_have_to_go_and_pins_of_the_vendor_do_not() -> None:
    seen = host(
        packages={
            "libnvidia-compute-570": package("570.195.03-1"),
            "nvidia-kernel-common-570": package("570.195.03-1"),
            "nvidia-fabricmanager-570": package("570.195.03-1"),
            "nvidia-driver-pinning-580.126.20": package("580.126.20-1"),
            "libnvidia-ml1": package("580.173.02-1"),
        }
    )
    names = plan.stragglers(seen, SUFFIXED)
    assert sorted(names) == sorted(seen["packages"])
    assert plan.superseded(names, seen, SUFFIXED) == [
        "libnvidia-compute-570",
        "nvidia-fabricmanager-570",
        "nvidia-kernel-common-570",
    ]
