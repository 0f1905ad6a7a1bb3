"""Hosts for the tests of gpu_driver: one that serves the stand-in for the vendor's repository, and others that have it installed from there.

They are containers of the lab's image. The PCI bus that they show is a double, put over sysfs: one H100 and one NVSwitch; and the kernel, which is the
machine's, gets a folder of modules with headers. apt, dpkg, the signatures, SSH and systemd are real.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.faults import gpu_trees
from tests.lab import gpu_repository as repository
from tests.lab.scratch import Container, Ran, Scratch

PCI, KERNEL = "/etc/moat-lab/gpu", "$(uname -r)"
SERVE = (
    f"until [ -e /srv/ready ]; do sleep 0.1; done;"
    f" exec python3 -m http.server --bind 127.0.0.1 --directory {repository.SERVED} {repository.PORT}"
)
# the lab's hosts reach no mirror, and what they would ask for takes its time to fail
READY = f"""set -e
mv /etc/apt/sources.list /etc/apt/sources.list.moat-lab
find {PCI} -name '*.link' | while read -r link; do ln -s "$(cat "$link")" "${{link%.link}}"; rm "$link"; done
mount --bind {PCI}/sys/bus/pci/devices /sys/bus/pci/devices
mkdir -p /lib/modules/{KERNEL}/kernel /lib/modules/{KERNEL}/build
"""
# /tmp is not in a listing: what a test itself puts there is no change of the host's
TREES = "/tmp/moat-trees"
# asked of dpkg: apt would write its cache
PACKAGES = "dpkg -l; dpkg --get-selections"
HISTORY = "/var/log/apt/history.log"


class Repository(Container):
    """What serves the packages."""

    def __init__(self) -> None:
        super().__init__("repository", "--network=none", command=("sh", "-c", SERVE))
        self.put(*repository.files())
        self.start()
        self.said("sh -eu /etc/gpu-repository/build.sh && touch /srv/ready", timeout=300)
        self.keys = {
            name: self.said(f"cat {repository.SERVED}/keys/{name}").strip()
            for name in (
                "vendor.asc",
                "vendor.fingerprint",
                "stranger.asc",
                "stranger.fingerprint",
                "local.sha256",
            )
        }

    def source(self, name: str = "vendor", **changes: Any) -> dict[str, Any]:
        """How the role is told of one of the repositories."""
        return {
            "kind": "mirror",
            "url": f"{repository.URL}/{name}/",
            "suite": "/",
            "key": self.keys["vendor.asc"],
            "fingerprint": self.keys["vendor.fingerprint"],
            **changes,
        }


class GpuHost(Scratch):
    """A bare host with a GPU and an NVSwitch."""

    def __init__(self, name: str, beside: Repository) -> None:
        devices = gpu_trees.files(PCI, {**gpu_trees.H100, **gpu_trees.NVSWITCH})
        super().__init__(name, *devices, beside=beside)
        self.repository, self.trees = beside, 0
        self.said(READY)

    def driver(self, version: str, *arguments: str, **inputs: Any) -> Ran:
        """Apply the role for one version of the driver; what else it takes is by name, without the role's prefix."""
        given = {
            "version": version,
            "source": self.repository.source(),
            "toolkit": {"enabled": True, "version": repository.TOOLKIT},
            **inputs,
        }
        return self.role("gpu_driver", *arguments, **{f"gpu_driver_{key}": value for key, value in given.items()})

    def versions(self) -> dict[str, str]:
        """Driver packages that are installed whole, and their versions."""
        told = self.said("dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n'").splitlines()
        found = dict(line.split()[:2] for line in told if line.endswith(" installed"))
        names = {name for upstream in repository.VERSIONS for name in repository.names(upstream)}
        return {name: version for name, version in found.items() if name in names}

    def held(self) -> set[str]:
        lines = (line.split() for line in self.said("dpkg --get-selections").splitlines())
        return {name.partition(":")[0] for name, word in lines if word == "hold"}

    def history(self) -> list[dict[str, str]]:
        """apt's transactions since the host was made, each with its fields."""
        text = self.on(f"cat {HISTORY}").out
        blocks = [block for block in text.split("\n\n") if "Commandline:" in block or "Start-Date:" in block]
        return [dict(line.split(": ", 1) for line in block.strip().splitlines() if ": " in line) for block in blocks]

    def tree(self, tree: Mapping[str, str | None]) -> str:
        """Put a made-up host below a directory that no other has, and return it."""
        self.trees += 1
        top = f"{TREES}/{self.trees}"
        link = 'ln -s "$(cat "$link")" "${link%.link}"; rm "$link"'
        self.put(*gpu_trees.files(top, tree))
        self.said(f"find {top} -name '*.link' | while read -r link; do {link}; done")
        return top


def refused(host: GpuHost, version: str, **inputs: Any) -> str:
    """What the role says when it refuses; nothing on the host differs then, in its files and in its packages."""
    before, packages = host.listing(), host.said(PACKAGES)
    ran = host.driver(version, **inputs)
    assert ran.rc != 0 and ran.count("failed") == 1 and ran.count("changed") == 0, ran.out[-4000:]
    after = host.listing()
    assert after == before, sorted(set(before) ^ set(after))[:20]
    assert host.said(PACKAGES) == packages
    (failure,) = re.findall(r"^fatal: \[scratch\].*", ran.out, re.M)
    return str(failure)
