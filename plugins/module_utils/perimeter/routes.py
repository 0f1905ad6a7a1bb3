# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The routes that remain without a default route: to what the host's own rules name, and to nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import (
    Network,
    parse_network,
    sort_networks,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.flows import Data
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Host, Intent


def wanted(intent: Intent, host: Host, rules: Iterable[Data]) -> tuple[Network, ...]:
    """The networks outside its segment that a host exchanges packets with: a segment as a whole, others as they are written."""
    known = [network for segment in intent.segments.values() for network in segment.networks]
    own = intent.segments[host.segment].networks
    found: set[Network] = set()
    for rule in rules:
        # What goes over the private link has its route there.
        if rule["chain"] == "local" or "interface" in rule:
            continue
        for family in host.families:
            for text in rule[f"peers{family}"]:
                network = parse_network(text)
                found.add(next((segment for segment in known if network.within(segment)), network))
    return sort_networks(network for network in found if not any(network.within(segment) for segment in own))


def host_routes(intent: Intent, host: Host, rules: Iterable[Data]) -> Data:
    segment = intent.segments[host.segment]
    via = []
    for network in wanted(intent, host, rules):
        router = segment.router(network.family)
        if router is None:
            raise LookupError(f"segment {segment.name} has no router of IPv{network.family}")
        via.append({"to": network.text, "via": router.text})
    return {"default": False, "via": via}
