# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads moat_perimeter into typed values. What needs more than one value to judge is in check.py."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.model_server import argument_faults
from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import (
    Address,
    Network,
    parse_network,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import Absent, Faults, find_secrets
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import (
    Admin,
    Authority,
    Client,
    Intent,
    Limits,
    Link,
    Model,
    PolicyTest,
    Segment,
    Service,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.names import is_domain, is_edge_of
from ansible_collections.moat.inference.plugins.module_utils.perimeter.read_egress import (
    read_dns,
    read_egress,
    read_proxy,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.read_gpus import read_gpus
from ansible_collections.moat.inference.plugins.module_utils.perimeter.section import PORTS, Section, read_address

ROOT = "moat_perimeter"
ROOT_KEYS = (
    "domain",
    "segments",
    "link",
    "admin",
    "ca",
    "gateway",
    "models",
    "clients",
    "services",
    "egress",
    "proxy",
    "dns",
    "tests",
)
INTERFACE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,14}")  # IFNAMSIZ is 16, its last byte 0
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # useradd(8)
SOURCE = re.compile(r"(/[A-Za-z0-9._@+-]+)+")
SOURCE_ROOTS = ("/srv/", "/var/lib/", "/opt/", "/mnt/")  # what the model server's sandbox may read
LIFETIME = re.compile(r"([1-9][0-9]{0,4})(m|h)")
DEFAULT_LIMITS = Limits(requests_per_second=10, burst=20, concurrent=8)


def domain_remedy(text: str) -> str | None:
    return None if is_domain(text) else "write a DNS name in lower case, such as inference.internal"


def interface_remedy(text: str) -> str | None:
    return (
        None
        if INTERFACE.fullmatch(text)
        else "write an interface name: at most 15 lower-case letters, digits, '_', '.' or '-'"
    )


def user_remedy(text: str) -> str | None:
    return (
        None
        if USER.fullmatch(text)
        else "write a local user name: lower-case letters, digits, '_' or '-', at most 32 characters"
    )


def source_remedy(text: str) -> str | None:
    if not SOURCE.fullmatch(text) or {".", ".."} & set(text.split("/")):
        return "write an absolute path without '..', such as /srv/models/xray-7b"
    return None if text.startswith(SOURCE_ROOTS) else "write a path below /srv, /var/lib, /opt or /mnt"


def lifetime_remedy(text: str) -> str | None:
    match = LIFETIME.fullmatch(text)
    minutes = int(match.group(1)) * (60 if match.group(2) == "h" else 1) if match else 0
    return None if 5 <= minutes <= 24 * 60 else "write a duration between 5m and 24h, such as 24h or 90m"


def read_intent(value: Any, faults: Faults) -> Intent:
    """The intent as far as it can be read; every fault found is in `faults`."""
    find_secrets(value, ROOT, faults)
    root = Section(faults, ROOT, value, ROOT_KEYS)
    tests = [read_test(root, index, path, item) for index, (path, item) in enumerate(root.items("tests"))]
    return Intent(
        domain=root.text("domain", "write the private DNS suffix, such as inference.internal", domain_remedy) or "",
        segments=read_segments(root),
        link=read_link(root),
        admin=read_admin(root),
        ca=read_ca(root),
        gateway_port=root.section("gateway", ("port",)).number("port", *PORTS, default=8443),
        models={name: read_model(root, name, path, item) for name, path, item in root.named("models")},
        clients={name: read_client(root, name, path, item) for name, path, item in root.named("clients")},
        services={name: read_service(root, name, path, item) for name, path, item in root.named("services")},
        egress=tuple(read_egress(root, index, path, item) for index, (path, item) in enumerate(root.items("egress"))),
        proxy=read_proxy(root),
        dns=read_dns(root),
        tests=tuple(test for test in tests if test is not None),
    )


def read_segments(root: Section) -> dict[str, Segment]:
    segments = {}
    vlans: dict[int, str] = {}
    remedy = "declare each segment with its network, such as app: {cidr4: 10.110.0.0/24}"
    if root.usable and root.data.get("segments") == {}:
        root.faults.add(f"{root.path}.segments", Absent, "is empty", remedy)
    for name, path, item in root.named("segments", remedy):
        section = Section(root.faults, path, item, ("cidr4", "cidr6", "vlan", "router4", "router6", "default_route"))
        networks = tuple(network for network in (section.network("cidr4", 4), section.network("cidr6", 6)) if network)
        written = tuple(family for family in (4, 6) if section.data.get(f"cidr{family}") is not None)
        if section.usable and not written:
            root.faults.add(
                path, Absent, "has neither cidr4 nor cidr6", "write its network, such as cidr4: 10.110.0.0/24"
            )
        vlan = section.optional_number("vlan", 1, 4094)
        if vlan is not None and vlan in vlans:
            root.faults.add(
                f"{path}.vlan", vlan, f"is the VLAN of segment {vlans[vlan]} too", "give each segment a VLAN of its own"
            )
        elif vlan is not None:
            vlans[vlan] = name
        routers = tuple(router for router in (read_router(section, networks, family) for family in (4, 6)) if router)
        segments[name] = Segment(name, networks, vlan, written, routers, section.boolean("default_route", True))
    return segments


def read_router(section: Section, networks: tuple[Network, ...], family: int) -> Address | None:
    """The router of a segment, which lies in it. A refused one is returned too, so that it is not missing besides."""
    path = f"{section.path}.router{family}"
    router = read_address(section.faults, path, section.take(f"router{family}"), family)
    network = next((network for network in networks if network.family == family), None)
    if router is None:
        return None
    if network is None:
        if section.data.get(f"cidr{family}") is None:
            remedy = f"add {section.path}.cidr{family}, or remove the router"
            section.faults.add(path, router.text, f"is IPv{family}, which the segment has not", remedy)
    elif not network.holds(router):
        remedy = f"write an address of {network.text}"
        section.faults.add(path, router.text, "is outside its segment", remedy)
    elif is_edge_of(router, network):
        problem = f"is the network or broadcast address of {network.text}"
        section.faults.add(path, router.text, problem, "write the router's own address")
    return router


def read_link(root: Section) -> Link:
    section = root.section("link", ("cidr4", "cidr6", "port", "interface"))
    network4, network6 = (section.network(f"cidr{family}", family) for family in (4, 6))
    return Link(
        network4 or parse_network("100.64.0.0/10"),
        network6 or parse_network("fd00:200::/64"),
        section.number("port", *PORTS, default=51820),
        section.text("interface", check=interface_remedy) or "moat0",
    )


def read_admin(root: Section) -> Admin:
    value = root.take("admin", "name who administers, such as admin: {from: [10.90.0.0/28]}")
    section = Section(
        root.faults, f"{root.path}.admin", {"from": []} if value is None else value, ("from", "ports", "metrics_port")
    )
    if value is None:
        return Admin((), (22,), 9101)
    sources = section.networks("from", "name the networks that administer, such as [10.90.0.0/28]")
    return Admin(sources, section.ports("ports", default=(22,)), section.number("metrics_port", *PORTS, default=9101))


def read_ca(root: Section) -> Authority:
    value = root.take("ca", "name the host of the certificate authority, such as ca: {host: ca1}")
    if value is None:
        return Authority("", 9443, "24h")
    section = Section(root.faults, f"{root.path}.ca", value, ("host", "port", "lifetime"))
    host = section.text("host", "name the host of the certificate authority, such as ca1") or ""
    return Authority(
        host, section.number("port", *PORTS, default=9443), section.text("lifetime", check=lifetime_remedy) or "24h"
    )


def read_model(root: Section, name: str, path: str, value: Any) -> Model:
    section = Section(root.faults, path, value, ("hosts", "engine", "source", "engine_args", "gpus", "shared"))
    return Model(
        name=name,
        select=section.texts("hosts", "name the hosts that serve it: a group, a host or a list of these", single=True),
        engine=section.choice("engine", ("vllm",), default="vllm") or "vllm",
        source=section.text("source", "write the directory of the weights, such as /srv/models/xray-7b", source_remedy)
        or "",
        engine_args=read_engine_args(section),
        gpus=read_gpus(section),
        shared=section.boolean("shared", False),
    )


def read_engine_args(section: Section) -> tuple[str, ...]:
    """Arguments that would give the engine another way in, or a way out, are refused by the rules of its role."""
    written = [(path, section.string(path, item) or "") for path, item in section.items("engine_args")]
    arguments = [text for _path, text in written]
    for index, reason in argument_faults(arguments):
        path, text = written[index]
        section.faults.add(path, text, reason[len(text) :].strip(), "remove it")
    for path, text in written:
        if not text.isprintable():
            section.faults.add(path, text, "will not do", "write printable characters only")
    return tuple(arguments)


def read_client(root: Section, name: str, path: str, value: Any) -> Client:
    section = Section(root.faults, path, value, ("hosts", "users", "port", "models", "limits"))
    limits = section.section("limits", ("requests_per_second", "burst", "concurrent"))
    rate = limits.number("requests_per_second", 1, 1000000, DEFAULT_LIMITS.requests_per_second)
    return Client(
        name=name,
        select=section.texts("hosts", "name the hosts it runs on: a group, a host or a list of these", single=True),
        users=tuple(
            sorted(
                section.texts(
                    "users", "name the local users that may use the connector, such as [portal]", check=user_remedy
                )
            )
        ),
        wanted=section.texts("models", "name the models it may use, or remove the client: without a model it is none"),
        limits=Limits(
            rate,
            limits.number("burst", 1, 1000000, 2 * rate),
            limits.number("concurrent", 1, 100000, DEFAULT_LIMITS.concurrent),
        ),
        port=section.optional_number("port", 1024, 65535),
    )


def read_service(root: Section, name: str, path: str, value: Any) -> Service:
    section = Section(root.faults, path, value, ("to", "protocol", "ports", "from"))
    return Service(
        name=name,
        select=section.texts(
            "from", "name the hosts that need it: a group, a host, a list of these, or all", single=True
        ),
        networks=section.networks("to", "name the addresses that serve it, such as [10.140.0.53]"),
        protocol=section.choice("protocol", ("tcp", "udp"), required="write tcp or udp") or "tcp",
        ports=section.ports("ports", required="name its ports, such as [53]"),
    )


def read_test(root: Section, index: int, path: str, value: Any) -> PolicyTest | None:
    section = Section(root.faults, path, value, ("from", "to", "expect"))
    client = section.text("from", "name a client")
    model = section.text("to", "name a model")
    expect = section.choice("expect", ("allow", "deny"), required="write allow or deny")
    if client is None or model is None or expect is None:
        return None
    return PolicyTest(index, client, model, expect == "allow")
