# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import configparser
import json

import pytest
from ansible_collections.moat.inference.plugins.module_utils import egress_client_merge as merge
from ansible_collections.moat.inference.plugins.module_utils.egress_client_merge import MergeError

PIP = """# house rules
[global]
; kept
timeout = 60
extra-index-url =
    https://a.example/
    https://b.example/

[install]
proxy = http://other:1
"""


def test_a_value_is_added_and_nothing_else_changes():
    text = merge.ini_set(PIP, "global", "proxy", "http://p:3128")
    assert [line for line in text.splitlines() if line not in PIP.splitlines()] == ["proxy = http://p:3128"]
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    assert parser["global"]["proxy"] == "http://p:3128" and parser["install"]["proxy"] == "http://other:1"
    assert parser["global"]["extra-index-url"].split() == ["https://a.example/", "https://b.example/"]
    assert merge.ini_set(text, "global", "proxy", "http://p:3128") == text
    assert merge.ini_set(text, "global", "proxy", None) == PIP


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "[global]\nproxy = p\n"),
        ("[install]\nx=1", "[install]\nx=1\n\n[global]\nproxy = p\n"),
        ("[global]\n", "[global]\nproxy = p\n"),
        ("[global]\nPROXY: old\n  further\n# c\nx=1\n", "[global]\nproxy = p\n# c\nx=1\n"),
        ("[global]\nproxy=a\nx=1\nproxy=b\n", "[global]\nproxy = p\nx=1\n"),
        ("[global]\r\nx=1\r\n", "[global]\r\nx=1\r\nproxy = p\r\n"),
        ("# proxy = no\n[global]\n#proxy = no\n", "# proxy = no\n[global]\n#proxy = no\nproxy = p\n"),
        ("[global]\nproxying = yes\n", "[global]\nproxying = yes\nproxy = p\n"),
    ],
)
def test_all_forms_of_a_section(before, after):
    assert merge.ini_set(before, "global", "proxy", "p") == after
    assert merge.ini_get(after, "global", "proxy") == "p"


@pytest.mark.parametrize("text", ["garbage\n", "x=1\n[global]\n", "[global\nx=1\n"])
def test_what_is_no_ini_is_refused(text):
    with pytest.raises(MergeError, match="repair it"):
        merge.ini_set(text, "global", "proxy", "p")


def test_json_keeps_order_and_indentation():
    text = '{\n    "log-driver": "journald",\n    "proxies": {"http-proxy": "http://old:1"},\n    "live-restore": true\n}\n'
    after = merge.json_set(text, ["proxies", "http-proxy"], "http://p:3128")
    assert list(json.loads(after)) == ["log-driver", "proxies", "live-restore"]
    assert '\n    "log-driver"' in after and after.endswith("}\n")
    assert merge.json_get(after, ["proxies", "http-proxy"]) == "http://p:3128"
    assert merge.json_set(after, ["proxies", "http-proxy"], "http://p:3128") == after
    assert json.loads(merge.json_set(after, ["proxies", "http-proxy"], None))["proxies"] == {}
    assert json.loads(merge.json_set("", ["a", "b"], "é")) == {"a": {"b": "é"}}


@pytest.mark.parametrize(("text", "keys"), [("{ broken", ["a"]), ("[]", ["a"]), ('{"a": 1}', ["a", "b"])])
def test_what_is_no_object_is_refused(text, keys):
    with pytest.raises(MergeError, match="repair it"):
        merge.json_set(text, keys, "x")


def test_hosts_have_the_addresses_of_the_name_in_order():
    text = "127.0.0.1 localhost\n10.9.9.9 proxy\n10.1.1.1 proxy other # shared\nfd00::1 tail"
    after = merge.hosts_set(text, "proxy", ["10.0.0.2", "fd00::2"])
    assert after == "127.0.0.1 localhost\n10.1.1.1 proxy other # shared\nfd00::1 tail\n10.0.0.2 proxy\nfd00::2 proxy\n"
    assert merge.hosts_set(after, "proxy", ["10.0.0.2", "fd00::2"]) == after
    assert merge.hosts_set(after, "proxy", []) == "127.0.0.1 localhost\n10.1.1.1 proxy other # shared\nfd00::1 tail\n"
    assert merge.hosts_set("127.0.0.1 localhost", "proxy", []) == "127.0.0.1 localhost"
