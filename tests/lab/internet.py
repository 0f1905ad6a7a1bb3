"""The stand-in for the internet: what the host with moat_lab_internet serves. Names, ports and resolvers are those of the lab's intent.

A web server of many names, a resolver that says what it is told (also where names lead inside), a DNS tunnel's server, a
clock, echo on odd ports, and repositories of packages: each answers whoever comes, so that only the perimeter can refuse.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tests.lab import table
from tests.lab.shell import LabError, Step

HERE = Path(__file__).parent / "internet_files"
PLACE, SERVED = "/etc/moat-lab/internet", "/srv/moat-lab-internet"
CA, KEYRING = f"{SERVED}/trust/ca.pem", f"{SERVED}/trust/packages.asc"
REQUESTS = "/var/log/moat-lab-internet/requests.log"
TARGET = "moat-lab-internet.target"
FORBIDDEN = "forbidden.example.org"  # on no list
RESOLVER = "dns.example.org"  # DoT and DoH
TUNNEL, TUNNEL_SECRET = "t.example.org", "moat"
UNLISTED_PORTS = (8445,)
ECHO_TCP, ECHO_UDP = (25, 6667, 9999), (443, 4500, 9999)
PACKAGE, VERSION = "moat-lab-hello", "1.0"
SUITE = "lab"
# The first label of names under each wildcard of the intent, with the addresses that they lead to; {inside} is an address within the perimeter.
LEADS: dict[str, tuple[str, ...]] = {
    "edge": ("{web4}", "{web6}"),
    "edge4": ("{web4}",),
    "edge6": ("{web6}",),
    "inside": ("{inside4}", "{inside6}"),
    "inside4": ("{inside4}",),
    "inside6": ("{inside6}",),
    "mixed": ("{web4}", "{inside4}"),
    "mixed6": ("{web6}", "{inside6}"),
    "loopback": ("127.0.0.1",),
    "loopback6": ("::1",),
    "anything": ("0.0.0.0",),
    "metadata": ("169.254.169.254",),
    "link6": ("fe80::1",),
    "local6": ("fd00::1",),
    "mapped": ("::ffff:127.0.0.1",),
    "translated": ("64:ff9b::7f00:1",),
}


@dataclass(frozen=True)
class Internet:
    """What there is, by the inventory."""

    host: str
    web: tuple[str, str]  # IPv4 and IPv6 address of everything but names
    prefixes: tuple[str, str]
    resolvers: tuple[str, ...]
    inside: tuple[str, str]
    names: tuple[str, ...]  # listed ones, of one host each
    wildcards: tuple[str, ...]  # "*.cdn.example.org" as "cdn.example.org"
    ports: tuple[int, ...]  # of TLS, listed and not; 80 is plain

    def leads(self) -> dict[str, tuple[str, ...]]:
        """Every name and its addresses."""
        places = {"web4": self.web[0], "web6": self.web[1], "inside4": self.inside[0], "inside6": self.inside[1]}
        found: dict[str, tuple[str, ...]] = dict.fromkeys((*self.names, FORBIDDEN), self.web)
        found[RESOLVER] = self.resolvers
        for parent in self.wildcards:
            for label, addresses in LEADS.items():
                found[f"{label}.{parent}"] = tuple(address.format(**places) for address in addresses)
        return found


def internet(hosts: table.Table | None = None, intent: dict[str, Any] | None = None) -> Internet | None:
    """The lab's internet; None where no host is one."""
    hosts, intent = hosts or table.load(), intent or table.intent()
    found = next((host for host in hosts.hosts.values() if host.internet), None)
    if found is None:
        return None
    first = found.interfaces[0]
    authority = next(host for host in hosts.hosts.values() if host.authority).interfaces[0]
    entries = intent.get("egress", ())
    listed = {entry["host"] for entry in entries}
    asked = [*intent.get("proxy", {}).get("resolvers", ()), *intent.get("dns", {}).get("forward", {}).get("to", ())]
    network = hosts.networks[first.network]
    return Internet(
        host=found.name,
        web=(first.address4, first.address6),
        prefixes=(network.cidr4.split("/")[1], network.cidr6.split("/")[1]),
        resolvers=tuple(dict.fromkeys(a for a in asked if a not in (first.address4, first.address6))),
        inside=(authority.address4, authority.address6),
        names=tuple(sorted(name for name in listed if not name.startswith("*."))),
        wildcards=tuple(sorted(name.removeprefix("*.") for name in listed if name.startswith("*."))),
        ports=tuple(sorted({443, *UNLISTED_PORTS, *(p for e in entries for p in e.get("ports", ()))} - {80})),
    )


def nginx(net: Internet) -> str:
    four, six = net.web
    plain = "".join(f"    listen {address}:80 default_server;\n" for address in (four, f"[{six}]"))
    tls = "".join(
        f"    listen {address}:{port} ssl http2 default_server;\n"
        for port in net.ports
        for address in (four, f"[{six}]")
    )
    return (HERE / "nginx.conf").read_text(encoding="utf-8").replace("# listen\n", (plain + tls).lstrip())


def unbound(net: Internet) -> str:
    """Names and where they lead, the way back, and the tunnel's zone, which another server answers."""
    lines = []
    for address in net.resolvers:
        lines += [f"  interface: {address}@{port}" for port in (53, 853, 443)]
    for name, addresses in net.leads().items():
        kinds = [("AAAA" if ip_address(address).version == 6 else "A", address) for address in addresses]
        lines += [f'  local-data: "{name}. 60 IN {kind} {address}"' for kind, address in kinds]
    lines += [f'  local-data: "{name}. 60 IN TXT moat-lab"' for name in net.names]
    # An address whose reverse name is listed is still no name.
    reverse = [ip_address(address).reverse_pointer for address in net.web]
    lines += [f'  local-data: "{pointer}. 60 IN PTR {name}."' for pointer in reverse for name in net.names]
    lines += [f'  local-zone: "{TUNNEL}." transparent']
    zone = f'stub-zone:\n  name: "{TUNNEL}."\n  stub-addr: 127.0.0.1@5353\n'
    return (HERE / "unbound.conf").read_text(encoding="utf-8").replace("  # names\n", "\n".join(lines) + "\n") + zone


def addresses(net: Internet) -> str:
    """The resolvers' addresses are further ones of the same host."""
    lines = ["#!/bin/sh", f"interface=$(ip -o address show to {net.web[0]} | cut -d ' ' -f 2)"]
    for address in net.resolvers:
        version = ip_address(address).version
        prefix = net.prefixes[version == 6]
        lines.append(f'ip address replace {address}/{prefix} dev "$interface"{" nodad" if version == 6 else ""}')
    return "\n".join(lines) + "\n"


def wheel() -> bytes:
    """A package for pip, the same bytes each time."""
    module = PACKAGE.replace("-", "_")
    info = f"{module}-{VERSION}.dist-info"
    files = {
        f"{module}/__init__.py": f'VERSION = "{VERSION}"\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: moat-lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return buffer.getvalue()


def files(net: Internet) -> dict[str, bytes]:
    """What the host is given, by path."""
    shipped = wheel()
    name = f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    link = f'<a href="../../wheels/{name}#sha256={hashlib.sha256(shipped).hexdigest()}">{name}</a>\n'
    settings = {
        "NAMES": " ".join([*net.leads(), *(f"*.{parent}" for parent in net.wildcards)]),
        "ADDRESSES": " ".join((*net.web, *net.resolvers)),
        "WEB": ",".join(net.web),
        "TUNNEL": TUNNEL,
        "SECRET": TUNNEL_SECRET,
        "PACKAGE": PACKAGE,
        "VERSION": VERSION,
        "SUITE": SUITE,
        "PLACE": PLACE,
        "SERVED": SERVED,
        "TCP": ",".join(map(str, ECHO_TCP)),
        "UDP": ",".join(map(str, ECHO_UDP)),
    }
    found = {
        f"{PLACE}/settings": "".join(f'{key}="{value}"\n' for key, value in settings.items()).encode(),
        f"{PLACE}/nginx.conf": nginx(net).encode(),
        f"{PLACE}/unbound.conf": unbound(net).encode(),
        f"{PLACE}/addresses": addresses(net).encode(),
        f"{SERVED}/www/wheels/{name}": shipped,
        f"{SERVED}/www/simple/index.html": f'<a href="{PACKAGE}/">{PACKAGE}</a>\n'.encode(),
        f"{SERVED}/www/simple/{PACKAGE}/index.html": link.encode(),
    }
    for path in (HERE / "echo.py", HERE / "chrony.conf", HERE / "repository.sh", HERE / "setup.sh"):
        found[f"{PLACE}/{path.name}"] = path.read_bytes()
    for path in sorted(HERE.glob("moat-lab-internet*")):
        found[f"/etc/systemd/system/{path.name}"] = path.read_bytes()
    return found


def plant() -> None:
    """Have the lab's internet serve all this; what serves it already stays as it is."""
    from tests.lab.site import on

    net = internet()
    if net is None:
        return
    wanted = files(net)
    digest = hashlib.sha256(json.dumps(sorted((k, v.hex()) for k, v in wanted.items())).encode()).hexdigest()
    state = f"{PLACE}/digest"
    if on(net.host, f'[ "$(cat {state})" = {digest} ] && systemctl is-active --quiet {TARGET}').code == 0:
        return
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in wanted.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    script = f"rm -f {state}; tar -C / -xf - && sh {PLACE}/setup.sh && echo {digest} > {state}"
    with Step("internet: what it serves"):
        done = on(net.host, script, data=buffer.getvalue(), timeout=120)
        if done.code:
            raise LabError(f"{net.host} does not serve as an internet:\n{done.out[-500:]}{done.err[-2000:]}")
