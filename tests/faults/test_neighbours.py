"""A good neighbour: only our own table is ever touched, and what others publish does not bypass it.

podman, fail2ban, ufw, firewalld and nftables.service are the real ones. The tables of Docker and libvirt are stand-ins with their names and
shapes, for their daemons are not in the image.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults import run
from tests.lab import table
from tests.lab.site import denied, on, plans

pytestmark = pytest.mark.usefixtures("as_it_was")
HOST, PEER = "app2", "app1"  # managed, with a firewall alone; and the one that is to reach what the first one publishes
PORT, WORD = 8088, "hello-neighbour"
UNIT = "moat-firewall.service"
SCRIPT = (Path(__file__).parent / "neighbours.sh").read_text(encoding="utf-8")
SETTLED = ("--limit", f"{HOST},{PEER}", "--tags", "firewall")
Rules = dict[str, list[dict[str, Any]]]
IN_FORCE: list[Rules] = []  # what the last run brought, when that is known

INTERFACES = {name: host.interfaces for name, host in table.load().hosts.items()}
CONTROLS: dict[str, Any] = {
    name: item["moat_control"]
    for name, item in yaml.safe_load((run.LAB / "hosts.yml").read_text(encoding="utf-8"))["all"]["children"]["probes"][
        "hosts"
    ].items()
}
PUBLISHED = [
    f"http://{address}:{PORT}/"
    for interface in INTERFACES[HOST]
    for address in (interface.address4, f"[{interface.address6}]")
]
OF_SEGMENT = set(PUBLISHED[:2])


def networks(name: str) -> dict[str, list[str]]:
    """Peers of a rule: one host's addresses in its segment."""
    first = INTERFACES[name][0]
    return {"peers4": [f"{first.address4}/32"], "peers6": [f"{first.address6}/128"]}


# The host may reach its own container, so that it can show that it answers; the peer's own firewall lets it ask.
ASKED: Rules = {
    HOST: [
        {
            "id": "own-container",
            "chain": "output",
            "protocol": "tcp",
            "ports": [80],
            "peers4": ["10.89.0.0/24"],
            "peers6": ["fd00:89::/64"],
            "reason": "the host checks its own container",
        }
    ],
    PEER: [
        {
            "id": "neighbour",
            "chain": "output",
            "protocol": "tcp",
            "ports": [PORT],
            **networks(HOST),
            "reason": "it uses what the neighbour publishes",
        }
    ],
}
ADMITTED: Rules = {
    HOST: [
        *ASKED[HOST],
        {
            "id": "published",
            "chain": "forward",
            "protocol": "tcp",
            "ports": [PORT],
            **networks(PEER),
            "reason": "the peer uses the container",
        },
    ],
    PEER: ASKED[PEER],
}


def firewall(rules: Rules, folder: Path, *arguments: str, intent: dict[str, Any] | None = None) -> run.Run:
    """Apply the firewall with these extra rules, as an operator would: by the site playbook and the inventory."""
    IN_FORCE.clear()
    overlay = folder / "overlay.yml"
    hosts = {name: {"firewall_extra_rules": rules.get(name, [])} for name in (HOST, PEER)}
    overlay.write_text(yaml.safe_dump({"all": {"hosts": hosts}}), encoding="utf-8")
    return run.play("moat.inference.site", *SETTLED, *arguments, intent=intent, inventory=(str(overlay),))


def apply(rules: Rules, folder: Path, *arguments: str) -> run.Run:
    ended = firewall(rules, folder, *arguments)
    assert ended.rc == 0, ended.out[-4000:]
    if not arguments:
        IN_FORCE.append(rules)
    return ended


def having(rules: Rules, folder: Path) -> None:
    """Begin with these rules, which the test before may have left."""
    if [rules] != IN_FORCE:
        apply(rules, folder)


def said(host: str, script: str) -> str:
    """Output of a script that must succeed."""
    answer = on(host, script)
    assert answer.code == 0, f"{host}: {script}: {answer.out}{answer.err}"
    return answer.out


def reached(source: str, urls: list[str]) -> set[str]:
    """Which of the addresses give the source the container's page; an intruder reaches its own control at the same time."""
    lines = [f"(curl -sg -m 2 {shlex.quote(url)} | grep -q {WORD} && echo {shlex.quote(url)}) &" for url in urls]
    control = CONTROLS.get(source)
    if control:
        lines += [f"(nc -z -w 2 {control[key]} {control['port']} && echo {key}) &" for key in ("address", "address6")]
    found = set(on(source, "\n".join([*lines, "wait"])).out.split())
    if control:
        assert {"address", "address6"} <= found, f"{source} reaches nobody, so its refusals prove nothing"
    return found - {"address", "address6"}


def intruders(urls: list[str]) -> dict[str, set[str]]:
    with ThreadPoolExecutor(5) as pool:
        return dict(zip(CONTROLS, pool.map(lambda name: reached(name, urls), CONTROLS), strict=True))


NOBODY: dict[str, set[str]] = {name: set() for name in CONTROLS}

FOREIGN = r"""
nft list tables | grep -vx 'table inet moat' | sort | while read -r _ family name; do nft -s list table "$family" "$name"; done
for program in iptables-nft-save ip6tables-nft-save; do $program | sed '/^#/d; s/\[[0-9]*:[0-9]*\]$//'; done
fail2ban-client status neighbour | grep -o 'Banned IP list:.*'
"""
OURS = f"nft -s list table inet moat; sha256sum /etc/moat/firewall/* /etc/systemd/system/{UNIT}; systemctl is-enabled {UNIT}"


def foreign() -> str:
    """Every table that is not ours, as nft and as iptables list it, and whom fail2ban bans."""
    return said(HOST, FOREIGN)


def ours() -> str:
    """Our table without what leaves it by itself, and what boot loads."""
    return re.sub(r"(\ttimeout \S+\n)\t\telements = \{[^}]*\}\n", r"\1", said(HOST, OURS))


def intact(before: str) -> None:
    """Nothing foreign differs, and the container serves its host in IPv4 and IPv6."""
    assert foreign() == before
    assert reached(HOST, sorted(OF_SEGMENT)) == OF_SEGMENT


# ufw is told to leave the kernel's settings alone, for a container's host would keep them
FILTERS: dict[str, tuple[str, str, str]] = {
    "ufw": (
        "sed -i 's/^IPT_SYSCTL=/#&/' /etc/default/ufw; ufw allow 22/tcp; ufw --force enable",
        "ufw disable",
        "ufw --force delete allow 22/tcp; sed -i 's/^#IPT_SYSCTL=/IPT_SYSCTL=/' /etc/default/ufw;"
        " nft delete table ip filter; nft delete table ip6 filter",
    ),
    "ufw from the next boot on": (
        "sed -i s/^ENABLED=.*/ENABLED=yes/ /etc/ufw/ufw.conf; systemctl enable ufw.service",
        "ufw disable",
        "systemctl disable ufw.service; nft delete table ip filter; nft delete table ip6 filter",
    ),
    "firewalld": ("systemctl enable --now firewalld.service", "systemctl disable --now firewalld.service", ""),
    "firewalld from the next boot on": (
        "systemctl enable firewalld.service",
        "systemctl disable --now firewalld.service",
        "",
    ),
    "nftables.service": (
        "systemctl enable --now nftables.service",
        "systemctl disable --now nftables.service",
        "nft delete table inet filter",
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_another_firewall_is_refused_with_the_remedy_and_nothing_is_touched(name: str, tmp_path: Path) -> None:
    start, remedy, cleanup = FILTERS[name]
    everything = (
        "nft -s list ruleset; find /etc/moat -type f -exec sha256sum {} +; systemctl show -p ActiveState moat-firewall"
    )
    said(HOST, f"{{ {start}; }} >/dev/null 2>&1")
    try:
        before = said(HOST, everything)
        refused = firewall(ADMITTED, tmp_path)
        assert refused.counts("failed")[HOST] == 1, refused.out[-4000:]
        assert said(HOST, everything) == before
        (failure,) = re.findall(rf"^fatal: \[{HOST}\].*", refused.out, re.M)
        told = re.findall(r"run: ([a-z][a-z0-9 .-]*)", failure)
        assert told == [remedy], refused.out[-4000:]
        said(HOST, told[0])
        apply(ADMITTED, tmp_path)
        assert '"extra-published"' in said(HOST, "nft list chain inet moat forward")
    finally:
        on(HOST, f"{remedy}; {cleanup}")


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What others made of the host's packet filter, before any of the tests that follow."""
    up = f"bash -s up <<'END_OF_SCRIPT'\n{SCRIPT}\nEND_OF_SCRIPT"
    down = f"bash -s down <<'END_OF_SCRIPT'\n{SCRIPT}\nEND_OF_SCRIPT"
    folder = tmp_path_factory.mktemp("neighbours")
    apply({}, folder)
    on(HOST, down)
    try:
        said(HOST, up)
        before = foreign()
        made = set(re.findall(r"^table (\S+ \S+) {", before, re.M))
        assert made == {
            "ip nat",
            "ip filter",
            "ip6 nat",
            "ip6 filter",
            "inet f2b-table",
            "ip libvirt_network",
        }
        for word in ("NETAVARK-DN-", "DOCKER-USER", "LIBVIRT_FWI", "192.0.2.66", "2001:db8::66", "MASQUERADE"):
            assert word in before, word
        yield before
    finally:
        apply({}, folder)
        said(HOST, down)


@pytest.fixture
def container(neighbours: str) -> Mapping[str, str]:
    """The container's own addresses, by version."""
    listed = said(HOST, "podman inspect neighbour")
    network = json.loads(listed)[0]["NetworkSettings"]["Networks"]["neighbour"]
    return {"4": network["IPAddress"], "6": network["GlobalIPv6Address"]}


def test_a_published_port_does_not_bypass_the_policy(neighbours: str, tmp_path: Path) -> None:
    having(ASKED, tmp_path)
    intact(neighbours)
    counted = denied(HOST)["deny-forward"]
    assert reached(PEER, PUBLISHED) == set()
    assert denied(HOST)["deny-forward"] > counted, "its host refused, not the asker's own firewall"
    assert intruders(PUBLISHED) == NOBODY
    intact(neighbours)


def test_a_route_to_the_container_does_not_bypass_the_policy(
    neighbours: str, container: Mapping[str, str], tmp_path: Path
) -> None:
    """A neighbour in the segment sends to the container's own address by way of its host."""
    intruder = "intruder-app"
    having(ASKED, tmp_path)
    via = INTERFACES[HOST][0]
    routes = f"ip route %s 10.89.0.0/24 via {via.address4}; ip -6 route %s fd00:89::/64 via {via.address6}"
    urls = [f"http://{container['4']}/", f"http://[{container['6']}]/"]
    said(intruder, routes.replace("%s", "replace"))
    try:
        counted = denied(HOST)["deny-forward"]
        assert reached(intruder, urls) == set()
        assert denied(HOST)["deny-forward"] > counted
        said(HOST, "nft add table inet moat '{ flags dormant; }'")  # the control: the same without the rules
        assert reached(intruder, urls) == set(urls)
    finally:
        on(HOST, f"systemctl restart {UNIT}")
        on(intruder, routes.replace("%s", "del"))


def test_a_rule_of_the_forward_chain_opens_it_for_its_peer_alone(neighbours: str, tmp_path: Path) -> None:
    apply(ADMITTED, tmp_path)
    assert reached(PEER, sorted(OF_SEGMENT)) == OF_SEGMENT
    assert intruders(PUBLISHED) == NOBODY
    intact(neighbours)
    again = apply(ADMITTED, tmp_path)
    assert not any(again.counts("changed").values()), again.out[-4000:]
    apply(ASKED, tmp_path)
    assert reached(PEER, sorted(OF_SEGMENT)) == set()
    intact(neighbours)


@pytest.mark.parametrize("verbs", ["restart", "reload", "stop start", "stop restart"])
def test_no_verb_of_the_unit_touches_another_table(neighbours: str, verbs: str, tmp_path: Path) -> None:
    having(ADMITTED, tmp_path)
    mine = ours()
    said(HOST, " && ".join(f"systemctl {verb} {UNIT}" for verb in verbs.split()))
    assert ours() == mine
    intact(neighbours)
    assert reached(PEER, sorted(OF_SEGMENT)) == OF_SEGMENT


def test_a_change_that_is_rolled_back_touches_no_other_table(neighbours: str, tmp_path: Path) -> None:
    having(ADMITTED, tmp_path)
    mine = ours()
    wrong = run.changed_intent(admin__from=["10.98.0.0/28", "fd00:98::/124"])
    settings = json.dumps({"firewall_check_connection": False, "firewall_confirm_timeout": 10})
    ended = firewall(ADMITTED, tmp_path, "-e", settings, "--limit", HOST, intent=wrong)
    assert ended.counts("failed")[HOST] == 1, ended.out[-4000:]
    assert "rolled back" in ended.out, ended.out[-4000:]
    assert ours() == mine
    intact(neighbours)
    assert reached(PEER, sorted(OF_SEGMENT)) == OF_SEGMENT
    assert intruders(PUBLISHED) == NOBODY


def test_uninstall_leaves_nothing_of_ours_and_all_of_the_others(
    neighbours: str, container: Mapping[str, str], tmp_path: Path
) -> None:
    having(ADMITTED, tmp_path)
    mine = ours()
    # Elsewhere this host is a client for a while; what the roles of a client leave is not the packet filter's, nor is how it gets out.
    assert plans()[HOST]["roles"] == ["firewall", "egress_client"]
    said(HOST, "rm -rf /etc/moat/certificate /etc/moat/connector /etc/moat/tls")
    foreign_rest = {line for line in left() if not OF_FILTER.search(line)}
    removed = apply(ADMITTED, tmp_path, "-e", "firewall_state=absent", "--limit", HOST)
    assert removed.counts("changed")[HOST] == 1
    # where egress_client keeps what it set
    assert set(left()) <= {*foreign_rest, "/etc/moat"}
    assert said(HOST, "ls /etc/moat") == "egress\n"
    intact(neighbours)
    # The control of every refusal in this file: without our table, the same probes reach the same addresses.
    everywhere = intruders(PUBLISHED)
    assert set().union(*everywhere.values()) == set(PUBLISHED)
    assert all(everywhere.values()), everywhere
    again = apply(ADMITTED, tmp_path, "-e", "firewall_state=absent", "--limit", HOST)
    assert not any(again.counts("changed").values())
    apply(ADMITTED, tmp_path)
    assert ours() == mine
    intact(neighbours)
    assert intruders(PUBLISHED) == NOBODY


OF_FILTER = re.compile(r"^table inet moat$|firewall|moat-undo|^/(etc|run)/moat(/|$)")


def left() -> list[str]:
    """What is on the host of a perimeter that was removed; the lab's own files are named moat-lab, or lie in /opt/moat."""
    script = r"""
nft list tables | grep -w moat
find / /run -xdev \( -path /proc -o -path /sys -o -path /opt/moat -o -path /etc/moat-lab \) -prune -o -name '*moat*' -print | grep -v moat-lab
systemctl list-units --all --plain --no-legend 'moat-*' | grep -v moat-lab
systemctl list-unit-files --no-legend 'moat-*' | grep -v moat-lab
true
"""
    return on(HOST, script).out.splitlines()


def test_nothing_is_left_that_the_search_would_not_have_found(neighbours: str, tmp_path: Path) -> None:
    """The control of the search above."""
    having(ADMITTED, tmp_path)
    found = "\n".join(line for line in left() if OF_FILTER.search(line))
    for word in (
        "table inet moat",
        "/etc/moat",
        f"/etc/systemd/system/{UNIT}",
        f"sysinit.target.wants/{UNIT}",
        f"{UNIT} ",
    ):
        assert word in found, word
