"""DKMS really builds the driver: Debian's open kernel module, for the kernel whose headers Debian has beside it. `make proof-dkms`.

Kernel, headers, compiler, DKMS and the driver's packages are Debian's own, from a repository that the lab serves. A container runs its machine's
kernel, so two files of it are doubles: what `uname -r` and /proc/sys/kernel/osrelease say, which is the kernel that was installed; and its PCI bus.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults import gpu_trees
from tests.lab import gpu_debian
from tests.lab.scratch import Container, Scratch

PCI = "/etc/moat-lab/gpu"
SERVE = (
    f"sh -eu /etc/gpu-repository/serve.sh && exec python3 -m http.server --bind 127.0.0.1"
    f" --directory {gpu_debian.SERVED} {gpu_debian.PORT}"
)
# Debian's kernel as any host has it: from the repository, before the role comes
KERNEL = f"""set -e
mv /etc/apt/sources.list /etc/apt/sources.list.moat-lab
mkdir -p /etc/apt/keyrings
until curl -sf -o /etc/apt/keyrings/lab-debian.asc http://127.0.0.1:{gpu_debian.PORT}/keys/debian.asc; do sleep 0.2; done
echo '{gpu_debian.source()}' > /etc/apt/sources.list.d/lab-debian.list
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq -y --no-install-recommends install {" ".join(gpu_debian.KERNEL)} >/var/log/moat-kernel.log 2>&1
rm /etc/apt/sources.list.d/lab-debian.list /etc/apt/keyrings/lab-debian.asc
mount --bind {PCI}/sys/bus/pci/devices /sys/bus/pci/devices
ls /lib/modules
"""
RELEASE = """set -e
echo {release} > /etc/moat-lab/osrelease
mount --bind /etc/moat-lab/osrelease /proc/sys/kernel/osrelease
cat > /usr/local/bin/uname <<'END'
#!/bin/sh
[ "$*" = -r ] && echo {release} || exec /usr/bin/uname "$@"
END
chmod 755 /usr/local/bin/uname
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Container]:
    packages = gpu_debian.packages()
    mount = f"--mount=type=bind,src={packages},dst={gpu_debian.POOL},ro=true"
    container = Container("debian", "--network=none", mount, command=("sh", "-c", SERVE))
    try:
        container.put(*gpu_debian.files())
        container.start()
        yield container
    finally:
        container.remove()


@pytest.fixture(scope="module")
def host(served: Container) -> Iterator[Scratch]:
    made = Scratch("dkms", *gpu_trees.files(PCI, gpu_trees.H100), beside=served)
    try:
        yield made
    finally:
        made.remove()


@dataclass(frozen=True)
class Ready:
    """A host with the kernel, and what the role is told."""

    host: Scratch
    release: str
    version: str
    inputs: dict[str, Any]

    @property
    def status(self) -> str:
        return rf"nvidia-current-open/{re.escape(self.version)}, {re.escape(self.release)}, x86_64: installed"

    def told(self) -> str:
        """What modinfo says of the module of that kernel; nothing where there is none."""
        return self.host.on(f"modinfo -k {self.release} nvidia-current-open").out


@pytest.fixture(scope="module")
def ready(served: Container, host: Scratch) -> Ready:
    release = host.said(KERNEL, timeout=600).split()[-1]
    assert release.endswith("-cloud-amd64")
    host.said(RELEASE.format(release=release))
    assert host.said("uname -r").strip() == release
    (version,) = {
        match[1] for name in gpu_debian.packages().iterdir() if (match := re.match(r"libcuda1_([0-9.]+)-", name.name))
    }
    source = {
        "kind": "distribution",
        "url": gpu_debian.URL,
        "suite": "bookworm",
        "components": ["non-free"],
        "key": served.said(f"cat {gpu_debian.SERVED}/keys/debian.asc"),
        "fingerprint": served.said(f"cat {gpu_debian.SERVED}/keys/debian.fingerprint").strip(),
    }
    inputs = {
        "gpu_driver_version": version,
        "gpu_driver_toolkit": {"enabled": False},
        "gpu_driver_source": source,
    }
    return Ready(host, release, version, inputs)


def test_check_mode_builds_nothing(ready: Ready) -> None:
    before = ready.host.listing()
    checked = ready.host.role("gpu_driver", "--check", **ready.inputs).good()
    assert checked.count("changed") >= 1
    assert ready.told() == ""
    assert ready.host.listing() == before


def test_dkms_builds_the_distributions_module_for_the_installed_kernel(ready: Ready) -> None:
    ready.host.role("gpu_driver", **ready.inputs).good()
    status = ready.host.said("dkms status")
    assert re.search(ready.status, status), status
    told = ready.told()
    assert re.search(rf"^version:\s+{re.escape(ready.version)}$", told, re.M), told
    assert re.search(rf"^vermagic:\s+{re.escape(ready.release)} ", told, re.M), told
    assert re.search(r"^license:\s+Dual MIT/GPL$", told, re.M), told


def test_a_second_run_builds_nothing_and_says_so(ready: Ready) -> None:
    before = ready.host.listing()
    again = ready.host.role("gpu_driver", **ready.inputs).good()
    assert again.count("changed") == 0, again.out[-4000:]
    assert again.remote <= 3, again.tasks
    assert ready.host.role("gpu_driver", "--check", **ready.inputs).good().count("changed") == 0
    assert ready.host.listing() == before


def test_a_kernel_whose_module_is_gone_gets_it_again(ready: Ready) -> None:
    """The control of what modinfo says above, too."""
    host = ready.host
    host.said(f"dkms uninstall -m nvidia-current-open -v {ready.version} -k {ready.release}")
    assert ready.told() == "" and not re.search(ready.status, host.said("dkms status"))
    ran = host.role("gpu_driver", **ready.inputs).good()
    assert ran.count("changed") >= 1
    assert re.search(ready.status, host.said("dkms status")) and ready.version in ready.told()
