"""Debian's own driver packages with a kernel, its headers and DKMS, as a repository of the lab: what a lab host lacks of them, fetched once.

They come the way the image's packages come, with non-free beside main; nothing is fetched by a host of the lab.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from pathlib import Path

from tests.lab import image
from tests.lab.backend import File
from tests.lab.gpu_repository import SHARED
from tests.lab.podman import Podman, podman
from tests.lab.shell import CACHE, Step, capture, lock, remove_tree

KERNEL = ("linux-image-cloud-amd64", "linux-headers-cloud-amd64")
DRIVER = ("nvidia-open-kernel-dkms", "libcuda1", "libnvidia-ml1", "nvidia-smi", "nvidia-persistenced")
COMPONENTS = "main contrib non-free non-free-firmware"
MIRROR, KEYRING = "http://deb.debian.org/debian", "/usr/share/keyrings/debian-archive-keyring.gpg"
POOL, SERVED, PORT = "/srv/pool", "/srv/debian", 8581
URL = f"http://127.0.0.1:{PORT}/debian"
SERVE = f"""set -eu
. /etc/gpu-repository/repository.sh
export GNUPGHOME=/etc/gpu-repository/debian
mkdir -p {SERVED}/debian/dists/{image.SUITE}/non-free/binary-amd64 {SERVED}/keys
cd {SERVED}/debian
ln -s {POOL} pool
new_key "lab, Debian's driver packages" {SERVED}/keys/debian.asc rsa3072
gpg --batch --with-colons --fingerprint | sed -n 's/^fpr:*\\([0-9A-F]*\\):.*/\\1/p' | head -n 1 > {SERVED}/keys/debian.fingerprint
apt-ftparchive packages pool/ > dists/{image.SUITE}/non-free/binary-amd64/Packages
sign_release dists/{image.SUITE} -o APT::FTPArchive::Release::Suite={image.SUITE} -o APT::FTPArchive::Release::Codename={image.SUITE} \
  -o APT::FTPArchive::Release::Components=non-free -o APT::FTPArchive::Release::Architectures=amd64
gpgconf --kill all
"""


def files() -> tuple[File, ...]:
    """What the host that serves them is given, beside the packages themselves."""
    return (
        File("/etc/gpu-repository/repository.sh", SHARED.read_bytes()),
        File("/etc/gpu-repository/serve.sh", SERVE.encode()),
    )


def packages() -> Path:
    """The folder of packages: there already, or fetched."""
    wanted = json.dumps([image.recipe(), KERNEL, DRIVER, COMPONENTS])
    folder = CACHE / f"driver-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"
    with lock(CACHE / "driver.lock"):
        if not folder.is_dir():
            _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    backend = Podman()
    work = CACHE / f"driver-{os.getpid()}.tmp"
    remove_tree(work)
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    with lock(CACHE / "lock"):
        backend.prepare({})
        built = image.ensure(backend)
    status = capture(podman("run", "--rm", "--network=none", built, "cat", "/var/lib/dpkg/status"))
    (work / "status").write_text(status, encoding="utf-8")
    mirror = os.environ.get("MOAT_LAB_MIRROR", MIRROR)
    source = f"deb [signed-by={KEYRING}] {mirror} {image.SUITE} {COMPONENTS}\n"
    (work / "sources.list").write_text(source, encoding="utf-8")
    settings = {
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "APT::Install-Recommends": "false",
        "APT::Architecture": "amd64",
        "APT::Architectures::": "amd64",
        "APT::Sandbox::User": "root",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    with Step("driver packages from Debian") as step:
        step.run(["apt-get", *options, "update"])
        step.run(["apt-get", *options, "--download-only", "--yes", "install", *KERNEL, *DRIVER])
    (work / "cache" / "archives").rename(folder)
    remove_tree(work)


def source() -> str:
    """The line of sources.list for a host that has the key; for what the role does not add itself."""
    return f"deb [signed-by=/etc/apt/keyrings/lab-debian.asc] {shlex.quote(URL)} {image.SUITE} non-free"
