"""What a compromised host of models could try past the proxy: addresses, names, tunnels. As root and as the models' user.

The control of each is the same attempt from a stranger's host in the same segment, or from a host whose names are forwarded.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.behaviour.asking import At, python
from tests.lab.internet import ECHO_TCP, ECHO_UDP, FORBIDDEN, LEADS, TUNNEL, TUNNEL_SECRET, Internet
from tests.lab.shell import capture, privileged

Way = tuple[str, str, int]
TRACE = "inet moat_probe_trace"
# the kernel logs what network namespaces refuse only when told so; a host that is a machine needs no such thing
EVERY_NAMESPACE = "net.netfilter.nf_log_all_netns"
USERS = ("root", "model")

# Tries all ways at once and says of each what came back: "answered", or why not.
TRY = r"""
import concurrent.futures, errno, json, socket, subprocess, sys
QUESTION = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\x08packages\x07example\x03org\0\0\1\0\1"
DIG = {"dns": "+notcp", "dns-tcp": "+tcp", "dot": "+tls", "doh": "+https"}
def run(*argv):
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
def attempt(way):
    kind, address, port = way
    if kind == "icmp":
        done = run("ping", "-n", "-c", "1", "-W", "1", address)
        return "answered" if done.returncode == 0 else done.stdout[-200:]
    if kind in DIG:
        argv = ["dig", "+tries=1", "+time=1", DIG[kind], "-p", str(port), "@" + address, "packages.example.org", "A"]
        said = run(*argv).stdout
        return "answered" if "status: NOERROR" in said and "ANSWER: 1" in said else said[-200:]
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
            s.settimeout(1.2)
            s.connect((address, port))
            if kind != "tcp":
                s.send(b"\x23" + 47 * b"\0" if kind == "ntp" else b"moat")
                if len(s.recv(512)) != (48 if kind == "ntp" else 4):
                    return "something else"
        return "answered"
    except OSError as error:
        return errno.errorcode.get(error.errno, "silence") if error.errno else "silence"
ways = json.load(sys.stdin)
with concurrent.futures.ThreadPoolExecutor(len(ways)) as pool:
    sys.stdout.write(json.dumps(list(pool.map(attempt, ways))))
"""


def ways(internet: Internet) -> list[Way]:
    found: list[Way] = []
    for address in internet.web:
        found += [("tcp", address, port) for port in (80, *internet.ports, *ECHO_TCP)]
        found += [("udp", address, port) for port in ECHO_UDP]
        found += [("ntp", address, 123), ("icmp", address, 0)]
    for address in internet.resolvers:
        found += [("dns", address, 53), ("dns-tcp", address, 53), ("dot", address, 853), ("doh", address, 443)]
    return found


def packet(way: Way) -> tuple[str, str, int]:
    """Protocol, destination and port of the first packet of a way."""
    kind, address, port = way
    six = ":" in address
    protocol = {"icmp": "ipv6-icmp" if six else "icmp", "udp": "udp", "ntp": "udp", "dns": "udp"}.get(kind, "tcp")
    return protocol, str(ipaddress.ip_address(address)), port


@pytest.fixture(scope="module")
def host(plan: Any) -> str:
    """A host of models that has no default route."""
    return next(str(name) for name in sorted(plan.hosts) if {"model_server", "routes"} <= set(plan.host(name)))


@pytest.fixture(scope="module", params=USERS)
def user(request: pytest.FixtureRequest, model_user: str) -> str:
    return model_user if str(request.param) == "model" else "root"


@pytest.fixture
def outward(at: At, host: str, plan: Any, internet: Internet) -> Iterator[None]:
    """The routes that root of the host could add, to the internet by the router, and a trace of what becomes of the packets."""
    routers = {ipaddress.ip_address(item["via"]).version: item["via"] for item in plan.host(host)["routes"]["via"]}
    networks = [
        ipaddress.ip_network(f"{address}/{prefix}", strict=False)
        for address, prefix in zip(internet.web, internet.prefixes)
    ]
    routes = [f"ip -{network.version} route %s {network} via {routers[network.version]}" for network in networks]
    traced = "".join(
        f"add rule {TRACE} output {'ip' if network.version == 4 else 'ip6'} daddr {network} meta nftrace set 1\n"
        for network in networks
    )
    chain = f"add table {TRACE}\nadd chain {TRACE} output {{ type filter hook output priority -1; }}\n"
    try:
        at(host).check_output("; ".join(route % "replace" for route in routes))
        at(host).check_output(f"echo {shlex.quote(chain + traced)} | nft -f -")
        yield
    finally:
        at(host).run("; ".join([*(route % "delete" for route in routes), f"nft delete table {TRACE}"]))


@pytest.fixture
def kernel_log() -> Iterator[None]:
    before = capture(["sysctl", "-n", EVERY_NAMESPACE]).strip()
    capture(privileged(["sysctl", "-q", "-w", f"{EVERY_NAMESPACE}=1"]))
    try:
        yield
    finally:
        capture(privileged(["sysctl", "-q", "-w", f"{EVERY_NAMESPACE}={before}"]))


def test_a_stranger_without_a_perimeter_gets_out_by_each_way(at: At, stranger: str, internet: Internet) -> None:
    """The control."""
    tried = ways(internet)
    said = json.loads(at(stranger).check_output(python(TRY, tried)))
    assert [(way, answer) for way, answer in zip(tried, said) if answer != "answered"] == []


def test_no_way_leads_out(at: At, host: str, user: str, internet: Internet) -> None:
    """Nothing leaves the host, for there is no route: programs hear so at once."""
    tried = ways(internet)
    began = time.monotonic()
    said = json.loads(at(host).check_output(python(TRY, tried, user)))
    assert "answered" not in said
    told = {answer for way, answer in zip(tried, said) if way[0] in ("tcp", "udp", "ntp")}
    assert told == {"ENETUNREACH"}, said
    assert time.monotonic() - began < 20


def test_with_routes_the_packet_filter_refuses_each_way(
    at: At, host: str, user: str, plan: Any, internet: Internet, outward: None, kernel_log: None
) -> None:
    """Root adds routes. Each packet ends at the rule deny-output, which counts and logs it with the user's number."""
    tried = ways(internet)
    probe = internet.web[0]
    script = f"""
count() {{ nft list chain inet moat output | sed -n 's/.*counter packets \\([0-9]*\\).*"deny-output"$/\\1/p'; }}
trace=$(mktemp); before=$(count); since=$(cut -d. -f1 /proc/uptime)
nft monitor trace > $trace & sleep 0.3
{python(TRY, tried, user)}; echo
sleep 0.2; kill $!; cat $trace; rm $trace
echo "counted $(($(count) - before))"
# the log has a limited rate, so what it says of these packets may be the share of others
uid=$(id -u {user})
for try in $(seq 30); do
  dmesg | grep "moat deny-.* UID=$uid " | awk -v since=$since '{{ split($0, w, /[][ ]+/); if (w[2] + 0 >= since) print }}' > /run/moat-probe.log
  [ ! -s /run/moat-probe.log ] || break
  sleep 0.5; setpriv --reuid=$uid --clear-groups ping -n -c 1 -W 1 {probe} >/dev/null
done
sed 's/^/logged /' /run/moat-probe.log; rm /run/moat-probe.log
"""
    lines = at(host).run("bash -c " + shlex.quote(script)).stdout.splitlines()
    said = json.loads(next(line for line in lines if line.startswith("[")))
    assert "answered" not in said
    ends = verdicts(lines)
    assert {way: ends.get(packet(way)) for way in tried} == {way: {"deny-output drop"} for way in tried}
    assert int(next(line for line in lines if line.startswith("counted ")).split()[1]) >= len(tried)
    logged = [line for line in lines if line.startswith("logged ")]
    assert logged, "nothing of this user in the log"
    own = {
        ipaddress.ip_address(address)
        for item in plan.host(host)["firewall"]["segments"]
        for address in item["addresses"]
    }
    for line in logged:
        source = re.search(r"SRC=(\S+)", line)
        assert " moat deny-output " in line and source and ipaddress.ip_address(source[1]) in own, line


def verdicts(lines: list[str]) -> dict[tuple[str, str, int], set[str]]:
    """From a trace: for each destination, the rules of the table that ended its packets."""
    packets: dict[str, tuple[str, str, int]] = {}
    found: dict[tuple[str, str, int], set[str]] = {}
    for line in lines:
        if seen := re.match(r"trace id (\w+) inet moat output packet: .*? ip6? daddr (\S+) (.*)", line):
            kind = re.search(r"(?:ip protocol|ip6 nexthdr) (\S+)", seen[3])
            port = re.search(r" dport (\d+)", seen[3])
            packets[seen[1]] = (
                kind[1] if kind else "",
                str(ipaddress.ip_address(seen[2])),
                int(port[1]) if port else 0,
            )
        elif (end := re.match(r"trace id (\w+) inet moat output .*\(verdict (drop|accept)\)", line)) and end[
            1
        ] in packets:
            comment = re.search(r'comment "([^"]+)"', line)
            found.setdefault(packets[end[1]], set()).add(f"{comment[1] if comment else '-'} {end[2]}")
    return found


def servers(plan: Any) -> dict[str, dict[str, Any]]:
    return {name: plan.host(name)["private_dns"] for name in plan.hosts if "private_dns" in plan.host(name)}


def forwarded(plan: Any) -> str:
    """A host whose names are all resolved."""
    for server in servers(plan).values():
        for name in sorted(plan.hosts):
            addresses = [a for item in plan.host(name)["firewall"]["segments"] for a in item["addresses"]]
            if server["forward"] and set(addresses) & set(server["forward"]["for"]):
                return str(name)
    raise LookupError("no host has its names forwarded")


def test_names_of_the_internet_are_refused_and_logged(at: At, host: str, user: str, plan: Any) -> None:
    """By the resolver that the plan names, in UDP and TCP, of each type that a tunnel uses; it answers a host that may."""
    (server_name, server), *_ = servers(plan).items()
    fresh = f"x{time.time_ns()}"
    names = [f"{fresh}.{TUNNEL}", FORBIDDEN, "packages.example.org"]
    kinds = ("A", "AAAA", "TXT", "NULL", "CNAME", "MX", "SRV", "ANY")
    own = server["records"][0]["name"]

    def statuses(asker: str, become: str, asked: list[str]) -> list[str]:
        """One dig for UDP and one for TCP: first the private name, then the others in each type."""
        dig = f"dig +tries=1 +time=2 +noall +comments @{plan.host(asker)['resolvers'][0]}"
        questions = " ".join(f"{name} {kind}" for name in asked for kind in kinds)
        script = f"{dig} +notcp {own} A {questions}; {dig} +tcp {own} A {questions}"
        return re.findall(r"status: (\w+)", at(asker).run(f"{become}sh -c {shlex.quote(script)}").stdout)

    become = "" if user == "root" else f"setpriv --reuid={user} --regid={user} --clear-groups "
    after = json.loads(at(server_name).check_output("journalctl -u moat-private-dns -n 1 -o json"))["__CURSOR"]
    assert statuses(host, become, names) == ["NOERROR", *["REFUSED"] * (len(names) * len(kinds))] * 2
    log = at(server_name).check_output(f"journalctl -u moat-private-dns -o cat --after-cursor='{after}'")
    own_address = plan.host(host)["firewall"]["segments"][0]["addresses"][0]
    for name in names:
        for kind in kinds:
            assert len(re.findall(rf" {re.escape(own_address)} {re.escape(name)}\. {kind} IN REFUSED ", log)) == 2
    # the control: these names exist for a host whose names are forwarded
    assert statuses(forwarded(plan), "", names[1:]) == ["NOERROR"] * 2 * (1 + len(names[1:]) * len(kinds))


def test_forwarded_names_lead_to_no_address_inside(at: At, plan: Any, internet: Internet) -> None:
    """Who gets names of the internet resolved gets no address of the site from there (DNS rebinding)."""
    asker, parent = forwarded(plan), internet.wildcards[0]
    dig = f"dig +tries=1 +time=2 +short @{plan.host(asker)['resolvers'][0]}"
    # a translated address leads inside only where a translator does, and where one is, all of the internet has such addresses
    labels = [label for label in LEADS if label != "translated"]
    script = "; ".join(f"echo {label} $({dig} {label}.{parent} A {label}.{parent} AAAA)" for label in labels)
    said = {line.split()[0]: set(line.split()[1:]) for line in at(asker).check_output(script).splitlines()}
    known = internet.leads()
    outside = {label: set(known[f"{label}.{parent}"]) & set(internet.web) for label in labels}
    assert outside["edge"] == set(internet.web)
    # a name of both kinds may keep its outer address, or lose all
    mixed = {label for label in labels if outside[label] and outside[label] != set(known[f"{label}.{parent}"])}
    assert {label: said[label] for label in labels if label not in mixed} == {
        label: outside[label] for label in labels if label not in mixed
    }
    assert mixed and all(said[label] <= outside[label] for label in mixed)


def tunnel(server: str) -> str:
    """What iodine says until its tunnel is open, or it gives up, or 5 seconds are over."""
    script = f"""
log=$(mktemp)
iodine -f -r -P {TUNNEL_SECRET} -m 200 {server} {TUNNEL} > $log 2>&1 &
for try in $(seq 50); do
  ! grep -q 'Connection setup complete' $log && kill -0 $! 2>/dev/null || break
  sleep 0.1
done
kill $! 2>/dev/null; wait; cat $log; rm $log"""
    return "bash -c " + shlex.quote(script)


def test_a_tunnel_in_dns_opens_for_nobody_but_who_may_resolve(
    at: At, host: str, plan: Any, stranger: str, internet: Internet, outward: None
) -> None:
    """iodine, a real one. Only root can make its interface; the questions of the models' user are those of the test above."""
    resolver = plan.host(host)["resolvers"][0]
    ends = [
        (forwarded(plan), resolver),
        (stranger, internet.resolvers[0]),
        (host, resolver),
        (host, internet.resolvers[0]),
    ]
    with ThreadPoolExecutor(len(ends)) as pool:
        *controls, named, direct = pool.map(lambda end: at(end[0]).run(tunnel(end[1])).stdout, ends)
    assert all("Connection setup complete" in said for said in controls), controls
    assert "Got REFUSED as reply" in named and "No suitable DNS query type found" in named
    assert "Autodetecting DNS query type" in direct
    assert "Using DNS type" not in named + direct and "setup complete" not in named + direct
