# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Intent and inventory in, plan out. No Ansible, no files, no network: the same input always gives the same plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.perimeter import check, check_egress, check_gpus
from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import HAS_NETADDR
from ansible_collections.moat.inference.plugins.module_utils.perimeter.cells import source_cells
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import Fault, Faults, IntentError
from ansible_collections.moat.inference.plugins.module_utils.perimeter.inventory import Inventory
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Host, Intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.plan import Planner
from ansible_collections.moat.inference.plugins.module_utils.perimeter.read import read_intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.words import host_words

SCHEMA = 2  # part of the digest: raised whenever the same intent starts to give another plan


class Plan:
    """A compiled perimeter. Each part is worked out when it is asked for, and kept."""

    def __init__(self, intent: Intent, hosts: dict[str, Host], probes: dict[str, Host]) -> None:
        self.intent = intent
        self.hosts = hosts
        self.probes = probes
        self.planner = Planner(intent, hosts)
        self.digest = digest(intent, hosts)
        self._plans: dict[str, dict[str, Any]] = {}

    @property
    def domain(self) -> str:
        return self.intent.domain

    def host(self, name: str) -> dict[str, Any]:
        if name not in self._plans:
            self._plans[name] = self.planner.plan(name)
        return self._plans[name]

    def words(self, name: str) -> list[str]:
        return host_words(self.planner, self.host(name))

    def cells(self, source: str) -> list[dict[str, Any]]:
        host = self.hosts.get(source) or self.probes[source]
        return source_cells(self.planner, host, self.host)

    def by_role(self, names: Iterable[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(names):
            for role in self.planner.roles(name):
                found.setdefault(role, []).append(name)
        return found

    def to_dict(self, only: Iterable[str] | None = None, cells: bool = True, words: bool = True) -> dict[str, Any]:
        """Plain data; `only` narrows what is worked out, never what the policy means."""
        wanted = None if only is None else set(only)
        names = [name for name in self.hosts if wanted is None or name in wanted]
        sources = [name for name in sorted({**self.hosts, **self.probes}) if wanted is None or name in wanted]
        return {
            "digest": self.digest,
            "domain": self.domain,
            "hosts": {name: self.host(name) for name in names},
            "roles": self.by_role(names),
            "cells": {name: self.cells(name) for name in sources} if cells else {},
            "words": {name: self.words(name) for name in names} if words else {},
        }


def digest(intent: Intent, hosts: dict[str, Host]) -> str:
    """SHA-256 of the canonical JSON of all that a plan follows from, with groups replaced by their hosts."""
    data = asdict(intent)
    for part in ("models", "clients", "services"):
        for item in data[part].values():
            del item["select"]
            if "wanted" in item:
                item["wanted"] = sorted(item["wanted"])
            if item.get("gpus"):
                item["gpus"] = {host: list(names) for host, names in item["gpus"].items()}
    for item in (*data["egress"], data["proxy"], data["dns"], (data["dns"] or {}).get("forward")):
        if item is not None:
            del item["select"]
    # What is not written is not there, so that an intent keeps its digest when the compiler learns more keys.
    for part in ("proxy", "dns"):
        if data[part] is None:
            del data[part]
    for model in data["models"].values():
        for key in ("gpus", "shared"):
            if not model[key]:
                del model[key]
    for segment in data["segments"].values():
        if segment["default_route"]:
            del segment["default_route"]
        if not segment["routers"]:
            del segment["routers"]
    shown = {"schema": SCHEMA, "intent": data, "hosts": {name: asdict(host) for name, host in hosts.items()}}
    return hashlib.sha256(json.dumps(shown, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def compile_intent(intent: Any, inventory: dict[str, Any]) -> Plan:
    """Compile `moat_perimeter`; raises IntentError with every fault when it is refused.

    `inventory` is `{"hosts": {name: variables}, "groups": {name: [host, ...]}}`. Of the variables only those that begin with
    moat_ and ansible_host are looked at.
    """
    if not HAS_NETADDR:
        remedy = "install it for the Python that runs Ansible on the controller: pip install netaddr"
        raise IntentError([Fault("netaddr", "", "is not there", remedy)])
    faults = Faults()
    read = read_intent(intent, faults)
    read_inventory = Inventory(inventory, faults)
    read_inventory.read(read)
    check.check_networks(read, faults)
    check.check_ports(read, faults)
    check.resolve(read, read_inventory)
    check.check_references(read, faults)
    check.check_separation(read, faults)
    check.check_connectors(read, faults)
    check_gpus.check(read, faults)
    check.check_families(read, read_inventory.hosts, faults)
    check.run_tests(read, check.reached(read), faults)
    check_egress.check(read, read_inventory.hosts, faults)
    faults.stop()
    plan = Plan(read, read_inventory.hosts, read_inventory.probes)
    check_egress.check_routes(read, plan.planner, faults)
    faults.stop()
    return plan
