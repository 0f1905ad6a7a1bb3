"""The egress proxy as the hosts that may use it, and those that may not, see it."""

from __future__ import annotations

import ipaddress
import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

At = Callable[[str], Any]
CONFIGURATION = "/etc/moat/egress-proxy/squid.conf"

# Asks the proxy and reports the status, what TLS said, and its own port, by which the proxy's log is searched.
PROBE = r"""
import json, socket, ssl, sys
def ask(case):
    out = {"status": 0, "answer": "", "body": "", "port": 0}
    name, port = case["name"], case["port"]
    try:
        s = socket.create_connection((case["proxy"], case["proxy_port"]), 5)
        s.settimeout(8)
        out["port"] = s.getsockname()[1]
        if case["kind"] == "http":
            url = case.get("url") or "http://%s%s/" % (name, "" if port == 80 else ":%d" % port)
            head = "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n"
            s.sendall((head % (case.get("method", "GET"), url, case.get("header", name), case.get("more", ""))).encode())
        else:
            s.sendall(("CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (name, port, name, port)).encode())
        data = b""
        while b"\r\n\r\n" not in data or case["kind"] == "http":
            chunk = s.recv(65536)
            data += chunk
            if not chunk:
                break
        head, _, body = data.partition(b"\r\n\r\n")
        out["status"], out["body"] = int(head.split()[1]), body[:2000].decode("latin1")
        if case["kind"] == "raw" and out["status"] == 200:
            s.sendall(b"SSH-2.0-probe\r\n\r\n")
            out["answer"] = s.recv(100).decode("latin1")
        if case["kind"] == "tls" and out["status"] == 200:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(s, server_hostname=case.get("sni", name)) as tls:
                tls.sendall(("GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % name).encode())
                out["answer"] = tls.recv(65536)[:12].decode("latin1")
    except (OSError, ValueError, IndexError) as error:
        out["error"] = repr(error)
    return out
sys.stdout.write(json.dumps([ask(case) for case in json.load(sys.stdin)]))
"""

# Answers one name with the address in a file, at the loopback address of the proxy's host, and writes down what it is asked.
RESOLVER = r"""
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.53", 53))
while True:
    q, peer = s.recvfrom(2048)
    i, labels = 12, []
    while q[i]:
        labels.append(q[i + 1 : i + 1 + q[i]].decode("latin1"))
        i += 1 + q[i]
    kind = struct.unpack(">H", q[i + 1 : i + 3])[0]
    with open("/run/moat-probe/asked", "a") as log:
        log.write(".".join(labels).lower() + "\n")
    answers = b""
    for text in open("/run/moat-probe/answer").read().split():
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        if kind == (28 if ":" in text else 1):
            data = socket.inet_pton(family, text)
            answers += struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(data)) + data
    count = answers.count(b"\xc0\x0c")
    s.sendto(q[:2] + struct.pack(">HHHHH", 0x8580, 1, count, 0, 0) + q[12 : i + 5] + answers, peer)
"""


def encoded(script: str) -> str:
    return b64encode(script.encode()).decode()


@dataclass(frozen=True)
class Client:
    """A host that may use a proxy, and what its list says."""

    host: str
    proxy_host: str
    proxy: dict[str, Any]
    allow: list[dict[str, Any]]
    at: At

    def case(self, kind: str, name: str, port: int = 443, **more: Any) -> dict[str, Any]:
        return {
            "kind": kind,
            "name": name,
            "port": port,
            "proxy": self.proxy["addresses"][0],
            "proxy_port": self.proxy["port"],
            **more,
        }

    def ask(self, cases: list[dict[str, Any]]) -> list[tuple[bool, str, dict[str, Any]]]:
        """For each case: whether it got through, the rule in the proxy's log, and the answer."""
        since = int(time.time()) - 1
        script = f'echo {encoded(json.dumps(cases))} | base64 -d | python3 -c "$(echo {encoded(PROBE)} | base64 -d)"'
        answers = json.loads(self.at(self.host).check_output(script))
        time.sleep(0.3)
        rules = {}
        for line in self.log(since):
            if line["source"] in (self.host, "-"):
                rules[line["source_port"]] = line["rule"]
        return [(passed(case, answer), rules.get(answer["port"], ""), answer) for case, answer in zip(cases, answers)]

    def log(self, since: int) -> list[dict[str, Any]]:
        """The proxy's log since then; a line that is no JSON fails the test."""
        text = self.at(self.proxy_host).check_output(f"journalctl -u moat-egress-proxy -o cat --since @{since}")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def passed(case: dict[str, Any], answer: dict[str, Any]) -> bool:
    if case["kind"] == "http":
        return answer["status"] == 200
    return answer["status"] == 200 and bool(answer["answer"])


def clients(plan: Any, at: At) -> list[Client]:
    found = []
    for proxy_host in sorted(plan.hosts):
        proxy = plan.host(proxy_host).get("egress_proxy")
        for source in proxy["sources"] if proxy else ():
            if source["name"] != proxy_host and source["allow"]:
                found.append(Client(source["name"], proxy_host, proxy, source["allow"], at))
    return found


def names(client: Client, port: int) -> list[tuple[str, str]]:
    """Names that the client may reach at the port, and their rules."""
    return [
        (item["host"], item["rule"])
        for item in client.allow
        if port in item["ports"] and not item["host"].startswith("*.")
    ]


@pytest.fixture(scope="module")
def client(plan: Any, at: At) -> Client:
    """A client with two names for TLS, one of them for plain HTTP too, where another client has a name that it has not."""
    for found in clients(plan, at):
        if len(names(found, 443)) > 1 and set(names(found, 80)) & set(names(found, 443)):
            return found
    raise LookupError("no host of the plan may reach two names at 443 and one of them at 80")


@pytest.fixture(scope="module")
def name(client: Client) -> tuple[str, str]:
    return next(item for item in names(client, 443) if item in names(client, 80))


@pytest.fixture(scope="module")
def second(client: Client, name: tuple[str, str]) -> tuple[str, str]:
    return next(item for item in names(client, 443) if item != name)


@pytest.fixture(scope="module")
def public(client: Client, name: tuple[str, str]) -> str:
    """The address of the name, as the proxy's log has it."""
    since = int(time.time()) - 1
    (through,) = client.ask([client.case("http", name[0], 80)])
    assert through[:2] == (True, name[1]), through
    return next(str(line["destination"]) for line in client.log(since) if line["source_port"] == through[2]["port"])


def expect(client: Client, expected: list[tuple[dict[str, Any], str]]) -> None:
    """What rule `deny-...` refuses must not get through, everything else must; both with that rule in the log."""
    results = client.ask([case for case, _rule in expected])
    wrong = [
        (case, rule, result)
        for (case, rule), result in zip(expected, results)
        if result[:2] != (not rule.startswith("deny-"), rule)
    ]
    assert not wrong, wrong


def test_listed_names_are_reached_on_every_address(
    client: Client, name: tuple[str, str], second: tuple[str, str]
) -> None:
    expect(
        client,
        [
            *((client.case("tls", name[0], proxy=address), name[1]) for address in client.proxy["addresses"]),
            (client.case("http", name[0], 80), name[1]),
            (client.case("tls", second[0]), second[1]),
            (client.case("tls", name[0].upper(), sni=name[0]), name[1]),
            (client.case("tls", f"{name[0]}.", sni=name[0]), name[1]),
        ],
    )


def test_names_ports_and_methods_that_are_not_listed_are_refused(client: Client, name: tuple[str, str]) -> None:
    host, rule = name
    expect(
        client,
        [
            (client.case("tls", host), rule),
            (client.case("tls", f"x{host}"), "deny-name"),
            (client.case("tls", f"{host}.example.net"), "deny-name"),
            (client.case("http", f"x{host}", 80), "deny-name"),
            (client.case("tls", host, 8443), "deny-port"),
            (client.case("http", host, 8080), "deny-port"),
            *(
                (client.case("http", host, 80, method=method), "deny-method")
                for method in ("TRACE", "PURGE", "OPTIONS")
            ),
            *(
                (client.case("http", host, 80, url=f"{scheme}://{host}/"), "deny-protocol")
                for scheme in ("ftp", "https")
            ),
            (client.case("http", host, 80, url=f"http://{host}/squid-internal-mgr/info"), "deny-protocol"),
            (client.case("http", host, 80, url=f"http://{host}@x{host}/"), "deny-name"),
            (client.case("http", host, 80, url="/"), "deny-malformed"),
            (client.case("http", host, 80), rule),
        ],
    )


def test_each_source_has_its_own_list(plan: Any, at: At) -> None:
    every = clients(plan, at)
    for one in every:
        for other in every:
            own = {name for name, _rule in names(one, 443)}
            for name, rule in names(other, 443):
                if one.proxy_host == other.proxy_host and name not in own:
                    expect(other, [(other.case("tls", name), rule)])
                    expect(one, [(one.case("tls", name), "deny-name")])
                    return
    raise LookupError("all hosts of the plan have the same list")


def test_addresses_are_refused_in_every_form(client: Client, name: tuple[str, str], public: str) -> None:
    address = ipaddress.ip_address(public)
    number = int(address)
    forms = [str(address)] if address.version == 4 else [f"[{address}]"]
    if address.version == 4:
        a, b, c, d = address.packed
        forms += [str(number), hex(number), f"{a:#o}.{b:#o}.{c:#o}.{d:#o}".replace("0o", "0")]
        forms += [
            f"{a}.{b}.{c * 256 + d}",
            f"{a}.{(b * 256 + c) * 256 + d}",
            f"{hex(a)}.{b}.{hex(c)}.{d}",
            f"{address}.",
        ]
        forms += [f"[::ffff:{address}]"]
    forms += ["[::1]", "127.0.0.1", "127.1", "0", "2130706433", "169.254.169.254"]
    expect(
        client,
        [
            (client.case("tls", name[0]), name[1]),
            *((client.case("tls", form, sni=name[0]), "deny-address") for form in forms),
            *((client.case("http", form, 80), "deny-address") for form in forms),
        ],
    )


def test_tls_must_ask_for_the_name_that_was_named(
    client: Client, name: tuple[str, str], second: tuple[str, str]
) -> None:
    expect(
        client,
        [
            (client.case("tls", name[0]), name[1]),
            (client.case("tls", second[0]), second[1]),
            (client.case("tls", name[0], sni=second[0]), "deny-sni"),
            (client.case("tls", second[0], sni=name[0]), "deny-sni"),
            (client.case("tls", name[0], sni="elsewhere.example.net"), "deny-sni"),
            (client.case("tls", name[0], sni=None), "deny-sni"),
            (client.case("raw", name[0]), "deny-tls"),
        ],
    )


def test_another_host_header_never_leaves(client: Client, name: tuple[str, str]) -> None:
    """Squid puts the name of the URL in its place, so the lie ends at the proxy."""
    (plain, changed) = client.ask(
        [client.case("http", name[0], 80), client.case("http", name[0], 80, header="elsewhere.example.net")]
    )
    assert plain[:2] == changed[:2] == (True, name[1])
    assert changed[2]["body"] == plain[2]["body"]


def test_a_host_outside_the_plan_is_refused(plan: Any, client: Client, name: tuple[str, str]) -> None:
    """The proxy's own host, from its loopback address, stands for any source that has no list."""
    sources = {address for source in client.proxy["sources"] for address in source["addresses"]}
    stranger = "127.0.0.1"
    assert stranger not in sources
    script = (
        "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.settimeout(5); "
        f"s.connect(('{client.proxy['addresses'][0]}', {client.proxy['port']})); "
        f"s.sendall(b'CONNECT {name[0]}:443 HTTP/1.1\\r\\n\\r\\n'); print(s.getsockname()[1], s.recv(100).split()[1].decode())"
    )
    since = int(time.time()) - 1
    port, status = client.at(client.proxy_host).check_output(f'python3 -c "{script}"').split()
    time.sleep(0.3)
    rules = [line["rule"] for line in client.log(since) if line["source_port"] == int(port)]
    assert (status, rules) == ("403", ["deny-source"])


@pytest.fixture
def resolver(client: Client) -> Iterator[Callable[[str], None]]:
    """The proxy with a resolver that answers every name with the addresses it is told; a restart, for a reload keeps what was resolved."""
    host = client.at(client.proxy_host)
    before = host.check_output(f"sha256sum {CONFIGURATION}")
    host.check_output(
        f"set -e; mkdir -p /run/moat-probe; : > /run/moat-probe/asked; : > /run/moat-probe/answer; cp -p {CONFIGURATION} /run/moat-probe/was; "
        f'systemd-run -q -u moat-probe-dns python3 -c "$(echo {encoded(RESOLVER)} | base64 -d)"; '
        f"sed -i 's/^dns_nameservers.*/dns_nameservers 127.0.0.53/; s/^negative_dns_ttl.*/negative_dns_ttl 0 seconds/; "
        f"s/^positive_dns_ttl.*/positive_dns_ttl 1 second/' {CONFIGURATION}; systemctl restart moat-egress-proxy"
    )

    def answer(addresses: str) -> None:
        host.check_output(f"echo '{addresses}' > /run/moat-probe/answer")

    try:
        yield answer
    finally:
        host.run(
            f"cp -p /run/moat-probe/was {CONFIGURATION}; systemctl stop moat-probe-dns; rm -rf /run/moat-probe; systemctl restart moat-egress-proxy"
        )
        assert host.check_output(f"sha256sum {CONFIGURATION}") == before


def test_a_listed_name_leads_to_no_address_inside(
    client: Client, name: tuple[str, str], plan: Any, public: str, resolver: Callable[[str], None]
) -> None:
    host, rule = name
    inside = next(
        item["firewall"]["segments"][0]["addresses"][0]
        for item in (plan.host(other) for other in sorted(plan.hosts))
        if "ca" in item
    )
    refused = ["127.0.0.1", inside, f"{public} {inside}", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "fd00::1"]
    refused += ["::ffff:127.0.0.1", "64:ff9b::7f00:1"]
    resolver(public)
    expect(client, [(client.case("tls", host), rule), (client.case("http", host, 80), rule)])
    for addresses in refused:
        resolver(addresses)
        expect(
            client,
            [(client.case("tls", host), "deny-destination"), (client.case("http", host, 80), "deny-destination")],
        )
    resolver(public)
    expect(client, [(client.case("tls", host), rule), (client.case("tls", f"x{host}"), "deny-name")])
    asked = set(client.at(client.proxy_host).check_output("cat /run/moat-probe/asked").split())
    assert asked == {host}, "only names that are listed are ever resolved"


def test_reloads_refuse_no_allowed_request(client: Client, name: tuple[str, str]) -> None:
    """10 reloads while a client asks without pause, in TLS and in plain HTTP, each time over a new connection."""
    proxy = client.at(client.proxy_host)
    proxy.check_output(
        "systemd-run -q -u moat-probe-reload sh -c 'for i in $(seq 10); do systemctl reload moat-egress-proxy; done'"
    )
    results: list[tuple[bool, str, dict[str, Any]]] = []
    while proxy.run("systemctl is-active moat-probe-reload").stdout.strip() == "active":
        results += client.ask([client.case(kind, name[0], port) for kind, port in (("tls", 443), ("http", 80))] * 20)
    assert len(results) > 100
    assert [item for item in results if item[:2] != (True, name[1])] == []
