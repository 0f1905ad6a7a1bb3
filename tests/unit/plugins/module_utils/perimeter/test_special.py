"""Which networks are public, and how networks are cut out of others."""

from __future__ import annotations

import ipaddress

import pytest
from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import parse_address, parse_network
from ansible_collections.moat.inference.plugins.module_utils.perimeter.special import (
    is_host,
    no_destination,
    public_networks,
    special_networks,
    without,
)
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter import oracle_egress
from hypothesis import given, settings
from hypothesis import strategies as st

PUBLIC = ["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0"]
PUBLIC += ["192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "168.63.129.15"]
PUBLIC += [
    "2000::",
    "2001:200::",
    "2001:db7:ffff::",
    "2001:db9::",
    "2003::",
    "2606:4700::1111",
    "3ffe:ffff::",
    "3fff:1000::",
]
NOT_PUBLIC = ["0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255"]
NOT_PUBLIC += ["192.0.0.9", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1"]
NOT_PUBLIC += ["203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16", "192.31.196.1"]
NOT_PUBLIC += [
    "::",
    "::1",
    "::ffff:8.8.8.8",
    "::8.8.8.8",
    "64:ff9b::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:1ff::",
    "2001:db8::1",
]
NOT_PUBLIC += [
    "2002:a00:1::",
    "2620:4f:8000::1",
    "3fff::1",
    "4000::",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "ff02::1",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_public(text: str) -> None:
    assert any(network.holds(parse_address(text)) for network in public_networks())
    assert not any(network.holds(parse_address(text)) for network in special_networks())


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_not_public(text: str) -> None:
    assert not any(network.holds(parse_address(text)) for network in public_networks())


def test_the_public_networks_are_those_of_another_reading() -> None:
    texts = [network.text for network in public_networks()]
    other = sorted(oracle_egress.public(), key=lambda item: (item.version, int(item.network_address)))
    assert texts == [str(item) for item in other]
    assert len(texts) == len(set(texts)) < 300


def test_every_special_network_is_written_as_one() -> None:
    """What squid reads as all of IPv4 is not among them."""
    mapped = parse_network("::ffff:0:0/96")
    assert not any(network.overlaps(mapped) for network in (*special_networks(), *public_networks()))
    for network in special_networks():
        assert ipaddress.ip_network(network.text).version == network.family


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("127.0.0.0/8", "127.0.0.0/8"),
        ("168.0.0.0/8", "168.63.129.16/32"),
        ("fe80::/64", "8000::/2"),
        ("2002:a00::/32", "2002::/16"),
        ("203.0.113.0/24", None),
        ("10.50.0.0/24", None),
        ("fd00:50::/64", None),
        ("2606:4700::/32", None),
    ],
)
def test_where_nothing_may_be_reached(text: str, other: str | None) -> None:
    found = no_destination(parse_network(text))
    assert (found is None) == (other is None)
    assert found is None or found.overlaps(parse_network(text))


def test_who_may_be_another_host() -> None:
    for text in ("203.0.113.53", "10.0.0.1", "168.63.129.16", "fd00::1", "2606:4700::1111"):
        assert is_host(parse_address(text)), text
    for text in (
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "64:ff9b::1",
    ):
        assert not is_host(parse_address(text)), text


SMALL = st.builds(
    lambda number, length: f"10.0.0.{number >> (32 - length) << (32 - length)}/{length}",
    st.integers(0, 255),
    st.integers(26, 32),
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(SMALL, max_size=4), st.lists(SMALL, max_size=6))
def test_what_is_cut_out_is_gone_and_nothing_else_is(whole: list[str], holes: list[str]) -> None:
    def addresses(texts: list[str]) -> set[ipaddress.IPv4Address]:
        return {address for text in texts for address in ipaddress.IPv4Network(text)}

    left = [network.text for network in without(map(parse_network, whole), map(parse_network, holes))]
    assert addresses(left) == addresses(whole) - addresses(holes)
    assert left == sorted(set(left), key=ipaddress.IPv4Network)
    assert sum(ipaddress.IPv4Network(text).num_addresses for text in left) == len(addresses(left))
