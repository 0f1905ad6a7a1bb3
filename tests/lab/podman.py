"""Hosts as podman containers with systemd as PID 1."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import tarfile
import time
from pathlib import Path

from tests.lab import fence, table
from tests.lab.backend import File, Spec
from tests.lab.shell import LAB, LabError, capture, privileged, say, succeeds, write
from tests.lab.table import Network

PREFIX = "moat-lab-"
# hosts that a test makes for itself: none of the lab's table, which would be removed by the next `up`
STAND_PREFIX = "moat-stand-"
# one host alone, of a test; its name goes on with the number of the process, so that two runs do not meet
SCRATCH_PREFIX = "moat-scratch-"
LABEL = "moat.lab.digest"
INOTIFY = {"fs/inotify/max_user_instances": 1024, "fs/inotify/max_user_watches": 65536}
CONF = LAB / "containers.conf"
# The first program of a host: it takes the interfaces down that a container has from its start, and waits until what they sent is past.
INIT, DOWN, GO = "/etc/moat-lab/init", "/run/moat-lab.down", "/run/moat-lab.go"
INIT_SCRIPT = f"""#!/bin/sh
for interface in /sys/class/net/eth*; do ip link set "${{interface##*/}}" down; done
touch {DOWN}
for _ in $(seq 100); do [ ! -e {GO} ] || break; sleep 0.1; done
exec /lib/systemd/systemd
"""


def containers_conf() -> str:
    """What this machine needs, found by looking; nothing of the user's own configuration is touched."""
    engine: list[str] = []
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        engine.append('runtime = "runc"')  # crun needs the unified hierarchy to run systemd
    if not Path("/run/systemd/system").exists():
        engine.append('cgroup_manager = "cgroupfs"')
    if not Path("/run/systemd/journal/socket").exists():
        engine.append('events_logger = "file"')
    # podman asks for more than a confined root may have, and fails; the hard limits are always allowed.
    limits = []
    for name, kind, most in (("nofile", resource.RLIMIT_NOFILE, 1 << 20), ("nproc", resource.RLIMIT_NPROC, 1 << 15)):
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(hard, most)
        limits.append(f'"{name}={value}:{value}"')
    sections = [
        "[containers]",
        f"default_ulimits = [{', '.join(limits)}]",
        "[engine]",
        *engine,
        "[network]",
        'network_backend = "netavark"',
    ]
    return "\n".join(sections) + "\n"


def hardware_address(address4: str) -> str:
    """A locally administered address that stays: neighbours remember it over a restart of the host."""
    return "02:6d:" + ":".join(f"{int(part):02x}" for part in address4.split("."))


def raise_limits() -> None:
    """A dozen systemds and their services share this machine's inotify instances, of which a kernel gives root 128."""
    for name, least in INOTIFY.items():
        if int(Path("/proc/sys", name).read_text(encoding="utf-8")) < least:
            capture(privileged(["sysctl", "-q", "-w", f"{name.replace('/', '.')}={least}"]))
            say(f"raised {name.replace('/', '.')} of this machine to {least} until it restarts")


def podman(*arguments: str) -> list[str]:
    """The command line of podman with the lab's own configuration."""
    if not CONF.is_file():
        write(CONF, containers_conf())
    return privileged(["env", f"CONTAINERS_CONF={CONF}", "podman", *arguments])


def remove_stand(prefix: str = STAND_PREFIX) -> None:
    """Remove the hosts that a test has made for itself, and their networks."""
    named = ("--format", "{{.Name}}", "--filter", f"name=^{prefix}")
    hosts = capture(podman("ps", "--all", "--format", "{{.Names}}", *named[2:])).split()
    if hosts:
        capture(podman("rm", "--force", "--depend", "--ignore", "--time", "0", "--volumes", *hosts))
    for network in capture(podman("network", "ls", *named)).split():
        capture(podman("network", "rm", "--force", "--time", "0", network))


def tar_of(files: tuple[File, ...]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in files:
            member = tarfile.TarInfo(file.path.lstrip("/"))
            member.size, member.mode, member.mtime = len(file.content), file.mode, int(time.time())
            archive.addfile(member, io.BytesIO(file.content))
    return buffer.getvalue()


class Podman:
    """The container backend."""

    def prepare(self, networks: dict[str, Network]) -> None:
        write(CONF, containers_conf())
        raise_limits()
        for network in networks.values():
            self._network(network)

    def _network(self, network: Network) -> None:
        name = PREFIX + network.name
        subnets = {network.cidr4: network.controller4, network.cidr6: network.controller6}
        have = json.loads(capture(podman("network", "inspect", name), check=False) or "[]")
        if have and {s["subnet"]: s.get("gateway") for s in have[0]["subnets"]} == subnets and have[0]["internal"]:
            return
        if have:
            capture(podman("network", "rm", "--force", "--time", "0", name))
        arguments = ["network", "create", "--internal", "--disable-dns", "--ipv6"]
        for subnet, controller in subnets.items():
            arguments += ["--subnet", subnet, *(["--gateway", controller] if controller else [])]
        capture(podman(*arguments, name))

    def bridge(self, network: str) -> str:
        """The name of the bridge on this machine."""
        return str(json.loads(capture(podman("network", "inspect", PREFIX + network)))[0]["network_interface"])

    def digest(self, name: str) -> str | None:
        text = capture(podman("inspect", "--type", "container", PREFIX + name), check=False)
        found = json.loads(text or "[]")
        return str((found[0]["Config"]["Labels"] or {}).get(LABEL, "")) if found else None

    def create(self, spec: Spec) -> None:
        self.destroy(spec.host.name)
        networks: list[str] = []
        for number, interface in enumerate(spec.host.interfaces):
            settings = f"ip={interface.address4},ip6={interface.address6},interface_name=eth{number}"
            settings += f",mac={hardware_address(interface.address4)}"
            networks += ["--network", f"{PREFIX}{interface.network}:{settings}"]
        mounts = [f"--mount=type=bind,src={here},dst={there},ro=true" for here, there in spec.mounts]
        options = ["--privileged", "--systemd=always", "--shm-size=2g", "--no-hosts", "--dns=none", "--stop-timeout=10"]
        options += [
            f"--name={PREFIX}{spec.host.name}",
            f"--hostname={spec.host.name}",
            f"--label={LABEL}={spec.digest}",
        ]
        capture(podman("create", *options, *networks, *mounts, spec.image, INIT))
        self.put(spec.host.name, spec.files)

    def put(self, name: str, files: tuple[File, ...]) -> None:
        if files:
            capture(podman("cp", "-", f"{PREFIX}{name}:/"), data=tar_of(files))

    def start(self, name: str) -> None:
        """Its interfaces come up by its own boot only: nothing that was there before leaves it, see INIT_SCRIPT."""
        fence.hold(name, [hardware_address(item.address4) for item in table.load().hosts[name].interfaces])
        try:
            capture(podman("start", PREFIX + name))
            capture(
                podman(
                    "exec",
                    PREFIX + name,
                    "sh",
                    "-c",
                    f"for _ in $(seq 100); do [ ! -e {DOWN} ] || exit 0; sleep 0.1; done; exit 1",
                )
            )
        finally:
            fence.release(name)
        capture(podman("exec", PREFIX + name, "touch", GO))

    def stop(self, name: str) -> None:
        capture(podman("stop", PREFIX + name))

    def kill(self, name: str) -> None:
        capture(podman("kill", PREFIX + name))

    def freeze(self, name: str) -> None:
        capture(podman("pause", PREFIX + name))

    def thaw(self, name: str) -> None:
        capture(podman("unpause", PREFIX + name))

    def destroy(self, name: str) -> None:
        capture(podman("rm", "--force", "--ignore", "--time", "0", "--volumes", PREFIX + name))

    def status(self, name: str) -> str:
        text = capture(
            podman("inspect", "--type", "container", "--format", "{{.State.Status}}", PREFIX + name), check=False
        )
        return {"running": "running", "": "absent"}.get(text.strip(), "stopped")

    def read(self, name: str, path: str) -> str | None:
        with contextlib.suppress(LabError):
            return capture(podman("exec", PREFIX + name, "cat", path))
        return None

    def hosts(self) -> list[str]:
        text = capture(podman("ps", "--all", "--format", "{{.Names}}", "--filter", f"name=^{PREFIX}"))
        return sorted(name.removeprefix(PREFIX) for name in text.split())

    def remove_networks(self) -> None:
        text = capture(podman("network", "ls", "--format", "{{.Name}}", "--filter", f"name=^{PREFIX}"))
        for name in text.split():
            capture(podman("network", "rm", "--force", "--time", "0", name))

    def images(self) -> list[tuple[str, str]]:
        """(name, size) of each image of the lab."""
        text = capture(
            podman(
                "images", "--format", "{{.Repository}}:{{.Tag}}\t{{.Size}}", "--filter", "reference=localhost/moat-lab"
            )
        )
        return [(name, size) for name, size in (line.split("\t") for line in text.splitlines())]

    def has_image(self, name: str) -> bool:
        return succeeds(podman("image", "exists", name))

    def import_image(self, archive: Path, name: str) -> list[str]:
        """The command that makes an image of a root file system."""
        return podman(
            "import",
            "--quiet",
            "--change",
            'CMD ["/lib/systemd/systemd"]',
            "--change",
            "STOPSIGNAL=SIGRTMIN+3",
            str(archive),
            name,
        )

    def remove_images(self) -> None:
        for name, _size in self.images():
            capture(podman("rmi", "--force", name))


def environment_for_packages() -> tuple[list[str], list[str]]:
    """What a container that installs Python packages takes from here: pip's settings, certificate authorities."""
    names = [n for n in os.environ if n.startswith("PIP_") or n.lower() in {"http_proxy", "https_proxy", "no_proxy"}]
    authorities = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")
    # A folder of wheels on this machine is no folder of the container's.
    names = [
        n for n in (*names, *authorities) if not os.environ.get(n, "").startswith("/") or Path(os.environ[n]).is_file()
    ]
    variables = {n: os.environ[n] for n in names if n in os.environ}
    here = {Path(v): v for n, v in variables.items() if n in {*authorities, "PIP_CONFIG_FILE"} and Path(v).is_file()}
    for configuration, there in (
        ("/etc/pip.conf", "/etc/pip.conf"),
        ("~/.config/pip/pip.conf", "/root/.config/pip/pip.conf"),
    ):
        path = Path(configuration).expanduser()
        if path.is_file():
            here[path] = there
            for line in path.read_text(encoding="utf-8").splitlines():
                key, _, value = (part.strip() for part in line.partition("="))
                if key == "cert" and Path(value).is_file():
                    here[Path(value)] = value
    options = [f"--env={name}={value}" for name, value in variables.items()]
    mounts = [f"--mount=type=bind,src={path.resolve()},dst={there},ro=true" for path, there in here.items()]
    return options, mounts
