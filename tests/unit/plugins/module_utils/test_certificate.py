"""What a certificate shall be, and why it is issued anew."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import certificate
from ansible_collections.moat.inference.plugins.module_utils.certificate import Certificate, Found

ITEM: dict[str, Any] = {
    "name": "gateway",
    "common_name": "gpu1.gateway.inference.internal",
    "dns": ["gpu1.gateway.inference.internal", "xray-7b.model.inference.internal"],
    "uris": ["spiffe://inference.internal/gateway/gpu1"],
    "lifetime": "24h",
    "reload_unit": "moat-gateway.service",
}
URL = "https://10.140.0.10:9443"
KEY = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----"
# as OpenSSL 3.0 prints a certificate that step-ca 0.30.2 issued
SHOWN = f"""serial=BE7BECB13D9BD4FED4CD5F27CBC47EAB
subject=CN=gpu1.gateway.inference.internal
notBefore=Nov 24 10:25:31 2026 GMT
notAfter=Nov 25 10:26:31 2026 GMT
{KEY}
X509v3 Subject Alternative Name:\x20
    DNS:gpu1.gateway.inference.internal, DNS:xray-7b.model.inference.internal, URI:spiffe://inference.internal/gateway/gpu1
"""
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
OTHER_PEM = PEM.replace("AAAA", "BBBB")
REQUEST = certificate.request_of(ITEM)


def good() -> Found:
    files = {"key.pem": "key\n", "cert.pem": PEM, "bundle.pem": PEM + "key\n", "root.pem": PEM}
    return Found(files, certificate.parse_certificate(SHOWN), KEY, True)


def now(found: Found, fraction: float) -> int:
    assert found.certificate
    return found.certificate.at(fraction)


def changed(**fields: Any) -> Found:
    found = good()
    assert found.certificate
    return dataclasses.replace(found, certificate=dataclasses.replace(found.certificate, **fields))


def without(file: str) -> Found:
    found = good()
    return dataclasses.replace(found, files={name: text for name, text in found.files.items() if name != file})


def faults(**fields: Any) -> list[str]:
    return certificate.request_faults([{**ITEM, **fields}], URL, 900, 300)


def test_the_plan_s_items_are_accepted() -> None:
    client = {
        "name": "connector-portal",
        "common_name": "portal",
        "dns": ["portal.client.inference.internal"],
        "uris": ["spiffe://inference.internal/client/portal"],
        "lifetime": "90m",
    }
    assert certificate.request_faults([ITEM, client], "https://[fd00:140::10]:9443", 600, 300) == []


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"name": "../etc"}, "items[0].name"),
        ({"name": "Gateway"}, "items[0].name"),
        ({"name": "gateway\n"}, "items[0].name"),
        ({"name": ""}, "items[0].name"),
        ({"common_name": "a" * 65}, "items[0].common_name"),
        ({"common_name": "portal\n[extensions]"}, "items[0].common_name"),
        ({"common_name": "portal, O=x"}, "items[0].common_name"),
        ({"dns": ["*.inference.internal"]}, "items[0].dns[0]"),
        ({"dns": ["a.b", "A.b"]}, "items[0].dns[1]"),
        ({"dns": ["a.b\nDNS.9 = c.d"]}, "items[0].dns[0]"),
        ({"dns": ["a.b", "a.b"]}, "items[0].dns: a name is listed twice"),
        ({"uris": ["spiffe://x/$ENV::HOME"]}, "items[0].uris[0]"),
        ({"uris": ["spiffe://x/a,URI:spiffe://x/b"]}, "items[0].uris[0]"),
        ({"uris": ["not a uri"]}, "items[0].uris[0]"),
        ({"dns": [], "uris": []}, "items[0]: neither dns nor uris"),
        ({"lifetime": "25h"}, "items[0].lifetime"),
        ({"lifetime": "4m59s"}, "items[0].lifetime"),
        ({"lifetime": "one day"}, "items[0].lifetime"),
        ({"lifetime": ""}, "items[0].lifetime"),
        ({"lifetime": "1h"}, "at most 600 seconds"),
        ({"reload_unit": "moat-gateway"}, "items[0].reload_unit"),
        ({"reload_unit": "a b.service"}, "items[0].reload_unit"),
        ({"probe": "fd00::1:8443:"}, "items[0].probe"),
    ],
)
def test_a_bad_item_is_refused_with_its_key(fields: dict[str, Any], key: str) -> None:
    found = faults(**fields)
    assert len(found) == 1
    assert key in found[0]


def test_all_faults_come_at_once() -> None:
    items = [{**ITEM, "lifetime": "x"}, {**ITEM, "common_name": "-"}]
    found = certificate.request_faults(items, "http://10.140.0.10", 0, -1)
    starts = [
        "ca_url",
        "renew_interval",
        "renew_jitter",
        "items[0].lifetime",
        "items[1].common_name",
        "items: the name 'gateway'",
    ]
    assert len(found) == len(starts)
    assert all(text.startswith(start) for text, start in zip(found, starts))


def test_openssl_s_output_is_understood() -> None:
    parsed = certificate.parse_certificate(SHOWN)
    assert parsed.serial == 0xBE7BECB13D9BD4FED4CD5F27CBC47EAB
    assert parsed.common_name == "gpu1.gateway.inference.internal"
    assert parsed.sans == frozenset(REQUEST.sans)
    assert parsed.lifetime == 86460
    assert parsed.public_key == KEY


@pytest.mark.parametrize(
    "text", ["", "unable to load certificate", SHOWN.replace("notAfter", "after"), SHOWN.replace(KEY, "")]
)
def test_what_is_no_certificate_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError):
        certificate.parse_certificate(text)


def test_names_of_other_types_stay_apart_from_dns_names() -> None:
    assert certificate.parse_names("DNS:a.b, IP Address:10.0.0.1, email:x@y") == [
        "a.b",
        "IP Address:10.0.0.1",
        "email:x@y",
    ]
    assert certificate.parse_names("") == []


def test_a_common_name_is_read_from_a_longer_subject() -> None:
    text = SHOWN.replace("subject=CN=gpu1.gateway.inference.internal", "subject=O=x,CN=portal,C=DE")
    assert certificate.parse_certificate(text).common_name == "portal"
    assert certificate.parse_certificate(SHOWN.replace("subject=CN=gpu1", "subject=O=CN\\=gpu1")).common_name == ""


def test_a_good_set_needs_nothing() -> None:
    found = good()
    assert certificate.recreate_reasons(REQUEST, found, PEM, now(found, 0.6)) == []
    assert certificate.recreate_reasons(REQUEST, found, "", now(found, 0.6)) == []


def test_the_order_of_names_is_no_drift() -> None:
    request = dataclasses.replace(REQUEST, dns=tuple(reversed(REQUEST.dns)))
    found = good()
    assert certificate.recreate_reasons(request, found, PEM, now(found, 0)) == []


@pytest.mark.parametrize(
    ("found", "reasons"),
    [
        (Found(), ["absent"]),
        (without("key.pem"), ["incomplete"]),
        (without("root.pem"), ["incomplete"]),
        (dataclasses.replace(good(), certificate=None), ["unreadable"]),
        (dataclasses.replace(good(), key=""), ["unreadable"]),
        (dataclasses.replace(good(), key=KEY.replace("MFkw", "MFkx")), ["key_mismatch"]),
        (dataclasses.replace(good(), files={**good().files, "bundle.pem": PEM}), ["bundle_mismatch"]),
        (dataclasses.replace(good(), files={**good().files, "root.pem": OTHER_PEM}), ["root"]),
        (dataclasses.replace(good(), trusted=False), ["chain"]),
        (changed(common_name="portal"), ["common_name"]),
        (changed(sans=frozenset(REQUEST.sans[1:])), ["sans"]),
        (changed(sans=frozenset([*REQUEST.sans, "IP Address:10.0.0.1"])), ["sans"]),
    ],
)
def test_each_fault_has_its_reason(found: Found, reasons: list[str]) -> None:
    assert certificate.recreate_reasons(REQUEST, found, PEM, now(good(), 0.1)) == reasons


def test_lifetime_allows_for_the_backdate_only() -> None:
    found = good().certificate
    assert found
    for lifetime, reasons in ((86400, []), (86400 - 120, ["lifetime"]), (3600, ["lifetime"])):
        assert certificate.drift(dataclasses.replace(REQUEST, lifetime=lifetime), found) == reasons


@pytest.mark.parametrize(
    ("fraction", "reasons"), [(0.66, []), (0.83, []), (0.84, ["overdue"]), (0.999, ["overdue"]), (1.0, ["expired"])]
)
def test_time_alone_gives_a_reason(fraction: float, reasons: list[str]) -> None:
    found = good()
    assert certificate.recreate_reasons(REQUEST, found, PEM, now(found, fraction)) == reasons


def test_without_a_root_the_host_s_own_still_has_to_be_led_to() -> None:
    found = dataclasses.replace(good(), trusted=False)
    assert certificate.recreate_reasons(REQUEST, found, "", now(found, 0)) == ["chain"]


def test_renewals_are_spread_between_half_and_two_thirds() -> None:
    fractions = []
    for serial in range(500):
        one = Certificate(serial, "", frozenset(), 0, 86400, "")
        assert one.due == Certificate(serial, "x", frozenset(), 0, 86400, "y").due
        fractions.append(one.due / 86400)
    assert min(fractions) >= 0.49 and max(fractions) <= 2 / 3
    assert max(fractions) - min(fractions) > 0.15


def test_the_bundle_is_the_chain_and_then_the_key() -> None:
    assert certificate.bundle("c1\nc2\n\n", "k") == "c1\nc2\nk\n"


def test_blocks_leave_out_what_stands_between_them() -> None:
    assert certificate.blocks("x\n" + PEM + "subject=/CN=x\n" + OTHER_PEM.replace("\n", "\r\n")) == [PEM, OTHER_PEM]
    assert certificate.blocks("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n") == []


def test_the_request_s_configuration_has_every_name_once() -> None:
    lines = certificate.request_config(REQUEST).splitlines()
    assert "CN = gpu1.gateway.inference.internal" in lines
    assert "DNS.2 = xray-7b.model.inference.internal" in lines
    assert "URI.1 = spiffe://inference.internal/gateway/gpu1" in lines
    assert len([line for line in lines if line.startswith(("DNS.", "URI."))]) == 3


def test_settings_are_what_the_renewal_reads_back() -> None:
    settings = json.loads(certificate.render_settings(ITEM, URL, "haproxy", True))
    assert certificate.request_of(settings) == REQUEST
    assert (settings["ca_url"], settings["bundle_group"], settings["new_key"]) == (URL, "haproxy", True)


def test_the_diff_of_a_good_certificate_is_empty() -> None:
    assert certificate.describe_certificate(good().certificate, 86400) == certificate.describe(REQUEST)
    assert certificate.describe_certificate(None, 86400) == ""


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86400), ("90m", 5400), ("1h30m", 5400), ("300s", 300)])
def test_durations(text: str, seconds: int) -> None:
    assert certificate.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "1d", "-1h", "1.5h", " 1h", "30m1h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        certificate.parse_duration(text)
