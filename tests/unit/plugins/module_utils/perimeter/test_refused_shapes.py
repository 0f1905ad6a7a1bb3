"""Keys that are unknown, missing or of the wrong type."""

from __future__ import annotations

import pytest
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import (
    REMOVE,
    P,
    Refusals,
    assert_refused,
)

# what is written -> path, value, problem, remedy
REFUSED: Refusals = {
    # keys
    "unknown key": ({f"{P}.modells": {}}, f"{P}.modells", "", "unknown key", "write 'models'"),
    "unknown key without a near one": ({f"{P}.xyz": 1}, f"{P}.xyz", "", "unknown key", "write one of: admin"),
    "unknown key of a client": (
        {f"{P}.clients.portal.model": ["xray-7b"]},
        f"{P}.clients.portal.model",
        "",
        "unknown key",
        "write 'models'",
    ),
    "unknown key of limits": (
        {f"{P}.clients.portal.limits.rps": 5},
        f"{P}.clients.portal.limits.rps",
        "",
        "unknown key",
        "burst",
    ),
    "key that YAML reads as a boolean": ({f"{P}.gateway": {True: 1}}, f"{P}.gateway.True", "", "unknown key", "port"),
    "slip in a host key": (
        {"hosts.outside.moat_segmnt": "app"},
        "hostvars.outside.moat_segmnt",
        "",
        "unknown key",
        "write 'moat_segment'",
    ),
    "host key without its family": (
        {"hosts.app2.moat_address": "10.110.0.12"},
        "hostvars.app2.moat_address",
        "",
        "unknown key",
        "write 'moat_address",
    ),
    # what must be there
    "no domain": ({f"{P}.domain": REMOVE}, f"{P}.domain", "", "missing", "inference.internal"),
    "no admin": ({f"{P}.admin": REMOVE}, f"{P}.admin", "", "missing", "from: [10.90.0.0/28]"),
    "no administrators": ({f"{P}.admin.from": []}, f"{P}.admin.from", "", "empty list", "10.90.0.0/28"),
    "no ports of administration": ({f"{P}.admin.ports": []}, f"{P}.admin.ports", "", "empty list", "remove it for 22"),
    "no authority": ({f"{P}.ca": REMOVE}, f"{P}.ca", "", "missing", "ca: {host: ca1}"),
    "authority without a host": ({f"{P}.ca": {"port": 9443}}, f"{P}.ca.host", "", "missing", "such as ca1"),
    "segment without a network": (
        {f"{P}.segments.spare": {"vlan": 9}},
        f"{P}.segments.spare",
        "",
        "neither cidr4 nor cidr6",
        "cidr4: 10.110.0.0/24",
    ),
    "model without hosts": (
        {f"{P}.models.spare": {"source": "/srv/models/spare"}},
        f"{P}.models.spare.hosts",
        "",
        "missing",
        "a group, a host",
    ),
    "model without weights": (
        {f"{P}.models.notes-1b.source": REMOVE},
        f"{P}.models.notes-1b.source",
        "",
        "missing",
        "/srv/models/xray-7b",
    ),
    "client without a model": (
        {f"{P}.clients.batch.models": [], f"{P}.tests": []},
        f"{P}.clients.batch.models",
        "",
        "empty list",
        "remove the client",
    ),
    "client without users": (
        {f"{P}.clients.batch.users": REMOVE},
        f"{P}.clients.batch.users",
        "",
        "missing",
        "local users",
    ),
    "service without ports": (
        {f"{P}.services.dns.ports": []},
        f"{P}.services.dns.ports",
        "",
        "empty list",
        "such as [53]",
    ),
    "host without an address": (
        {"hosts.app2": {"moat_segment": "app"}},
        "hostvars.app2",
        "",
        "has no address",
        "set moat_address4, moat_address6 or both",
    ),
    "probe without an address": (
        {"hosts.intruder": {"moat_probe": True}},
        "hostvars.intruder",
        "",
        "probe without an address",
        "set moat_address4",
    ),
    # types
    "map where a list belongs": ({f"{P}.egress": {}}, f"{P}.egress", "a map", "not a list", "in brackets"),
    "list where a map belongs": (
        {f"{P}.clients": ["portal"], f"{P}.tests": []},
        f"{P}.clients",
        "a list",
        "not a map",
        "then its keys",
    ),
    "number in quotes": (
        {f"{P}.clients.portal.limits.concurrent": "16"},
        f"{P}.clients.portal.limits.concurrent",
        "'16'",
        "a string, not an integer",
        "without quotes",
    ),
    "boolean where a number belongs": (
        {f"{P}.gateway": {"port": True}},
        f"{P}.gateway.port",
        "true",
        "a boolean, not an integer",
        "between 1 and 65535",
    ),
    "number where a name belongs": (
        {f"{P}.models": {7: {"hosts": "gpu1", "source": "/srv/m"}}, f"{P}.clients": {}, f"{P}.tests": []},
        f"{P}.models.7",
        "7",
        "not a name",
        'write the name in quotes: "7"',
    ),
    "empty string": ({f"{P}.ca.host": ""}, f"{P}.ca.host", "''", "empty", "in quotes"),
    "probe flag in quotes": (
        {"hosts.intruder.moat_probe": "yes"},
        "hostvars.intruder.moat_probe",
        "'yes'",
        "not a boolean",
        "true or false",
    ),
    "number as an address": (
        {"hosts.app2.moat_address4": 10},
        "hostvars.app2.moat_address4",
        "10",
        "not an address",
        "in quotes",
    ),
    "value twice": (
        {f"{P}.clients.batch.users": ["batch", "batch"]},
        f"{P}.clients.batch.users[1]",
        "'batch'",
        "there twice",
        "remove one",
    ),
    # numbers
    "limit of zero": (
        {f"{P}.clients.portal.limits.requests_per_second": 0},
        f"{P}.clients.portal.limits.requests_per_second",
        "0",
        "out of range",
        "an integer between 1 and",
    ),
    "burst of zero": (
        {f"{P}.clients.portal.limits.burst": 0},
        f"{P}.clients.portal.limits.burst",
        "0",
        "out of range",
        "an integer between 1 and",
    ),
    "negative concurrency": (
        {f"{P}.clients.portal.limits.concurrent": -1},
        f"{P}.clients.portal.limits.concurrent",
        "-1",
        "out of range",
        "an integer between 1 and",
    ),
    "VLAN out of range": (
        {f"{P}.segments.inference.vlan": 4095},
        f"{P}.segments.inference.vlan",
        "4095",
        "out of range",
        "between 1 and 4094",
    ),
    "VLAN twice": (
        {f"{P}.segments.services.vlan": 120},
        f"{P}.segments.services.vlan",
        "120",
        "the VLAN of segment inference too",
        "a VLAN of its own",
    ),
    "port out of range": (
        {f"{P}.admin.ports": [22, 65536]},
        f"{P}.admin.ports[1]",
        "65536",
        "out of range",
        "between 1 and 65535",
    ),
    "privileged port of a connector": (
        {f"{P}.clients.batch.port": 80},
        f"{P}.clients.batch.port",
        "80",
        "out of range",
        "between 1024 and 65535",
    ),
    "port of two parts": (
        {f"{P}.gateway": {"port": 9443}},
        f"{P}.ca.port",
        "9443",
        f"the port of {P}.gateway.port too",
        "write a port that nothing else",
    ),
    "administration on the gateway's port": (
        {f"{P}.admin.ports": [22, 8443]},
        f"{P}.gateway.port",
        "8443",
        f"the port of {P}.admin.ports too",
        "write a port",
    ),
    "connector on the gateway's port": (
        {f"{P}.clients.batch.port": 8443},
        f"{P}.clients.batch.port",
        "8443",
        f"the port of {P}.gateway.port too",
        "write another port",
    ),
    "two connectors of a host on one port": (
        {f"{P}.clients.other": {"hosts": "app3", "users": ["a"], "port": 8081, "models": ["xray-7b"]}},
        f"{P}.clients.other.port",
        "8081",
        "the port of client batch on app3 too",
        "a port of its own",
    ),
    "lifetime": ({f"{P}.ca.lifetime": "48h"}, f"{P}.ca.lifetime", "'48h'", "will not do", "between 5m and 24h"),
    "lifetime that is too short": (
        {f"{P}.ca.lifetime": "4m"},
        f"{P}.ca.lifetime",
        "'4m'",
        "will not do",
        "between 5m and 24h",
    ),
}


@pytest.mark.parametrize("title", sorted(REFUSED))
def test_refused_with_path_value_and_remedy(title: str) -> None:
    assert_refused(*REFUSED[title])
