"""A stand-in for the vendor's package repository: real packages, a real index, a real signature; what is in the packages are doubles, and they say so.

Names and dependencies are those of the vendor's repository for Debian 12 (https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/), so that
apt has to decide what it decides there. No double drives anything: `nvidia-smi` says that it reaches no driver, the kernel module has no code.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.backend import File

HERE = Path(__file__).parent / "gpu_files"
SHARED = Path(__file__).parent / "internet_files" / "repository.sh"
OLD, FIRST, NEXT = "570.195.03", "580.95.05", "580.105.08"
VERSIONS = (OLD, FIRST, NEXT)
TOOLKIT = "1.18.0"
# never held, from the same repository: what an upgrade must still reach
CONTROL, CONTROL_VERSIONS = "moat-lab-hello", ("1.0", "1.1")
BUILD, SERVED = "/srv/build", "/srv/gpu"
PORT = 8580
URL = f"http://127.0.0.1:{PORT}"
# what a stand-in does on a host where this file is: the next run of its maintainer script fails once, or waits
FAIL, WAIT = "/etc/moat-lab/stand-in-fails", "/etc/moat-lab/stand-in-waits"
MISSING, TAMPERED, FABRIC_MANAGER = "libnvidia-ml1", "libcuda1", "nvidia-fabricmanager"
LIBRARY = "/usr/lib/x86_64-linux-gnu"
DESCRIPTION = "stand-in of the lab, drives no GPU\n A double with the vendor's name and dependencies, made for tests.\n"
SMI = """#!/bin/sh
echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running."
echo
exit 9
"""
NO_DEVICE = "#!/bin/sh\necho '{name}: this stand-in of the lab finds no device' >&2\nexit 1\n"
FABRIC = "#!/bin/sh\necho 'Fabric Manager version is : {upstream}'\n"
UNIT = """[Unit]
Description=Stand-in of the lab for {name}
[Service]
ExecStart=/usr/bin/{program}
[Install]
WantedBy=multi-user.target
"""
CUDA = "int cuInit(unsigned int flags) {{ (void)flags; return 100; }} /* CUDA_ERROR_NO_DEVICE */\n"
EMPTY = "extern int moat_lab_stand_in; int moat_lab_stand_in = 1;\n"
MODULE = """static const char told[] __attribute__((section(".modinfo"), used)) =
  "version={upstream}\\0license={license}\\0description=stand-in of the lab, has no code\\0";
"""
DKMS_CONF = 'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="{upstream}"\nBUILT_MODULE_NAME[0]="nvidia"\nAUTOINSTALL="yes"\n'
POSTINST = f"""#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
if [ -e {FAIL} ]; then rm {FAIL}; echo "stand-in: fails once, as it was told" >&2; exit 1; fi
if [ -e {WAIT} ]; then rm {WAIT}; sleep 20; fi
dkms add -m nvidia -v {{upstream}}
for kernel in /lib/modules/*/build; do
  [ ! -e "$kernel" ] || dkms install -m nvidia -v {{upstream}} -k "$(basename "$(dirname "$kernel")")"
done
"""
PRERM = "#!/bin/sh\nset -e\ndkms remove -m nvidia -v {upstream} --all\n"
OPEN, CLOSED = "Dual MIT/GPL", "NVIDIA"


@dataclass(frozen=True)
class Package:
    """One stand-in; `{version}` in what it depends on is its own, `{upstream}` in its files the driver's."""

    name: str
    depends: tuple[str, ...] = ()
    other: tuple[str, ...] = ()  # further lines of the control file
    files: dict[str, str] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    version: str = "{upstream}-1"
    architecture: str = "amd64"

    def tree(self, upstream: str) -> list[File]:
        """What dpkg-deb makes the package of, below a folder of its name and version."""
        version = self.version.format(upstream=upstream)
        values = {"upstream": upstream, "version": version, "license": OPEN, "branch": upstream.split(".")[0]}
        folder = f"{BUILD}/{self.name.format(**values)}_{version}"
        lines = [
            f"Package: {self.name}",
            f"Version: {version}",
            f"Architecture: {self.architecture}",
            "Maintainer: lab <lab@example.org>",
            *([f"Depends: {', '.join(self.depends)}"] if self.depends else []),
            *self.other,
            f"Description: {DESCRIPTION}",
        ]
        found = [File(f"{folder}/DEBIAN/control", "\n".join(lines).format(**values).encode())]
        for name, text in self.scripts.items():
            found.append(File(f"{folder}/DEBIAN/{name}", text.format(**values).encode(), 0o755))
        for path, text in self.files.items():
            mode = 0o755 if "/bin/" in path or "/sbin/" in path else 0o644
            found.append(File(f"{folder}{path.format(**values)}", text.format(**values).encode(), mode))
        for path, target in self.links.items():
            found.append(File(f"{folder}{path}.link", target.format(**values).encode()))
        return found


def library(package: str, soname: str, *depends: str, code: str = EMPTY) -> Package:
    """A shared library, built from a line of C, with the link that programs load it by."""
    return Package(
        package,
        depends,
        files={f"{LIBRARY}/{soname}.so.{{upstream}}.c": code},
        links={f"{LIBRARY}/{soname}.so.1": f"{soname}.so.{{upstream}}"},
    )


def module(package: str, conflicts: str, licence: str) -> Package:
    """Sources for DKMS, and what DKMS would make of them."""
    return Package(
        package,
        ("dkms", "firmware-nvidia-gsp (= {version})", "nvidia-kernel-support (= {version})"),
        (f"Conflicts: {conflicts}", f"Replaces: {conflicts}"),
        files={
            "/usr/src/nvidia-{upstream}/dkms.conf": DKMS_CONF,
            "/usr/src/nvidia-{upstream}/nvidia.ko.c": MODULE.replace("{license}", licence),
        },
        scripts={"postinst": POSTINST, "prerm": PRERM},
    )


def same(*names: str) -> tuple[str, ...]:
    return tuple(f"{name} (= {{version}})" for name in names)


# one driver version
DRIVER = (
    Package(
        "nvidia-driver-cuda",
        (
            *same("libcuda1", "libcudadebugger1", "libnvidia-cfg1", "libnvidia-ml1", "nvidia-opencl-icd"),
            *same("nvidia-persistenced"),
            "nvidia-modprobe (>= {upstream})",
        ),
        files={"/usr/bin/nvidia-smi": SMI},
    ),
    module("nvidia-kernel-open-dkms", "nvidia-kernel-dkms", OPEN),
    module("nvidia-kernel-dkms", "nvidia-kernel-open-dkms", CLOSED),
    Package("nvidia-kernel-support", ("nvidia-modprobe (>= {upstream})",)),
    Package("firmware-nvidia-gsp", files={"/lib/firmware/nvidia/{upstream}/gsp_ga10x.bin": "no firmware\n"}),
    library(
        "libcuda1",
        "libcuda",
        *same("libnvidia-nvvm4", "libnvidia-ptxjitcompiler1", "libnvidia-gpucomp", "libnvidia-pkcs11-openssl3"),
        code=CUDA,
    ),
    library("libcudadebugger1", "libcudadebugger", *same("libcuda1")),
    library("libnvidia-cfg1", "libnvidia-cfg"),
    library("libnvidia-gpucomp", "libnvidia-gpucomp"),
    library("libnvidia-ml1", "libnvidia-ml"),
    library("libnvidia-nvvm4", "libnvidia-nvvm"),
    library("libnvidia-pkcs11-openssl3", "libnvidia-pkcs11-openssl3"),
    library("libnvidia-ptxjitcompiler1", "libnvidia-ptxjitcompiler"),
    library("nvidia-opencl-icd", "libnvidia-opencl", *same("libnvidia-gpucomp")),
    Package("nvidia-modprobe", files={"/usr/bin/nvidia-modprobe": NO_DEVICE.replace("{name}", "nvidia-modprobe")}),
    Package(
        "nvidia-persistenced",
        same("libnvidia-cfg1"),
        files={
            "/usr/bin/nvidia-persistenced": NO_DEVICE.replace("{name}", "nvidia-persistenced"),
            "/lib/systemd/system/nvidia-persistenced.service": UNIT.format(
                name="nvidia-persistenced", program="nvidia-persistenced"
            ),
        },
    ),
)


def fabric(upstream: str) -> tuple[Package, ...]:
    """Fabric Manager and its library; their names have the branch before R580, and none from there on."""
    branch = "-{branch}" if int(upstream.split(".")[0]) < 580 else ""
    shared = ("Provides: {}", "Replaces: {}", "Conflicts: {}") if branch else ()
    return (
        Package(
            f"nvidia-fabricmanager{branch}",
            other=tuple(line.format("nvidia-fabricmanager") for line in shared),
            files={
                "/usr/bin/nv-fabricmanager": FABRIC,
                "/lib/systemd/system/nvidia-fabricmanager.service": UNIT.format(
                    name="nvidia-fabricmanager", program="nv-fabricmanager"
                ),
            },
        ),
        Package(
            f"libnvidia-nscq{branch}",
            other=tuple(line.format("libnvidia-nscq") for line in shared),
            files={f"{LIBRARY}/libnvidia-nscq.so.{{upstream}}.c": EMPTY},
        ),
    )


# versions of their own
OTHERS = (
    Package("nvidia-container-toolkit", (*same("nvidia-container-toolkit-base"), "libnvidia-container-tools")),
    Package("nvidia-container-toolkit-base", files={"/usr/bin/nvidia-ctk": NO_DEVICE.replace("{name}", "nvidia-ctk")}),
    Package("libnvidia-container-tools", ("libnvidia-container1 (>= {version})",)),
    Package("libnvidia-container1"),
)


def tree() -> list[File]:
    """Every package of every version."""
    found = [file for upstream in VERSIONS for item in (*DRIVER, *fabric(upstream)) for file in item.tree(upstream)]
    found += [file for item in OTHERS for file in item.tree(TOOLKIT)]
    program = File("/usr/sbin/dkms", (HERE / "dkms").read_bytes(), 0o755)
    found += Package("dkms", version="3.0.10-8", architecture="all").tree(FIRST)
    found.append(File(found[-1].path.replace("/DEBIAN/control", program.path), program.content, program.mode))
    for version in CONTROL_VERSIONS:
        found += Package(CONTROL, version=version, architecture="all").tree(FIRST)
    return found


def settings() -> dict[str, str]:
    return {
        "BUILD": BUILD,
        "SERVED": SERVED,
        "MISSING": f"{MISSING}_{NEXT}-1",
        "FABRIC": f"{FABRIC_MANAGER}_{NEXT}-1",
        "TAMPERED": f"{TAMPERED}_{NEXT}-1",
        "LOCAL": NEXT,
    }


def files() -> tuple[File, ...]:
    """What the host that builds and serves the repositories is given."""
    lines = "".join(f"{key}={shlex.quote(value)}\n" for key, value in settings().items())
    scripts = [(HERE / "build.sh", "build.sh"), (SHARED, "repository.sh")]
    shipped = [File(f"/etc/gpu-repository/{name}", path.read_bytes()) for path, name in scripts]
    return (File("/etc/gpu-repository/settings", lines.encode()), *shipped, *tree())


def names(upstream: str, packages: Iterable[Package] = DRIVER) -> set[str]:
    """The packages of one version, Fabric Manager's too."""
    branch = upstream.split(".")[0]
    return {item.name.format(branch=branch) for item in (*packages, *fabric(upstream))}
