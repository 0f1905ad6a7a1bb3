"""What the firewall lets pass and what it refuses, as other hosts see it."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.lab.collection import environment, tool

Data = dict[str, Any]
At = Callable[[str], Any]
WATCHED = (22, 8081, 8443, 9101, 9443)


def dial(targets: Iterable[tuple[str, int]], options: str = "") -> str:
    """A shell script that tries all targets at once and prints `address port` for each that answers."""
    lines = [f"(nc -z -w 2 {options} {address} {port} && echo {address} {port}) &" for address, port in targets]
    return "sh -c " + shlex.quote("\n".join([*lines, "wait"]) + "\n")


def answering(host: Any, targets: Iterable[tuple[str, int]], options: str = "") -> set[tuple[str, int]]:
    """The targets that answer the host."""
    lines = host.run(dial(targets, options)).stdout.split("\n")
    return {(words[0], int(words[1])) for words in (line.split() for line in lines) if len(words) == 2}


def addresses(item: Data) -> list[str]:
    """Every address of a host, that of its administration too."""
    found = (item.get(key) for key in ("moat_address4", "moat_address6", "ansible_host"))
    return list(dict.fromkeys(address for address in found if address))


@pytest.fixture(scope="module")
def hostvars(inventory: str) -> dict[str, Data]:
    argv = tool("ansible-inventory", "-i", inventory, "--list")
    listed = subprocess.run(argv, env=environment(), check=True, capture_output=True).stdout
    return dict(json.loads(listed)["_meta"]["hostvars"])


@pytest.fixture(scope="module")
def managed(hostvars: dict[str, Data]) -> list[str]:
    return [name for name, item in hostvars.items() if item.get("moat_segment")]


@pytest.fixture(scope="module")
def probes(hostvars: dict[str, Data]) -> list[str]:
    return [name for name, item in hostvars.items() if item.get("moat_probe")]


@pytest.fixture(scope="module")
def tables(at: At, managed: list[str]) -> dict[str, str]:
    """Every managed host's table as the kernel has it."""
    with ThreadPoolExecutor(4) as pool:
        listed = pool.map(lambda name: at(name).run("nft list table inet moat").stdout, managed)
    return dict(zip(managed, listed))


def test_intruders_reach_one_another_and_no_managed_host(
    at: At, hostvars: dict[str, Data], managed: list[str], probes: list[str]
) -> None:
    forbidden = {(address, port) for name in managed for address in addresses(hostvars[name]) for port in WATCHED}

    def ask(name: str) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
        item = hostvars[name]
        control = {(item["moat_control"]["address"], int(item["moat_control"]["port"]))}
        control |= {(hostvars[other]["moat_address6"], 22) for other in probes if other != name}
        return control, answering(at(name), control | forbidden)

    with ThreadPoolExecutor(4) as pool:
        asked = dict(zip(probes, pool.map(ask, probes)))
    for name, (control, found) in asked.items():
        assert control <= found, f"{name} reaches nobody, so its refusals prove nothing"
        assert not found & forbidden, f"{name} reaches a managed host"


def test_the_controller_reaches_every_managed_host(hostvars: dict[str, Data], managed: list[str]) -> None:
    for name in managed:
        with socket.create_connection((hostvars[name]["ansible_host"], 22), 5) as connection:
            assert connection.recv(4) == b"SSH-"


@pytest.mark.parametrize("port", [22, 53, 123])
def test_no_source_port_opens_anything(
    at: At, hostvars: dict[str, Data], managed: list[str], probes: list[str], port: int
) -> None:
    probe, target = probes[0], managed[0]
    found = answering(at(probe), [(address, 22) for address in addresses(hostvars[target])], f"-p {port}")
    assert found == set()


def test_a_refusal_is_counted(at: At, hostvars: dict[str, Data], managed: list[str], probes: list[str]) -> None:
    count = "nft list chain inet moat input | sed -n 's/.*counter packets \\([0-9]*\\).*\"deny-input\"$/\\1/p'"
    host, address = at(managed[0]), hostvars[managed[0]]["moat_address4"]
    before = int(host.run(count).stdout)
    assert answering(at(probes[0]), [(address, 4444)]) == set()
    assert int(host.run(count).stdout) > before


def test_a_link_address_from_the_segment_is_no_link_address(
    at: At, hostvars: dict[str, Data], probes: list[str], plan: Any
) -> None:
    """An intruder in the gateway's own segment takes the address of a client that may."""
    gateway = next(name for name in plan.hosts if "gateway" in plan.host(name)["roles"])
    served = plan.host(gateway)["gateway"]
    inner, outer = served["clients"][0]["addresses"][0], hostvars[gateway]["moat_address4"]
    thief = next(
        name for name in probes if hostvars[name]["moat_address4"].rsplit(".", 1)[0] == outer.rsplit(".", 1)[0]
    )
    count = "nft list chain inet moat spoof | sed -n 's/.*counter packets \\([0-9]*\\).*\"deny-spoof-private-link-4\"$/\\1/p'"
    target = [(outer, served["port"])]
    before = int(at(gateway).run(count).stdout)
    assert answering(at(thief), target) == set()
    assert int(at(gateway).run(count).stdout) == before, "with its own address it is refused by another rule"
    try:
        at(thief).run(f"ip address add {inner}/32 dev eth0")
        assert answering(at(thief), target, f"-s {inner}") == set()
    finally:
        at(thief).run(f"ip address del {inner}/32 dev eth0")
    assert int(at(gateway).run(count).stdout) > before


def test_managed_hosts_send_nothing_undeclared(
    at: At, hostvars: dict[str, Data], managed: list[str], probes: list[str]
) -> None:
    targets = [(address, 22) for name in probes for address in addresses(hostvars[name])]
    with ThreadPoolExecutor(3) as pool:
        *silent, control = pool.map(lambda name: answering(at(name), targets), [*managed[:2], probes[0]])
    assert control, "nobody answers, so the refusals prove nothing"
    assert silent == [set(), set()]


def test_a_packet_that_a_route_discards_is_not_answered(
    at: At, hostvars: dict[str, Data], managed: list[str], probes: list[str]
) -> None:
    """No chain sees it, so only the chain output can refuse the kernel's error about it."""
    item = hostvars[managed[0]]
    network = item["moat_address4"].rsplit(".", 1)[0]
    host, probe = (
        at(managed[0]),
        at(next(p for p in probes if hostvars[p]["moat_address4"].rsplit(".", 1)[0] == network)),
    )
    ways = (("-4", "198.51.100.99", item["moat_address4"]), ("-6", "2001:db8:99::99", item["moat_address6"]))
    switches = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    kept = [f"{switch}={host.run(f'sysctl -n {switch}').stdout.strip()}" for switch in switches]
    ask = """
import socket
for family, address in ((socket.AF_INET, "198.51.100.99"), (socket.AF_INET6, "2001:db8:99::99")):
    asked = socket.socket(family, socket.SOCK_DGRAM)
    asked.settimeout(0.5)
    # without it an unreachable host is no error to a datagram's sender (ip(7), ipv6(7): IP_RECVERR, IPV6_RECVERR)
    asked.setsockopt(*((socket.IPPROTO_IP, 11, 1) if family == socket.AF_INET else (socket.IPPROTO_IPV6, 25, 1)))
    asked.connect((address, 9))
    try:
        # one packet: the kernel sends few of these errors to one address in a second
        asked.send(b"x")
        asked.recv(1)
    except TimeoutError:
        print("silent")
    except OSError:
        print("refused")
"""
    command = "python3 -c " + shlex.quote(ask)
    handle = ""
    try:
        for family, address, via in ways:
            assert host.run(f"ip {family} route add unreachable {address}").rc == 0
            assert probe.run(f"ip {family} route add {address} via {via}").rc == 0
        host.run("sysctl -qw " + " ".join(f"{switch}=1" for switch in switches))
        assert probe.run(command).stdout.split() == ["silent", "silent"]
        admitted = "meta l4proto { icmp, ipv6-icmp } counter accept"
        handle = host.run(f"nft -e -a insert rule inet moat output '{admitted}' | grep -o -m 1 'handle [0-9]*'").stdout
        assert probe.run(command).stdout.split() == ["refused", "refused"], "nobody hears of an open host either"
    finally:
        host.run(f"nft delete rule inet moat output {handle}")
        host.run("sysctl -qw " + " ".join(kept))
        for family, address, _via in ways:
            host.run(f"ip {family} route del unreachable {address}")
            probe.run(f"ip {family} route del {address}")


def test_every_chain_is_closed_and_every_verdict_counts(tables: dict[str, str]) -> None:
    for name, table in tables.items():
        for hook in ("input", "forward", "output"):
            assert f"type filter hook {hook} priority filter; policy drop;" in table, name
            assert re.search(rf'counter packets \d+ bytes \d+ drop comment "deny-{hook}"\n\t}}', table), name
        lines = table.splitlines()
        for number, line in enumerate(lines):
            if re.search(r"\b(accept|drop|reject)\b", line) and "policy" not in line:
                assert re.search(r"counter packets \d+ bytes \d+ .*comment \"[a-z0-9-]+\"$", line), (name, line)
                assert "limit rate" not in line, (name, line)
            if re.search(r'"deny-[a-z0-9-]+"$', line):
                assert re.search(r'limit rate \S+ (burst .*)?log prefix "moat deny-', lines[number - 1]), (name, line)


def test_every_rule_of_the_plan_has_its_line(tables: dict[str, str], plan: Any) -> None:
    for name, table in tables.items():
        for rule in plan.host(name)["firewall"]["rules"]:
            families = [family for family in ("4", "6") if rule.get(f"peers{family}")]
            accepts = re.findall(r"accept comment \"{}\"$".format(rule["id"]), table, re.M)
            assert len(accepts) == max(1, len(families)), (name, rule["id"])
            for family in families:
                assert "\tset {}_{} {{".format(rule["id"], family) in table, (name, rule["id"])


def test_a_local_port_is_for_its_users(at: At, managed: list[str], plan: Any) -> None:
    rules = [
        (name, rule) for name in managed for rule in plan.host(name)["firewall"]["rules"] if rule["chain"] == "local"
    ]
    for name, rule in rules:
        port, user = rule["ports"][0], rule["users"][0]
        script = f"""
count() {{ nft list chain inet moat local | sed -n 's/.*counter packets \\([0-9]*\\).*"'"$1"'"$/\\1/p'; }}
allowed=$(count {rule["id"]}) denied=$(count deny-{rule["id"]})
setpriv --reuid={user} --clear-groups nc -z -w 2 127.0.0.1 {port}
echo listed $(($(count {rule["id"]}) - allowed)) $(($(count deny-{rule["id"]}) - denied))
allowed=$(count {rule["id"]}) denied=$(count deny-{rule["id"]})
setpriv --reuid=nobody --clear-groups nc -z -w 2 127.0.0.1 {port} && echo open to nobody
setpriv --reuid=nobody --clear-groups nc -z -w 2 ::1 {port} && echo open to nobody
echo other $(($(count {rule["id"]}) - allowed)) $(($(count deny-{rule["id"]}) - denied))
"""
        said = at(name).run("sh -c " + shlex.quote(script)).stdout.split("\n")
        assert "open to nobody" not in said
        listed = next(line for line in said if line.startswith("listed")).split()
        other = next(line for line in said if line.startswith("other")).split()
        assert int(listed[1]) > 0 and listed[2] == "0", (name, rule["id"], said)
        assert other[1] == "0" and int(other[2]) >= 2, (name, rule["id"], said)


def test_a_free_local_port_cannot_be_taken_for_its_server(at: At, managed: list[str], plan: Any) -> None:
    """While the connector is down, another user who listens at its port gets no connection, and so no prompt."""
    server = (
        "import socket, sys; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1);"
        " s.bind((sys.argv[1], int(sys.argv[2]))); s.listen(); s.settimeout(4); print(s.accept() and sys.argv[3])"
    )
    for name in managed:
        for rule in plan.host(name)["firewall"]["rules"]:
            if rule["chain"] != "local":
                continue
            port, user = rule["ports"][0], rule["users"][0]
            # 127.0.0.2 is free, and the rules are about all of lo; the control is root's own listener there
            script = f"""
for server in root nobody; do
  setpriv --reuid=$server --clear-groups timeout 5 python3 -c {shlex.quote(server)} 127.0.0.2 {port} "taken by $server" & sleep 0.5
  setpriv --reuid={user} --clear-groups nc -z -w 2 127.0.0.2 {port}
  wait
done 2>/dev/null"""
            said = at(name).run("sh -c " + shlex.quote(script)).stdout.split("\n")
            assert "taken by root" in said and "taken by nobody" not in said, (name, rule["id"], said)


def test_stop_and_restart_stay_closed_and_touch_no_other_table(
    at: At, hostvars: dict[str, Data], managed: list[str], probes: list[str]
) -> None:
    host, probe = at(managed[-1]), at(probes[0])
    targets = [(address, 22) for address in addresses(hostvars[managed[-1]])]
    control = hostvars[probes[0]]["moat_control"]
    both = {*targets, (control["address"], int(control["port"]))}
    script = """
nft add table inet other_test
nft add chain inet other_test kept
rules() { for name in input output forward local spoof; do nft -s list chain inet moat "$name"; done | sha256sum; }
before=$(rules)
systemctl restart moat-firewall.service && [ "$before" = "$(rules)" ] && echo restarted
systemctl reload moat-firewall.service && [ "$before" = "$(rules)" ] && echo reloaded
systemctl stop moat-firewall.service && [ "$before" = "$(rules)" ] && echo stopped
nft list chain inet other_test kept >/dev/null && echo kept
"""
    try:
        assert host.run("sh -c " + shlex.quote(script)).stdout.split() == ["restarted", "reloaded", "stopped", "kept"]
        assert answering(probe, both) == {(control["address"], int(control["port"]))}
    finally:
        host.run("systemctl start moat-firewall.service; nft delete table inet other_test")
    assert host.run("systemctl is-active moat-firewall.service").stdout.strip() == "active"


def test_the_ruleset_on_disk_is_the_one_in_the_kernel_and_comes_before_the_network(at: At, managed: list[str]) -> None:
    script = """
live=$(nft -s -j list table inet moat)
disk=$(unshare -n sh -c 'nft -f /etc/moat/firewall/ruleset.nft && nft -s -j list table inet moat')
same() { printf '%s' "$1" | jq -S '[.nftables[] | map(del(.handle)) | map(if .timeout then del(.elem) else . end)]'; }
[ -n "$live" ] && [ "$(same "$live")" = "$(same "$disk")" ] && echo same
systemctl is-enabled moat-firewall.service
systemctl show -p Before,Wants,ExecStop --value moat-firewall.service | grep -c network-pre.target
systemctl show -p ExecStop --value moat-firewall.service
"""
    with ThreadPoolExecutor(4) as pool:
        said = pool.map(lambda name: at(name).run("sh -c " + shlex.quote(script)).stdout.split(), managed)
    assert dict(zip(managed, said)) == {name: ["same", "enabled", "2"] for name in managed}
