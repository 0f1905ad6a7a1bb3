"""Parsers of the preflight module."""

from __future__ import annotations

import json

import pytest
from ansible_collections.moat.inference.plugins.module_utils import preflight


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ('ID=debian\nVERSION_ID="12"\n', "debian"),
        ("ID=ubuntu\nID_LIKE=debian\n", "debian"),
        ('ID="rhel"\nID_LIKE="fedora"\n', "redhat"),
        ('ID="almalinux"\nID_LIKE="rhel centos fedora"\n', "redhat"),
        ("ID=opensuse-leap\nID_LIKE='suse opensuse'\n", "opensuse-leap"),
        ("# ID=debian\nNAME=x\n", ""),
        ("", ""),
    ],
)
def test_os_family(text: str, family: str) -> None:
    assert preflight.os_family(preflight.parse_os_release(text)) == family


def test_os_release_is_unquoted() -> None:
    fields = preflight.parse_os_release("PRETTY_NAME='A b'\nHOME=\"x=y\"\nno equals sign\n")
    assert fields == {"PRETTY_NAME": "A b", "HOME": "x=y"}


def test_only_installed_packages_have_a_version() -> None:
    text = "haproxy\t2.6.12-1\tii \nwireguard-tools\t1.0\trc \nheld\t3\thi \nhalf\t1\tiU \n\t\tun \n"
    assert preflight.parse_dpkg(text) == {"haproxy": "2.6.12-1", "held": "3"}


def test_what_rpm_says_of_missing_packages_is_no_version() -> None:
    text = "haproxy\t2.4.22-1.el9\npackage nftables is not installed\n"
    assert preflight.parse_rpm(text) == {"haproxy": "2.4.22-1.el9"}


def test_interfaces_by_address() -> None:
    links = [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
        {
            "ifname": "eth0",
            "addr_info": [{"local": "10.0.0.1", "scope": "global"}, {"local": "fe80::1", "scope": "link"}],
        },
        {"ifname": "eth1"},
        {"ifname": "eth2", "addr_info": [{"local": "fd00::1", "scope": "global"}, {}]},
    ]
    assert preflight.interfaces_by_address(json.dumps(links)) == {"10.0.0.1": "eth0", "fd00::1": "eth2"}
    assert preflight.interfaces_by_address("") == {}
