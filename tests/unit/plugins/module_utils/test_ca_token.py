# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.moat.inference.plugins.module_utils import ca_token

URL = "https://10.140.0.10:9443"
ITEM = {
    "name": "app1/connector-portal",
    "common_name": "portal",
    "sans": ["portal.client.inference.internal", "spiffe://inference.internal/client/portal"],
}
PARAMS = {"step": "step", "ca_url": URL, "root": "/r", "key_file": "/k", "password_file": "/p", "lifetime": "5m"}


def test_a_good_request_has_no_fault():
    assert ca_token.faults([ITEM], URL, "5m") == []
    assert ca_token.faults([ITEM], "https://[fd00:140::10]:9443", "5m") == []


@pytest.mark.parametrize(
    "url", ["", "http://10.0.0.1:9443", "10.0.0.1:9443", "https://", "https://u@h:1", "https://h:1?x"]
)
def test_an_address_that_a_client_cannot_call_is_refused(url):
    assert ca_token.faults([ITEM], url, "5m")[0].startswith("ca_url:")


@pytest.mark.parametrize("lifetime", ["", "0s", "61m", "1d", "forever"])
def test_a_token_does_not_live_long(lifetime):
    assert ca_token.faults([ITEM], URL, lifetime)[0].startswith("lifetime:")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"common_name": ""}, "common_name"),
        ({"common_name": "--offline"}, "common_name"),
        ({"common_name": "a b"}, "common_name"),
        ({"sans": []}, "sans"),
        ({"sans": ["--key"]}, "sans"),
        ({"sans": ["a\nb"]}, "sans"),
    ],
)
def test_a_name_cannot_become_an_option(change, word):
    (fault,) = ca_token.faults([{**ITEM, **change}], URL, "5m")
    assert fault.startswith(f"items[app1/connector-portal].{word}:")


def test_a_name_given_twice_is_refused():
    assert "twice" in ca_token.faults([ITEM, ITEM], URL, "5m")[0]


def test_all_faults_come_at_once():
    assert len(ca_token.faults([{**ITEM, "sans": []}], "x", "y")) == 3


def test_secrets_go_by_file_and_every_name_is_in_the_token():
    command = ca_token.command(ITEM, PARAMS)
    assert command[-2:] == ["--", "portal"]
    assert [command[i + 1] for i, word in enumerate(command) if word == "--san"] == ITEM["sans"]
    assert command[command.index("--provisioner-password-file") + 1] == "/p"
    assert command[command.index("--ca-url") + 1] == URL and command[command.index("--not-after") + 1] == "5m"


def test_a_token_is_told_from_anything_else():
    assert ca_token.parse("aGVhZA.Ym9keQ.c2ln\n") == "aGVhZA.Ym9keQ.c2ln"
    for text in ("", "error", "a.b", "a.b.c d"):
        with pytest.raises(ValueError, match="no token"):
            ca_token.parse(text)
