# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What needs more than one value to judge of ways out: who plays which part, what overlaps, who can reach whom, by which route."""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import Address, Network
from ansible_collections.moat.inference.plugins.module_utils.perimeter.check import check_pairs, families_of
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import Absent, Faults
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Dns, Host, Intent, Proxy
from ansible_collections.moat.inference.plugins.module_utils.perimeter.names import DNS_PORTS
from ansible_collections.moat.inference.plugins.module_utils.perimeter.plan import Planner
from ansible_collections.moat.inference.plugins.module_utils.perimeter.read import ROOT
from ansible_collections.moat.inference.plugins.module_utils.perimeter.routes import wanted

PROXY, DNS, EGRESS = f"{ROOT}.proxy", f"{ROOT}.dns", f"{ROOT}.egress"


def check(intent: Intent, hosts: dict[str, Host], faults: Faults) -> None:
    if intent.egress and intent.proxy is None:
        remedy = f"add proxy: {{hosts: egress1, resolvers: [203.0.113.53]}}, or remove {EGRESS}"
        faults.add(PROXY, Absent, f"is missing, and {EGRESS} names what may leave", remedy)
    _check_entries(intent, faults)
    if intent.proxy is not None:
        _check_proxy(intent, intent.proxy, hosts, faults)
    if intent.dns is not None:
        _check_dns(intent, intent.dns, hosts, faults)
    _check_strangers(intent, hosts, faults)
    _check_administration(intent, hosts, faults)


def _check_entries(intent: Intent, faults: Faults) -> None:
    """No name of the perimeter leaves it, and each allowance has one entry, which is what the log calls it."""
    owners: dict[tuple[str, str, int], int] = {}
    for egress in intent.egress:
        path = f"{EGRESS}[{egress.index}]"
        if intent.domain and f".{egress.host}".endswith(f".{intent.domain}"):
            remedy = f"name a host outside {intent.domain}: the proxy leads out only"
            faults.add(f"{path}.host", egress.host, "is a name of the perimeter", remedy)
        twice = None
        for host in egress.hosts:
            for port in egress.ports:
                owner = owners.setdefault((host, egress.host, port), egress.index)
                if owner != egress.index and twice is None:
                    twice = f"names {egress.host} on {port} for {host}, as {EGRESS}[{owner}] does"
        if twice:
            faults.add(path, Absent, twice, "remove it from one of the two")


def _check_proxy(intent: Intent, proxy: Proxy, hosts: dict[str, Host], faults: Faults) -> None:
    _check_parts(intent, f"{PROXY}.hosts", proxy.hosts, "the proxy", True, faults)
    inner = [network for segment in intent.segments.values() for network in segment.networks]
    inner += [*intent.link.networks, *intent.admin.sources]
    for network in proxy.networks:
        other = next((item for item in inner if item.overlaps(network)), None)
        if other is not None:
            problem = f"overlaps {other.text} of the perimeter"
            faults.add(f"{PROXY}.to", network.text, problem, "name networks outside it: the proxy leads out only")
    outer: tuple[tuple[str, Iterable[Address | Network]], ...] = (
        ("resolvers", proxy.resolvers),
        ("parents", [parent.address for parent in proxy.parents]),
        ("to", () if proxy.parents else proxy.networks),
    )
    for key, others in outer:
        _check_outer(f"{PROXY}.{key}", proxy.hosts, others, hosts, faults)
    found = families_of(proxy.hosts, hosts)
    for egress in intent.egress:
        check_pairs(f"{EGRESS}[{egress.index}].from", families_of(egress.hosts, hosts), found, "the proxy", faults)


def _check_dns(intent: Intent, dns: Dns, hosts: dict[str, Host], faults: Faults) -> None:
    _check_parts(intent, f"{DNS}.hosts", dns.hosts, "the name server", False, faults)
    check_pairs(f"{DNS}.hosts", families_of(dns.hosts, hosts), families_of(hosts, hosts), "which asks it", faults)
    for service in intent.services.values():
        for port in sorted(set(service.ports) & set(DNS_PORTS)):
            remedy = f"remove it: with {DNS}, names come from its hosts only, and from whom {DNS}.forward.to names"
            faults.add(f"{ROOT}.services.{service.name}.ports", port, "is a port of DNS", remedy)
    if dns.forward is None:
        return
    _check_outer(f"{DNS}.forward.to", dns.hosts, dns.forward.to, hosts, faults)
    serving = _serving(intent)
    for host in dns.forward.hosts:
        if host in serving:
            problem = f"serves model {serving[host]}, and names of others would be a way out for it"
            faults.add(f"{DNS}.forward.for", host, problem, "name hosts that serve no model")


def _serving(intent: Intent) -> dict[str, str]:
    return {host: name for name, model in intent.models.items() for host in model.hosts}


def _check_parts(intent: Intent, path: str, names: Iterable[str], title: str, alone: bool, faults: Faults) -> None:
    """What has a way out serves no model, runs no client and, for a proxy, signs no certificates."""
    serving = _serving(intent)
    running = {host: name for name, client in intent.clients.items() for host in client.hosts}
    for host in names:
        problem = None
        if host in serving:
            problem = f"serves model {serving[host]}, to which {title} would be a way out"
        elif host in running:
            problem = f"runs client {running[host]}, to which {title} would be a way out"
        elif alone and host == intent.ca.host:
            problem = "holds the certificate authority, which nothing outside may reach"
        if problem:
            faults.add(path, host, problem, f"give {title} a host of its own")


def _check_outer(
    path: str, own: Iterable[str], others: Iterable[Address | Network], hosts: dict[str, Host], faults: Faults
) -> None:
    """Each host needs one of the others in a family that it has."""
    families = {other.family for other in others}
    for name in own:
        if families and not families & set(hosts[name].families):
            shown = " and ".join(f"IPv{family}" for family in hosts[name].families)
            problem = f"has no address family in common with {name}, which has {shown} only"
            faults.add(path, Absent, problem, f"add an address of {shown}")


def _check_strangers(intent: Intent, hosts: dict[str, Host], faults: Faults) -> None:
    """Who is none of the perimeter's hosts by its part: those admit nothing of the kind."""
    named = [
        (f"{ROOT}.segments.{segment.name}.router{router.family}", router, "which forwards nothing")
        for segment in intent.segments.values()
        for router in segment.routers
    ]
    if intent.proxy is not None:
        named += [
            (f"{PROXY}.resolvers", address, "which resolves no public name") for address in intent.proxy.resolvers
        ]
        named += [(f"{PROXY}.parents", parent.address, "which is no parent") for parent in intent.proxy.parents]
    if intent.dns is not None and intent.dns.forward is not None:
        named += [(f"{DNS}.forward.to", address, "which resolves no public name") for address in intent.dns.forward.to]
    owners = (
        {address: name for name, host in hosts.items() for address in (*host.addresses, *host.link)} if named else {}
    )
    for path, address, reason in named:
        if address in owners:
            problem = f"is the address of {owners[address]}, a host of the perimeter, {reason}"
            faults.add(path, address.text, problem, "write the address of a host outside the perimeter")


def _check_administration(intent: Intent, hosts: dict[str, Host], faults: Faults) -> None:
    """Answers to the operator need a way back: this shows even where other faults leave no rules to look at."""
    for host in hosts.values():
        segment = intent.segments.get(host.segment)
        if segment is None or segment.default_route:
            continue
        for source in intent.admin.sources:
            own = segment.network(source.family)
            if source.family in host.families and own is not None and not source.within(own):
                _need_router(intent, host, source, faults)


def check_routes(intent: Intent, planner: Planner, faults: Faults) -> None:
    """Every network that a host's rules name is in its segment, or behind the segment's router."""
    for host in planner.hosts.values():
        if not intent.segments[host.segment].default_route:
            for network in wanted(intent, host, planner.rules(host)):
                _need_router(intent, host, network, faults)


def _need_router(intent: Intent, host: Host, network: Network, faults: Faults) -> None:
    """One fault for a segment and a family, by the first host and network that need it."""
    segment = intent.segments[host.segment]
    key = f"router{network.family}"
    path = f"{ROOT}.segments.{segment.name}.{key}"
    if segment.router(network.family) is not None or faults.has(path):
        return
    problem = f"is missing, and without a default route {host.name} does not reach {network.text}"
    faults.add(path, Absent, problem, "write the router's address in the segment, or remove default_route")
