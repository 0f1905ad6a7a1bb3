"""Addresses and networks that are refused."""

from __future__ import annotations

import pytest
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import (
    GPU,
    P,
    Refusals,
    assert_refused,
)

# what is written -> path, value, problem, remedy
REFUSED: Refusals = {
    # addresses
    "public source": (
        {f"{P}.admin.from": ["198.51.100.0/24"]},
        f"{P}.admin.from[0]",
        "'198.51.100.0/24'",
        "public address where a private one belongs",
        "RFC 1918",
    ),
    "public source, IPv6": (
        {f"{P}.admin.from": ["2001:db8::/64"]},
        f"{P}.admin.from[0]",
        "'2001:db8::/64'",
        "public address where a private one belongs",
        "fc00::/7",
    ),
    "private network with public addresses in it": (
        {f"{P}.admin.from": ["172.16.0.0/11"]},
        f"{P}.admin.from[0]",
        "'172.16.0.0/11'",
        "host bits set",
        "172.0.0.0/11",
    ),
    "network wider than what is private": (
        {f"{P}.admin.from": ["10.0.0.0/7"]},
        f"{P}.admin.from[0]",
        "'10.0.0.0/7'",
        "public",
        "RFC 1918",
    ),
    "every IPv4 address": (
        {f"{P}.admin.from": ["0.0.0.0/0"]},
        f"{P}.admin.from[0]",
        "'0.0.0.0/0'",
        "every address there is",
        "10.90.0.0/28",
    ),
    "every IPv6 address": (
        {f"{P}.admin.from": ["::/0"]},
        f"{P}.admin.from[0]",
        "'::/0'",
        "every address there is",
        "name the private networks",
    ),
    "every address, without its length": (
        {f"{P}.admin.from": ["0.0.0.0"]},
        f"{P}.admin.from[0]",
        "'0.0.0.0'",
        "public",
        "RFC 1918",
    ),
    "every address, mapped into IPv6": (
        {f"{P}.admin.from": ["::ffff:0.0.0.0/96"]},
        f"{P}.admin.from[0]",
        "'::ffff:0.0.0.0/96'",
        "public",
        "RFC 1918",
    ),
    "a name where an address belongs": (
        {f"{P}.admin.from": ["station"]},
        f"{P}.admin.from[0]",
        "'station'",
        "no IP address",
        "such as 10.120.0.11",
    ),
    "a leading zero": (
        {"hosts.app2.moat_address4": "10.110.0.012"},
        "hostvars.app2.moat_address4",
        "'10.110.0.012'",
        "no IP address",
        "such as",
    ),
    "host bits": (
        {f"{P}.segments.app.cidr4": "10.110.0.1/24"},
        f"{P}.segments.app.cidr4",
        "'10.110.0.1/24'",
        "host bits",
        "write 10.110.0.0/24",
    ),
    "length out of range": (
        {f"{P}.services.dns.to": ["10.140.0.53/33"]},
        f"{P}.services.dns.to[0]",
        "'10.140.0.53/33'",
        "no network",
        "between 0 and 32",
    ),
    "IPv6 in the place of IPv4": (
        {f"{P}.segments.spare": {"cidr4": "fd00:150::/64"}},
        f"{P}.segments.spare.cidr4",
        "'fd00:150::/64'",
        "IPv6 where IPv4 belongs",
        "move it to cidr6",
    ),
    "address of the other family": (
        {"hosts.app2.moat_address6": "10.110.0.99"},
        "hostvars.app2.moat_address6",
        "'10.110.0.99'",
        "IPv4 where IPv6 belongs",
        "move it to moat_address4",
    ),
    "public address of a host": (
        {"hosts.app2.moat_address4": "203.0.113.9"},
        "hostvars.app2.moat_address4",
        "'203.0.113.9'",
        "public address",
        "RFC 1918",
    ),
    "host outside its segment": (
        {"hosts.app2.moat_address4": "10.120.0.99"},
        "hostvars.app2.moat_address4",
        "'10.120.0.99'",
        "outside segment app",
        "an address of 10.110.0.0/24",
    ),
    "host outside its segment, IPv6": (
        {"hosts.app2.moat_address6": "fd00:120::99"},
        "hostvars.app2.moat_address6",
        "'fd00:120::99'",
        "outside segment app",
        "an address of fd00:110::/64",
    ),
    "address of a family that the segment lacks": (
        {f"{P}.segments.spare": {"cidr4": "10.150.0.0/24"}, "hosts.app2.moat_segment": "spare"}
        | {"hosts.app2.moat_address4": "10.150.0.9"},
        "hostvars.app2.moat_address6",
        "'fd00:110::12'",
        "IPv6, which segment spare has not",
        "add cidr6",
    ),
    "broadcast address": (
        {"hosts.app2.moat_address4": "10.110.0.255"},
        "hostvars.app2.moat_address4",
        "'10.110.0.255'",
        "network or broadcast address",
        "a host address",
    ),
    "subnet-router anycast address": (
        {"hosts.app2.moat_address6": "fd00:110::"},
        "hostvars.app2.moat_address6",
        "'fd00:110::'",
        "network or broadcast address",
        "a host address",
    ),
    "two hosts with one address": (
        {"hosts.app2.moat_address4": "10.110.0.11"} | {"hosts.app2.moat_link_address4": "100.64.9.9"},
        "hostvars.app2.moat_address4",
        "'10.110.0.11'",
        "the address of app1 too",
        "an address of its own",
    ),
    "two hosts with one address, written differently": (
        {"hosts.app2.moat_address6": "FD00:110:0::11"},
        "hostvars.app2.moat_address6",
        "'fd00:110::11'",
        "the address of app1 too",
        "an address of its own",
    ),
    "a probe with the address of a host": (
        {"hosts.intruder.moat_address4": "10.110.0.11"},
        "hostvars.intruder.moat_address4",
        "'10.110.0.11'",
        "the address of app1 too",
        "an address of its own",
    ),
    "overlapping segments": (
        {f"{P}.segments.spare": {"cidr4": "10.120.0.128/25"}},
        f"{P}.segments.spare.cidr4",
        "'10.120.0.128/25'",
        "overlaps 10.120.0.0/24 of segment inference",
        "a network of its own",
    ),
    "overlapping segments, IPv6": (
        {f"{P}.segments.spare": {"cidr6": "fd00:120::/80"}},
        f"{P}.segments.spare.cidr6",
        "'fd00:120::/80'",
        "overlaps fd00:120::/64",
        "a network of its own",
    ),
    "segment within the private link": (
        {f"{P}.segments.spare": {"cidr4": "100.64.0.0/24"}},
        f"{P}.segments.spare.cidr4",
        "'100.64.0.0/24'",
        "overlaps 100.64.0.0/10 of the private link",
        "a network of its own",
    ),
    "administration from the private link": (
        {f"{P}.admin.from": ["100.64.0.0/24"]},
        f"{P}.admin.from",
        "'100.64.0.0/24'",
        "overlaps the private link",
        "the link carries clients only",
    ),
    "service on the private link": (
        {f"{P}.services.dns.to": ["fd00:200::5"]},
        f"{P}.services.dns.to",
        "'fd00:200::5/128'",
        "overlaps the private link",
        "outside it",
    ),
    "host among the administrators": (
        {f"{P}.admin.from": ["10.110.0.12/32"]},
        "hostvars.app2.moat_address4",
        "'10.110.0.12'",
        "would administer all others",
        "name only the stations",
    ),
    "host managed from among the administrators": (
        {"hosts.app2.ansible_host": "10.90.0.9"},
        "hostvars.app2.ansible_host",
        "'10.90.0.9'",
        "would administer all others",
        "name only the stations",
    ),
    "link addresses that collide": (
        {"hosts.gpu3": {**GPU, "moat_segment": "far", "moat_address4": "10.56.0.11"}}
        | {f"{P}.segments.far": {"cidr4": "10.56.0.0/24"}},
        "hostvars.gpu3.moat_link_address4",
        "'100.120.0.11'",
        "the address of gpu1 too",
        "set moat_link_address4 on one of them",
    ),
    "link address outside the link": (
        {"hosts.app2.moat_link_address4": "10.1.1.1"},
        "hostvars.app2.moat_link_address4",
        "'10.1.1.1'",
        "outside the private link",
        "an address of 100.64.0.0/10",
    ),
    "link address at the edge": (
        {"hosts.app2.moat_link_address6": "fd00:200::"},
        "hostvars.app2.moat_link_address6",
        "'fd00:200::'",
        "network or broadcast address",
        "a free address of fd00:200::/64",
    ),
}


@pytest.mark.parametrize("title", sorted(REFUSED))
def test_refused_with_path_value_and_remedy(title: str) -> None:
    assert_refused(*REFUSED[title])
