# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
from dataclasses import replace

import pytest
from ansible_collections.moat.inference.plugins.module_utils import ca_config
from ansible_collections.moat.inference.plugins.module_utils.ca_config import Settings

KEY = {"kty": "EC", "crv": "P-256", "x": "x", "y": "y", "kid": "k"}
GOOD = Settings(
    name="inference.internal",
    trust_domain="inference.internal",
    port=9443,
    dns_names=("ca1.ca.inference.internal", "fd00:140::10", "10.140.0.10"),
    allowed_names=("gpu1.gateway.inference.internal", "portal", "portal.client.inference.internal"),
    lifetime="24h",
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24h", 86400),
        ("5m", 300),
        ("1h30m", 5400),
        ("90s", 90),
        ("", None),
        ("24", None),
        ("1d", None),
        ("-5m", None),
        ("5m ", None),
    ],
)
def test_durations(text, value):
    assert ca_config.seconds(text) == value


def test_good_settings_have_no_fault():
    assert ca_config.faults(GOOD) == []


@pytest.mark.parametrize(
    ("change", "key", "remedy"),
    [
        ({"name": ""}, "ca_name", "write 1 to 40"),
        ({"name": "a\nb"}, "ca_name", "write 1 to 40"),
        ({"trust_domain": "Inference.Internal"}, "ca_trust_domain", "small letters"),
        ({"port": 0}, "ca_port", "1 to 65535"),
        ({"lifetime": "4m"}, "ca_lifetime", "not less than 5m"),
        ({"lifetime": "1d"}, "ca_lifetime", "24h"),
        ({"dns_names": ("10.140.0.10",)}, "ca_dns_names", "add one"),
        ({"dns_names": ("ca1.ca.inference.internal",)}, "ca_dns_names", "add the host's own"),
        ({"dns_names": ("ca1.ca.inference.internal", "0.0.0.0")}, "ca_dns_names", "the host's own"),
        ({"dns_names": ("ca1.ca.inference.internal", "::")}, "ca_dns_names", "the host's own"),
        ({"dns_names": ("ca1.elsewhere.example", "10.0.0.1")}, "ca_dns_names", "not below inference.internal"),
        ({"allowed_names": ()}, "ca_allowed_names", "name what may be issued"),
        ({"allowed_names": ("*.inference.internal",)}, "ca_allowed_names", "wildcards are not allowed"),
        ({"allowed_names": ("x.notinference.internal",)}, "ca_allowed_names", "not below inference.internal"),
        ({"allowed_names": ("10.0.0.1",)}, "ca_allowed_names", "no DNS name"),
        ({"allowed_names": ("a..inference.internal",)}, "ca_allowed_names", "no DNS name"),
        ({"allowed_names": ("evil\n.inference.internal",)}, "ca_allowed_names", "no DNS name"),
    ],
)
def test_every_fault_names_the_key_and_the_remedy(change, key, remedy):
    found = ca_config.faults(replace(GOOD, **change))
    assert [fault for fault in found if fault.startswith(key + ":") and remedy in fault], found


def test_all_faults_come_at_once():
    found = ca_config.faults(replace(GOOD, port=0, lifetime="x", allowed_names=()))
    assert {fault.split(":")[0] for fault in found} == {"ca_port", "ca_lifetime", "ca_allowed_names"}


def test_step_ca_listens_on_the_first_ipv4_address():
    assert GOOD.listeners() == ["10.140.0.10:9443", "[fd00:140::10]:9443"]


def test_the_policy_tells_common_names_from_dns_names():
    allow = ca_config.build(GOOD, KEY, "/d")["authority"]["policy"]["x509"]["allow"]
    assert allow == {
        "dns": ["gpu1.gateway.inference.internal", "portal.client.inference.internal"],
        "cn": ["portal"],
        "uri": ["inference.internal"],
    }


def test_nothing_secret_is_in_the_configuration():
    text = ca_config.render(ca_config.build(GOOD, KEY, "/d"))
    assert "encryptedKey" not in text and "password" not in text
    assert json.loads(text)["authority"]["provisioners"] == [{"type": "JWK", "name": "moat", "key": KEY}]


def test_lifetime_and_renewal():
    claims = ca_config.build(replace(GOOD, lifetime="1h"), KEY, "/d")["authority"]["claims"]
    assert claims["minTLSCertDuration"] == "5m0s"
    assert claims["defaultTLSCertDuration"] == claims["maxTLSCertDuration"] == "1h"
    assert claims["allowRenewalAfterExpiry"] is False and claims["disableRenewal"] is False


def test_the_order_of_names_does_not_matter():
    other = replace(GOOD, allowed_names=tuple(reversed(GOOD.allowed_names)))
    assert ca_config.build(GOOD, KEY, "/d") == ca_config.build(other, KEY, "/d")
