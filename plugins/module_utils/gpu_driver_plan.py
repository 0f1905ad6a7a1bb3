# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the host has to have for one exact driver: files, packages and their holds; what is left to do; what state it is in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_faults as faults
from ansible_collections.moat.inference.plugins.module_utils.gpu_driver_inputs import (
    TOOLKIT_PACKAGE,
    Repository,
    Wanted,
)

KEYRINGS, SOURCES = "/etc/apt/keyrings", "/etc/apt/sources.list.d"
PREFERENCES = "/etc/apt/preferences.d/moat-gpu"
# after 50unattended-upgrades, whose list it adds to
UPGRADES = "/etc/apt/apt.conf.d/52moat-gpu"
MODPROBE = "/etc/modprobe.d/moat-gpu.conf"
STATE_DIRECTORY = "/var/lib/moat"
MARKER = f"{STATE_DIRECTORY}/gpu-driver.json"
LOCAL = f"{STATE_DIRECTORY}/gpu-repository"
MANAGED = "Managed by moat.inference."
# everything that is built from the driver, under the names of the vendor and of both distributions
FAMILY = re.compile(
    r"(nvidia-(?!container|cuda-(?!mps)|profiler|visual-profiler|vaapi|opencl-dev)|libnvidia-(?!container|ml-dev)|"
    r"linux-(modules|objects|signatures)-nvidia-|libcuda1|libcudadebugger1|cuda-drivers|firmware-nvidia-|libnvcuvid1|libnvoptix1|"
    r"libnvfbc1|nvlink5-|xserver-xorg-video-nvidia|lib(gl1?|egl|gles|glx|glvkspirv)[a-z0-9-]*nvidia).*"
)
TOOLKIT = re.compile(r"nvidia-container-.*|libnvidia-container.*")
# globs of apt_preferences(5) for the same
FAMILY_GLOBS = (
    "nvidia-* libnvidia-* libcuda1* libcudadebugger1 cuda-drivers* firmware-nvidia-* libnvcuvid1 libnvoptix1 libnvfbc1 nvlink5-*"
    " xserver-xorg-video-nvidia* libgl*nvidia* libegl*nvidia*"
)
# beginnings of names, as unattended-upgrade matches them; the container toolkit is among them
BLACKLIST = (
    "nvidia-",
    "libnvidia-",
    "libcuda1",
    "libcudadebugger1",
    "cuda-drivers",
    "firmware-nvidia-",
    "libnvcuvid1",
    "libnvoptix1",
    "nvlink5-",
    "xserver-xorg-video-nvidia",
)
BRANCH = re.compile(r"-\d{3}(-open|-server)*$")
DRIVER_VERSION = re.compile(r"\d{3}\.\d+(\.\d+)?")
# in versions of their own in the distributions
LOOSE = re.compile(
    r"nvidia-(persistenced|modprobe|settings|xconfig|support|prime|installer-cleanup)|libnvidia-(egl|nvvm|api).*"
)


def upstream(version: str) -> str:
    """Return the upstream part of a package's version (deb-version(7)): 580.178.04 of 580.178.04-1ubuntu1."""
    return re.sub(r"-[^-]*$", "", version.partition(":")[2] or version)


def is_family(name: str) -> bool:
    """Whether a package belongs to the driver."""
    return bool(FAMILY.fullmatch(name.partition(":")[0]))


def is_ours(name: str) -> bool:
    """Whether a package belongs to the driver or to the container toolkit."""
    return is_family(name) or bool(TOOLKIT.fullmatch(name.partition(":")[0]))


def keyring_path(repository: Repository) -> str:
    return f"{KEYRINGS}/{repository.name}.gpg"


def sources_path(repository: Repository) -> str:
    return f"{SOURCES}/{repository.name}.sources"


def sources_text(repository: Repository, keyring: str) -> str:
    """Return a file of sources.list(5) in the deb822 style, whose repository is trusted through that keyring alone."""
    lines = [f"# {MANAGED}", "Types: deb", f"URIs: {repository.url}", f"Suites: {repository.suite}"]
    if repository.components:
        lines.append(f"Components: {' '.join(repository.components)}")
    return "\n".join([*lines, "Architectures: amd64", f"Signed-By: {keyring}"]) + "\n"


def preferences_text(wanted: Wanted) -> str:
    """Return pins for the driver's packages alone; above 1000, so that a downgrade is no obstacle (apt_preferences(5))."""
    parts = [
        f"Explanation: {MANAGED}\nPackage: {FAMILY_GLOBS}\nPin: version {wanted.version}-*\nPin-Priority: 1001\n",
    ]
    if wanted.toolkit:
        parts.append(
            f"Package: nvidia-container-* libnvidia-container*\nPin: version {wanted.toolkit}-*\nPin-Priority: 1001\n"
        )
    return "\n".join(parts)


def upgrades_text() -> str:
    """Return what keeps unattended-upgrade away; its list holds regular expressions that match from the beginning of a name."""
    words = "".join(f'    "{name}";\n' for name in BLACKLIST)
    return f"// {MANAGED}\nUnattended-Upgrade::Package-Blacklist {{\n{words}}};\n"


def modprobe_text() -> str:
    """Return what keeps nouveau from being loaded (modprobe.d(5))."""
    return f"# {MANAGED}\nblacklist nouveau\noptions nouveau modeset=0\n"


def file_texts(wanted: Wanted, keyrings: Mapping[str, bytes], urls: Mapping[str, str]) -> dict[str, bytes]:
    """Return the content of every file by its path.

    keyrings: the one key of each repository that has one of ours, by its name; urls: where an unpacked local repository is, by its name.
    """
    found = {
        PREFERENCES: preferences_text(wanted).encode(),
        UPGRADES: upgrades_text().encode(),
        MODPROBE: modprobe_text().encode(),
    }
    for repository in wanted.repositories:
        entry = Repository(
            repository.name, urls.get(repository.name, repository.url), repository.suite, repository.components
        )
        keyring = repository.key
        if repository.name in keyrings:
            keyring = keyring_path(repository)
            found[keyring] = keyrings[repository.name]
        found[sources_path(repository)] = sources_text(entry, keyring).encode()
    return found


def left_to_do(host: Mapping[str, Any], wanted: Wanted, marker: Mapping[str, Any]) -> list[str]:
    """Return in words why packages have to change; nothing when all are there in the right version, configured and held."""
    found = []
    if marker.get("phase") not in (None, "complete"):
        found.append(f"the transaction for {marker.get('version', 'a driver')} that was begun did not complete")
    packages = host["packages"]
    for name in wanted.names:
        seen = packages.get(name)
        right = wanted.toolkit if name == TOOLKIT_PACKAGE else wanted.version
        if seen is None or seen["state"] in ("config-files", "not-installed"):
            found.append(f"{name} is not installed")
        elif seen["state"] != "installed":
            found.append(f"{name} is {seen['state']}")
        elif name not in wanted.any and upstream(seen["version"]) != right:
            found.append(f"{name} is {upstream(seen['version'])}, not {right}")
        elif not seen["held"]:
            found.append(f"{name} is not held")
    found += [f"{name} is not held" for name in siblings(host, wanted) if not packages[name]["held"]]
    return found + [f"{name} is {packages[name]['version']}, not {wanted.version}" for name in stragglers(host, wanted)]


def siblings(host: Mapping[str, Any], wanted: Wanted) -> list[str]:
    """Return installed packages of the driver that are not asked for by name and have its version."""
    return [
        name
        for name, seen in sorted(host["packages"].items())
        if is_family(name)
        and name not in wanted.names
        and seen["state"] == "installed"
        and upstream(seen["version"]) == wanted.version
    ]


def stragglers(host: Mapping[str, Any], wanted: Wanted, handled: Sequence[str] = (), loose: bool = False) -> list[str]:
    """Return installed packages of the driver, not asked for by name and not handled, that stay behind in another version.

    loose: also those that may have a version of their own.
    """
    return [
        name
        for name, seen in sorted(host["packages"].items())
        if is_family(name)
        and seen["state"] == "installed"
        and name not in wanted.names
        and name not in handled
        and (loose or not LOOSE.fullmatch(name))
        and DRIVER_VERSION.fullmatch(upstream(seen["version"]))
        and upstream(seen["version"]) != wanted.version
    ]


def superseded(names: Sequence[str], host: Mapping[str, Any], wanted: Wanted) -> list[str]:
    """Return those of the installed packages that are the wanted ones under the name of another branch, so that they have to go."""
    bases = {BRANCH.sub("", name) for name in wanted.names}
    branch = wanted.version.split(".")[0]
    found = []
    for name in names:
        old = upstream(host["packages"][name]["version"]).split(".")[0]
        own = old != branch and re.search(rf"-{old}(-|$)", name)
        if own or (BRANCH.sub("", name) in bases and name not in wanted.names):
            found.append(name)
    return found


def unfinished(host: Mapping[str, Any], marker: Mapping[str, Any]) -> bool:
    """Whether dpkg has to finish first: a package is in a state between, or a transaction was begun and did not complete."""
    whole = ("installed", "config-files", "not-installed")
    return marker.get("phase") == "begun" or any(seen["state"] not in whole for seen in host["packages"].values())


def unbuilt(host: Mapping[str, Any], wanted: Wanted) -> list[str]:
    """Return the installed kernels with headers that have no module of the version."""
    done = faults.built(host, wanted.version)
    return [
        kernel for kernel in host["kernel"]["installed"] if kernel in host["kernel"]["headers"] and kernel not in done
    ]


def build_logs(host: Mapping[str, Any], wanted: Wanted, kernels: Sequence[str]) -> list[str]:
    """Return where DKMS may have left the log of each failed build (dkms(8))."""
    names = sorted({entry["module"] for entry in host["dkms"] if entry["module"].startswith("nvidia")}) or ["nvidia"]
    paths = []
    for name in names:
        paths.append(f"/var/lib/dkms/{name}/{wanted.version}/build/make.log")
        paths += [f"/var/lib/dkms/{name}/{wanted.version}/{kernel}/x86_64/log/make.log" for kernel in kernels]
    return paths


def incomplete(host: Mapping[str, Any], wanted: Wanted) -> list[str]:
    """Return why an installed driver is not whole: a kernel without its module, or a module on disk of another version."""
    found = [f"DKMS has no module {wanted.version} for the kernel {kernel}" for kernel in unbuilt(host, wanted)]
    on_disk = host["driver"]["on_disk"]
    running = host["kernel"]["running"]
    if on_disk and running in faults.built(host, wanted.version) and on_disk["version"] not in (None, wanted.version):
        found.append(
            f"the module on disk for {running} is {on_disk['version']} ({on_disk['path']}), not {wanted.version}"
        )
    return found


def reboot_reasons(host: Mapping[str, Any], wanted: Wanted, kernel_module: str) -> list[str]:
    """Return why the installed driver takes effect only with a reboot."""
    found = []
    module = host["driver"]["module"]
    if not module or not module["loaded"]:
        found.append("no module of the driver is loaded")
    elif module["version"] not in (None, wanted.version):
        found.append(f"the module {module['version']} is loaded, {wanted.version} is installed")
    elif module["flavour"] not in (None, "", kernel_module):
        found.append(f"the {module['flavour']} module is loaded, the {kernel_module} one is installed")
    if host["driver"]["nouveau"]["loaded"]:
        found.append("nouveau is loaded")
    return found


def marker_text(version: str, phase: str, packages: Mapping[str, str], reason: str = "") -> bytes:
    """Return what is remembered of a transaction. phase: begun, failed (dpkg was not whole), incomplete (no module) or complete."""
    content = {"version": version, "phase": phase, "packages": dict(sorted(packages.items())), "reason": reason}
    return (json.dumps(content, indent=1) + "\n").encode()


def parse_marker(content: bytes | None) -> dict[str, Any]:
    """Return what is remembered; a file that cannot be read (cut off by a crash) stands for a transaction that was begun."""
    if content is None:
        return {}
    try:
        found = json.loads(content)
    except ValueError:
        return {"phase": "begun"}
    return found if isinstance(found, dict) else {"phase": "begun"}
