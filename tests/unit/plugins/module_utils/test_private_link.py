from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import private_link as link


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode("ascii")


def options(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "interface": "moat0",
        "state": "present",
        "port": 51820,
        "mtu": 1420,
        "addresses": ["100.64.0.1/32", "fd00:200::1/128"],
        "peers": [
            {
                "name": "gpu2",
                "endpoint": "fd00:120::12",
                "allowed_ips": ["fd00:200::3/128", "100.64.0.3/32"],
                "public_key": key(3),
            },
            {"name": "gpu1", "endpoint": "10.120.0.11", "allowed_ips": ["100.64.0.2/32"], "public_key": key(2)},
        ],
    }
    return {**values, **changes}


def peer(**changes: Any) -> dict[str, Any]:
    return {
        "name": "gpu1",
        "endpoint": "10.120.0.11",
        "allowed_ips": ["100.64.0.2/32"],
        "public_key": key(2),
        **changes,
    }


def desired(**changes: Any) -> link.Link:
    values = options(**changes)
    peers, _unresolved = link.resolve(values, {})
    return link.desired_link(values, key(1), peers)


DUMP = "\n".join(
    [
        f"{key(9)}\t{key(1)}\t51820\toff",
        f"{key(2)}\t(none)\t10.120.0.11:51820\t100.64.0.2/32\t1000\t148\t92\toff",
        f"{key(3)}\t(none)\t[fd00:120::12]:51820\t100.64.0.3/32,fd00:200::3/128\t0\t0\t0\toff",
    ]
)
ADDRESS = json.dumps(
    [
        {},
        {
            "ifname": "moat0",
            "flags": ["POINTOPOINT", "NOARP", "UP", "LOWER_UP"],
            "mtu": 1420,
            "linkinfo": {"info_kind": "tun"},
            "addr_info": [
                {"family": "inet6", "local": "fd00:200::1", "prefixlen": 128, "scope": "global"},
                {"family": "inet", "local": "100.64.0.1", "prefixlen": 32, "scope": "global"},
                {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"},
            ],
        },
    ]
)
ROUTES4 = json.dumps([{"dst": "100.64.0.2", "scope": "link"}, {"dst": "100.64.0.3", "scope": "link"}])
ROUTES6 = json.dumps(
    [
        {"dst": "fd00:200::1", "protocol": "kernel", "metric": 256},
        {"dst": "fd00:200::3", "metric": 1024},
        {"dst": "fe80::/64", "protocol": "kernel"},
    ]
)


def live(dump: str = DUMP, address: str = ADDRESS, routes4: str = ROUTES4, routes6: str = ROUTES6) -> link.Link:
    names = {key(2): "gpu1", key(3): "gpu2"}
    return link.with_network(link.parse_dump(dump, "moat0", names), address, routes4, routes6)


@pytest.mark.parametrize(
    "text, sound",
    [
        (key(1), True),
        ("", False),
        ("x", False),
        (key(1)[:-1], False),
        (key(1) + "\n", False),
        (base64.b64encode(b"x" * 31).decode(), False),
        # the last digit before the padding has two bits that must be zero
        ("A" * 42 + "B=", False),
        ("ü" * 44, False),
    ],
)
def test_a_key_is_32_bytes_in_canonical_base64(text: str, sound: bool) -> None:
    assert link.is_key(text) is sound


def test_an_ipv6_endpoint_has_brackets() -> None:
    assert link.endpoint_text("10.0.0.1", 51820) == "10.0.0.1:51820"
    assert link.endpoint_text("FD00:0::1", 1) == "[fd00::1]:1"


def test_sound_options_have_no_fault() -> None:
    assert link.faults_of(options()) == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"interface": "a b"}, "interface: 'a b'"),
        ({"interface": "../x"}, "interface: '../x'"),
        ({"interface": "a" * 16}, "interface:"),
        ({"port": 0}, "port: 0"),
        ({"port": 65536}, "port: 65536"),
        ({"mtu": 1279}, "mtu: 1279"),
        ({"addresses": []}, "addresses: is empty"),
        ({"addresses": ["x"]}, "addresses: 'x'"),
        ({"peers": [peer(name="a\nb")]}, ".name: use letters"),
        ({"peers": [peer(), peer(public_key=key(5), allowed_ips=["100.64.0.9/32"])]}, "peers[gpu1]: is there twice"),
        ({"peers": [peer(endpoint="gpu1.example.org")]}, "endpoint: 'gpu1.example.org' is no address"),
        ({"peers": [peer(allowed_ips=[])]}, "allowed_ips: is empty"),
        ({"peers": [peer(allowed_ips=["x"])]}, "allowed_ips: 'x'"),
        ({"peers": [peer(allowed_ips=["0.0.0.0/0"])]}, "0.0.0.0/0 is everybody"),
        ({"peers": [peer(allowed_ips=["::/0"])]}, "::/0 is everybody"),
        ({"peers": [peer(allowed_ips=["100.64.0.0/24"])]}, "holds an address of this host"),
        ({"peers": [peer(public_key="x")]}, "public_key: is no WireGuard key"),
        ({"peers": [peer(), peer(name="b", allowed_ips=["100.64.0.9/32"])]}, "public_key: is that of gpu1 too"),
    ],
)
def test_each_fault_names_its_key(changes: dict[str, Any], words: str) -> None:
    faults = link.faults_of(options(**changes))
    assert len(faults) == 1, faults
    assert words in faults[0]


def test_all_faults_come_at_once() -> None:
    assert len(link.faults_of(options(port=0, mtu=0, addresses=["x"], peers=[peer(endpoint="x", public_key="y")]))) == 5


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    "one, other",
    [
        (["100.64.0.2/32"], ["100.64.0.2/32"]),
        (["100.64.0.2/31"], ["100.64.0.3/32"]),
        (["100.65.0.0/16"], ["100.65.0.1/32", "100.65.200.0/24"]),
        (["fd00:200::/120"], ["fd00:200::5/128"]),
    ],
)
def test_an_address_of_two_peers_is_refused(one: list[str], other: list[str], swapped: bool) -> None:
    peers = [peer(name="a", allowed_ips=one, public_key=""), peer(name="b", allowed_ips=other, public_key="")]
    faults = link.faults_of(options(addresses=["100.70.0.1/32"], peers=peers[::-1] if swapped else peers))
    assert len(faults) == len(other)
    assert all("overlaps" in fault for fault in faults)


def test_neighbouring_addresses_do_not_overlap() -> None:
    peers = [
        peer(name="a", allowed_ips=["100.64.0.2/31", "fd00:200::2/127"], public_key=""),
        peer(name="b", allowed_ips=["100.64.0.4/32", "fd00:200::4/128"], public_key=""),
    ]
    assert link.faults_of(options(peers=peers)) == []


def test_a_link_that_is_taken_away_needs_no_addresses() -> None:
    assert link.faults_of(options(state="absent", addresses=[], peers=[])) == []
    assert link.faults_of(options(state="absent", interface="a/b")) != []


def test_a_peer_without_a_key_is_left_out_by_name() -> None:
    peers, unresolved = link.resolve(options(peers=[peer(public_key=None), peer(name="gpu2", public_key=key(3))]), {})
    assert [item.name for item in peers] == ["gpu2"]
    assert unresolved == ["gpu1"]


def test_a_key_that_only_the_host_knows_stays() -> None:
    peers, unresolved = link.resolve(options(peers=[peer(public_key=None)]), {"gpu1": key(7), "gone": key(8)})
    assert [(item.name, item.public_key) for item in peers] == [("gpu1", key(7))]
    assert unresolved == []


def test_a_given_key_wins_over_the_one_on_the_host() -> None:
    peers, _unresolved = link.resolve(options(peers=[peer()]), {"gpu1": key(7)})
    assert peers[0].public_key == key(2)


def test_a_kept_key_that_is_another_peers_now_is_not_used_twice() -> None:
    peers, unresolved = link.resolve(
        options(peers=[peer(name="old", public_key=None), peer(name="new", public_key=key(7))]), {"old": key(7)}
    )
    assert [item.name for item in peers] == ["new"]
    assert unresolved == ["old"]


def test_order_of_peers_and_addresses_never_changes_the_configuration() -> None:
    turned = options()
    turned["peers"] = turned["peers"][::-1]
    turned["addresses"] = turned["addresses"][::-1]
    peers, _unresolved = link.resolve(turned, {})
    assert link.configuration(link.desired_link(turned, key(1), peers), key(9)) == link.configuration(desired(), key(9))


def test_the_configuration() -> None:
    assert (
        link.configuration(desired(), key(9))
        == f"""\
# Managed by moat.inference: what is changed by hand is undone by the next run.
[Interface]
PrivateKey = {key(9)}
ListenPort = 51820
Address = 100.64.0.1/32
Address = fd00:200::1/128
MTU = 1420

[Peer]
# gpu1
PublicKey = {key(2)}
AllowedIPs = 100.64.0.2/32
Endpoint = 10.120.0.11:51820

[Peer]
# gpu2
PublicKey = {key(3)}
AllowedIPs = 100.64.0.3/32, fd00:200::3/128
Endpoint = [fd00:120::12]:51820
"""
    )


def test_the_configuration_reads_back() -> None:
    parsed = link.parse_configuration(link.configuration(desired(), key(9)))
    assert parsed.private_key == key(9)
    assert parsed.names() == {"gpu1": key(2), "gpu2": key(3)}


@pytest.mark.parametrize(
    "text, private_key, peers",
    [
        ("", "", ()),
        ("nonsense\n= =\n[", "", ()),
        ("PrivateKey = a", "", ()),
        ("[Peer]\nPublicKey=a=#c\n# late", "", (("", "a="),)),
        ("[interface]\n privatekey=a= # c\n#PrivateKey = b\n[PEER]\n#n\npublickey = k", "a=", (("n", "k"),)),
        ("# n\n[Peer]\nPublicKey = k\n", "", (("", "k"),)),
    ],
)
def test_any_text_is_read_without_a_fault(text: str, private_key: str, peers: tuple[tuple[str, str], ...]) -> None:
    assert link.parse_configuration(text) == link.Parsed(private_key, peers)


def test_a_peer_with_a_broken_key_or_no_name_is_not_known() -> None:
    text = f"[Peer]\n# a\nPublicKey = broken\n[Peer]\nPublicKey = {key(2)}\n[Peer]\n# c\nPublicKey = {key(3)}\n"
    assert link.parse_configuration(text).names() == {"c": key(3)}


@pytest.mark.parametrize(
    "text, faults",
    [
        ("", 2),
        (f"[Interface]\nPrivateKey = {key(9)}\n", 1),
        (f"[Interface]\nPrivateKey = {key(8)}\n[Peer]\nPublicKey = {key(2)}\n", 1),
        (f"[Interface]\n[Peer]\nPublicKey = {key(2)}\n", 1),
        (f"[Interface]\nPrivateKey = {key(9)}\n[Peer]\nPublicKey = {key(2)}\n[Peer]\nPublicKey = {key(3)}\n", 1),
        (f"[Interface]\nPrivateKey = {key(9)}\n[Peer]\nPublicKey = {key(2)}\n", 0),
    ],
)
def test_what_would_wipe_key_or_peers_is_refused(text: str, faults: int) -> None:
    assert len(link.stripped_faults(text, key(9), {key(2)})) == faults


def test_an_empty_key_never_passes_for_the_private_key() -> None:
    assert link.stripped_faults("", "", set()) == ["it does not hold the private key"]


def test_a_diff_holds_no_secret() -> None:
    text = link.configuration(desired(), key(9)) + f"PresharedKey={key(8)}\n  privatekey = {key(9)} # note {key(9)}\n"
    for own in ("", key(9), key(8)):
        shown = link.redacted(text, own)
        assert key(9) not in shown
        assert key(8) not in shown
        assert key(3) in shown
    assert "PrivateKey = (hidden)\n" in link.redacted(text, key(9))
    assert "PrivateKey = (hidden), another one\n" in link.redacted(text, key(8))


def test_what_runs_as_planned_needs_nothing() -> None:
    found = live()
    assert (found.kind, found.up) == ("tun", True)
    delta = link.compare(link.settled_endpoints(found, desired(), 5000), desired())
    assert delta == link.Delta()
    assert link.shown(found) == link.shown(desired())


def test_the_private_key_of_a_dump_is_not_kept() -> None:
    dump = DUMP.replace("(none)", key(8))
    found = live(dump)
    assert key(9) not in repr(found) + link.shown(found)
    assert key(8) not in repr(found) + link.shown(found)
    assert all(item.preshared for item in found.peers)


def test_a_fresh_interface_reads_as_empty() -> None:
    found = link.parse_dump("(none)\t(none)\t0\toff\n", "moat0", {})
    assert (found.public_key, found.port, found.peers) == ("", 0, ())


@pytest.mark.parametrize(
    "dump, words",
    [
        (DUMP.replace(key(1), key(4)), f"public key is {key(4)}"),
        (DUMP.replace("\t51820\t", "\t4444\t"), "listen port is 4444"),
        (DUMP.replace("51820\toff", "51820\t0x7"), "firewall mark is 0x7"),
        (DUMP + f"\n{key(6)}\t(none)\t(none)\t(none)\t0\t0\t0\toff", f"peer {key(6)} is not in the plan"),
        (DUMP.rsplit("\n", 1)[0], "peer gpu2 is missing"),
        (DUMP.replace("100.64.0.2/32", "100.64.0.0/24"), "allowed addresses of gpu1 differ"),
        (DUMP.replace("100.64.0.2/32", "(none)"), "allowed addresses of gpu1 differ"),
        (DUMP.replace("10.120.0.11:51820", "10.1.1.1:51820"), "endpoint of gpu1 differs"),
        (DUMP.replace("10.120.0.11:51820", "(none)"), "endpoint of gpu1 differs"),
    ],
)
def test_drift_of_the_tunnel_is_synchronised(dump: str, words: str) -> None:
    delta = link.compare(link.settled_endpoints(live(dump), desired(), 5000), desired())
    assert delta.reasons == [words]
    assert delta.sync
    assert not delta.clear


@pytest.mark.parametrize(
    "dump",
    [
        DUMP.replace(f"{key(2)}\t(none)", f"{key(2)}\t{key(8)}"),
        DUMP.replace("1000\t148\t92\toff", "1000\t148\t92\t25"),
    ],
)
def test_what_syncconf_leaves_alone_is_cleared(dump: str) -> None:
    delta = link.compare(live(dump), desired())
    assert delta.clear == [key(2)]
    assert delta.reasons == ["keepalive or preshared key of gpu1 was set by hand"]


def test_drift_of_addresses_routes_and_link() -> None:
    address = ADDRESS.replace("100.64.0.1", "100.64.7.7").replace("1420", "1300")
    routes = json.dumps([{"dst": "100.64.0.2"}, {"dst": "100.64.9.0/24"}, {"dst": "default"}])
    delta = link.compare(live(address=address, routes4=routes), desired())
    assert not delta.sync
    assert (delta.addresses_added, delta.addresses_removed) == (["100.64.0.1/32"], ["100.64.7.7/32"])
    assert delta.routes_added == ["100.64.0.3/32"]
    assert delta.routes_removed == ["0.0.0.0/0", "100.64.9.0/24"]
    assert delta.link
    assert len(delta.reasons) == 6


def test_an_interface_that_is_down_is_drift() -> None:
    delta = link.compare(live(address=ADDRESS.replace('"UP", "LOWER_UP"', '"X"')), desired())
    assert delta.reasons == ["interface is down"]


@pytest.mark.parametrize("now, settled", [(1000, True), (1179, True), (1180, False), (999, False), (10**9, False)])
def test_an_endpoint_is_followed_only_as_long_as_its_session_lives(now: int, settled: bool) -> None:
    dump = DUMP.replace("10.120.0.11:51820", "10.120.0.11:40000")
    delta = link.compare(link.settled_endpoints(live(dump), desired(), now), desired())
    assert delta.sync is not settled


def test_there_is_no_route_where_the_address_brings_one() -> None:
    wanted = desired(addresses=["100.64.0.1/24", "fd00:200::1/128"])
    assert wanted.routes == ("fd00:200::3/128",)
    assert replace(wanted, routes=desired().routes) != wanted


def test_a_missing_link_shows_as_nothing() -> None:
    assert link.shown(None) == ""
