"""Name servers and routes that are refused, and what is not."""

from __future__ import annotations

import pytest
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import (
    REMOVE,
    P,
    Refusals,
    assert_refused,
    compiled,
    faults_of,
    member,
    out,
)

# what is written -> path, value, problem, remedy
REFUSED: Refusals = {
    # names
    "names without a host": (
        out({f"{P}.dns.hosts": REMOVE}),
        f"{P}.dns.hosts",
        "",
        "is missing",
        "such as dns1",
    ),
    "typo in the name server": (
        out({f"{P}.dns.hosts": "dns3"}),
        f"{P}.dns.hosts",
        "'dns3'",
        "no group or host",
        "write 'dns",
    ),
    "names where a model is served": (
        out({f"{P}.dns.hosts": "gpu1"}),
        f"{P}.dns.hosts",
        "'gpu1'",
        "serves model xray-7b, to which the name server",
        "a host of its own",
    ),
    "names where a client runs": (
        out({f"{P}.dns.hosts": "app3"}),
        f"{P}.dns.hosts",
        "'app3'",
        "runs client batch, to which the name server",
        "a host of its own",
    ),
    "unknown key of names": (
        out({f"{P}.dns.to": ["203.0.113.53"]}),
        f"{P}.dns.to",
        "",
        "unknown key",
        "hosts",
    ),
    "forward without to": (
        out({f"{P}.dns.forward": {"for": ["app2"]}}),
        f"{P}.dns.forward.to",
        "",
        "is missing",
        "such as [203.0.113.53]",
    ),
    "forward to nobody": (
        out({f"{P}.dns.forward.to": []}),
        f"{P}.dns.forward.to",
        "",
        "empty list",
        "such as [203.0.113.53]",
    ),
    "forward without for": (
        out({f"{P}.dns.forward": {"to": ["203.0.113.53"]}}),
        f"{P}.dns.forward.for",
        "",
        "is missing",
        "such as [app_hosts]",
    ),
    "forward to a name": (
        out({f"{P}.dns.forward.to": ["dns.example.org"]}),
        f"{P}.dns.forward.to[0]",
        "'dns.example.org'",
        "no IP address",
        "write an address",
    ),
    "forward to the perimeter": (
        out({f"{P}.dns.forward.to": ["10.140.0.10"]}),
        f"{P}.dns.forward.to",
        "'10.140.0.10'",
        "is the address of ca1",
        "outside the perimeter",
    ),
    "forward to the private link": (
        out({f"{P}.dns.forward.to": ["100.120.0.11"]}),
        f"{P}.dns.forward.to",
        "'100.120.0.11'",
        "is the address of gpu1",
        "outside the perimeter",
    ),
    "forward to another family": (
        out({"hosts.dns2.moat_address4": REMOVE}),
        f"{P}.dns.forward.to",
        "",
        "no address family in common with dns2",
        "IPv6",
    ),
    "unknown group of forward": (
        out({f"{P}.dns.forward.for": ["app_host"]}),
        f"{P}.dns.forward.for[0]",
        "'app_host'",
        "no group or host",
        "write 'app_hosts'",
    ),
    "forward for a gateway": (
        out({f"{P}.dns.forward.for": ["app2", "gpu1"]}),
        f"{P}.dns.forward.for",
        "'gpu1'",
        "serves model xray-7b, and names of others would be a way out",
        "serve no model",
    ),
    "service of names besides": (
        out({f"{P}.services.time.ports": [53, 123]}),
        f"{P}.services.time.ports",
        "53",
        "port of DNS",
        "with moat_perimeter.dns, names come from its hosts only",
    ),
    "service of names over TLS besides": (
        out({f"{P}.services.time": {"to": "10.150.0.1", "protocol": "tcp", "ports": [853], "from": "all"}}),
        f"{P}.services.time.ports",
        "853",
        "port of DNS",
        "remove it",
    ),
    "port of names that another has": (
        out({f"{P}.gateway": {"port": 53}}),
        f"{P}.gateway.port",
        "53",
        "is the port of moat_perimeter.dns too",
        "nothing else of the perimeter uses",
    ),
    "port of names over TLS that another has": (
        out({f"{P}.ca": {"host": "ca1", "port": 853}}),
        f"{P}.ca.port",
        "853",
        "is the port of moat_perimeter.dns too",
        "nothing else of the perimeter uses",
    ),
    "port of names that administration has": (
        out({f"{P}.admin.ports": [22, 53]}),
        f"{P}.admin.ports",
        "53",
        "is a port of moat_perimeter.dns too",
        "write another port",
    ),
    "name server and host without a family in common": (
        out({"hosts.dns2.moat_address6": REMOVE, "hosts.app2.moat_address4": REMOVE}),
        f"{P}.dns.hosts",
        "'dns2'",
        "no address family in common with app2 (which asks it)",
        "give both",
    ),
    # routes
    "no default route and no router": (
        out({f"{P}.segments.inference.router4": REMOVE}),
        f"{P}.segments.inference.router4",
        "",
        "is missing, and without a default route gpu1 does not reach 10.90.0.0/28",
        "write the router's address",
    ),
    "no default route and no router, IPv6": (
        out({f"{P}.segments.inference.router6": REMOVE}),
        f"{P}.segments.inference.router6",
        "",
        "is missing, and without a default route gpu1 does not reach fd00:90::/124",
        "or remove default_route",
    ),
    "no router to another segment": (
        out({f"{P}.segments.inference.router6": REMOVE, f"{P}.admin.from": ["10.90.0.0/28"], "hosts.station": REMOVE}),
        f"{P}.segments.inference.router6",
        "",
        "is missing, and without a default route gpu1 does not reach fd00:110::/64",
        "or remove default_route",
    ),
    "router outside its segment": (
        out({f"{P}.segments.inference.router4": "10.110.0.254"}),
        f"{P}.segments.inference.router4",
        "'10.110.0.254'",
        "outside its segment",
        "write an address of 10.120.0.0/24",
    ),
    "router of another family": (
        out({f"{P}.segments.app.router4": "fd00:110::254"}),
        f"{P}.segments.app.router4",
        "'fd00:110::254'",
        "IPv6 where IPv4 belongs",
        "write an IPv4 address here",
    ),
    "router of a family that the segment has not": (
        out({f"{P}.segments.spare": {"cidr4": "10.121.0.0/24", "router6": "fd00:121::1"}}),
        f"{P}.segments.spare.router6",
        "'fd00:121::1'",
        "is IPv6, which the segment has not",
        "or remove the router",
    ),
    "router at the network's address": (
        out({f"{P}.segments.app.router4": "10.110.0.0"}),
        f"{P}.segments.app.router4",
        "'10.110.0.0'",
        "network or broadcast address",
        "the router's own address",
    ),
    "router that is a network": (
        out({f"{P}.segments.app.router4": "10.110.0.0/24"}),
        f"{P}.segments.app.router4",
        "'10.110.0.0/24'",
        "no IP address",
        "write an address",
    ),
    "router that is a host": (
        out({f"{P}.segments.inference.router4": "10.120.0.12"}),
        f"{P}.segments.inference.router4",
        "'10.120.0.12'",
        "is the address of gpu2, a host of the perimeter, which forwards nothing",
        "outside the perimeter",
    ),
    "default route in quotes": (
        out({f"{P}.segments.app.default_route": "no"}),
        f"{P}.segments.app.default_route",
        "'no'",
        "a string, not a boolean",
        "write true or false, without quotes",
    ),
}


@pytest.mark.parametrize("title", sorted(REFUSED))
def test_refused_with_path_value_and_remedy(title: str) -> None:
    assert_refused(*REFUSED[title])


def test_what_is_not_refused() -> None:
    """The near neighbours of what is."""
    good = (
        {f"{P}.proxy.to": REMOVE},
        {f"{P}.proxy.to": ["10.50.0.0/24", "fd00:50::/64", "203.0.113.0/24"]},
        {
            f"{P}.proxy.parents": [{"address": "10.0.0.1"}, {"address": "10.0.0.1", "port": 8080}],
            f"{P}.proxy.to": REMOVE,
        },
        {f"{P}.proxy.resolvers": ["10.140.0.54", "168.63.129.16"], "hosts.dns2": REMOVE, f"{P}.dns.hosts": "dns1"},
        {f"{P}.proxy.upload_limit": "1 GB"},
        {f"{P}.dns.hosts": ["ca1", "egress1"]},
        {f"{P}.dns.forward": REMOVE},
        {f"{P}.egress": REMOVE},
        {
            f"{P}.egress.2": {
                "from": "gpu1",
                "host": "*.example.org",
                "reason": "another rule than packages.example.org",
            }
        },
        {f"{P}.egress.2": {"from": "gpu1", "host": "packages.example.org", "ports": [8443]}},
        {f"{P}.egress.0.host": "notinference.internal.example.org"},
        # the router is a probe in many a network
        {
            f"{P}.segments.inference.router4": "10.120.0.253",
            "hosts.router": {"moat_probe": True, "moat_address4": "10.120.0.253"},
        },
        # nobody is there
        {f"{P}.segments.spare": {"cidr4": "10.121.0.0/24", "default_route": False}},
        # nobody there has the family
        {
            f"{P}.segments.inference.router6": REMOVE,
            "hosts.gpu1.moat_address6": REMOVE,
            "hosts.gpu2.moat_address6": REMOVE,
        },
    )
    for edits in good:
        assert compiled(out(edits)).hosts, edits


def test_a_family_that_the_segment_lacks_needs_no_router() -> None:
    segment = {"cidr4": "10.121.0.0/24", "router4": "10.121.0.254", "default_route": False}
    lone = {"moat_segment": "spare", "moat_address4": "10.121.0.9"}
    found = compiled(out({f"{P}.segments.spare": segment, "hosts.lone": lone}))
    assert {route["via"] for route in found.host("lone")["routes"]["via"]} == {"10.121.0.254"}


def test_faults_of_ways_out_come_with_all_others() -> None:
    edits = out(
        {
            f"{P}.domain": REMOVE,
            f"{P}.proxy.hosts": "nobody",
            f"{P}.segments.inference.router4": REMOVE,
            f"{P}.dns.forward.to": ["x"],
            "hosts.extra": member("nowhere", 160, 1),
        }
    )
    assert {fault.path for fault in faults_of(edits)} == {
        f"{P}.domain",
        f"{P}.proxy.hosts",
        f"{P}.segments.inference.router4",
        f"{P}.dns.forward.to[0]",
        "hostvars.extra.moat_segment",
    }
