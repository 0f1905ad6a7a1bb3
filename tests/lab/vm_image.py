"""The disk, kernel and initramfs of a virtual machine: Debian 12 with its own kernel, booted as a server would be."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.lab import image
from tests.lab.shell import CACHE, Step, privileged, remove_tree

PACKAGES = [
    *("linux-image-cloud-amd64", "initramfs-tools", "systemd", "systemd-sysv", "udev", "dbus", "kmod", "e2fsprogs"),
    *("openssh-server", "sudo", "python3", "iproute2", "iputils-ping", "procps", "nftables", "conntrack"),
    *("wireguard-tools",),
]
# Work that begins by itself would only make the boot's length uncertain.
MASKED = ["apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"]
# A machine has no more modules in its initramfs than its disk needs; all others are loaded from the disk.
MODULES = "virtio_pci\nvirtio_blk\next4\n"
SIZE = "3G"
FILES = {
    "/etc/fstab": "/dev/vda / ext4 errors=remount-ro 0 1\n",
    "/etc/hostname": "vm1\n",
    "/etc/hosts": "127.0.0.1 localhost\n127.0.1.1 vm1\n::1 localhost ip6-localhost ip6-loopback\n",
    "/etc/ssh/sshd_config.d/moat-lab.conf": image.SSHD_CONF,
    "/etc/systemd/journald.conf.d/moat-lab.conf": "[Journal]\nStorage=persistent\n",
}


@dataclass(frozen=True)
class Image:
    """What a machine is booted from."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def version(self) -> str:
        """The version of the kernel."""
        return (self.folder / "version").read_text(encoding="utf-8").strip()


def hooks(stage: Path) -> list[str]:
    """Options of mmdebstrap: the initramfs is configured before its package comes, the rest is done at the end."""
    conf, modules = '"$1"/etc/initramfs-tools/conf.d', '"$1"/usr/share/initramfs-tools/modules.d'
    links = " ".join(f'"$1"/etc/systemd/system/{unit}' for unit in MASKED)
    return [
        f"--essential-hook=mkdir -p {conf} {modules}; echo MODULES=list >{conf}/moat-lab;"
        f" printf '%s' '{MODULES}' >{modules}/moat-lab",
        '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/resolv.conf; : >"$1"/etc/machine-id',
        '--customize-hook=mkdir -p "$1"/var/log/journal',
        f'--customize-hook=for unit in {links}; do ln -sf /dev/null "$unit"; done',
        f"--customize-hook=cp -a --no-preserve=ownership '{stage}'/. \"$1\"/",
        '--customize-hook=chroot "$1" systemctl enable -q ssh.service systemd-networkd.service',
    ]


def digest() -> str:
    """The hash of all that decides what is in the image."""
    parts = [image.SUITE, PACKAGES, MASKED, SIZE, FILES, hooks(Path("/stage")), FINISH]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


FINISH = """set -eu
root=$1/root
mke2fs -q -t ext4 -L moat-lab -d "$root" "$1/disk.raw" "$2"
kernel=$(ls "$root/boot" | sed -n 's/^vmlinuz-//p')
cp "$root/boot/vmlinuz-$kernel" "$1/vmlinuz"
cp "$root/boot/initrd.img-$kernel" "$1/initrd"
echo "$kernel" >"$1/version"
rm -rf --one-file-system "$root"
chmod -R a+rX "$1"
chown -R "$3" "$1"
"""


def ensure() -> Image:
    """The image: from the cache, or built."""
    target = CACHE / f"vm-{digest()}"
    if (target / "version").is_file():
        return Image(target)
    work = CACHE / f"vm-{os.getpid()}.tmp"
    stage = work / "stage"
    for path, text in FILES.items():
        file = stage / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    work.chmod(0o755)
    with Step("machine from Debian's packages") as step:
        argv = ["env", f"TMPDIR={work}", "mmdebstrap", "--variant=minbase", "--format=directory"]
        argv += [f"--include={','.join(PACKAGES)}", '--aptopt=APT::Install-Recommends "false"', *hooks(stage)]
        mirror = [os.environ["MOAT_LAB_MIRROR"]] if "MOAT_LAB_MIRROR" in os.environ else []
        step.run(privileged([*argv, image.SUITE, str(work / "root"), *mirror]))
        owner = f"{os.getuid()}:{os.getgid()}"
        step.run(privileged(["sh", "-c", FINISH, "sh", str(work), SIZE, owner]))
    remove_tree(stage)
    remove_tree(target)
    work.rename(target)
    return Image(target)
