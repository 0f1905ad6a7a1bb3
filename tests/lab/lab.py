"""The lab as a whole: up, down, status, shell."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tests.lab import engine, fence, image, setup, table, weights
from tests.lab.backend import File, Spec
from tests.lab.podman import INIT, INIT_SCRIPT, SCRATCH_PREFIX, Podman, remove_stand
from tests.lab.shell import CACHE, LAB, LabError, Step, capture, lock, remove_tree, say, succeeds, write

SSH, STATE = LAB / "ssh", LAB / "state"
WORKERS = 2 if (os.cpu_count() or 2) <= 2 else 4


def ssh(host: str, *command: str) -> list[str]:
    """The command line that runs something on a host."""
    return ["ssh", "-F", str(SSH / "config"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", host, *command]


def _key() -> str:
    """The lab's own key pair; the public half."""
    private = SSH / "id_ed25519"
    if not private.is_file():
        SSH.mkdir(parents=True, exist_ok=True)
        temporary = SSH / f"key.{os.getpid()}.tmp"
        capture(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "moat-lab", "-f", str(temporary)])
        temporary.with_name(f"{temporary.name}.pub").replace(SSH / "id_ed25519.pub")
        temporary.replace(private)
    return capture(["ssh-keygen", "-y", "-f", str(private)]).strip()


def operator() -> None:
    """The operator's certificate: exports of the authority are encrypted to it, and only its key opens them."""
    folder = LAB / "operator"
    if not (folder / "certificate.pem").is_file():
        partial = LAB / f"operator-{os.getpid()}.tmp"
        remove_tree(partial)
        partial.mkdir(parents=True, mode=0o700)
        argv = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:3072",
            "-nodes",
            "-days",
            "3650",
            "-subj",
            "/CN=lab operator",
        ]
        capture([*argv, "-keyout", str(partial / "key.pem"), "-out", str(partial / "certificate.pem")])
        remove_tree(folder)
        partial.rename(folder)


def _ssh_config(hosts: table.Table) -> None:
    lines = [
        "Host *",
        "  User root",
        f'  IdentityFile "{SSH / "id_ed25519"}"',
        "  IdentitiesOnly yes",
        f'  UserKnownHostsFile "{SSH / "known_hosts"}"',
        "  StrictHostKeyChecking yes",
        "  LogLevel ERROR",
    ]
    for host in hosts.hosts.values():
        lines += [f"Host {host.name}", f"  HostName {host.management}"]
    write(SSH / "config", "\n".join(lines) + "\n")


# What the network does at boot belongs behind the packet filter and before what needs a network, as with any host.
BOOT_ORDER = """[Unit]
DefaultDependencies=no
Wants=network.target
After=local-fs.target network-pre.target
Before=network.target shutdown.target
Conflicts=shutdown.target
"""


def _start_script(host: table.Host, networks: dict[str, table.Network]) -> bytes:
    """What a host does at boot: its interfaces come up, and it finds the other segments through the router, which forwards everything."""
    lines = ["#!/bin/sh", "set -eu"]
    for number, interface in enumerate(host.interfaces):
        four, six = interface.prefixed(networks[interface.network])
        lines += [
            f"ip link set eth{number} up",
            f"ip address replace {four} dev eth{number}",
            f"ip address replace {six} dev eth{number} nodad",
        ]
    if host.router:
        lines += ["sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"]
    if host.gateway4 and host.gateway6:
        lines += [
            f"ip route replace default via {host.gateway4} dev eth0",
            f"ip -6 route replace default via {host.gateway6} dev eth0",
        ]
    return ("\n".join(lines) + "\n").encode()


def _model_files(host: table.Host, folder: Path) -> tuple[File, ...]:
    files = [
        File(f"/srv/models/{m}/{p.name}", p.read_bytes(), 0o444)
        for m in host.models
        for p in sorted((folder / m).iterdir())
    ]
    return tuple(files)


def _specs(hosts: table.Table, image_name: str, engine_at: Path | None, weights_at: Path | None) -> list[Spec]:
    key = _key()
    specs = []
    for host in hosts.hosts.values():
        files = [
            File("/root/.ssh/authorized_keys", f"{key}\n".encode(), 0o600),
            File(INIT, INIT_SCRIPT.encode(), 0o755),
            File("/etc/moat-lab/start", _start_script(host, hosts.networks), 0o755),
            File("/etc/systemd/system/moat-lab-routes.service.d/network.conf", BOOT_ORDER.encode()),
            File(
                "/etc/hosts",
                f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n::1 localhost ip6-localhost ip6-loopback\n".encode(),
            ),
        ]
        mounts = ((engine_at, engine.HOME),) if engine_at and host.engine else ()
        models = _model_files(host, weights_at) if weights_at else ()
        spec = Spec(host, image_name, (*files, *models), mounts)
        networks = [hosts.networks[i.network] for i in host.interfaces]
        digest = hashlib.sha256(repr((spec, networks)).encode()).hexdigest()
        specs.append(replace(spec, digest=digest))
    return specs


def forget(hosts: Sequence[table.Host]) -> None:
    """What the controller keeps of hosts that are made anew: link keys, and the root of an authority that is no more."""
    for host in hosts:
        (STATE / "link-keys" / f"{host.name}.pub").unlink(missing_ok=True)
        for path in STATE.glob("ca-root*") if host.authority else ():
            path.unlink()


def _wait(backend: Podman, host: table.Host) -> str:
    """Wait for sshd and return the host's lines for known_hosts."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        key = backend.read(host.name, "/etc/ssh/ssh_host_ed25519_key.pub")
        if key:
            return f"{host.name},{host.management} {' '.join(key.split()[:2])}\n"
        time.sleep(0.3)
    raise LabError(f"{host.name} made no SSH host key within 60 s: `podman logs moat-lab-{host.name}` may tell why")


def up(*, with_engine: bool = True) -> None:
    """Bring the lab up; what is there already and is what it should be stays as it is."""
    hosts, backend = table.load(), Podman()
    with lock(CACHE / "lock"):
        for left in CACHE.glob("*.tmp*"):
            remove_tree(left)  # of a run that was killed
        backend.prepare({})
        name = image.ensure(backend)
        engine_at = engine.ensure(name) if with_engine else None
        weights_at = weights.ensure(name, engine_at) if engine_at else None
    with lock(LAB / "lock"), Step(f"hosts up: {len(hosts.hosts)}") as step:
        for gone in set(backend.hosts()) - set(hosts.hosts):
            backend.destroy(gone)
        backend.prepare(hosts.networks)
        _ssh_config(hosts)
        operator()
        STATE.mkdir(parents=True, exist_ok=True)
        specs = _specs(hosts, name, engine_at, weights_at)

        created: list[str] = []

        def bring(spec: Spec) -> str:
            if backend.digest(spec.host.name) != spec.digest:
                backend.create(spec)
                created.append(spec.host.name)
                forget([spec.host])
            if backend.status(spec.host.name) != "running":
                backend.start(spec.host.name)
            line = _wait(backend, spec.host)
            step.last = f"{spec.host.name} has started"
            return line

        with ThreadPoolExecutor(WORKERS) as pool:
            known = list(pool.map(bring, specs))
        write(SSH / "known_hosts", "".join(known))
        bridges = {n: backend.bridge(n) for n in hosts.networks}
        fence.close(list(bridges.values()), [b for n, b in bridges.items() if not hosts.networks[n].controller4])
        with ThreadPoolExecutor(WORKERS) as pool:
            answers = dict(zip(hosts.hosts, pool.map(_answers, hosts.hosts), strict=True))
        silent = [host for host, answer in answers.items() if not answer]
        if silent:
            raise LabError(f"no answer over SSH from {', '.join(silent)}; `make lab-status` shows more")
    from tests.lab import internet  # it uses what is above

    internet.plant()
    say(f"{len(specs)} hosts, {len(created)} created" if created else f"{len(specs)} hosts, all there already")


def _answers(host: str) -> bool:
    for _try in range(20):
        if succeeds(ssh(host, "true"), timeout=10):
            return True
        time.sleep(0.5)
    return False


def down() -> None:
    """Remove containers and networks, and the fence with them."""
    if setup.missing_packages():
        return
    backend = Podman()
    with lock(LAB / "lock"), Step("hosts down"):
        hosts = backend.hosts()
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(backend.destroy, hosts))
        backend.remove_networks()
        fence.open_again()
    if hosts:
        say(f"{len(hosts)} hosts removed")


def clean(*, caches: bool) -> None:
    """Remove every trace; the caches only when asked."""
    down()
    if not setup.missing_packages():
        remove_stand()
        remove_stand(SCRATCH_PREFIX)
        Podman().remove_images()
    if caches:
        remove_tree(CACHE)
    remove_tree(LAB)
    rest = "and the caches" if caches else f"but not the caches in {CACHE}"
    say(f"Removed containers, networks, images and .lab, {rest}.")


def status() -> None:
    """Print hosts with addresses and state, images, and what the caches hold."""
    hosts, backend = table.load(), Podman()

    def row(host: table.Host) -> tuple[str, ...]:
        state = backend.status(host.name)
        answer, system = "-", "-"
        if state == "running":
            system = capture(ssh(host.name, "systemctl", "is-system-running"), check=False, timeout=20).strip()
            answer, system = ("yes", system) if system else ("no", "-")
        segment = host.interfaces[0]
        return (
            host.name,
            segment.network,
            f"{segment.address4} {segment.address6}",
            host.management,
            state,
            answer,
            system,
        )

    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(row, hosts.hosts.values()))
    show(("host", "segment", "addresses", "management", "state", "ssh", "systemd"), rows)
    say("")
    show(("image", "size"), backend.images() or [("none", "-")])
    say("")
    sizes = []
    for path in sorted(CACHE.glob("*")) if CACHE.is_dir() else []:
        sizes.append((path.name, capture(["du", "-sh", "--", str(path)], check=False).split("\t")[0]))
    show((f"cache {CACHE}", "size"), sizes or [("empty", "-")])


def show(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def shell(host: str, command: list[str]) -> None:
    """Become an SSH session on the host."""
    known = table.load().hosts
    if host not in known:
        raise LabError(f"HOST={host or '…'}: one of {', '.join(known)}")
    os.execvp("ssh", ["ssh", "-F", str(SSH / "config"), host, *command])
