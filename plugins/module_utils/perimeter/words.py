# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plan of one host in sentences: who may reach what, by which rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.perimeter import names
from ansible_collections.moat.inference.plugins.module_utils.perimeter.plan import Planner

NETWORKS_SHOWN = 6


def host_words(planner: Planner, plan: dict[str, Any]) -> list[str]:
    host = plan["name"]
    rules = {rule["id"]: rule for rule in plan["firewall"]["rules"]}
    addresses = plan["firewall"]["segments"][0]["addresses"]
    lines = [f"{host} is in segment {plan['segment']} ({listed(addresses)}); roles: {', '.join(plan['roles'])}."]
    if "private_link" in plan:
        link = plan["private_link"]
        peers = listed(peer["name"] for peer in link["peers"]) or "nobody yet"
        lines.append(
            f"{host} is {listed(link['addresses'])} on the private link {link['interface']}; its peers: {peers}."
        )
    for model in plan.get("model_server", ()):
        if "gpus" in model:
            shared = ", which it may share" if "shared" in model else ""
            lines.append(f"model {model['name']} on {host} has the GPUs {listed(model['gpus'])}{shared}.")
    for name in ("in-admin-ssh", "in-admin-metrics"):
        if name in rules:
            lines.append(f"{peers_of(rules[name])} may reach {host} on {ports_of(rules[name])} [{name}].")
    for client in plan.get("gateway", {}).get("clients", ()):
        lines.append(_client_at_gateway(planner, host, client))
    for client in plan.get("connector", ()):
        lines += _client_at_connector(host, client, rules)
    if "ca" in plan:
        for name, who in (("in-ca-gateways", "the gateways"), ("in-ca-clients", "the client hosts")):
            if name in rules:
                peers, ports = peers_of(rules[name]), ports_of(rules[name])
                lines.append(f"{who} ({peers}) may reach the certificate authority on {ports} [{name}].")
    if "out-ca" in rules:
        own = listed(item["common_name"] for item in plan["certificate"])
        target = f"{plan['certificate_ca']['host']}, {ports_of(rules['out-ca'])}"
        lines.append(f"{host} may reach the certificate authority on {target}, for {own} [out-ca].")
    for service in planner.services_of.get(host, ()):
        rule = rules[names.rule_id("out-service", service.name)]
        lines.append(f"{host} may reach {peers_of(rule)} on {ports_of(rule)}, service {service.name} [{rule['id']}].")
    lines += [*_egress(planner, host, rules), *_naming(planner, plan, rules), *_routes(plan)]
    lines.append(f"Everything else to, from and through {host} is denied, IPv4 and IPv6.")
    return lines


def _client_at_gateway(planner: Planner, host: str, client: dict[str, Any]) -> str:
    name, limits = client["name"], client["limits"]
    rate = f"{limits['requests_per_second']} requests/s, burst {limits['burst']}, {limits['concurrent']} at once"
    where = listed(planner.intent.clients[name].hosts)
    models = f"model{'s' if len(client['models']) > 1 else ''} {listed(client['models'])}"
    return f"client {name} on {where} may use {models} of {host}, at most {rate} [in-link, out-link, in-gateway]."


def _client_at_connector(host: str, client: dict[str, Any], rules: dict[str, Any]) -> list[str]:
    name = client["name"]
    users, lines = listed(client["users"]), []
    for model in client["models"]:
        backends = listed(backend["name"] for backend in model["backends"])
        ids = "[in-link, out-link, out-gateway]"
        lines.append(f"client {name} on {host} may use model {model['name']} of {backends} {ids}.")
    lines.append(f"local user {users} may use the connector of {name} at {client['socket']}.")
    local = names.rule_id("local-connector", name)
    if local in rules:
        url = f"http://127.0.0.1:{client['port']}"
        lines.append(f"local user {users} may use the connector of {name} at {url}; other users may not [{local}].")
    return lines


def _egress(planner: Planner, host: str, rules: dict[str, Any]) -> Iterator[str]:
    """What leaves by name, then what a proxy admits and where it goes."""
    egresses, proxy = planner.egress, planner.intent.proxy
    through = listed(egresses.proxies_of(host))
    way = "out-egress, " if "out-egress" in rules else ""
    for egress in egresses.entries_of.get(host, ()):
        ports = listed(str(port) for port in egress.ports)
        ids = f"{way}{names.egress_rule(egress.index)}"
        yield f"{host} may reach {egress.host} on tcp {ports} through the proxy of {through} [{ids}]."
    if proxy is None or not egresses.is_proxy(host):
        return
    if "in-egress" in rules:
        rule = rules["in-egress"]
        yield f"{listed(egresses.sources_of(host))} may use the proxy of {host} on {ports_of(rule)} [in-egress]."
    yield (
        f"the proxy of {host} resolves names with {listed(address.text for address in proxy.resolvers)} "
        "[out-resolver-tcp, out-resolver-udp]."
    )
    if "out-internet" in rules:
        where = listed(network.text for network in proxy.networks) or "every public network"
        yield f"{host} may reach {where} on {ports_of(rules['out-internet'])} [out-internet]."
    for name, rule in rules.items():
        if name.startswith("out-parent-"):
            yield f"{host} may reach the parent proxies {peers_of(rule)} on {ports_of(rule)} [{name}]."


def _naming(planner: Planner, plan: dict[str, Any], rules: dict[str, Any]) -> Iterator[str]:
    host = plan["name"]
    if "out-dns-udp" in rules:
        ids = "[out-dns-tcp, out-dns-udp]"
        yield f"{host} may ask {peers_of(rules['out-dns-udp'])} for names under {planner.intent.domain} {ids}."
    dns = plan.get("private_dns")
    if dns is None:
        return
    if "in-dns-udp" in rules:
        yield f"{peers_of(rules['in-dns-udp'])} may ask {host} for names [in-dns-tcp, in-dns-udp]."
    if dns["forward"] is None:
        yield f"{host} refuses all names that are not under {dns['domain']}."
        return
    to, asking = listed(dns["forward"]["to"]), listed(dns["forward"]["for"])
    yield f"{host} asks {to} for all other names [out-forward-tcp, out-forward-udp], for {asking} only."


def _routes(plan: dict[str, Any]) -> Iterator[str]:
    if "routes" in plan:
        via = listed(f"{route['to']} by {route['via']}" for route in plan["routes"]["via"])
        yield f"{plan['name']} has no default route; its routes: {via or 'none'}."


def listed(items: Iterable[str]) -> str:
    """a, b and c; a long list is cut, with its length."""
    shown = list(items)
    if len(shown) > NETWORKS_SHOWN:
        return f"{', '.join(shown[:NETWORKS_SHOWN])} and {len(shown) - NETWORKS_SHOWN} more"
    return " and ".join(part for part in (", ".join(shown[:-1]), *shown[-1:]) if part)


def peers_of(rule: dict[str, Any]) -> str:
    return listed([*rule["peers4"], *rule["peers6"]])


def ports_of(rule: dict[str, Any]) -> str:
    return f"{rule['protocol']} {listed(str(port) for port in rule['ports'])}"
