# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plan of one host in sentences: who may reach what, by which rules."""

from __future__ import annotations

from collections.abc import Iterable
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
    for egress in planner.intent.egress:
        if host in egress.hosts:
            ports = listed(str(port) for port in egress.ports)
            path = f"moat_perimeter.egress[{egress.index}]"
            lines.append(
                f"{host} to {egress.host} on tcp {ports}: planned as denied until an egress role exists ({path})."
            )
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
