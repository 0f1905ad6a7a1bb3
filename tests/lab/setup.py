"""What the machine needs: Debian packages and a virtual environment. Standard library only: this runs first."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from tests.lab.shell import LAB, ROOT, LabError, Step, capture, privileged, remove_tree, say, succeeds, write

# program -> the Debian package that has it
PROGRAMS = {
    "podman": "podman",
    "netavark": "netavark",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "ssh": "openssh-client",
    "openssl": "openssl",
    "shellcheck": "shellcheck",
    "tcpdump": "tcpdump",
}
SEARCH = ("/usr/sbin", "/sbin", "/usr/lib/podman", "/usr/libexec/podman")
REQUIREMENTS = ROOT / "requirements-dev.txt"
VENV = Path(os.environ.get("MOAT_LAB_VENV") or LAB / "venv")


def missing_packages() -> list[str]:
    """The packages whose program is not there."""
    places = [*os.environ.get("PATH", "").split(":"), *SEARCH]
    missing = [package for program, package in PROGRAMS.items() if not any(Path(p, program).exists() for p in places)]
    if not any(Path(p, runtime).exists() for p in places for runtime in ("crun", "runc")):
        missing.append("crun" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "runc")
    if not succeeds([sys.executable, "-c", "import ensurepip, venv"]):
        missing.append("python3-venv")
    return missing


def install_packages() -> None:
    missing = missing_packages()
    if not missing:
        return
    say(f"Installing Debian packages: {' '.join(missing)}")
    if os.geteuid() and not succeeds(["sudo", "-n", "true"]):
        raise LabError("Root is needed for the lab: run as root, or as a user whose sudo asks for no password.")
    with Step("packages from Debian") as step:
        apt = privileged(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=120"])
        step.run([*apt, "update"])
        step.run([*apt, "install", "-y", "--no-install-recommends", *missing])


def venv_python() -> Path:
    return VENV / "bin" / "python"


def install_venv() -> None:
    """The virtual environment of requirements-dev.txt; the marker is written last."""
    if "MOAT_LAB_VENV" in os.environ:
        return
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    marker = VENV / "moat-lab-requirements"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return
    say(f"Installing Python packages of {REQUIREMENTS.name} into {VENV.relative_to(ROOT)}")
    with Step("venv from the Python package index") as step:
        # Half an environment looks like a whole one to pip; begin anew unless the last one was finished.
        if not marker.is_file():
            remove_tree(VENV)
            step.run([sys.executable, "-m", "venv", str(VENV)])
        hashed = "--hash=" in REQUIREMENTS.read_text(encoding="utf-8")
        pip = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off"]
        step.run([*pip, *(["--require-hashes"] if hashed else []), "-r", str(REQUIREMENTS)])
    write(marker, wanted)


def setup() -> None:
    if sys.version_info < (3, 11):
        raise LabError(f"python3 is {sys.version.split()[0]}; 3.11 or newer is needed.")
    if capture(["uname", "-s"]).strip() != "Linux":
        raise LabError("The lab runs on Linux only.")
    install_packages()
    install_venv()
