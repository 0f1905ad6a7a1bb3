# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How the programs of a host learn of the proxy: which files there are, and what is in them."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.moat.inference.plugins.module_utils import egress_client_merge as merge
from ansible_collections.moat.inference.plugins.module_utils.deploy import UNIT_NAME

DIRECTORY = "/etc/moat/egress"
ENVIRONMENT = f"{DIRECTORY}/environment"
STATE = f"{DIRECTORY}/state.json"
HOSTS = "/etc/hosts"
# last in the order of names, so no file of the distribution or of an operator has the last word
APT = "/etc/apt/apt.conf.d/zz-moat-egress.conf"
PODMAN = "/etc/containers/containers.conf.d/zz-moat-egress.conf"
DOCKER_UNIT, DOCKER_JSON = "docker.service", "/etc/docker/daemon.json"
PIP, DNF = "/etc/pip.conf", "/etc/dnf/dnf.conf"
TARGETS = ("apt", "dnf", "pip", "podman", "docker", "environment")
# with several proxies: a name that has all their addresses, for curl, apt, pip and Go try one after the other
NAME = "moat-egress-proxy"
MANAGED = "Managed by moat.inference."
MODEL_UNIT = re.compile(r"moat-model(-[^@]*)?(@[^.]*)?\.service")
PREFIX_UNIT = re.compile(r"(.*-)?\.service")  # its drop-ins are those of every unit that begins so


class Refused(ValueError):
    """The inputs cannot be had; says all that is wrong."""


@dataclass(frozen=True)
class Merged:
    """One value in a file of somebody else. path of keys: section and option, or the keys of nested objects."""

    file: str
    keys: tuple[str, ...]
    value: str

    @property
    def id(self) -> str:
        return f"{self.file}#{'.'.join(self.keys)}"


@dataclass
class Desired:
    """Files of our own, and values in others'."""

    files: dict[str, str] = field(default_factory=dict)
    merged: list[Merged] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    restart: list[str] = field(default_factory=list)  # units that read the environment at their start


def faults_of(options: Mapping[str, Any]) -> list[str]:
    """Name every option that no host could carry out, with its remedy."""
    faults, ports = [], set()
    for index, url in enumerate(options["proxies"]):
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            faults.append(f"proxies[{index}]: {error}; write http://10.130.0.10:3128")
            continue
        plain = (
            parts.scheme == "http" and host and port and not (parts.path.strip("/") or parts.query or parts.username)
        )
        if not plain or re.search(r"[\s\"'\\]", url):
            faults.append(f"proxies[{index}]: {url} is no URL of a proxy; write http://10.130.0.10:3128")
            continue
        if len(options["proxies"]) > 1 and not _is_address(host):
            faults.append(f"proxies[{index}]: {host} is no address; with several proxies, write their addresses")
        ports.add(port)
    if len(ports) > 1:
        faults.append(
            "proxies: their ports differ; several proxies have one name with all their addresses, so write one port"
        )
    for index, item in enumerate(options["no_proxy"]):
        if not re.fullmatch(r"[A-Za-z0-9_.:/*\[\]-]+", item):
            faults.append(f"no_proxy[{index}]: {item!r} is neither a name nor a network; correct it")
    for index, address in enumerate(options["resolvers"]):
        if not _is_address(address):
            faults.append(f"resolvers[{index}]: {address} is no address; write one such as 10.140.0.53")
    if options["domain"] and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", options["domain"]):
        faults.append(f"domain: {options['domain']} is no domain; write one such as inference.internal")
    faults += [
        f"targets: {name} is unknown; known are {', '.join(TARGETS)}"
        for name in options["targets"]
        if name not in TARGETS
    ]
    for index, unit in enumerate(options["units"]):
        if MODEL_UNIT.fullmatch(unit):
            faults.append(f"units[{index}]: {unit} is a model server, which has no way out by design; remove it")
        elif not UNIT_NAME.fullmatch(unit) or not unit.endswith(".service") or PREFIX_UNIT.fullmatch(unit):
            faults.append(f"units[{index}]: {unit} is no full name of one service; write one such as backup.service")
    if options["units"] and "environment" not in options["targets"]:
        faults.append("units: their environment is the target environment; add it to targets")
    return faults


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def proxy_of(proxies: Sequence[str]) -> tuple[str, list[str]]:
    """The URL that programs use, and the addresses that its name has where it is ours."""
    if not proxies:
        return "", []
    if len(proxies) == 1:
        return proxies[0], []
    parts = [urlsplit(url) for url in proxies]
    addresses = list(dict.fromkeys(str(ipaddress.ip_address(part.hostname or "")) for part in parts))
    return f"http://{NAME}:{parts[0].port}", addresses


def environment_text(url: str, no_proxy: Sequence[str]) -> str:
    """Read by systemd.exec(5) and by a shell; programs differ in the case that they look for."""
    values = {"http_proxy": url, "https_proxy": url, "no_proxy": ",".join(no_proxy)}
    values.update({name.upper(): value for name, value in list(values.items())})
    return "\n".join([f"# {MANAGED}", *(f"{name}={value}" for name, value in values.items())]) + "\n"


def apt_text(url: str, no_proxy: Sequence[str]) -> str:
    """apt(8) has exceptions for single hosts only."""
    lines = [f"// {MANAGED}", f'Acquire::http::Proxy "{url}";', f'Acquire::https::Proxy "{url}";']
    # it would ask for SRV records of the proxy's name before each connection, and wait where a resolver is dead
    lines.append('Acquire::EnableSrvRecords "false";')
    hosts = [item for item in no_proxy if re.fullmatch(r"[A-Za-z0-9.-]+", item)]
    lines += [f'Acquire::{scheme}::Proxy::{host} "DIRECT";' for host in hosts for scheme in ("http", "https")]
    return "\n".join(lines) + "\n"


def podman_text(url: str, no_proxy: Sequence[str]) -> str:
    """For podman itself, when it pulls."""
    values = {"http_proxy": url, "https_proxy": url, "no_proxy": ",".join(no_proxy)}
    pairs = [f"{key}={value}" for name, value in values.items() for key in (name, name.upper())]
    return f"# {MANAGED}\n[engine]\nenv = {json.dumps(pairs)}\n"


def unit_text() -> str:
    return f"# {MANAGED}\n[Service]\nEnvironmentFile=-{ENVIRONMENT}\n"


def dropin(unit: str) -> str:
    """Where the environment of a unit is."""
    return f"/etc/systemd/system/{unit}.d/moat-egress.conf"


def unit_of(path: str) -> str:
    """The unit whose environment is at a path; empty for any other path."""
    match = re.fullmatch(r"/etc/systemd/system/([^/]+)\.d/moat-egress\.conf", path)
    return match.group(1) if match else ""


def _has_proxies(docker_json: str) -> bool:
    """Whether Docker's own configuration says something of proxies. One that cannot be read is refused where it would be written."""
    try:
        return isinstance(merge.json_get(docker_json, ["proxies"]), dict)
    except merge.MergeError:
        return True


def desired(options: Mapping[str, Any], present: Callable[[str], bool], docker_json: str) -> Desired:
    """What the host shall have. present says whether the program of a target is there."""
    found = Desired()
    url, found.hosts = proxy_of(options["proxies"])
    if not url:
        return found
    no_proxy = list(options["no_proxy"])
    for target in options["targets"]:
        if not present(target):
            found.left_out.append(target)
    here = [target for target in TARGETS if target in options["targets"] and target not in found.left_out]
    if "environment" in here or "docker" in here:
        found.files[ENVIRONMENT] = environment_text(url, no_proxy)
    if "apt" in here:
        found.files[APT] = apt_text(url, no_proxy)
    if "podman" in here:
        found.files[PODMAN] = podman_text(url, no_proxy)
    if "docker" in here:
        found.files[dropin(DOCKER_UNIT)] = unit_text()
        # Only where it has such values, which win over the environment: Docker before 23 does not start with them.
        values = {"http-proxy": url, "https-proxy": url, "no-proxy": ",".join(no_proxy)}
        if _has_proxies(docker_json):
            found.merged += [Merged(DOCKER_JSON, ("proxies", key), value) for key, value in values.items()]
    if "pip" in here:
        found.merged.append(Merged(PIP, ("global", "proxy"), url))
    if "dnf" in here:
        found.merged.append(Merged(DNF, ("main", "proxy"), url))
    for unit in options["units"]:
        found.files[dropin(unit)] = unit_text()
        found.restart.append(unit)
    return found


def get_value(file: str, text: str, keys: Sequence[str]) -> Any:
    """A value of somebody else's file."""
    return merge.json_get(text, keys) if file.endswith(".json") else merge.ini_get(text, keys[0], keys[1])


def set_value(file: str, text: str, keys: Sequence[str], value: Any) -> str:
    """The file with that value, or without it."""
    after: str = (
        merge.json_set(text, keys, value) if file.endswith(".json") else merge.ini_set(text, keys[0], keys[1], value)
    )
    return after


def plan_merged(
    target: Desired, recorded: Mapping[str, Mapping[str, Any]], texts: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """The texts of others' files as they shall be, and what to remember of them.

    recorded has, by id, what was set there and what was there before. A value that is not wanted any more goes back to what was there before,
    unless somebody has changed it since.
    """
    found, record, faults = dict(texts), {}, []
    wanted = {item.id: item for item in target.merged}
    for key, item in wanted.items():
        try:
            before = recorded[key]["before"] if key in recorded else get_value(item.file, found[item.file], item.keys)
            found[item.file] = set_value(item.file, found[item.file], item.keys, item.value)
        except merge.MergeError as error:
            faults.append(f"{item.file}: {error}")
            continue
        record[key] = {"file": item.file, "keys": list(item.keys), "value": item.value, "before": before}
    for key, old in recorded.items():
        file, keys = old["file"], old["keys"]
        if key in wanted or not found.get(file):
            continue
        try:
            if get_value(file, found[file], keys) == old["value"]:
                found[file] = set_value(file, found[file], keys, old["before"])
        except merge.MergeError as error:
            faults.append(f"{file}: {error}")
    if faults:
        raise Refused("; ".join(dict.fromkeys(faults)))
    return found, record


def is_empty(text: str) -> bool:
    """Whether nothing but an empty section is left of a file."""
    return all(not line.strip() or merge.HEADER.match(line) for line in text.splitlines())
