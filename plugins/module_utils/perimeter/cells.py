# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Expected reachability, worked out from the very plans that the hosts enforce.

A cell without a path is a TCP connection. A cell with a path is a request to the gateway: with the source's own client
certificate (identity own, client named) or with none; a request is allowed only if identity, address and model match.
`expect` is allow, deny, or closed where nothing listens, so that any answer at all would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

from ansible_collections.moat.inference.plugins.module_utils.perimeter import names
from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import Address, parse_network
from ansible_collections.moat.inference.plugins.module_utils.perimeter.flows import Data
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Host
from ansible_collections.moat.inference.plugins.module_utils.perimeter.plan import Planner

ENGINE_PORT = 8000  # where vLLM listens unless told otherwise: nothing may ever answer there
# Shown as the rule of a denied cell: the layer that is expected to refuse it first.
DENY_INPUT, DENY_OUTPUT, DENY_IDENTITY, DENY_REQUEST = "deny-input", "deny-output", "deny-identity", "deny-request"


def admitting(plan: Data, chain: str, peer: Address, port: int, segment: str, interface: str) -> str | None:
    """The rule of a plan that admits a TCP connection, if one does: the first one in the order of the plan."""
    key = f"peers{peer.family}"
    for rule in plan["firewall"]["rules"]:
        if rule["chain"] != chain or rule["protocol"] != "tcp" or port not in rule["ports"]:
            continue
        if rule.get("segment", segment) != segment or rule.get("interface", interface) != interface:
            continue
        if any(parse_network(text).holds(peer) for text in rule[key]):
            return str(rule["id"])
    return None


def source_cells(planner: Planner, source: Host, plan_of: Callable[[str], Data]) -> list[Data]:
    """The row of one source: every destination, address and port that matters."""
    own_plan = None if source.probe else plan_of(source.name)
    peers = set() if source.probe else set(planner.peers(source.name))
    cells: list[Data] = []
    for name in sorted(planner.hosts):
        if name != source.name:
            row = Row(planner, source, own_plan, planner.hosts[name], plan_of(name), name in peers)
            cells += row.cells()
    return cells


class Row:
    """One source against one destination."""

    def __init__(
        self, planner: Planner, source: Host, own_plan: Data | None, target: Host, plan: Data, peered: bool
    ) -> None:
        self.planner = planner
        self.source = source
        self.own_plan = own_plan
        self.target = target
        self.plan = plan
        self.peered = peered

    def cells(self) -> Iterator[Data]:
        for address in self.target.addresses:
            sender = self.source.address(address.family)
            if sender is not None:
                for port, listens in self._segment_ports().items():
                    yield self._connection(sender, address, port, "", listens)
        if "gateway" in self.plan:
            for address in self.target.link:
                yield from self._gateway_cells(address)

    def _segment_ports(self) -> dict[int, bool]:
        """Ports on the segment side, and whether something listens there: on the others nothing may ever answer."""
        ports = dict.fromkeys(self.planner.intent.admin.ports, True)
        if "gateway" in self.plan:
            ports[self.plan["gateway"]["metrics"]["port"]] = True
            ports[self.plan["gateway"]["port"]] = False
            ports.setdefault(ENGINE_PORT, False)
        if "ca" in self.plan:
            ports[self.plan["ca"]["port"]] = True
        if "egress_proxy" in self.plan:
            ports[self.plan["egress_proxy"]["port"]] = True
        if "private_dns" in self.plan:
            ports[names.DNS_PORT] = True
        return dict(sorted(ports.items()))

    def _gateway_cells(self, address: Address) -> Iterator[Data]:
        """The link side of a gateway. Who is no peer can only send there from its segment address, outside the link."""
        link = next((item for item in self.source.link if item.family == address.family and self.peered), None)
        sender = link or self.source.address(address.family)
        if sender is None:
            return
        gateway = self.plan["gateway"]
        interface = self.plan["private_link"]["interface"] if link else ""
        connection = self._connection(sender, address, gateway["port"], interface)
        yield connection
        for model in gateway["models"]:
            path = f"{model['prefix']}/v1/models"
            yield self._request(connection, path, None, False)
            for client in self.planner.clients_on.get(self.source.name, ()):
                entry = next((item for item in gateway["clients"] if item["name"] == client.name), None)
                allowed = entry is not None and sender.text in entry["addresses"] and model["name"] in entry["models"]
                yield self._request(connection, path, client.name, allowed)

    def _connection(self, sender: Address, address: Address, port: int, interface: str, listens: bool = True) -> Data:
        rule = admitting(self.plan, "input", sender, port, self.target.segment if not interface else "", interface)
        own, segment = self.own_plan, self.source.segment if not interface else ""
        if own is not None and not admitting(own, "output", address, port, segment, interface):
            return self._cell(address, port, None, None, DENY_OUTPUT, "deny" if listens else "closed")
        if rule is None:
            return self._cell(address, port, None, None, DENY_INPUT, "deny" if listens else "closed")
        return self._cell(address, port, None, None, rule, "allow")

    def _request(self, connection: Data, path: str, client: str | None, allowed: bool) -> Data:
        if connection["expect"] != "allow":
            rule, expect = connection["rule"], "deny"
        elif client is None:
            rule, expect = DENY_IDENTITY, "deny"
        elif not allowed:
            rule, expect = DENY_REQUEST, "deny"
        else:
            rule, expect = connection["rule"], "allow"
        address = Address(connection["family"], 0, connection["address"])
        return self._cell(address, connection["port"], client, path, rule, expect)

    def _cell(self, address: Address, port: int, client: str | None, path: str | None, rule: str, expect: str) -> Data:
        parts = [self.source.name, self.target.name, address.text, str(port)]
        if path:
            parts += [client or "nobody", path.strip("/").partition("/")[0]]
        return {
            "id": " ".join(parts),
            "destination": self.target.name,
            "address": address.text,
            "family": address.family,
            "protocol": "tcp",
            "port": port,
            "identity": "own" if client else "none",
            "client": client,
            "certificate": names.connector_certificate(client) if client else None,
            "path": path,
            "expect": expect,
            "rule": rule,
        }
