# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The connector's configuration: what it routes, to whom it listens, and which input is refused."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import connector

GPU1 = {
    "name": "gpu1",
    "addresses": ["100.120.0.11", "fd00:200::b"],
    "port": 8443,
    "server_name": "gpu1.gateway.inference.internal",
}
GPU2 = {**GPU1, "name": "gpu2", "addresses": ["100.120.0.12"], "server_name": "gpu2.gateway.inference.internal"}
PORTAL = {
    "name": "portal",
    "users": ["portal"],
    "port": None,
    "socket": "/run/moat-connector/portal.sock",
    "certificate": "connector-portal",
    "models": [{"name": "xray-7b", "prefix": "/xray-7b", "backends": [GPU1, GPU2]}],
}
BATCH = {
    "name": "batch",
    "users": ["batch", "night"],
    "port": 8081,
    "models": [{"name": "notes-1b", "backends": [GPU1]}],
}
SETTINGS = {
    "loopback": ["127.0.0.1", "::1"],
    "resolvers": [],
    "connect_timeout": 2,
    "response_timeout": 1800,
    "health_interval": 2,
    "drain_timeout": 3600,
    "replay": True,
    "replay_size": 131072,
    "max_connections": 500,
    "threads": 2,
    "access_log": True,
}
NOTHING_MISSING: dict[str, Any] = {"missing_users": [], "missing_files": []}


def sections(text: str) -> dict[str, list[str]]:
    """The lines of each section, by its heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if line and not line.startswith((" ", "#", ".")):
            heading = line
        found.setdefault(heading, []).append(line.strip())
    return found


def configuration(*clients: dict[str, Any], **settings: Any) -> dict[str, list[str]]:
    return sections(connector.plan(clients, {**SETTINGS, **settings})["config"])


def changed(path: str, value: Any) -> list[dict[str, Any]]:
    """PORTAL with one value replaced; path is like models.0.prefix."""
    client: Any = copy.deepcopy(PORTAL)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    target = client
    for key in parents:
        target = target[key]
    target[last] = value
    return [client]


def test_there_is_nothing_without_a_client() -> None:
    assert connector.plan([], SETTINGS) == {"config": "", "groups": [], "sockets": []}
    assert connector.needs([]) == {"users": [], "files": []}
    assert connector.faults([], SETTINGS) == []


def test_only_the_group_of_a_client_may_connect_to_its_socket() -> None:
    made = connector.plan([PORTAL, BATCH], SETTINGS)
    assert made["groups"] == [
        {"name": "moat-c-portal", "users": ["portal"], "socket": "/run/moat-connector/portal.sock"},
        {"name": "moat-c-batch", "users": ["batch", "night"], "socket": "/run/moat-connector/batch.sock"},
    ]
    assert made["sockets"] == ["/run/moat-connector/admin.sock", "/run/moat-connector/master.sock"]
    for name, lines in sections(made["config"]).items():
        for bind in [line for line in lines if line.startswith("bind unix@")]:
            client = name.split()[1]
            assert bind == (f"bind unix@/run/moat-connector/{client}.sock user root group moat-c-{client} mode 660")


def test_a_port_may_be_text_as_from_the_command_line() -> None:
    text = changed("port", "8081")
    assert connector.faults(text, SETTINGS) == []
    assert connector.plan(text, SETTINGS) == connector.plan(changed("port", 8081), SETTINGS)


def test_a_port_is_bound_on_loopback_only() -> None:
    made = configuration(PORTAL, BATCH)
    assert [line for line in made["frontend batch"] if line.startswith("bind") and "unix" not in line] == [
        "bind 127.0.0.1:8081",
        "bind [::1]:8081",
    ]
    assert sum(line.startswith("bind") for line in made["frontend portal"]) == 1


def test_a_client_reaches_its_own_models_only_with_its_own_certificate() -> None:
    made = configuration(PORTAL, BATCH)
    assert [line for line in made["frontend portal"] if line.startswith("use_backend")] == [
        "use_backend portal.xray-7b if { var(txn.model) -m str xray-7b }"
    ]
    assert [name for name in made if name.startswith("backend")] == [
        "backend portal.xray-7b",
        "backend batch.notes-1b",
    ]
    assert any("crt /etc/moat/tls/connector-portal/bundle.pem" in line for line in made["backend portal.xray-7b"])
    assert not any("connector-portal" in line for line in made["backend batch.notes-1b"])


def test_every_server_is_verified_by_name_and_checked() -> None:
    lines = configuration(PORTAL)["backend portal.xray-7b"]
    default = next(line for line in lines if line.startswith("default-server ssl"))
    for option in (
        "verify required",
        "ca-file /etc/moat/tls/connector-portal/root.pem",
        "ssl-min-ver TLSv1.3",
        " check ",
    ):
        assert option in default
    servers = [line.split() for line in lines if line.startswith("server ")]
    assert [(words[1], words[2], "backup" in words) for words in servers] == [
        ("gpu1", "100.120.0.11:8443", False),
        ("gpu1:1", "[fd00:200::b]:8443", True),
        ("gpu2", "100.120.0.12:8443", False),
    ]
    assert all(
        words[words.index("verifyhost") + 1] == f"{words[1][:4]}.gateway.inference.internal" for words in servers
    )
    assert "http-check send meth GET uri /xray-7b/ready ver HTTP/1.1 hdr Host connector" in lines


def test_a_name_is_dialled_with_the_planned_addresses_behind_it() -> None:
    made = configuration(PORTAL, resolvers=["10.140.0.53", "fd00:140::53"])
    assert [line for line in made["resolvers moat"] if line.startswith("nameserver")] == [
        "nameserver resolver0 10.140.0.53:53",
        "nameserver resolver1 [fd00:140::53]:53",
    ]
    servers = [line.split() for line in made["backend portal.xray-7b"] if line.startswith("server ")]
    assert [(words[1], words[2], "backup" in words, "resolvers" in words) for words in servers] == [
        ("gpu1", "ipv4@gpu1.gateway.inference.internal:8443", False, True),
        ("gpu1:0", "100.120.0.11:8443", True, False),
        ("gpu1:1", "[fd00:200::b]:8443", True, False),
        ("gpu2", "ipv4@gpu2.gateway.inference.internal:8443", False, True),
        ("gpu2:0", "100.120.0.12:8443", True, False),
    ]
    assert all(f"verifyhost {words[1][:4]}.gateway.inference.internal" in " ".join(words) for words in servers)
    first = " ".join(servers[0])
    assert "init-addr 100.120.0.11 resolve-prefer ipv4 resolve-net 100.120.0.11/32,fd00:200::b/128 " in first


def test_a_host_without_ipv4_is_looked_up_by_ipv6() -> None:
    only = changed("models.0.backends.0.addresses", ["fd00:200::b"])
    lines = configuration(*only, resolvers=["fd00:140::53"])["backend portal.xray-7b"]
    assert any("init-addr fd00:200::b resolve-prefer ipv6 resolve-net fd00:200::b/128 " in line for line in lines)


@pytest.mark.parametrize(("address", "family"), [("100.120.0.12", "ipv4"), ("fd00:200::c", "ipv6")])
def test_a_dead_host_ends_what_it_did_not_acknowledge(address: str, family: str) -> None:
    """HAProxy ignores tcp-ut on a line whose address is a name without a family, and says nothing of it."""
    only = changed("models.0.backends.0.addresses", [address])
    lines = configuration(*only, resolvers=["10.140.0.53"])["backend portal.xray-7b"]
    servers = [line.split() for line in lines if line.startswith("server ")]
    assert all(words[words.index("tcp-ut") + 1] == "15s" for words in servers)
    named = [words[2] for words in servers if "resolvers" in words]
    assert named[0] == f"{family}@gpu1.gateway.inference.internal:8443"
    assert all(name.startswith(("ipv4@", "ipv6@")) for name in named)


def test_no_failure_of_the_dns_takes_a_server_down() -> None:
    lines = configuration(PORTAL, resolvers=["10.140.0.53"])["resolvers moat"]
    held = {words[1]: words[2] for words in map(str.split, lines) if words and words[0] == "hold"}
    assert held == dict.fromkeys(("timeout", "refused", "nx", "other"), "24d")
    assert not any("libc" in line or "init-addr none" in line for line in lines)


def test_without_resolvers_nothing_is_looked_up() -> None:
    text = connector.plan([PORTAL, BATCH], SETTINGS)["config"]
    for word in ("resolvers", "resolve-", "init-addr", "dns-accept-family", "gateway.inference.internal:8443"):
        assert word not in text


def test_replay_can_be_turned_off() -> None:
    on, off = (
        configuration(PORTAL)["backend portal.xray-7b"],
        configuration(PORTAL, replay=False)["backend portal.xray-7b"],
    )
    assert "retry-on conn-failure empty-response 503" in on and "option http-buffer-request" in on
    assert "retry-on conn-failure" in off and "option http-buffer-request" not in off


def test_the_access_log_is_json_without_path_and_can_be_turned_off() -> None:
    line = next(line for line in configuration(PORTAL)["frontend portal"] if line.startswith("log-format"))
    filled = re.sub(r"%(\[[^\]]*\]\]?|[A-Za-z]+)", "1", line.split("'")[1])
    assert json.loads(filled)["client"] == "portal"
    assert not re.search(r"%((HU|HP|HQ|HPO|r)\b|\[[^]]*(path|url|query|body|hdr))", line)
    assert "no log" in configuration(PORTAL, access_log=False)["frontend portal"]


def test_every_error_is_json_and_a_503_says_when_to_come_back() -> None:
    lines = [line for line in configuration(PORTAL)["defaults"] if line.startswith("http-error")]
    assert len(lines) == len(connector.ERRORS)
    for line in lines:
        assert set(json.loads(line.split("'")[1])["error"]) == {"message", "type", "param", "code"}
        assert ("hdr Retry-After" in line) == ("status 503" in line)


def test_headers_that_could_lend_an_identity_are_removed() -> None:
    lines = configuration(PORTAL)["frontend portal"]
    for name in ("authorization", "cookie", "forwarded", "x-client- -m beg", "x-forwarded- -m beg"):
        assert f"http-request del-header {name}" in lines


def test_a_long_client_name_gives_a_group_name_that_groupadd_takes() -> None:
    names = {connector.group_name(name) for name in ("a" * 25, "a" * 26, "a" * 63, "a" * 62 + "b")}
    assert len(names) == 4
    assert all(len(name) <= 32 and re.fullmatch(r"moat-c-[a-z0-9-]*[a-z0-9]", name) for name in names)


def test_the_host_must_have_users_and_certificates() -> None:
    assert connector.needs([PORTAL, BATCH]) == {
        "users": ["batch", "night", "portal"],
        "files": [
            f"/etc/moat/tls/connector-{name}/{file}"
            for name in ("batch", "portal")
            for file in ("bundle.pem", "root.pem")
        ],
    }
    host = {"missing_users": ["night", "portal"], "missing_files": ["/etc/moat/tls/connector-batch/root.pem"]}
    for check_mode, count in ((True, 2), (False, 3)):
        found = connector.host_faults([PORTAL, BATCH], host, check_mode)
        assert len(found) == count
        assert found[0].startswith("connector_clients[0] (portal).users: the host has no user 'portal'")
    assert "root.pem missing; apply the role certificate" in found[-1]
    assert connector.host_faults([PORTAL, BATCH], NOTHING_MISSING, False) == []


def test_the_clients_of_the_plan_have_no_fault() -> None:
    assert connector.faults([PORTAL, BATCH], SETTINGS) == []


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("name", "Portal", ".name"),
        ("name", "a b\n    bind :80", ".name"),
        ("users", [], ".users"),
        ("users", ["a:b"], ".users"),
        ("users", ["a\nb"], ".users"),
        ("port", 0, ".port"),
        ("port", 65536, ".port"),
        ("socket", "/tmp/portal.sock", ".socket"),
        ("socket", "/run/moat-connector/../x.sock", ".socket"),
        ("socket", "/run/moat-connector/a b", ".socket"),
        ("socket", "/run/moat-connector/" + "a" * 80, ".socket"),
        ("socket", "/run/moat-connector/admin.sock", ".socket"),
        ("certificate", "../x", ".certificate"),
        ("models", [], ".models"),
        ("models.0.name", "x_y", ".models[0].name"),
        ("models.0.prefix", "/", ".models[0].prefix"),
        ("models.0.prefix", "xray", ".models[0].prefix"),
        ("models.0.prefix", "/a/b", ".models[0].prefix"),
        ("models.0.prefix", "/a }", ".models[0].prefix"),
        ("models.0.backends", [], ".models[0].backends"),
        ("models.0.backends.1.name", "gpu1", ".backends.name"),
        ("models.0.backends.0.name", "gpu1 check", ".backends[0].name"),
        ("models.0.backends.0.port", 70000, ".backends[0].port"),
        ("models.0.backends.0.addresses", [], ".backends[0].addresses"),
        ("models.0.backends.0.addresses", ["gpu1.example.org"], ".backends[0].addresses"),
        ("models.0.backends.0.addresses", ["fe80::1%eth0"], ".backends[0].addresses"),
        ("models.0.backends.0.server_name", "a verify none", ".backends[0].server_name"),
        ("models.0.backends.0.server_name", "_gateway.inference.internal", ".backends[0].server_name"),
    ],
)
def test_a_fault_names_its_key(path: str, value: Any, key: str) -> None:
    found = connector.faults(changed(path, value), SETTINGS)
    assert len(found) == 1
    assert key in found[0].split(": ")[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threads", 0),
        ("replay_size", 1000),
        ("loopback", []),
        ("loopback", ["0.0.0.0"]),
        ("loopback", ["localhost"]),
        ("resolvers", ["dns1.example.org"]),
        ("resolvers", ["10.140.0.53:53"]),
    ],
)
def test_a_setting_that_cannot_work_is_refused(key: str, value: Any) -> None:
    found = connector.faults([PORTAL], {**SETTINGS, key: value})
    assert len(found) == 1 and found[0].startswith(f"connector_{key}: ")


def test_all_faults_come_at_once_and_nothing_is_used_twice() -> None:
    other = {**copy.deepcopy(BATCH), "name": "portal", "socket": PORTAL["socket"]}
    third = {**copy.deepcopy(BATCH), "users": []}
    found = connector.faults([PORTAL, other, third], SETTINGS)
    assert [fault.split(": ")[0] for fault in found] == [
        "connector_clients[2] (batch).users",
        "connector_clients[1] (portal).name",
        "connector_clients[1] (portal).socket",
        "connector_clients[2] (batch).port",
    ]
