# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What needs more than one value to judge: overlaps, references, ports, families, the policy's own tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import Network
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import Absent, Faults, suggest
from ansible_collections.moat.inference.plugins.module_utils.perimeter.inventory import Inventory
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Host, Intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.names import (
    CONNECTOR_SOCKETS,
    DNS_NAME_LENGTH,
    DNS_PORTS,
    LINK_SEGMENT,
    client_name,
    model_name,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.read import ROOT


def check_networks(intent: Intent, faults: Faults) -> None:
    """No address may belong to two networks of the perimeter, and no segment to the name of the link."""
    if LINK_SEGMENT in intent.segments:
        path = f"{ROOT}.segments.{LINK_SEGMENT}"
        faults.add(path, Absent, "is the name of the private link", "write another name")
    named = [
        (f"{ROOT}.segments.{name}.cidr{network.family}", f"segment {name}", network)
        for name, segment in intent.segments.items()
        for network in segment.networks
    ]
    named += [(f"{ROOT}.link.cidr{network.family}", "the private link", network) for network in intent.link.networks]
    ordered = sorted(named, key=lambda item: (item[2].family, item[2].first, item[2].prefix, item[0]))
    for index, (_path, title, network) in enumerate(ordered):
        for path, _title, other in ordered[index + 1 :]:
            if not network.overlaps(other):
                break
            faults.add(
                path,
                other.text,
                f"overlaps {network.text} of {title}",
                "give each segment and the private link a network of its own",
            )
    for path, network in _sources(intent):
        for link in intent.link.networks:
            if network.overlaps(link):
                faults.add(
                    path,
                    network.text,
                    f"overlaps the private link {link.text}",
                    "name addresses outside it: the link carries clients only",
                )


def _sources(intent: Intent) -> Iterable[tuple[str, Network]]:
    for network in intent.admin.sources:
        yield f"{ROOT}.admin.from", network
    for service in intent.services.values():
        for network in service.networks:
            yield f"{ROOT}.services.{service.name}.to", network


def check_ports(intent: Intent, faults: Faults) -> None:
    """Ports of different parts differ, so that no rule opens more than it names."""
    owners: dict[int, str] = dict.fromkeys(intent.admin.ports, f"{ROOT}.admin.ports")
    for port in DNS_PORTS if intent.dns is not None else ():
        if port in owners:
            remedy = f"write another port, or remove {ROOT}.dns"
            faults.add(f"{ROOT}.admin.ports", port, f"is a port of {ROOT}.dns too", remedy)
        owners[port] = f"{ROOT}.dns"
    named = [
        (f"{ROOT}.admin.metrics_port", intent.admin.metrics_port),
        (f"{ROOT}.gateway.port", intent.gateway_port),
        (f"{ROOT}.ca.port", intent.ca.port),
        (f"{ROOT}.link.port", intent.link.port),
    ]
    if intent.proxy is not None:
        named.append((f"{ROOT}.proxy.port", intent.proxy.port))
    for path, port in named:
        owner = owners.setdefault(port, path)
        if owner != path:
            faults.add(
                path, port, f"is the port of {owner} too", "write a port that nothing else of the perimeter uses"
            )
    for name, client in intent.clients.items():
        if client.port is not None and client.port in owners:
            remedy = "write another port, or remove it: the connector then has its Unix socket only"
            faults.add(f"{ROOT}.clients.{name}.port", client.port, f"is the port of {owners[client.port]} too", remedy)


def resolve(intent: Intent, inventory: Inventory) -> None:
    """Put host names in the place of groups."""
    for model in list(intent.models.values()):
        intent.models[model.name] = replace(model, hosts=inventory.resolve(model.select))
    for client in list(intent.clients.values()):
        intent.clients[client.name] = replace(client, hosts=inventory.resolve(client.select))
    for service in list(intent.services.values()):
        intent.services[service.name] = replace(service, hosts=inventory.resolve(service.select))
    if intent.proxy is not None:
        intent.proxy = replace(intent.proxy, hosts=inventory.resolve(intent.proxy.select))
    if intent.dns is not None:
        forward = intent.dns.forward
        if forward is not None:
            forward = replace(forward, hosts=inventory.resolve(forward.select))
        intent.dns = replace(intent.dns, forward=forward, hosts=inventory.resolve(intent.dns.select))
    intent.egress = tuple(replace(egress, hosts=inventory.resolve(egress.select)) for egress in intent.egress)
    if intent.ca.host:
        inventory.resolve({intent.ca.host: f"{ROOT}.ca.host"}, single=True)


def check_references(intent: Intent, faults: Faults) -> None:
    """Names that refer to other entries of the intent."""
    for client in intent.clients.values():
        for wanted, path in client.wanted.items():
            if wanted not in intent.models:
                faults.add(path, wanted, "is no model", suggest(wanted, intent.models))
        _check_length(f"{ROOT}.clients.{client.name}", client_name(client.name, intent.domain), faults)
    for model in intent.models:
        _check_length(f"{ROOT}.models.{model}", model_name(model, intent.domain), faults)
    for test in intent.tests:
        path = f"{ROOT}.tests[{test.index}]"
        if test.client not in intent.clients:
            faults.add(f"{path}.from", test.client, "is no client", suggest(test.client, intent.clients))
        if test.model not in intent.models:
            faults.add(f"{path}.to", test.model, "is no model", suggest(test.model, intent.models))


def _check_length(path: str, name: str, faults: Faults) -> None:
    if len(name) > DNS_NAME_LENGTH:
        faults.add(
            path,
            Absent,
            f"makes a DNS name of {len(name)} characters",
            f"shorten {ROOT}.domain: a name has at most {DNS_NAME_LENGTH}",
        )


def check_separation(intent: Intent, faults: Faults) -> None:
    """A host has one part to play: serve models, run clients, or hold the certificate authority."""
    serving: dict[str, str] = {host: name for name, model in intent.models.items() for host in model.hosts}
    authority = intent.ca.host
    for name, client in intent.clients.items():
        for host in client.hosts:
            if host in serving:
                problem = f"serves model {serving[host]}, so a client there would share its link and gateway account"
                faults.add(
                    f"{ROOT}.clients.{name}.hosts", host, problem, "run the client on a host that serves no model"
                )
            elif host == authority:
                faults.add(
                    f"{ROOT}.clients.{name}.hosts",
                    host,
                    "holds the certificate authority",
                    "run the client on another host",
                )
    if authority in serving:
        problem = f"serves model {serving[authority]}"
        faults.add(f"{ROOT}.ca.host", authority, problem, "give the certificate authority a host of its own")


def check_connectors(intent: Intent, faults: Faults) -> None:
    """A connector's socket has the name of its client; two connectors of one host cannot listen on one loopback port."""
    owners: dict[tuple[str, int], str] = {}
    for name, client in intent.clients.items():
        if name in CONNECTOR_SOCKETS:
            faults.add(
                f"{ROOT}.clients.{name}", Absent, "is the name of the connector's own socket", "write another name"
            )
        for host in client.hosts if client.port is not None else ():
            owner = owners.setdefault((host, client.port or 0), name)
            if owner != name:
                problem = f"is the port of client {owner} on {host} too"
                faults.add(
                    f"{ROOT}.clients.{name}.port", client.port, problem, "give each client of a host a port of its own"
                )


def check_families(intent: Intent, hosts: dict[str, Host], faults: Faults) -> None:
    """Both ends of every flow need an address family in common."""
    by_model = {name: families_of(model.hosts, hosts) for name, model in intent.models.items()}
    for client in intent.clients.values():
        own = families_of(client.hosts, hosts)
        for model in client.models:
            check_pairs(f"{ROOT}.clients.{client.name}.hosts", own, by_model.get(model, {}), f"model {model}", faults)
    if intent.ca.host not in hosts:
        return
    authority = families_of((intent.ca.host,), hosts)
    for name, families in by_model.items():
        check_pairs(f"{ROOT}.models.{name}.hosts", families, authority, "the certificate authority", faults)
    for client in intent.clients.values():
        own = families_of(client.hosts, hosts)
        check_pairs(f"{ROOT}.clients.{client.name}.hosts", own, authority, "the certificate authority", faults)


def families_of(names: Iterable[str], hosts: dict[str, Host]) -> dict[tuple[int, ...], str]:
    """One host for each combination of families: pairs of combinations are few, pairs of hosts are many."""
    found: dict[tuple[int, ...], str] = {}
    for name in names:
        found.setdefault(hosts[name].families, name)
    return found


def check_pairs(
    path: str, own: dict[tuple[int, ...], str], others: dict[tuple[int, ...], str], title: str, faults: Faults
) -> None:
    for families, host in own.items():
        for other_families, other in others.items():
            if not set(families) & set(other_families):
                problem = f"has no address family in common with {other} ({title})"
                faults.add(path, host, problem, "give both moat_address4, or both moat_address6")


def run_tests(intent: Intent, allowed: dict[str, set[str]], faults: Faults) -> None:
    """The policy's own tests, against what the plan gives each client."""
    for test in intent.tests:
        client, model = intent.clients.get(test.client), intent.models.get(test.model)
        # Who has no hosts is at fault already, and what a test of it would find follows from that fault.
        if not (client and client.hosts and model and model.hosts):
            continue
        granted = allowed[test.client]
        allow = test.model in granted
        if allow == test.allow:
            continue
        verdict = f"{test.client} to {test.model} is {'allow' if allow else 'deny'} in the plan"
        problem = f"fails: {verdict}, whose models for {test.client} are: {', '.join(sorted(granted)) or 'none'}"
        verb = f"remove {test.model} from" if allow else f"add {test.model} to"
        remedy = f"{verb} {ROOT}.clients.{test.client}.models, or correct expect"
        faults.add(f"{ROOT}.tests[{test.index}]", "allow" if test.allow else "deny", problem, remedy)


def reached(intent: Intent) -> dict[str, set[str]]:
    """Client -> the models that it gets an edge, a route and an identity for."""
    served = {name for name, model in intent.models.items() if model.hosts}
    return {name: served.intersection(client.wanted) for name, client in intent.clients.items() if client.hosts}
