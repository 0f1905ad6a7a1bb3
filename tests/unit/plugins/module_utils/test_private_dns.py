# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.moat.inference.plugins.module_utils import private_dns

MODEL = {"name": "xray.model.inference.internal", "addresses": ["100.120.0.11", "fd00:200::11"]}
HOST = {"name": "gpu1.gateway.inference.internal", "addresses": ["100.120.0.11"], "reverse": True}
SETTINGS = {
    "domain": "inference.internal",
    "addresses": ["10.140.0.53", "fd00:140::53"],
    "clients": ["10.110.0.11/32", "10.120.0.11/32", "fd00:120::11/128"],
    "forward": {},
    "records": [MODEL, HOST],
}


def lines(**changed):
    text = private_dns.configuration({**SETTINGS, **changed})
    return [line.strip() for line in text.splitlines()]


def test_declared_names_have_their_addresses_and_some_a_way_back():
    found = lines()
    assert 'local-data: "xray.model.inference.internal. 60 IN A 100.120.0.11"' in found
    assert 'local-data: "xray.model.inference.internal. 60 IN AAAA fd00:200::11"' in found
    assert [line for line in found if line.startswith("local-data-ptr")] == [
        'local-data-ptr: "100.120.0.11 60 gpu1.gateway.inference.internal"'
    ]


def test_below_the_domain_nothing_else_exists_and_all_else_is_refused():
    found = lines()
    assert 'local-zone: "inference.internal." static' in found
    assert 'local-zone: "." always_refuse' in found
    assert not [line for line in found if "forward" in line or "tag" in line]


def test_whoever_is_no_client_gets_no_answer():
    found = [line for line in lines() if line.startswith("access-control:")]
    assert found == [
        "access-control: 0.0.0.0/0 deny",
        "access-control: ::0/0 deny",
        "access-control: 10.110.0.11/32 allow",
        "access-control: 10.120.0.11/32 allow",
        "access-control: fd00:120::11/128 allow",
    ]


def test_only_named_clients_are_forwarded_and_all_others_keep_the_refusal():
    found = lines(forward={"to": ["10.140.0.1"], "for": ["10.110.0.0/24"]})
    assert found[found.index("forward-zone:") :][:3] == ["forward-zone:", 'name: "."', "forward-addr: 10.140.0.1"]
    assert 'local-zone-tag: "." "refused"' in found
    assert [line for line in found if line.startswith("access-control-tag")] == [
        'access-control-tag: 10.120.0.11/32 "refused"',
        'access-control-tag: fd00:120::11/128 "refused"',
    ]


def test_no_answer_from_outside_leads_to_a_private_address():
    found = lines(forward={"to": ["10.140.0.1"], "for": ["10.110.0.0/24"]})
    assert {f"private-address: {network}" for network in private_dns.PRIVATE} <= set(found)


def test_the_file_is_checked_before_it_is_replaced():
    (file,) = private_dns.files(SETTINGS, "unbound")
    assert file["validate"] == ["unbound-checkconf", "%s"] and file["mode"] == "0640"


@pytest.mark.parametrize(
    ("change", "key", "word"),
    [
        ({"domain": "no domain", "records": []}, "private_dns_domain", "write a domain"),
        ({"addresses": []}, "private_dns_addresses", "is empty"),
        ({"addresses": ["10.0.0.0/8"]}, "private_dns_addresses", "not a network"),
        ({"addresses": ["x"]}, "private_dns_addresses", "write an address"),
        ({"clients": []}, "private_dns_clients", "is empty"),
        ({"clients": ["0.0.0.0/0"]}, "private_dns_clients", "everybody"),
        ({"clients": ["::/0"]}, "private_dns_clients", "everybody"),
        ({"forward": {"to": [], "for": ["10.0.0.1"]}}, "private_dns_forward.to", "is empty"),
        ({"forward": {"to": ["10.0.0.1"]}}, "private_dns_forward.for", "is empty"),
        ({"forward": {"to": ["10.0.0.0/8"], "for": ["10.0.0.1"]}}, "private_dns_forward.to", "not a network"),
        ({"records": [{**MODEL, "name": 'a" b'}]}, "private_dns_records[0].name", "write a full name"),
        ({"records": [{**MODEL, "name": "a.example.org"}]}, "private_dns_records[0].name", "not below"),
        ({"records": [{**MODEL, "addresses": []}]}, "private_dns_records[0].addresses", "is empty"),
        ({"records": [{**MODEL, "addresses": ["10.0.0.0/8"]}]}, "private_dns_records[0].addresses", "not a network"),
    ],
)
def test_a_fault_is_named_by_its_key(change, key, word):
    (fault,) = private_dns.faults({**SETTINGS, **change})
    assert fault.startswith(key) and word in fault


def test_all_faults_come_at_once():
    with pytest.raises(private_dns.PrivateDnsError) as caught:
        private_dns.configuration({**SETTINGS, "addresses": [], "clients": []})
    assert "private_dns_addresses" in str(caught.value) and "private_dns_clients" in str(caught.value)
