# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What gpu_driver is asked for: which options no host could carry out, and which repositories and packages the rest means.

Sources: NVIDIA Driver Installation Guide, releases 580 to 620 (names of packages), NVIDIA Container Toolkit documentation 1.20, the keys'
own files, whose fingerprints were computed from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import openpgp

CUDA = "https://developer.download.nvidia.com/compute/cuda/repos"
CUDATOOLS = ("3bf863cc.pub", "EB693B3035CD5710E231E123A4B469963BF863CC")
# Debian 13 refuses the self-signature of the older key, which uses SHA-1
KITMAKER = ("8793F200.pub", "02182E60104FCDC26EAE1B8597A5D4CB8793F200")
VENDOR = {
    ("debian", "12"): ("debian12", *CUDATOOLS),
    ("debian", "13"): ("debian13", *KITMAKER),
    ("ubuntu", "22.04"): ("ubuntu2204", *CUDATOOLS),
    ("ubuntu", "24.04"): ("ubuntu2404", *CUDATOOLS),
}
SUPPORTED = tuple(VENDOR)
TOOLKIT_URL = "https://nvidia.github.io/libnvidia-container/stable/deb/amd64/"
TOOLKIT_KEY = "https://nvidia.github.io/libnvidia-container/gpgkey"
TOOLKIT_FINGERPRINT = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
# the package without the runtime's hook: CDI needs no more
TOOLKIT_PACKAGE = "nvidia-container-toolkit-base"
TOOLKIT_LEAST = (1, 18)  # it refreshes the CDI specification itself
DISTRIBUTION_KEYS = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}
BRANCH_WITHOUT_SUFFIX = 590  # from here on the vendor's packages for Ubuntu have other names
VERSION = re.compile(r"[0-9]{3}\.[0-9]{1,3}(\.[0-9]{1,3})?")
TOOLKIT_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
URL = re.compile(r"(https?|file)://?[^\s\"'<>]+|file:/[^\s\"'<>]+")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_-]*")
SUITE = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.+~_/-]*|\./|/)")
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
SHA256 = re.compile(r"[0-9a-f]{64}")
UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PROFILE = re.compile(r"([0-9]c\.)?[0-9]g\.[0-9]+gb(\+(me|gfx|me\.all))?|[0-9]g\.[0-9]+gb-me|\d+")


@dataclass(frozen=True)
class Repository:
    """One entry of sources.list(5). name: of its files; key: text, path or URL, or "" when apt has it already; file: of a local repository."""

    name: str
    url: str = ""
    suite: str = "/"
    components: tuple[str, ...] = ()
    key: str = ""
    fingerprint: str = ""
    file: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Wanted:
    """What the host shall have.

    exact: packages of the driver's version; any: packages that come in a version of their own; toolkit: version or "".
    """

    version: str
    exact: tuple[str, ...]
    any: tuple[str, ...]
    toolkit: str
    repositories: tuple[Repository, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.exact, *self.any, *((TOOLKIT_PACKAGE,) if self.toolkit else ()))


def faults_of(options: Mapping[str, Any]) -> list[str]:
    """Name every option that no host could carry out, with its remedy."""
    faults = []
    if not VERSION.fullmatch(options["version"]):
        faults.append(f"version: {options['version']} is no exact version; write one such as 580.178.04")
    source = options["source"]
    kind = source["kind"]
    faults += _source_faults("source", source)
    if kind == "mirror" and not source["url"]:
        faults.append("source.url: a mirror has an address; write it")
    if kind == "mirror" and not source["fingerprint"]:
        faults.append("source.fingerprint: a mirror's key is known by its fingerprint; write its 40 hex digits")
    if kind in ("mirror", "distribution") and source["url"] and source["fingerprint"] and not source["key"]:
        faults.append("source.key: a key with that fingerprint is needed; give its text, or its path on the host")
    if kind == "distribution" and source["key"] and not source["fingerprint"]:
        faults.append(
            "source.fingerprint: a key is known by its fingerprint; write its 40 hex digits, or remove the key"
        )
    if kind == "local":
        if not source["file"].startswith("/"):
            faults.append(
                f"source.file: {source['file'] or 'nothing'} is no path of a package on the host; write it in full"
            )
        if not SHA256.fullmatch(source["sha256"].lower()):
            faults.append("source.sha256: a file is known by its SHA-256; write its 64 hex digits")
    elif source["file"] or source["sha256"]:
        faults.append(
            f"source.file: a source of the kind {kind} has no file; remove file and sha256, or write kind local"
        )
    for index, name in enumerate(options["packages"]):
        if not PACKAGE.fullmatch(name):
            faults.append(f"packages[{index}]: {name} is no name of a package; correct it")
    faults += _toolkit_faults(options["toolkit"])
    seen: dict[str, int] = {}
    for index, item in enumerate(options["settings"]):
        faults += _setting_faults(f"settings[{index}]", item)
        if seen.setdefault(item["gpu"], index) != index:
            faults.append(
                f"settings[{index}].gpu: {item['gpu']} is there twice; remove it here or from settings[{seen[item['gpu']]}]"
            )
    if not options["root"].startswith("/"):
        faults.append(f"root: {options['root']} is no absolute path; write it in full")
    return faults


def _source_faults(key: str, source: Mapping[str, Any]) -> list[str]:
    faults = []
    if source["url"] and not URL.fullmatch(source["url"]):
        faults.append(f"{key}.url: {source['url']} is no address; write one such as https://mirror.internal/nvidia/")
    if "@" in source["url"].partition("://")[2].partition("/")[0]:
        faults.append(
            f"{key}.url: it has a password in it; put that into a file in /etc/apt/auth.conf.d (apt_auth.conf(5))"
        )
    flat = source["suite"].endswith("/")
    if not SUITE.fullmatch(source["suite"]):
        faults.append(
            f"{key}.suite: {source['suite']!r} is no suite; write one such as bookworm, or / for a flat repository"
        )
    elif flat and source["components"]:
        faults.append(f"{key}.components: a flat repository has none; remove them, or name the suite")
    elif source["url"] and not flat and not source["components"]:
        faults.append(f"{key}.components: the suite {source['suite']} has some; write them, such as [non-free]")
    for word in source["components"]:
        if not WORD.fullmatch(word):
            faults.append(f"{key}.components: {word!r} is no component; correct it")
    if source["fingerprint"] and not openpgp.FINGERPRINT.fullmatch(openpgp.normal(source["fingerprint"])):
        faults.append(f"{key}.fingerprint: {source['fingerprint']} is not 40 hex digits; a short key id can be forged")
    given = source["key"]
    if given and not given.startswith("/") and openpgp.BEGIN.decode() not in given:
        faults.append(f"{key}.key: it is neither an ASCII-armoured public key nor an absolute path; give one of these")
    return faults


def _toolkit_faults(toolkit: Mapping[str, Any]) -> list[str]:
    if not toolkit["enabled"]:
        return []
    source = toolkit["source"]
    faults = _source_faults("toolkit.source", source)
    if not TOOLKIT_VERSION.fullmatch(toolkit["version"]):
        faults.append(f"toolkit.version: {toolkit['version']} is no exact version; write one such as 1.20.1")
    elif tuple(int(part) for part in toolkit["version"].split(".")[:2]) < TOOLKIT_LEAST:
        faults.append(f"toolkit.version: {toolkit['version']} does not refresh CDI by itself; write 1.18.0 or newer")
    if source["url"] and not (source["key"] and source["fingerprint"]):
        faults.append("toolkit.source: with an address of its own it needs key and fingerprint; write both")
    return faults


def _setting_faults(key: str, item: Mapping[str, Any]) -> list[str]:
    faults = []
    gpu = item["gpu"]
    if gpu != "all" and not UUID.fullmatch(gpu):
        faults.append(f"{key}.gpu: {gpu} is neither all nor the UUID of a GPU as nvidia-smi -L shows it; correct it")
    if item["power_limit_w"] is not None and item["power_limit_w"] <= 0:
        faults.append(f"{key}.power_limit_w: {item['power_limit_w']} W is no limit; write a positive number")
    for name in ("graphics_clock_mhz", "memory_clock_mhz"):
        clock = item[name]
        if clock and not 0 < clock["min"] <= clock["max"]:
            faults.append(f"{key}.{name}: {clock['min']} to {clock['max']} MHz is no range; write the lower one as min")
    for profile in item["mig"] or ():
        if not PROFILE.fullmatch(profile):
            faults.append(f"{key}.mig: {profile} is no profile; nvidia-smi mig -lgip lists them, such as 1g.10gb")
    if all(item[name] is None for name in ("power_limit_w", "graphics_clock_mhz", "memory_clock_mhz", "mig")):
        faults.append(f"{key}: it sets nothing; write a limit, a clock or mig, or remove it")
    return faults


def driver_packages(options: Mapping[str, Any], distribution: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Return the packages of the driver's version and those of a version of their own, Fabric Manager left out.

    distribution: id and version of os-release(5). Raises ValueError where no table has the names.
    """
    if options["packages"]:
        return list(options["packages"]), []
    opened = options["kernel_module"] == "open"
    branch = int(options["version"].split(".")[0])
    theirs = options["source"]["names"] if options["source"]["kind"] == "mirror" else options["source"]["kind"]
    if distribution[0] == "debian" and theirs == "distribution":
        module = "nvidia-open-kernel-dkms" if opened else "nvidia-kernel-dkms"
        return [module, "libcuda1", "libnvidia-ml1", "nvidia-smi"], ["nvidia-persistenced"]
    if distribution[0] == "debian":
        module = "nvidia-kernel-open-dkms" if opened else "nvidia-kernel-dkms"
        return ["nvidia-driver-cuda", module, "libcuda1", "nvidia-persistenced"], []
    if branch >= BRANCH_WITHOUT_SUFFIX and theirs != "distribution":
        raise ValueError(f"the names of the packages of {branch} for Ubuntu are not known; write them in packages")
    module = f"nvidia-dkms-{branch}-open" if opened else f"nvidia-dkms-{branch}"
    found = [f"libnvidia-compute-{branch}", module, f"nvidia-utils-{branch}"]
    if theirs == "distribution":
        return [*found, f"nvidia-compute-utils-{branch}"], []
    return [*found, "nvidia-persistenced"], []


def fabric_packages(options: Mapping[str, Any], distribution: tuple[str, str]) -> list[str]:
    """Return Fabric Manager and the library through which NVSwitch is asked, both of the driver's version."""
    branch = int(options["version"].split(".")[0])
    theirs = options["source"]["names"] if options["source"]["kind"] == "mirror" else options["source"]["kind"]
    if theirs == "distribution" and distribution[0] == "ubuntu":
        return [f"nvidia-fabricmanager-{branch}", f"libnvidia-nscq-{branch}"]
    # the vendor's have no branch in their names from 580 on
    suffix = "" if branch >= 580 else f"-{branch}"
    return [f"nvidia-fabricmanager{suffix}", f"libnvidia-nscq{suffix}"]


def repositories(options: Mapping[str, Any], distribution: tuple[str, str]) -> list[Repository]:
    """Return the repositories to add: of the driver, and of the toolkit where it is another one."""
    source, kind = options["source"], options["source"]["kind"]
    found = []
    if kind == "vendor" and distribution in VENDOR:
        place, key, fingerprint = VENDOR[distribution]
        url = source["url"] or f"{CUDA}/{place}/x86_64/"
        given = source["key"] or f"{url.rstrip('/')}/{key}"
        found.append(
            Repository("moat-gpu", url, source["suite"], tuple(source["components"]), given, _or(source, fingerprint))
        )
    elif kind == "local":
        found.append(
            Repository(
                "moat-gpu",
                key=source["key"],
                fingerprint=openpgp.normal(source["fingerprint"]),
                file=source["file"],
                sha256=source["sha256"].lower(),
            )
        )
    elif source["url"]:
        key = source["key"] or DISTRIBUTION_KEYS.get(distribution[0], "")
        found.append(
            Repository("moat-gpu", source["url"], source["suite"], tuple(source["components"]), key, _or(source, ""))
        )
    toolkit = options["toolkit"]
    if toolkit["enabled"] and toolkit["source"]["url"]:
        other = toolkit["source"]
        found.append(
            Repository(
                "moat-gpu-toolkit",
                other["url"],
                other["suite"],
                tuple(other["components"]),
                other["key"],
                openpgp.normal(other["fingerprint"]),
            )
        )
    elif toolkit["enabled"] and kind == "vendor":
        found.append(Repository("moat-gpu-toolkit", TOOLKIT_URL, key=TOOLKIT_KEY, fingerprint=TOOLKIT_FINGERPRINT))
    return found


def _or(source: Mapping[str, Any], fingerprint: str) -> str:
    return openpgp.normal(source["fingerprint"]) or fingerprint


def needs_fabric_manager(options: Mapping[str, Any], host: Mapping[str, Any]) -> bool:
    """Whether Fabric Manager has to come with the driver."""
    mode = options["fabric_manager"]
    return mode == "always" or (mode == "auto" and bool(host["fabric_manager"]["needed"]))


def wanted(options: Mapping[str, Any], host: Mapping[str, Any]) -> Wanted:
    """Return what a supported host shall have; raise ValueError where no table has the packages' names."""
    distribution = (host["distribution"]["id"], host["distribution"]["version"])
    exact, own = driver_packages(options, distribution)
    if needs_fabric_manager(options, host):
        exact += fabric_packages(options, distribution)
    toolkit = options["toolkit"]["version"] if options["toolkit"]["enabled"] else ""
    return Wanted(
        options["version"],
        tuple(dict.fromkeys(exact)),
        tuple(own),
        toolkit,
        tuple(repositories(options, distribution)),
    )


def settings_document(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what /etc/moat/gpu.json says: the declared settings by GPU, without what is not declared."""
    items: Sequence[Mapping[str, Any]] = options["settings"]
    gpus = {
        item["gpu"]: {key: value for key, value in item.items() if key != "gpu" and value is not None} for item in items
    }
    return {"persistence": options["persistence"], "gpus": gpus}
